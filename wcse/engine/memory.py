"""One budget of bytes for the keys and values of several models, which moves to where it is needed.

Every runner has a pool as large as the whole budget, of which it owns only what it was granted; the rest of its pages
are lent. Pools take memory where they are written, and a page that goes to another runner is decommitted first, so
what the process holds is what was granted. Knows pages and bytes, nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import ref

from wcse.types import WcseError

if TYPE_CHECKING:
    from wcse.engine.runner import Runner, Span

CHUNK = 64
"""Pages that are granted at least, where there are so many: fewer calls while a run begins."""

FEWEST = 4
"""Pages that a runner needs to be of any use."""


class Memory:
    """A budget of ``size`` bytes.

    At all times ``free`` and the pages that the runners own add up to ``size``; see ``check``.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self.tick = 0  # steps of all runners: how long ago a span was used, whoever's it is
        self._runners: list[ref[Runner]] = []

    @classmethod
    def gib(cls, amount: float) -> Memory:
        """A budget in GiB."""
        return cls(int(amount * 2**30))

    def join(self, runner: Runner) -> int:
        """Take part. Returns the pages that the whole budget could hold for the runner.

        Raises:
            WcseError: not even a few pages fit, or the runner's pool cannot give memory back.
        """
        count = self.size // runner.page_bytes
        if count < FEWEST:
            raise WcseError(
                f"kv_memory={self.size / 2**30:g}: holds {count} pages of 16 tokens; give more GiB"
            )
        together = [runner, *self.others(runner)]
        if len(together) > 1 and any(one.decoder.device.type != "cpu" for one in together):
            raise WcseError("kv_memory: models share a budget on a CPU only; give each its own")
        self._runners.append(ref(runner))
        return min(count, 2**20)

    def others(self, runner: Runner) -> list[Runner]:
        """The other runners that are in use."""
        alive = (member() for member in self._runners)
        return [other for other in alive if other is not None and other is not runner]

    def room(self, runner: Runner) -> int:
        """Pages that the runner could be granted although nobody gives up anything stored."""
        spare = sum(other.spare * other.page_bytes for other in self.others(runner))
        return (self.free + spare) // runner.page_bytes

    def grant(self, runner: Runner, pages: int) -> int:
        """Pages that are the runner's from now on: at least ``pages``, which must be in ``room``."""
        need = pages * runner.page_bytes
        for other in self.others(runner):
            if need > self.free:
                self.free += other.give_up(-((self.free - need) // other.page_bytes)) * other.page_bytes
        granted = max(pages, min(CHUNK, self.free // runner.page_bytes, runner.lent))
        self.free -= granted * runner.page_bytes
        assert self.free >= 0
        return granted

    def evict(self, runner: Runner, need: int, busy: Iterable[Span]) -> bool:
        """Drop what no running work stands on, least recently used first, until the runner has room for ``need``."""
        for other in self.others(runner):
            if need > runner.refresh_room():
                other.tree.evict(-((runner.room - need) * runner.page_bytes // other.page_bytes))
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

    def seize(self, runner: Runner, need: int, busy: Iterable[Span]) -> bool:
        """As ``evict``; others' running work is suspended as well, where they can."""
        busy = list(busy)
        while not self.evict(runner, need, busy):
            if not any(other.suspend() for other in self.others(runner)):
                return False
        return True

    def waits(self, runner: Runner) -> bool:
        """Whether others have running work that ends by itself and cannot be suspended."""
        return any(not other.yields and other.standing() for other in self.others(runner))

    def check(self) -> None:
        """Recount.

        Raises:
            AssertionError: what is free and what the runners own is not the whole.
        """
        owned = 0
        for runner in filter(None, (member() for member in self._runners)):
            runner.tree.check()
            stats = runner.tree.stats()
            owned += (stats["total"] - stats["lent"]) * runner.page_bytes
        assert self.free >= 0 and self.free + owned == self.size, (self.free, owned, self.size)
