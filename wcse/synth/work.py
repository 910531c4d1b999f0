"""A whole data run in one call: problems, journal, samples, outputs. What ``wcse synth`` and experiments share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version

from wcse.data.fingerprint import fingerprint_problems
from wcse.data.journal import Header, Journal
from wcse.problems import load_problems
from wcse.solve import arithmetic
from wcse.synth.cost import check_order
from wcse.synth.generate import LocalExecutor, model_fingerprints, sizes_of
from wcse.synth.judges import Labels
from wcse.synth.outputs import Derived, write_synth
from wcse.synth.recipe import SynthRecipe
from wcse.synth.run import Executor, Progress, synthesize
from wcse.synth.workers import WorkerPool
from wcse.types import Problem


def run_synth(
    recipe: SynthRecipe,
    problems: Sequence[Problem],
    directory: str,
    *,
    labels: Labels | None = None,
    judged: Labels | None = None,
    bad_rows: Sequence[str] = (),
    on_open: Callable[[Journal], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Derived:
    """Draw what ``directory`` lacks, then write everything that is derived from it.

    Args:
        labels, judged, bad_rows: as for ``write_synth``.
        on_open: hears the journal before any work.

    Raises:
        WcseError: a model or a file cannot be read or written, or the directory holds another recipe.
    """
    evaluation = [problem for spec in recipe.filters.contamination for problem in load_problems(spec)]
    sizes = sizes_of(recipe)
    check_order(recipe, sizes)
    with open_journal(recipe, problems, directory) as journal:
        on_open(journal)
        with executor_of(recipe) as executor:
            totals, balances = synthesize(recipe, problems, journal, executor, sizes, on_progress)
        return write_synth(
            directory,
            recipe,
            totals,
            balances,
            sizes,
            evaluation=evaluation,
            labels=labels,
            judged=judged,
            bad_rows=bad_rows,
        )


def executor_of(recipe: SynthRecipe) -> AbstractContextManager[Executor]:
    """This process, as many worker processes as the recipe says, or the actors of a Ray cluster.

    Raises:
        WcseError: there is no such cluster, or Ray is not installed.
    """
    if recipe.ray is not None:
        from wcse.synth.ray_pool import RayPool

        return RayPool(recipe, recipe.workers, recipe.ray, fingerprints=model_fingerprints(recipe))
    if recipe.workers:
        return WorkerPool(recipe, recipe.workers)
    return LocalExecutor(recipe)


def open_journal(recipe: SynthRecipe, problems: Sequence[Problem], directory: str) -> Journal:
    """The journal of a data run, created or resumed.

    Raises:
        WcseError: as ``Journal.open``, or a model cannot be found.
    """
    inputs = {"problems": fingerprint_problems(problems), **model_fingerprints(recipe)}
    versions = {name: version(name) for name in ("wcse", "torch", "transformers", "numpy")}
    generation = recipe.generation()
    for name, spec in recipe.samplers.items():
        kinds = arithmetic(recipe.unit_recipe(name, 0, spec.quantum))
        generation |= {f"samplers.{name}.{field}": kind for field, kind in kinds.items()}
    return Journal.open(directory, Header(generation, inputs, tuple(p.id for p in problems), versions))
