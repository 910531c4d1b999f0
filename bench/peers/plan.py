"""What a run does: blocks of cells, each with its model, sides, rounds and time limit. Knows no engines and no clocks.

A plan is a TOML file of ``[[block]]`` tables; blocks run in the order of the file, so what matters most comes first.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .registry import Entry, entry_named
from .workloads import WORKLOADS, Cell


@dataclass(frozen=True)
class Block:
    """Cells that the same sides do, equally often.

    Args:
        model: name of a model, as given to ``--model``.
        sides: ``name`` or ``name:precision``.
        workloads: letters.
        n: completions or beams.
        rounds: how often.
        limit: seconds that one item may take.
        modes: ways in which sides do the work, for those that have several; none: all of them.
    """

    model: str
    sides: tuple[str, ...]
    workloads: str
    n: tuple[int, ...]
    rounds: int = 3
    limit: float = 120.0
    modes: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """Workload by workload, small ones first."""
        return [Cell(WORKLOADS[letter], n) for letter in self.workloads for n in sorted(self.n)]

    @property
    def entries(self) -> list[Entry]:
        """The sides."""
        return [entry_named(side) for side in self.sides]


def block_of(given: Mapping[str, Any]) -> Block:
    """A checked block.

    Raises:
        ValueError: naming the field, its value and what is right.
    """
    names = {field.name for field in fields(Block)}
    if unknown := sorted(set(given) - names):
        raise ValueError(f"block: unknown {', '.join(unknown)}; known are {', '.join(sorted(names))}")
    if missing := sorted({"model", "sides", "workloads", "n"} - set(given)):
        raise ValueError(f"block: {', '.join(missing)} missing")
    listed = {name: tuple(given[name]) for name in ("sides", "n", "modes") if name in given}
    block = Block(**{**given, **listed})
    if not block.workloads or not set(block.workloads) <= set(WORKLOADS):
        raise ValueError(f"workloads={block.workloads!r}: give letters of {''.join(WORKLOADS)}")
    if not block.n or min(block.n) < 1:
        raise ValueError(f"n={list(block.n)}: give numbers of at least 1")
    if block.rounds < 1 or block.limit <= 0:
        raise ValueError(f"rounds={block.rounds}, limit={block.limit}: give numbers above 0")
    if not block.entries:
        raise ValueError("sides=[]: give at least one")
    return block


def read_plan(path: Path) -> list[Block]:
    """The blocks of a file.

    Raises:
        ValueError: it is no plan; the message names the block.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"plan {path}: {error}") from None
    found: Sequence[Any] = data.get("block", [])
    if not found or set(data) != {"block"}:
        raise ValueError(f"plan {path}: give [[block]] tables and nothing else")
    blocks = []
    for number, given in enumerate(found, 1):
        try:
            blocks.append(block_of(given))
        except (TypeError, ValueError) as error:
            raise ValueError(f"plan {path}, block {number}: {error}") from None
    return blocks


def of_sizes(blocks: Sequence[Block], sizes: Sequence[int] | None) -> list[Block]:
    """The blocks with these sizes alone; None: as they are.

    Raises:
        ValueError: no block has any of them.
    """
    if sizes is None:
        return list(blocks)
    cut = [replace(block, n=tuple(n for n in block.n if n in sizes)) for block in blocks]
    kept = [block for block in cut if block.n]
    if not kept:
        there = sorted({n for block in blocks for n in block.n})
        raise ValueError(f"n={list(sizes)}: the plan has {there}; give some of these")
    return kept
