"""Who works on which units: batches that shrink, units taken back from lost workers, copies of late ones.

Pure: it is told what happens and at what time, and knows neither processes nor clocks. A unit's samples depend on
nothing but the unit, so a second copy of it gives the same record, and whichever comes first counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from wcse.synth.run import Task

Key = tuple[str, str]

ATTEMPTS = 3
"""Workers that a unit may cost before it is given up."""

_LARGEST_BATCH = 64
_LATE = 2.0
"""A batch that takes so many times what its size lets expect is late, and idle workers take copies of it."""


@dataclass
class _Held:
    """What a worker was given and has not returned. ``alone``: it was given a single unit."""

    tasks: dict[Key, Task] = field(default_factory=dict)
    size: int = 0
    since: float = 0.0

    @property
    def alone(self) -> bool:
        return self.size == 1


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A unit that ended ``attempts`` workers."""

    task: Task
    attempts: int


class WorkList:
    """Units to do for ``workers`` workers at a time; workers are named by anything hashable.

    Batches are guided: each takes a share of what waits, so that they are large while there is much to do and single
    units at the end, when one slow worker would hold up all.
    """

    def __init__(self, workers: int, largest: int = _LARGEST_BATCH, late: float = _LATE) -> None:
        self._workers = workers
        self._largest = largest
        self._late = late
        self._open: dict[Key, Task] = {}
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._held: dict[Hashable, _Held] = {}
        self._attempts: dict[Key, int] = {}
        self._units, self._seconds = 0, 0.0

    def add(self, tasks: Iterable[Task]) -> None:
        """More to do."""
        for task in tasks:
            self._open[task[0].key] = task
            self._waiting.append(task)

    @property
    def left(self) -> int:
        """Units without a record."""
        return len(self._open)

    def busy(self, worker: Hashable) -> bool:
        """Whether a worker owes something."""
        return worker in self._held

    def take(self, worker: Hashable, now: float) -> list[Task]:
        """The next batch of an idle worker; empty when there is nothing for it."""
        if self._waiting:
            size = max(1, min(self._largest, len(self._waiting) // (2 * self._workers)))
            batch = [self._waiting.popleft() for _ in range(size)]
        elif self._suspects:
            batch = [self._suspects.popleft()]
        else:
            batch = self._copies(now)
        if batch:
            self._held[worker] = _Held({task[0].key: task for task in batch}, len(batch), now)
        return batch

    def finish(self, worker: Hashable, key: Key, now: float) -> Task | None:
        """A worker has returned a record; its task, or None where the record is not wanted: it was there already."""
        held = self._held.get(worker)
        if held is None or held.tasks.pop(key, None) is None:
            return None
        if not held.tasks:
            del self._held[worker]
            self._units += held.size
            self._seconds += now - held.since
        return self._open.pop(key, None)

    def lose(self, worker: Hashable) -> list[GivenUp]:
        """A worker is gone: what it owed is done again, each unit alone; returns the units that have cost too many."""
        held = self._held.pop(worker, _Held())
        given_up = []
        for key, task in held.tasks.items():
            if key not in self._open:
                continue
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if any(key in other.tasks for other in self._held.values()):
                continue
            if held.alone and self._attempts[key] >= ATTEMPTS:
                del self._open[key]
                given_up.append(GivenUp(task, self._attempts[key]))
            else:
                self._suspects.append(task)
        return given_up

    def _copies(self, now: float) -> list[Task]:
        """Units of late batches that nobody else works on. Those that a worker was lost on are not copied."""
        if not self._units:
            return []
        usual = self._seconds / self._units
        holders: dict[Key, int] = {}
        for held in self._held.values():
            for key in held.tasks:
                holders[key] = holders.get(key, 0) + 1
        late = [
            task
            for held in self._held.values()
            if now - held.since > self._late * usual * held.size
            for key, task in held.tasks.items()
            if key in self._open and holders[key] == 1 and key not in self._attempts
        ]
        return late[-max(1, len(late) // (2 * self._workers)) :] if late else []
