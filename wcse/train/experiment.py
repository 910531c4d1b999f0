"""``wcse experiment wcse-paper``: the matrix of Bansal et al. (2408.16737) and the curves of Distilling Step-by-Step
(2305.02301) in kind, on models of any size.

For every budget, both samplers draw data at equal cost; every student is trained on each, with the same number of
steps and over several seeds, and tested on problems that it never saw. The curves teach the weak model from the strong
one's rationales. Every cell leaves its score in a file, so an experiment that was stopped goes on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from wcse.data.disk import atomic_file
from wcse.metrics import mean_and_error
from wcse.problems import load_problems
from wcse.recipe import Options, runtime_only
from wcse.synth.measures import paired_interval
from wcse.synth.recipe import SynthRecipe
from wcse.synth.work import run_synth
from wcse.train.config import TrainConfig
from wcse.train.evaluate import Score, evaluate
from wcse.train.train import train
from wcse.types import Problem, WcseError

SCORE = "score.json"
SHARES = (0.125, 0.25, 0.5, 1.0)


class PaperConfig(Options):
    """Options of the experiment. ``wc``, ``se``: the samplers' models."""

    wc: str = Field(description="weak, cheap model", min_length=1)
    se: str = Field(description="strong, expensive model", min_length=1)
    distil: str | None = Field(
        None, description="a third model as student of both; none leaves distillation out"
    )
    problems: str = Field("gsm_symbolic:size=300,seed=1000000", description="problems to sample on")
    validation: str = Field(
        "gsm_symbolic:size=60,seed=20000000", description="problems that select checkpoints"
    )
    test: str = Field("gsm_symbolic:size=200,seed=30000000", description="problems of the final scores")
    match: str = Field("flops", description="what is equal between the samplers, as in wcse synth")
    wc_price: tuple[float, float] | None = Field(None, description="for the match 'money'")
    se_price: tuple[float, float] | None = Field(None, description="for the match 'money'")
    budgets: tuple[int, ...] = Field((1, 10), description="samples per problem of se", min_length=1)
    steps: tuple[int, ...] = Field((40, 80), description="optimiser steps at each budget", min_length=1)
    temperature: float = Field(0.8, description="of the samplers", gt=0, le=2)
    max_tokens: int = Field(256, description="most tokens of a solution", ge=1)
    learning_rate: float = Field(3e-4, description="peak", gt=0)
    batch_size: int = Field(8, description="rows of a step", ge=1)
    checkpoints: int = Field(2, description="times that validation looks", ge=1)
    samples: int = Field(4, description="samples per test problem for maj@k; 0 draws none", ge=0)
    step_by_step: bool = Field(True, description="also compare label-only with label and rationale")

    out: str = runtime_only(..., "directory of the experiment", min_length=1)
    threads: int | None = runtime_only(None, "CPU threads of a worker; none shares the cores out", ge=1)
    seeds: int = runtime_only(
        3, "training runs of each cell; the same directory takes more of them later", ge=1
    )
    workers: int = runtime_only(1, "processes that sample and train at the same time", ge=1, le=256)

    @field_validator("budgets", "steps")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("must be at least 1")
        return value

    def recipe(self, n: int) -> SynthRecipe:
        """The data run of a budget."""
        common: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        samplers = {
            "wc": common | {"model": self.wc, "price": self.wc_price},
            "se": common | {"model": self.se, "price": self.se_price},
        }
        return SynthRecipe.parse(
            {
                "problems": self.problems,
                "samplers": samplers,
                "n": n,
                "match": self.match,
                "export": ("sft", "rationale"),
                "threads": self.threads,
                "workers": self.workers if self.workers > 1 else 0,
            }
        )

    @property
    def threads_each(self) -> int | None:
        """Threads of a training run; None takes torch's own."""
        if self.threads or self.workers == 1:
            return self.threads
        return max(1, len(os.sched_getaffinity(0)) // self.workers)

    def students(self) -> dict[str, str]:
        """Set-up -> the model that is trained."""
        named = {"distillation": self.distil, "self-improvement": self.wc, "weak-to-strong": self.se}
        return {name: model for name, model in named.items() if model is not None}


@dataclass(frozen=True)
class Cell:
    """One training run: ``name`` is its folder; ``key`` groups the seeds."""

    key: tuple[str, ...]
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return "-".join((*self.key, f"seed{self.seed}")).replace(" ", "_")


def run_paper(config: PaperConfig, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run what is missing; returns and stores (``results.json``) all numbers.

    Raises:
        WcseError: options, models or files are wrong, or the directory holds another experiment.
    """
    if len(config.steps) != len(config.budgets):
        raise WcseError(
            f"steps={list(config.steps)} and budgets={list(config.budgets)}: give one number of steps a budget"
        )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    _same_experiment(out / "config.json", config)
    test = load_problems(config.test)
    problems = load_problems(config.problems)
    _no_overlap(problems, test, load_problems(config.validation))
    data = {}
    for n in config.budgets:
        say(f"data at {n} samples of se a problem")
        data[n] = run_synth(config.recipe(n), problems, str(out / f"data-{n}")).measures
    bases = {
        model: _stored(out / f"base-{_slug(model)}.json", partial(_test, model, config, test))
        for model in dict.fromkeys(config.students().values())
    }
    cells = [*matrix_cells(config), *(curve_cells(config) if config.step_by_step else ())]
    scores: dict[tuple[str, ...], list[Score]] = {}
    for index, (cell, score) in enumerate(zip(cells, _scores(cells, config, test), strict=True)):
        say(f"cell {index + 1} of {len(cells)}: {cell.name}: {score.greedy:.1%}")
        scores.setdefault(cell.key, []).append(score)
    results = {
        "data": {str(n): measures for n, measures in data.items()},
        "matrix": matrix_table(config, bases, scores),
        "step_by_step": curve_table(scores) if config.step_by_step else [],
    }
    with atomic_file(out / "results.json") as file:
        file.write(json.dumps(results, indent=1, default=str).encode("ascii") + b"\n")
    return results


def matrix_cells(config: PaperConfig) -> list[Cell]:
    """Set-up x data source x budget x seed."""
    cells = []
    for setup, model in config.students().items():
        for n, steps in zip(config.budgets, config.steps, strict=True):
            for source in ("wc", "se"):
                for seed in range(config.seeds):
                    key = ("matrix", setup, source, str(n))
                    cells.append(_cell(config, key, seed, model, n, steps, source, objective="sft"))
    return cells


def curve_cells(config: PaperConfig) -> list[Cell]:
    """Objective x share of the data x seed: the weak model learns from the strong one's data of the largest budget."""
    cells = []
    n, steps = config.budgets[-1], config.steps[-1]
    for objective in ("label", "step_by_step"):
        for share in SHARES:
            for seed in range(config.seeds):
                key = ("curve", objective, f"{share:g}")
                cells.append(
                    _cell(config, key, seed, config.wc, n, steps, "se", objective=objective, share=share)
                )
    return cells


def _cell(
    config: PaperConfig,
    key: tuple[str, ...],
    seed: int,
    model: str,
    n: int,
    steps: int,
    source: str,
    **options: Any,
) -> Cell:
    given: dict[str, Any] = {
        "model": model,
        "data": str(Path(config.out) / f"data-{n}"),
        "samplers": (source,),
        "max_steps": steps,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "checkpoints": config.checkpoints,
        "validation": config.validation,
        "max_new_tokens": config.max_tokens,
        "seed": seed,
        "threads": config.threads_each,
    }
    cell = Cell(key, seed, TrainConfig.parse(given | options | {"out": "."}))
    return Cell(
        key, seed, cell.config.model_copy(update={"out": str(Path(config.out) / "cells" / cell.name)})
    )


def _scores(cells: Sequence[Cell], config: PaperConfig, test: Sequence[Problem]) -> Iterator[Score]:
    """The score of every cell, in order; what is missing is trained, by as many processes as the options say."""
    if config.workers == 1:
        yield from (_run_cell(cell, config, test) for cell in cells)
        return
    with ProcessPoolExecutor(config.workers, get_context("spawn"), _quiet) as pool:
        try:
            yield from pool.map(partial(_run_cell, config=config, test=test), cells)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _run_cell(cell: Cell, config: PaperConfig, test: Sequence[Problem]) -> Score:
    folder = Path(cell.config.out)

    def work() -> Score:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        folder.parent.mkdir(exist_ok=True)
        train(cell.config)
        prefix = "" if cell.config.objective == "sft" else cell.config.label_prefix
        score = _test(str(folder), config, test, prefix)
        shutil.rmtree(folder)  # the score stays; a matrix of large students would not fit the disk
        return score

    return _stored(folder.with_name(f"{cell.name}.json"), work)


def _test(model: str, config: PaperConfig, test: Sequence[Problem], prefix: str = "") -> Score:
    return evaluate(
        model,
        test,
        samples=config.samples,
        max_tokens=config.max_tokens,
        prefix=prefix,
        threads=config.threads_each,
    )


def _stored(path: Path, make: Callable[[], Score]) -> Score:
    """The score in ``path``, made and stored if it is not there."""
    if path.is_file():
        data = json.loads(path.read_text(encoding="ascii"))
        curves = {name: {int(k): v for k, v in data[name].items()} for name in ("pass_at", "maj_at")}
        return Score(**data | curves | {"right": tuple(data["right"])})
    score = make()
    with atomic_file(path) as file:
        file.write(json.dumps(asdict(score)).encode("ascii"))
    return score


def _same_experiment(path: Path, config: PaperConfig) -> None:
    if path.is_file():
        changed = PaperConfig.parse(json.loads(path.read_text(encoding="utf-8"))).diff(config)
        if changed:
            raise WcseError(
                f"out={config.out!r} holds another experiment ({', '.join(changed)} differ); give another --out"
            )
        return
    with atomic_file(path) as file:
        file.write(json.dumps(config.model_dump(mode="json")).encode("ascii"))


def _no_overlap(train_problems: Sequence[Problem], *others: Sequence[Problem]) -> None:
    """Refuse splits that leak."""
    prompts = {problem.prompt for problem in train_problems}
    for name, problems in zip(("test", "validation"), others, strict=True):
        shared = sum(problem.prompt in prompts for problem in problems)
        if shared:
            raise WcseError(
                f"{name}: {shared} of its problems are training problems too; use other seeds or splits"
            )


def _slug(model: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in model)


# --- tables -------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _error(values: Sequence[float]) -> float | None:
    """Standard error over seeds."""
    return mean_and_error(values)[1] if len(values) > 1 else None


def _by_problem(scores: Sequence[Score]) -> list[float]:
    """For each problem, the share of seeds that are right."""
    return [_mean([float(mark) for mark in marks]) for marks in zip(*(s.right for s in scores), strict=True)]


def matrix_table(
    config: PaperConfig, bases: Mapping[str, Score], scores: Mapping[tuple[str, ...], Sequence[Score]]
) -> list[dict[str, Any]]:
    """A row per set-up and budget: both data sources, and their difference over the same test problems."""
    rows = []
    for setup, model in config.students().items():
        base = bases[model]
        for n in config.budgets:
            wc, se = (scores["matrix", setup, source, str(n)] for source in ("wc", "se"))
            low, high = paired_interval(_by_problem(wc), _by_problem(se))
            row: dict[str, Any] = {"setup": setup, "budget": n, "base": base.greedy}
            for name, cell in (("wc", wc), ("se", se)):
                greedy = [score.greedy for score in cell]
                row |= {name: _mean(greedy), f"{name}_error": _error(greedy)}
                row[f"{name}_maj"] = {k: _mean([score.maj_at[k] for score in cell]) for k in cell[0].maj_at}
            rows.append(row | {"difference": row["wc"] - row["se"], "interval": [low, high]})
    return rows


def curve_table(scores: Mapping[tuple[str, ...], Sequence[Score]]) -> list[dict[str, Any]]:
    """A row per share of the data: label-only against label and rationale."""
    rows = []
    for share in SHARES:
        plain, both = (scores["curve", name, f"{share:g}"] for name in ("label", "step_by_step"))
        low, high = paired_interval(_by_problem(both), _by_problem(plain))
        a, b = [score.greedy for score in plain], [score.greedy for score in both]
        rows.append(
            {
                "share": share,
                "label": _mean(a),
                "label_error": _error(a),
                "step_by_step": _mean(b),
                "step_by_step_error": _error(b),
                "difference": _mean(b) - _mean(a),
                "interval": [low, high],
            }
        )
    return rows
