"""Makes samples with real models, through ``wcse.solve``; a problem that cannot be done becomes a failure.

All samples of a unit share one reading of the prompt. One sampler's models are in memory at a time.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import groupby
from typing import Self

from wcse.data.fingerprint import fingerprint_path
from wcse.data.record import SolveRecord
from wcse.flops import ModelCost
from wcse.models.load import find_model, read_spec
from wcse.models.spec import ModelSpec
from wcse.prompts import render_problem
from wcse.recipe import Recipe
from wcse.shots import shots_path
from wcse.solve import Models, solve, verifiers_of
from wcse.synth.cost import Size
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import Failure, SynthRecord
from wcse.synth.run import OnRecord, Task
from wcse.types import Problem

_HOPELESS = 8
"""So many failures without one success are the run's fault, not the problems'."""


def model_spec(name: str) -> ModelSpec:
    """A model's shape; no weight is read.

    Raises:
        WcseError: there is no such model.
    """
    return read_spec(name)[0]


def model_fingerprints(recipe: SynthRecipe) -> dict[str, str]:
    """Digests of every sampler's models and examples, by the field that names them.

    Raises:
        WcseError: a model cannot be found or read.
    """
    found = {}
    for name, spec in recipe.samplers.items():
        found[f"samplers.{name}.model"] = fingerprint_path(find_model(spec.model))
        if spec.verifier is not None:
            found[f"samplers.{name}.prm"] = fingerprint_path(find_model(spec.verifier))
        if spec.few_shot is not None:
            found[f"samplers.{name}.few_shot"] = fingerprint_path(shots_path(spec.few_shot))
    return found


def sizes_of(recipe: SynthRecipe) -> dict[str, Size]:
    """Parameters of every sampler's models.

    Raises:
        WcseError: a model cannot be found or read.
    """
    return {
        name: Size(
            spec.parameters or ModelCost.of(model_spec(spec.model)).params,
            verifier_cost(spec.verifier, spec.prm_family).params
            if spec.verifier and spec.reads_verifier
            else 0,
        )
        for name, spec in recipe.samplers.items()
    }


def verifier_cost(name: str, family: str | None = None) -> ModelCost:
    """What a token costs a verifier, as its scorer charges it: an implicit one is two language models, and one that
    writes has an output matrix.

    Raises:
        WcseError: a model cannot be found or read.
    """
    first, *others = (
        ModelCost.of(model_spec(model), head=head) for _, model, _, head in verifiers_of(name, family)
    )
    return sum(others, first)


class LocalExecutor:
    """Works in this process.

    While it holds models, what the process had made by then is frozen for the garbage collector; ``close`` ends that
    and drops them.
    """

    def __init__(self, recipe: SynthRecipe) -> None:
        self._recipe = recipe
        self._sampler: str | None = None
        self._models: Models | None = None

    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        """Do the tasks, those of one sampler and round in one batch.

        Raises:
            WcseError: a model cannot be loaded, or ``on_record`` raised it.
        """
        for (sampler, block, n), group in groupby(
            sorted(tasks, key=lambda task: task[0]),
            key=lambda task: (task[0].sampler, task[0].block, task[0].n),
        ):
            _Batch(self, self._recipe.unit_recipe(sampler, block, n), on_record).run(list(group))

    def models(self, sampler: str, recipe: Recipe, *, fresh: bool = False) -> Models:
        """The sampler's models; ``fresh`` drops an engine that an error has left in the middle of work."""
        if fresh or self._models is None or self._sampler != sampler:
            self.close()  # free the memory first
            self._models = Models.load(recipe)
            gc.freeze()  # the collector would look through all that is loaded again and again
            self._sampler = sampler
        return self._models

    def close(self) -> None:
        """Drop the models. It may go on afterwards, and loads them again."""
        if self._models is not None:
            self._models = None
            gc.unfreeze()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Batch:
    """Tasks of one sampler, round and count. A failure is narrowed down to its task by halves."""

    def __init__(self, executor: LocalExecutor, recipe: Recipe, on_record: OnRecord) -> None:
        self._executor = executor
        self._recipe = recipe
        self._on_record = on_record
        self._stored = 0
        self._failed = 0
        self._outer: BaseException | None = None

    def run(self, tasks: list[Task]) -> None:
        models = self._executor.models(tasks[0][0].sampler, self._recipe)
        ready = []
        for task in tasks:
            failure = _unreadable(task[1], models, self._recipe)
            if failure is None:
                ready.append(task)
            else:
                self._store(SynthRecord(task[0], task[1], failure=failure))
        self._solve(ready)

    def _solve(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        by_id = {unit.problem: (unit, problem) for unit, problem in tasks}
        models = self._executor.models(tasks[0][0].sampler, self._recipe)

        def store(solved: SolveRecord) -> None:
            unit, problem = by_id.pop(solved.problem.id)
            self._store(SynthRecord(unit, problem, solved=solved))

        try:
            solve(self._recipe, [problem for _, problem in tasks], store, models=models)
        except Exception as error:  # whatever one problem provokes must not end the others
            if error is self._outer:
                raise
            self._executor.models(tasks[0][0].sampler, self._recipe, fresh=True)
            self._narrow(list(by_id.values()), error)

    def _narrow(self, tasks: list[Task], error: Exception) -> None:
        if len(tasks) > 1:
            middle = len(tasks) // 2
            self._solve(tasks[:middle])
            self._solve(tasks[middle:])
            return
        self._failed += 1
        if self._failed >= _HOPELESS and not self._stored:
            raise error
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        self._store(SynthRecord(*tasks[0], failure=Failure("refused", message)))

    def _store(self, record: SynthRecord) -> None:
        try:
            self._on_record(record)
        except BaseException as error:
            self._outer = error
            raise
        self._stored += record.solved is not None


def _unreadable(problem: Problem, models: Models, recipe: Recipe) -> Failure | None:
    """Why a prompt cannot be given to the model, if it cannot."""
    try:
        ids = render_problem(models.policy.tokenizer, problem.prompt, recipe.system_prompt, recipe.shots)
        f"{problem.id}".encode()
    except Exception as error:  # tokenizers raise their own, Rust's and Unicode errors for lone surrogates
        return Failure("prompt", f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
    if any(problem.prompt.strip() == asked.strip() for asked, _ in recipe.shots):
        return Failure("prompt", f"it is one of the few-shot examples of {recipe.few_shot}")
    if len(ids) >= models.policy.context:
        return Failure("context", f"the prompt has {len(ids)} tokens, the context {models.policy.context}")
    return None
