"""A small model with search beside larger models: accuracy against FLOPs, by difficulty, with paired intervals.

Read from finished runs on the same problems. Difficulty is the small model's own pass@1, by rank: it needs the
gold answers, so it explains and cannot be deployed. It is taken from the very samples that sample sets are judged on:
on the hard third sampling therefore looks too weak beside search, on the easy third too strong (regression to the
mean). All differences are paired problem by problem; their intervals draw the problems anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wcse.data.journal import Header, read_header, read_records
from wcse.metrics import bootstrap
from wcse.optimal.grid import Cell, CellReader, sampled, without_n
from wcse.types import WcseError

BINS = ("easy", "medium", "hard")
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of samples at which a sample set is shown."""


@dataclass(frozen=True)
class Side:
    """One model: every strategy at every budget that its run shows, and each problem's pass@1."""

    name: str
    header: Header
    cells: tuple[Cell, ...]
    share: dict[str, float]

    @classmethod
    def read(cls, name: str, directory: str | Path, *others: str | Path) -> Side:
        """The side of a finished run, and of other runs of the same model.

        Raises:
            WcseError: one is not finished, the first has no sample set, problems have no gold answers or are not the
                same in all.
        """
        side = cls._read(name, directory)
        if not side.share:
            raise WcseError(f"{directory}: no sample set; run majority or best_of_n, too")
        for other in others:
            more = cls._read(f"{name} ({Path(other).name})", other)
            _same_problems(side, more)
            side = replace(side, cells=side.cells + more.cells)
        return side

    @classmethod
    def _read(cls, name: str, directory: str | Path) -> Side:
        header = read_header(directory)
        reader, share = CellReader(header.recipe), dict[str, float]()
        for record in read_records(directory):
            if record.problem.answer is None:
                raise WcseError(
                    f"{directory}: problem {record.problem.id!r} has no gold answer; accuracy needs one"
                )
            reader.add(record)
            if sampled(record):
                right = sum(bool(solution.correct) for solution in record.solutions)
                share[record.problem.id] = right / len(record.solutions)
        cells = tuple(reader.cells(SIZES))
        for cell in cells:
            if set(cell.accuracy) != set(header.problems):
                raise WcseError(
                    f"{directory}: {cell.strategy} lacks some of the problems; finish the run first"
                )
        return cls(name, header, cells, share)

    @property
    def problems(self) -> list[str]:
        return list(self.header.problems)

    def curves(self) -> dict[str, list[Cell]]:
        """The cells of each strategy, cheapest first."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(without_n(cell.strategy), []).append(cell)
        return {name: sorted(cells, key=lambda cell: cell.n) for name, cells in found.items()}


def compare(small: Side, larger: Sequence[Side], fixed: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Everything that the tables, the page and ``versus.json`` show.

    Args:
        small: the model that searches.
        larger: others on the same problems.
        fixed: at each budget, the single strategy that was best on other problems: what ``auto`` has to match.

    Raises:
        WcseError: the runs are of different problems.
    """
    for side in larger:
        _same_problems(small, side)
    parts = thirds(small.share)
    return {
        "problems": len(small.problems),
        "policy": small.name,
        "prm": small.header.recipe.get("prm"),
        "bins": {
            name: {"problems": len(members), "pass@1": _mean(small.share[x] for x in members)}
            for name, members in parts.items()
        },
        "curves": [
            _curve(side, name, cells, parts)
            for side in (small, *larger)
            for name, cells in side.curves().items()
        ],
        "equal_flops": [row for side in larger for row in equal_flops(small, side, parts)],
        "crossings": [row for side in larger for row in crossings(small, side)],
        "auto": auto_rows(small, fixed or {}),
        "beam": beam_rows(small, parts),
    }


def _same_problems(small: Side, side: Side) -> None:
    prints = [s.header.inputs.get("problems") for s in (small, side)]
    if set(small.problems) != set(side.problems) or prints[0] != prints[1]:
        raise WcseError(
            f"{small.name} and {side.name} solved different problems; their numbers cannot be compared: "
            "run both on the same problems"
        )


def thirds(share: Mapping[str, float]) -> dict[str, list[str]]:
    """The problems by pass@1, easiest third first; equal parts however many values tie."""
    ranked = sorted(share, key=lambda name: (-share[name], name))
    parts: dict[str, list[str]] = {name: [] for name in BINS}
    for rank, name in enumerate(ranked):
        parts[BINS[3 * rank // len(ranked)]].append(name)
    return {name: members for name, members in parts.items() if members}


def _curve(
    side: Side, method: str, cells: Sequence[Cell], parts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    points = [
        {
            "n": cell.n,
            **_point(cell, side.problems),
            "bins": {b: _point(cell, names) for b, names in parts.items()},
        }
        for cell in cells
    ]
    return {"model": side.name, "method": method, "points": points}


# --- against a larger model -------------------------------------------------------------------------------


def rivals(side: Side) -> list[Cell]:
    """What a larger model is asked to show: one sample, and the best of its sample sets at its largest N."""
    samples = [cell for cell in side.cells if cell.sampler]
    one = [cell for cell in samples if cell.n == 1 and without_n(cell.strategy) == "majority"]
    most = max(cell.n for cell in samples)
    last = [cell for cell in samples if cell.n == most > 1]
    return one + sorted(last, key=lambda cell: (-cell.mean(side.problems), cell.strategy))[:1]


def equal_flops(small: Side, side: Side, parts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Each strategy of the small model at the most FLOPs that do not exceed the rival's, all and by bin."""
    groups = {"all": small.problems, **parts}
    return [
        {
            "larger": side.name,
            "rival": rival.strategy,
            "rival_flops": _mean(rival.flops.values()),
            "method": method,
            "n": cell.n,
            "flops": _mean(cell.flops.values()),
            "bins": {
                group: {"rival": rival.mean(names), **_point(cell, names), **_difference(cell, rival, names)}
                for group, names in groups.items()
            },
        }
        for rival in rivals(side)
        for method, cells in small.curves().items()
        if (cell := _affordable(cells, _mean(rival.flops.values()))) is not None
    ]


def _affordable(cells: Sequence[Cell], flops: float) -> Cell | None:
    fitting = [cell for cell in cells if _mean(cell.flops.values()) <= flops]
    return max(fitting, key=lambda cell: cell.n, default=None)


def crossings(small: Side, side: Side) -> list[dict[str, Any]]:
    """Where each strategy of the small model first reaches each rival's accuracy, and at what multiple of its FLOPs.

    ``n`` is None where it does not, within what was run.
    """
    rows = []
    for rival in rivals(side):
        goal, spent = rival.mean(small.problems), _mean(rival.flops.values())
        for method, cells in small.curves().items():
            reached = next((cell for cell in cells if cell.mean(small.problems) >= goal), None)
            ratio = _mean(reached.flops.values()) / spent if reached and spent else None
            rows.append(
                {
                    "larger": side.name,
                    "rival": rival.strategy,
                    "accuracy": goal,
                    "method": method,
                    "n": reached.n if reached else None,
                    "flops_ratio": ratio,
                }
            )
    return rows


# --- within the small model -------------------------------------------------------------------------------


def auto_rows(small: Side, fixed: Mapping[int, str]) -> list[dict[str, Any]]:
    """``auto`` at each of its budgets beside single strategies at the same N.

    ``fixed`` was the best single one on other problems; ``best`` and ``worst`` are picked on these, with hindsight.
    """
    rows = []
    for auto in (cell for cell in small.cells if without_n(cell.strategy) == "auto"):
        rest = [c for c in small.cells if c.n == auto.n and without_n(c.strategy) not in ("auto", "greedy")]
        if not rest:
            continue
        ranked = sorted(rest, key=lambda cell: (-cell.mean(small.problems), cell.strategy))
        others = {"best": ranked[0], "worst": ranked[-1]}
        chosen = [c for c in rest if without_n(c.strategy) == without_n(fixed.get(auto.n, "greedy"))]
        others |= {"fixed": chosen[0]} if chosen else {}
        rows.append(
            {
                "n": auto.n,
                "auto": _point(auto, small.problems),
                **{
                    role: {
                        "strategy": cell.strategy,
                        **_point(cell, small.problems),
                        **_difference(auto, cell, small.problems),
                    }
                    for role, cell in others.items()
                },
            }
        )
    return rows


def beam_rows(small: Side, parts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Tree searches less weighted best-of-N at the same N, by bin; and DVTS less beam search."""
    groups = {"all": small.problems, **parts}
    curves = small.curves()
    rows = []
    for method, base in (
        ("beam_search", "weighted_best_of_n"),
        ("dvts", "weighted_best_of_n"),
        ("dvts", "beam_search"),
    ):
        others = {cell.n: cell for cell in curves.get(base, ())}
        rows += [
            {
                "method": method,
                "base": base,
                "n": cell.n,
                "bins": {group: _difference(cell, others[cell.n], names) for group, names in groups.items()},
            }
            for cell in curves.get(method, ())
            if cell.n in others
        ]
    return rows


def _difference(cell: Cell, base: Cell, names: Sequence[str]) -> dict[str, float]:
    gains = [cell.accuracy[name] - base.accuracy[name] for name in names]
    low, high = bootstrap(gains)
    return {"gain": _mean(gains), "gain_low": low, "gain_high": high}


def _point(cell: Cell, names: Sequence[str]) -> dict[str, float]:
    low, high = bootstrap([cell.accuracy[name] for name in names])
    return {
        "accuracy": cell.mean(names),
        "low": low,
        "high": high,
        "flops": _mean(cell.flops[x] for x in names),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
