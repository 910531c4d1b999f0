"""One budget of bytes for the keys and values of several models, which moves to where it is needed.

Every runner has a pool over the whole budget, of which it owns only the blocks that it was granted; its other pages are
lent. Where a runner needs more than is free, others give up blocks: pages in use are moved into their remaining ones
first, so that what is free anywhere can be had. The queues of device work are kept in order: a block is written by its
new owner after all that its old one has queued for it. Knows pages and blocks, nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import finalize, ref

import numpy as np

from wcse.engine.arena import NOBODY, Arena
from wcse.engine.lanes import Lane
from wcse.models.kv_pool import KVPool
from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.engine.runner import Runner
    from wcse.engine.spans import Span

KV_GIB = 2.0
"""GiB for the keys and values of all models together, unless something else is asked for."""

MOST_PAGES = 2**22
"""Pages of a runner at most."""

CHUNK = 64
"""Pages that are granted at least, where there are so many: fewer calls while a run begins."""

FEWEST = 4
"""Pages that a runner needs to be of any use."""


@dataclass(frozen=True, slots=True)
class _Member:
    runner: ref[Runner]
    lane: Lane
    page: int  # bytes


class Memory:
    """A budget of ``size`` bytes, allocated on the device of the first runner that joins.

    At all times each block is nobody's or one runner's, whose tree hands out its pages and no others; see ``check``.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.tick = 0  # steps of all runners: how long ago a span was used, whoever's it is
        self._members: list[_Member] = []
        self._arena: Arena | None = None

    @classmethod
    def gib(cls, amount: float) -> Memory:
        """A budget in GiB."""
        return cls(int(amount * 2**30))

    @property
    def arena(self) -> Arena:
        """The bytes; there are none before the first runner joins."""
        assert self._arena is not None
        return self._arena

    @property
    def free(self) -> int:
        """Bytes that no runner owns."""
        return self.arena.count(NOBODY) * self.arena.block

    def join(self, runner: Runner) -> KVPool:
        """Take part. Returns the runner's pool, over the whole budget; it owns nothing of it yet.

        Raises:
            WcseError: not even a few pages fit, or other runners are on another device or at work already.
        """
        decoder, page = runner.decoder, runner.page_bytes
        count = self.size // page
        if count < FEWEST:
            raise WcseError(
                f"kv_memory={self.size / 2**30:g}: holds {count} pages of 16 tokens; give more GiB"
            )
        if self._arena is None:
            self._arena = Arena(self.size, decoder.device)
        arena = self._arena
        if arena.bytes.device.type != decoder.device.type:
            raise WcseError(
                f"kv_memory: models share it on one device; one is on {arena.bytes.device} and one on "
                f"{decoder.device}: give each its own"
            )
        finalize(runner, self._bury, len(self._members))
        self._members.append(_Member(ref(runner), runner.lane, page))
        if (arena.owner == NOBODY).all():
            arena.cut([member.page for member in self._members if member.runner() is not None], MOST_PAGES)
        elif arena.fewest(page) < 1:
            raise WcseError("kv_memory: load all models before the first of them runs")
        return decoder.pool(min(count, MOST_PAGES), arena.bytes)

    def _bury(self, index: int) -> None:
        """A runner is gone: what it owned is nobody's."""
        self.arena.give(self.arena.of(index))

    def _index(self, runner: Runner) -> int:
        return next(i for i, member in enumerate(self._members) if member.runner() is runner)

    def others(self, runner: Runner) -> list[Runner]:
        """The other runners that are in use."""
        alive = (member.runner() for member in self._members)
        return [other for other in alive if other is not None and other is not runner]

    def room(self, runner: Runner) -> int:
        """Pages that the runner could be granted although nobody gives up anything stored."""
        blocks = self.arena.count(NOBODY) + sum(self._spare(other) for other in self.others(runner))
        return blocks * self.arena.fewest(runner.page_bytes)

    def _spare(self, runner: Runner) -> int:
        """Blocks that the runner could do without, were its pages moved together."""
        stats = runner.tree.stats()
        needed = -(-(stats["total"] - stats["free"]) // self.arena.fewest(runner.page_bytes))
        return max(0, self.arena.count(self._index(runner)) - needed)

    def grant(self, runner: Runner, pages: int) -> int:
        """Have the runner's tree hand out more pages, at least ``pages``, which must be in ``room``.

        Returns:
            How many.
        """
        arena, index, least = self.arena, self._index(runner), self.arena.fewest(runner.page_bytes)
        need = -(-pages // least)
        for other in self.others(runner):
            if (missing := need - arena.count(NOBODY)) > 0:
                self._reclaim(other, missing)
        blocks, foreign = arena.take(index, max(need, min(-(-CHUNK // least), arena.count(NOBODY))))
        assert len(blocks) >= need
        for before in np.unique(arena.last[foreign]).tolist():
            runner.lane.follow(self._members[before].lane)
        with runner.lane.entered():
            arena.clear(foreign)
        arena.own(index, blocks)
        granted = arena.pages(blocks, runner.page_bytes)
        runner.tree.take_back(granted)
        return len(granted)

    def _reclaim(self, runner: Runner, most: int) -> None:
        """Take back at most so many of a runner's blocks: the emptiest, once their pages are moved elsewhere."""
        arena, page, index = self.arena, runner.page_bytes, self._index(runner)
        count = min(most, self._spare(runner))
        if count <= 0:
            return
        owned, spare = arena.of(index), runner.tree.spare()
        empty = np.bincount(arena.blocks(spare, page), minlength=len(arena.owner))[owned]
        given = owned[np.argsort(-empty, kind="stable")[:count]]
        pages = arena.pages(given, page)
        used = np.setdiff1d(pages, spare)
        elsewhere = spare[~np.isin(arena.blocks(spare, page), given)]
        if len(used):
            runner.relocate(used, elsewhere[: len(used)])
        runner.tree.lend(pages)
        arena.give(given)

    def evict(self, runner: Runner, need: int, busy: Iterable[Span]) -> bool:
        """Drop what no running work stands on, least recently used first, until the runner has room for ``need``."""
        for other in self.others(runner):
            if need > runner.refresh_room():
                other.tree.evict(
                    self._surplus(other, -(-(need - runner.room) // self.arena.fewest(runner.page_bytes)))
                )
        while need > runner.refresh_room():
            idle = runner.idle(busy)
            for other in self.others(runner):
                idle += other.idle(other.standing())
            if not idle:
                return False
            for owner, span in sorted(idle, key=lambda pair: (pair[1].tick, pair[1].start)):
                owner.release(span)
                if need <= runner.refresh_room():
                    break
        return True

    def _surplus(self, runner: Runner, blocks: int) -> int:
        """Pages that the runner must free so that it can do without so many more blocks."""
        stats, index = runner.tree.stats(), self._index(runner)
        left = max(0, self.arena.count(index) - self._spare(runner) - blocks)
        return max(0, stats["total"] - stats["free"] - left * self.arena.fewest(runner.page_bytes))

    def seize(self, runner: Runner, need: int, busy: Iterable[Span]) -> bool:
        """As ``evict``; others' running work is suspended as well, where they can."""
        busy = list(busy)
        while not self.evict(runner, need, busy):
            if not any(other.suspend() for other in self.others(runner)):
                return False
        return True

    def waits(self, runner: Runner) -> bool:
        """Whether others have running work that ends by itself and cannot be suspended."""
        return any((other.ahead or not other.yields) and other.standing() for other in self.others(runner))

    def check(self) -> None:
        """Recount.

        Raises:
            AssertionError: a tree hands out other pages than those of its runner's blocks.
        """
        for index, member in enumerate(self._members):
            runner = member.runner()
            if runner is None:
                assert not self.arena.count(index), "blocks of a runner that is gone"
                continue
            runner.tree.check()
            stats, owned = runner.tree.stats(), self.arena.pages(self.arena.of(index), member.page)
            assert stats["total"] - stats["lent"] == len(owned), (stats, len(owned))
            assert np.isin(runner.tree.spare(), owned).all(), (
                "a page outside the runner's blocks is handed out"
            )
