"""One allocation for the keys and values of several models, in blocks that go from one to another.

A model's pool is a view of the whole arena: its page p is the bytes from p times its page size on. So no address ever
changes, and a CUDA graph may hold them; which pages a model may use is decided by who owns the block around them.
Knows bytes and owners, nothing of models, trees or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray

from wcse.models.kv_pool import zero_bytes

NOBODY = -1

MOST_BLOCKS = 4096
"""Blocks are made larger rather than more."""

LOSS = 1 / 32
"""Share of a block that may lie between pages, where page sizes do not divide it."""

Ints = NDArray[np.int32]


class Arena:
    """``size`` bytes of zeros on ``device``; ``cut`` makes blocks of them.

    Attributes:
        bytes: uint8 [size].
        owner, last: int32 [blocks], who owns each block, and who did so last; ``NOBODY`` in the beginning.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = zero_bytes(size, device)
        self.block = size
        self.owner = np.full(1, NOBODY, np.int32)
        self.last = self.owner.copy()

    def cut(self, pages: Iterable[int], most: int) -> None:
        """Make blocks for pages of these sizes; nothing is owned. No model gets a page above number ``most``."""
        sizes = list(pages)
        size = min(len(self.bytes), most * min(sizes))
        self.block = block_size(sizes, size)
        self.owner = np.full(size // self.block, NOBODY, np.int32)
        self.last = self.owner.copy()

    def of(self, member: int) -> Ints:
        """The blocks that a member owns, or nobody."""
        return np.flatnonzero(self.owner == member).astype(np.int32)

    def count(self, member: int) -> int:
        """How many these are."""
        return int(np.count_nonzero(self.owner == member))

    def fewest(self, page: int) -> int:
        """Whole pages of this size in every block, at least."""
        return self.block // page - (self.block % page > 0)

    def pages(self, blocks: Ints, page: int) -> Ints:
        """The pages of this size that lie wholly in these blocks."""
        begin = -(-blocks.astype(np.int64) * self.block // page)
        count = (blocks.astype(np.int64) + 1) * self.block // page - begin
        starts = np.repeat(begin - (np.cumsum(count) - count), count)
        return (starts + np.arange(count.sum())).astype(np.int32)

    def blocks(self, pages: Ints, page: int) -> Ints:
        """The block of each page."""
        return (pages.astype(np.int64) * page // self.block).astype(np.int32)

    def take(self, member: int, count: int) -> tuple[Ints, Ints]:
        """Give a member ``count`` blocks of nobody's: first such that it had last, then untouched ones.

        Returns:
            The blocks, and those of them that hold what others wrote.
        """
        free = self.of(NOBODY)
        last = self.last[free]
        rank = np.where(last == member, 0, np.where(last == NOBODY, 1, 2))
        taken = free[np.argsort(rank, kind="stable")[:count]]
        foreign = taken[(self.last[taken] != member) & (self.last[taken] != NOBODY)]
        return taken, foreign

    def own(self, member: int, blocks: Ints) -> None:
        """They are the member's from now on."""
        self.owner[blocks] = self.last[blocks] = member

    def give(self, blocks: Ints) -> None:
        """They are nobody's from now on."""
        self.owner[blocks] = NOBODY

    def clear(self, blocks: Ints) -> None:
        """Fill with zeros, which are finite numbers of every type."""
        for block in blocks.tolist():
            self.bytes[block * self.block : (block + 1) * self.block].zero_()


def block_size(pages: list[int], size: int) -> int:
    """Bytes of a block: few times the largest page, such that little lies between pages and there are enough blocks."""
    largest = max(pages)
    most = max(1, min(int(1 / LOSS), size // largest // 16))  # sixteen blocks, where the arena is as large

    def loss(block: int) -> float:
        return max((page - gcd(page, block)) / block for page in pages)

    candidates = [largest * times for times in range(1, most + 1)]
    found = next((block for block in candidates if loss(block) <= LOSS), min(candidates, key=loss))
    return found * max(1, -(-size // (found * MOST_BLOCKS)))
