"""``wcse experiment wcse-paper``: the matrix of Bansal et al. (2408.16737) and the curves of Distilling Step-by-Step
(2305.02301) in kind, on models of any size.

For every budget, both samplers draw data at equal cost; every student is trained on each, with the same number of
steps and over several seeds, and tested on problems that it never saw. Validation chooses the learning rate (on the
first seed) and the checkpoint. The curves teach the weak model from the strong one's rationales. Every cell leaves its
score in a file, so an experiment that was stopped goes on.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from wcse.data.disk import atomic_file
from wcse.data.fingerprint import fingerprint_models, fingerprint_problems
from wcse.problems import load_problems
from wcse.synth.work import run_synth
from wcse.train.evaluate import Score, evaluate
from wcse.train.paper import STUDENT, Cell, PaperConfig, curve_cells, matrix_cells
from wcse.train.prune import prune
from wcse.train.tables import Outcome, curve_table, matrix_table
from wcse.train.train import train
from wcse.types import Problem, WcseError

T = TypeVar("T", Score, Outcome)


def run_paper(config: PaperConfig, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run what is missing; returns and stores (``results.json``) all numbers.

    Raises:
        WcseError: options, models or files are wrong, or the directory holds another experiment.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    splits = {name: load_problems(getattr(config, name)) for name in ("problems", "validation", "test")}
    _no_overlap(splits)
    _same_experiment(out / "config.json", config, splits)
    clock = _Clock(out, config.workers)
    try:
        results = _run(config, out, splits, say)
    finally:
        runs = clock.stop()
    results["runs"] = runs
    with atomic_file(out / "results.json") as file:
        file.write(json.dumps(results, indent=1, default=str).encode("ascii") + b"\n")
    return results


def _run(
    config: PaperConfig, out: Path, splits: Mapping[str, Sequence[Problem]], say: Callable[[str], None]
) -> dict[str, Any]:
    problems, test = splits["problems"], splits["test"]
    if config.distil is not None and config.distil_layers and not (out / STUDENT).is_dir():
        prune(config.distil, config.distil_layers, out / STUDENT)
    data = {}
    for n in config.budgets:
        say(f"data at {n} samples of se a problem")
        data[n] = run_synth(config.recipe(n), problems, str(out / f"data-{n}")).measures
    bases = {
        setup: _stored(out / f"base-{setup}.json", partial(_test, model, config, test), Score.from_json)
        for setup, model in config.students().items()
    }
    cells = [*matrix_cells(config), *(curve_cells(config) if config.step_by_step else ())]
    done: dict[str, Outcome] = {}
    for cell, outcome in _outcomes(cells, config, test):
        done[cell.name] = outcome
        accuracy = f"{outcome.score.greedy:.1%} at rate {outcome.rate:g}"
        say(f"cell {len(done)} of {len(cells)}: {cell.name}: {accuracy}")
    found: dict[tuple[str, ...], list[Outcome]] = {}
    for cell in cells:
        found.setdefault(cell.key, []).append(done[cell.name])
    return {
        "data": {str(n): measures for n, measures in data.items()},
        "matrix": matrix_table(config, bases, found),
        "step_by_step": curve_table(found) if config.step_by_step else [],
        "validation": {
            "-".join(key): [outcome.looks for outcome in outcomes] for key, outcomes in found.items()
        },
    }


def _outcomes(
    cells: Sequence[Cell], config: PaperConfig, test: Sequence[Problem]
) -> Iterator[tuple[Cell, Outcome]]:
    """Every cell with what it came to, as they end; a cell's first seed before the others, which train at its rate."""
    run = partial(_run_cell, config=config, test=test)
    first = [cell for cell in cells if cell.seed == 0]
    others = {
        key: [cell for cell in cells if cell.key == key and cell.seed] for key in (c.key for c in first)
    }
    if config.workers == 1:
        for cell in first:
            outcome = run(cell)
            yield cell, outcome
            yield from ((other, run(other.at(outcome.rate))) for other in others[cell.key])
        return
    with ProcessPoolExecutor(config.workers, get_context("spawn"), _quiet) as pool:
        waiting: dict[Future[Outcome], Cell] = {pool.submit(run, cell): cell for cell in first}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    cell, outcome = waiting.pop(future), future.result()
                    yield cell, outcome
                    if cell.seed == 0:
                        waiting |= {pool.submit(run, o.at(outcome.rate)): o for o in others[cell.key]}
        finally:
            pool.shutdown(cancel_futures=True)  # processes that are gone have their CPU time counted


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _run_cell(cell: Cell, config: PaperConfig, test: Sequence[Problem]) -> Outcome:
    folder = Path(cell.config.out)

    def work() -> Outcome:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        folder.parent.mkdir(exist_ok=True)
        trained = train(cell.config)
        prefix = "" if cell.config.objective == "sft" else cell.config.label_prefix
        score = _test(str(folder), config, test, prefix)
        if not config.keep_students:
            shutil.rmtree(folder)  # the score stays; a matrix of large students would not fit the disk
        return Outcome(score, trained.checkpoints, trained.best)

    return _stored(folder.with_name(f"{cell.name}.json"), work, Outcome.from_json)


def _test(model: str, config: PaperConfig, test: Sequence[Problem], prefix: str = "") -> Score:
    return evaluate(
        model,
        test,
        samples=config.samples,
        max_tokens=config.max_tokens,
        prefix=prefix,
        threads=config.threads_each,
    )


def _stored(path: Path, make: Callable[[], T], read: Callable[[Mapping[str, Any]], T]) -> T:
    """What is in ``path``, made and stored if it is not there."""
    if path.is_file():
        return read(json.loads(path.read_text(encoding="ascii")))
    made = make()
    with atomic_file(path) as file:
        file.write(json.dumps(asdict(made)).encode("ascii"))
    return made


def _same_experiment(path: Path, config: PaperConfig, splits: Mapping[str, Sequence[Problem]]) -> None:
    """Refuse a directory of other options, models or problems: its cells would stand for these."""
    models = {"wc": config.wc, "se": config.se, "distil": config.distil}
    inputs = fingerprint_models(models) | {name: fingerprint_problems(s) for name, s in splits.items()}
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        changed = PaperConfig.parse(held["config"]).diff(config)
        changed += [
            name for name in inputs if inputs[name] != held["inputs"].get(name) and name not in changed
        ]
        if changed:
            raise WcseError(
                f"out={config.out!r} holds another experiment ({', '.join(changed)} "
                f"{'differs' if len(changed) == 1 else 'differ'}); give another --out"
            )
        return
    with atomic_file(path) as file:
        content = {"config": config.model_dump(mode="json"), "inputs": inputs}
        file.write(json.dumps(content).encode("ascii"))


def _no_overlap(splits: Mapping[str, Sequence[Problem]]) -> None:
    """Refuse splits that leak, each into those named after it."""
    for (first, problems), (name, others) in combinations(splits.items(), 2):
        prompts = {problem.prompt for problem in problems}
        if shared := sum(problem.prompt in prompts for problem in others):
            raise WcseError(
                f"{name}: {shared} of its problems are in {first}, too; use other seeds or splits"
            )


class _Clock:
    """What the experiment took: a row for each run that trained cells, of which there are several where it was stopped.

    CPU time is that of all processes of the run.
    """

    def __init__(self, out: Path, workers: int) -> None:
        self._out = out
        self._workers = workers
        self._before = self._cells()
        self._start = time.time(), _cpu_seconds()

    def _cells(self) -> int:
        return len(list((self._out / "cells").glob("*.json")))

    def stop(self) -> list[dict[str, Any]]:
        """Rows of all runs until now."""
        path = self._out / "runs.json"
        rows: list[dict[str, Any]] = json.loads(path.read_text("ascii")) if path.is_file() else []
        started, cpu = self._start
        cells = self._cells() - self._before
        if cells or not rows:
            row: dict[str, Any] = {
                "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
            }
            row |= {"wall_seconds": time.time() - started, "cpu_seconds": _cpu_seconds() - cpu}
            rows.append(row | {"workers": self._workers, "cells": cells})
            with atomic_file(path) as file:
                file.write(json.dumps(rows, indent=1).encode("ascii") + b"\n")
        return rows


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
