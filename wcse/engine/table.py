"""The rows being written as a table: a column for each number, so that a token of all rows is a few array operations.

Python looks at a row when it is born, when it ends and when somebody must hear of each of its tokens. Until then its
tokens stand here; ``sync`` brings its span and its log-probabilities up to date. Knows nothing of models or memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import torch

from wcse.engine.draw import Draws
from wcse.engine.growth import Root, Row

NUMBERS = np.dtype(
    [
        ("place", "i4"),  # row of the memory of tokens
        ("slot", "i4"),  # of the text matcher
        ("node", "i4"),  # of the KV tree, -1: none yet
        ("stored", "i4"),  # tokens with keys and values
        ("count", "i4"),  # tokens
        ("last", "i4"),  # the last of them
        ("limit", "i4"),  # at so many tokens the node ends
        ("rolling", "?"),  # the node is closed: its last token is stored, then the next node begins
        ("watched", "?"),  # Python looks at every token
        ("key", "u8"),  # of the random numbers, and how tokens are drawn
        ("temperature", "f4"),
        ("top_k", "i4"),
        ("top_p", "f4"),
        ("min_p", "f4"),
    ]
)


class RowTable:
    """Rows, oldest first.

    Attributes:
        rows: the rows.
        numbers: ``NUMBERS`` [R], in their order.
        version: another number whenever rows come, go or begin a new node.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.numbers = np.zeros(0, NUMBERS)
        self.version = 0
        self._tokens = np.zeros((16, 64), np.int32)
        self._logprobs = np.zeros((16, 64), np.float32)
        self._places = list(range(16))  # that no row has
        self._shares: Counter[Root] = Counter()
        self._draws: tuple[int, Draws] | None = None  # of a version

    # -- rows that come and go ---------------------------------------------------------------------------

    def add(self, rows: Sequence[Row]) -> None:
        """Take up rows as their spans are: new ones, or some that were suspended."""
        if not rows:
            return
        places = [self._place() for _ in rows]
        entries = [_entry(row, place) for row, place in zip(rows, places, strict=True)]
        self.numbers = np.concatenate([self.numbers, np.array(entries, NUMBERS)])
        self.rows = [*self.rows, *rows]
        for row, place in zip(rows, places, strict=True):
            self._shares[row.root] += 1
            count = len(row.span.tokens)
            self._widen(count)
            self._tokens[place, :count], self._logprobs[place, :count] = row.span.tokens, row.logprobs
        self.version += 1

    def remove(self, rows: Collection[Row]) -> None:
        """Forget rows; what was not brought up to date is lost."""
        keep = np.fromiter((row not in rows for row in self.rows), bool, len(self.rows))
        if keep.all():
            return
        self._places += self.numbers["place"][~keep].tolist()
        for row in self.rows:
            if row in rows:
                self._shares[row.root] -= 1
        self._shares = +self._shares
        self.numbers = self.numbers[keep]
        self.rows = [row for row in self.rows if row not in rows]
        self.version += 1

    def reload(self) -> None:
        """Take up all rows anew: their spans went on without the table."""
        rows = self.rows
        self.remove(set(rows))
        self.add(rows)

    def restart(self, index: int) -> None:
        """The row begins another node."""
        self.numbers[index] = _entry(self.rows[index], int(self.numbers["place"][index]))
        self.version += 1

    def watch(self, root: Root) -> None:
        """Look at every token of this problem from now on."""
        self.numbers["watched"] |= np.fromiter((row.root is root for row in self.rows), bool, len(self.rows))

    def roll(self, rows: Collection[Row]) -> None:
        """These rows' nodes are closed."""
        if rows:
            self.numbers["rolling"] |= np.fromiter((row in rows for row in self.rows), bool, len(self.rows))

    # -- a token of every row ----------------------------------------------------------------------------

    def append(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """The next token of every row, int32 [R], and its log-probability, float32 [R]."""
        numbers = self.numbers
        at = numbers["count"]
        self._widen(int(at.max()) + 1)
        self._tokens[numbers["place"], at] = tokens
        self._logprobs[numbers["place"], at] = logprobs
        numbers["last"] = tokens
        numbers["count"] += 1

    def charge(self) -> None:
        """Count one computed token of every row for its problem."""
        for root, rows in self._shares.items():
            root.account.computed += rows

    def sync(self, index: int) -> Row:
        """Bring a row and its span up to date."""
        row = self.rows[index]
        numbers = self.numbers[index]
        place, count, stored = (int(numbers[name]) for name in ("place", "count", "stored"))
        span, have = row.span, len(row.span.tokens)
        span.tokens += self._tokens[place, have:count].tolist()
        row.logprobs += self._logprobs[place, have:count].tolist()
        span.n_kv = stored
        return row

    def sync_all(self) -> None:
        """Bring all of them up to date."""
        for index in range(len(self.rows)):
            self.sync(index)

    def draws(self) -> Draws:
        """What the next token of every row is drawn with."""
        numbers = self.numbers
        counters = torch.from_numpy(numbers["count"].copy())
        if self._draws is None or self._draws[0] != self.version:
            floats = (torch.from_numpy(numbers[name].copy()) for name in ("temperature", "top_p", "min_p"))
            temperature, top_p, min_p = floats
            guides = {i: row.guide for i, row in enumerate(self.rows) if row.guide is not None}
            likeliest = {
                i: row.root.params.logprobs
                for i, row in enumerate(self.rows)
                if row.growth.on_token is not None and row.root.params.logprobs is not None
            }
            self._draws = (
                self.version,
                Draws(
                    temperature=temperature,
                    top_k=torch.from_numpy(numbers["top_k"].copy()),
                    top_p=top_p,
                    min_p=min_p,
                    keys=torch.from_numpy(numbers["key"].copy().view(np.int64)),
                    counters=counters,
                    guides=guides,
                    likeliest=likeliest,
                ),
            )
        draws = self._draws[1]
        draws.counters = counters
        return draws

    # -- memory ------------------------------------------------------------------------------------------

    def _place(self) -> int:
        if not self._places:
            have = len(self._tokens)
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._logprobs = np.concatenate([self._logprobs, np.zeros_like(self._logprobs)])
            self._places = list(range(have, 2 * have))
        return self._places.pop()

    def _widen(self, count: int) -> None:
        while self._tokens.shape[1] < count:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)], axis=1)
            self._logprobs = np.concatenate([self._logprobs, np.zeros_like(self._logprobs)], axis=1)


def _entry(row: Row, place: int) -> tuple[object, ...]:
    """The numbers of a row whose span is up to date."""
    growth, params, tokens = row.growth, row.root.params, row.span.tokens
    watched = (
        row.guide is not None
        or growth.on_token is not None
        or bool(params.stop_token_ids)
        or row.root.stopped
    )
    return (
        place,
        row.slot,
        row.span.kv,
        row.span.n_kv,
        len(tokens),
        tokens[-1] if tokens else 0,
        row.limit,
        row.rolling,
        watched,
        row.key,
        0.0 if growth.greedy else params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
    )
