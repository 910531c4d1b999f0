"""Accuracy of a recorded run at every N, selector and aggregation that it can show, as rows of plain values.

Knows the journal and the rules of ``wcse.replay``; refuses what the run did not record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcse.answers import MathPool
from wcse.data.curves import SampleSet, chances_by_problem
from wcse.data.journal import read_header, read_records
from wcse.data.record import SolveRecord
from wcse.data.tables import subset_sizes
from wcse.metrics import bootstrap
from wcse.replay import base_config, rerun, reselect
from wcse.search import SearchConfig, parse_strategy
from wcse.search.dvts import plots
from wcse.types import WcseError
from wcse.votes import get_selector


def unit_starts(strategy: str, config: SearchConfig) -> list[int] | None:
    """First child index of the root of each unit that may be left out: DVTS's subtrees. None: each sample."""
    spec = parse_strategy(strategy)
    if spec.name != "dvts" or spec.options.get("compat"):
        return None
    settings = spec.config(config)
    return [first for first, _ in plots(settings.n, settings.beam_width)]


def sample_set(record: SolveRecord, config: SearchConfig) -> SampleSet | None:
    """The record's solutions as units; None where a part of them shows no smaller search."""
    starts = unit_starts(record.strategy, config)
    if starts is not None:
        return SampleSet.of(record, starts)
    return SampleSet.of(record) if record.solutions and record.independent else None


def replay(
    directory: str | Path,
    *,
    aggregations: Sequence[str] = (),
    selectors: Sequence[str] = (),
    sizes: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Accuracy of every recorded strategy at every N, aggregation and selector; rows of plain values.

    Samples are left out one by one, DVTS's solutions by whole subtrees, averaged over the subsets; any other
    search has only its own N. ``low`` and ``high`` bound 95 % over problems drawn anew.

    Raises:
        WcseError: an N beyond the run's, an N that a search cannot be cut to, an unknown name.
    """
    for name in selectors:
        get_selector(name)
    header = read_header(directory)
    config = base_config(header.recipe)
    groups: dict[tuple[str, str | None], list[_Shown]] = {}
    for record in read_records(directory):
        if record.problem.answer is None:
            continue
        for how in (aggregations or (record.agg_strategy,)) if record.agg_strategy else (None,):
            chosen = record if how in (None, record.agg_strategy) else reselect(record, how)
            groups.setdefault((record.strategy, how), []).append(_Shown.of(chosen, config))
    if not groups:
        raise WcseError(f"{str(directory)!r}: no graded record in it; nothing can be replayed")
    rows: list[dict[str, Any]] = []
    for (strategy, how), shown in groups.items():
        settings = parse_strategy(strategy).config(config)
        for row in _curves(strategy, settings, shown, sizes, header.recipe.get("seed", 0)):
            if not selectors or row["selector"] in (*selectors, "pass"):
                rows.append({"strategy": strategy, "aggregation": how, **row})
    return rows


@dataclass(frozen=True, slots=True)
class _Shown:
    """What one record shows, without its tree.

    Attributes:
        right: whether each selector's choice is right, and under ``pass`` whether any solution is.
        units: the solutions as units; None where a part of them shows no smaller search.
    """

    right: dict[str, bool]
    units: SampleSet | None

    @classmethod
    def of(cls, record: SolveRecord, config: SearchConfig) -> _Shown:
        chosen = {name: selection.correct is True for name, selection in record.selectors.items()}
        covered = any(solution.correct for solution in record.solutions)
        return cls({"pass": covered, **chosen}, sample_set(record, config))


def _curves(
    strategy: str, config: SearchConfig, shown: Sequence[_Shown], sizes: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    sets = [item.units for item in shown if item.units is not None]
    if len(sets) < len(shown):  # of one problem a part shows nothing, so no smaller N covers all problems
        return _whole(shown, strategy, config.n, sizes)
    units = min(s.unit_count for s in sets)
    width = config.beam_width if unit_starts(strategy, config) is not None else 1
    for n in sizes:
        if n > units * width:
            raise WcseError(f"n={n}: {strategy} recorded n={units * width}; replay cannot go beyond it")
        if n % width:
            raise WcseError(
                f"n={n}: {strategy} can be cut by whole subtrees of beam_width={width} only; use a multiple of it"
            )
    counts = [n // width for n in sizes] or subset_sizes(units)
    tables = chances_by_problem(sets, counts, seed=seed)
    return [
        _row(name, count * width, table[:, place].tolist())
        for name, table in tables.items()
        for place, count in enumerate(counts)
    ]


def _whole(shown: Sequence[_Shown], strategy: str, n: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    wrong = [size for size in sizes if size != n]
    if wrong:
        raise WcseError(
            f"n={wrong[0]}: {strategy} ran with n={n}, and a part of its solutions is no smaller search; "
            f"run {parse_strategy(strategy).name}(n={wrong[0]})"
        )
    return [_row(name, n, [float(item.right[name]) for item in shown]) for name in shown[0].right]


def _row(selector: str, n: int, values: Sequence[float]) -> dict[str, Any]:
    low, high = bootstrap(values)
    return {
        "selector": selector,
        "n": n,
        "accuracy": math.fsum(values) / len(values),
        "low": low,
        "high": high,
    }


def rerun_rows(directory: str | Path, strategies: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy of strategies that are run anew on the recorded trees; each takes the first tree that will do.

    Raises:
        WcseError: no recorded strategy's trees hold what one of them asks for.
    """
    recipe = read_header(directory).recipe
    rows = []
    with MathPool() as judge:
        for strategy in strategies:
            records = _rerun_all(directory, strategy, recipe, judge)
            n = parse_strategy(strategy).config(base_config(recipe)).n
            row = _row(records[0].selector, n, [float(r.correct is True) for r in records])
            tokens = math.fsum(r.ledger.policy_computed + r.ledger.prm_computed for r in records) / len(
                records
            )
            rows.append(
                {"strategy": strategy, "aggregation": records[0].agg_strategy, **row, "tokens": tokens}
            )
    return rows


def _rerun_all(
    directory: str | Path, strategy: str, recipe: Mapping[str, Any], judge: MathPool
) -> list[SolveRecord]:
    sources: dict[str, list[SolveRecord]] = {}
    refused: dict[str, WcseError] = {}
    for record in read_records(directory):
        if record.strategy in refused or record.problem.answer is None:
            continue
        try:
            again = rerun(record, strategy, recipe, judge=judge)
        except WcseError as error:
            refused[record.strategy] = error
        else:
            sources.setdefault(record.strategy, []).append(again)
    for source, records in sources.items():
        if source not in refused:
            return records
    raise next(iter(refused.values()), WcseError(f"{str(directory)!r}: no graded record in it"))
