"""Where a row ends, as tables that the device follows: delimiters, stop strings, and ids that end a text.

All automata of an engine lie in one tensor, [states, vocabulary]; see ``ops.advance``. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from wcse import _core

DELIMITED, STOPPED = 1, 2  # bits of TextMatcher.advance
MOST_STATES = 2048  # half a gibibyte of a vocabulary of 128k
FOUND = 1 << 15


@dataclass(frozen=True, slots=True)
class Ends:
    """Where texts of a kind end. ``pattern`` is its number in the matcher now, which others get later."""

    delimiter: str
    stop: tuple[str, ...]
    ids: frozenset[int]
    pattern: int

    @property
    def strings(self) -> tuple[str, tuple[str, ...]]:
        """What its automata depend on."""
        return self.delimiter, self.stop


class Machines:
    """The automata of the ends that were met lately.

    Args:
        matcher: whose patterns they are.
        vocab: entries of a state.
    """

    def __init__(self, matcher: _core.TextMatcher, vocab: int, device: torch.device) -> None:
        self.matcher = matcher
        self.table = torch.zeros((16, vocab), dtype=torch.int16, device=device)
        """State 0 finds nothing. Replaced by a larger one when it is full: a graph must be captured again then."""
        self._forget()

    def know(self, wanted: Collection[Ends]) -> bool:
        """Have tables for all of these at one time; False where they alone take too much room."""
        if all(self._learn(ends) for ends in wanted):
            return True
        self._forget()  # of texts that are gone
        return all(self._learn(ends) for ends in wanted)

    def _forget(self) -> None:
        self._used = 1
        self._strings: dict[tuple[str, tuple[str, ...]], list[tuple[int, _core.Automaton, int]]] = {}
        self._ids: dict[frozenset[int], int] = {}

    def _learn(self, ends: Ends) -> bool:
        if ends.strings not in self._strings:
            machines = [(bit, self.matcher.automaton(ends.pattern, bit)) for bit in (DELIMITED, STOPPED)]
            if self._used + sum(m.states for _, m in machines) > MOST_STATES:
                return False
            self._strings[ends.strings] = [(bit, m, self._add(self.matcher.table(m))) for bit, m in machines]
        if ends.ids not in self._ids:
            if self._used >= MOST_STATES:
                return False
            self._ids[ends.ids] = self._add(self._one_state(ends.ids))
        return True

    def _one_state(self, ids: Iterable[int]) -> np.ndarray:
        vocab = self.table.shape[1]
        entries = np.zeros((1, vocab), np.uint16)
        entries[0, [i for i in ids if i < vocab]] = FOUND
        return entries

    def _add(self, entries: np.ndarray) -> int:
        """The row of the table at which an automaton begins."""
        begin, states = self._used, len(entries)
        while begin + states > len(self.table):
            self.table = torch.cat([self.table, torch.zeros_like(self.table)])
        rows = (entries + np.uint16(begin)).view(np.int16)
        self.table[begin : begin + states] = torch.from_numpy(rows).to(self.table.device)
        self._used += states
        return begin

    def states(self, ends: Ends, slot: int) -> tuple[int, int, int]:
        """Where the three machines of a row are: delimiter, stop strings, ids; they must be known."""
        delimiter, stop = (
            begin + self.matcher.state(machine, slot, bit)
            for bit, machine, begin in self._strings[ends.strings]
        )
        return delimiter, stop, self._ids[ends.ids]
