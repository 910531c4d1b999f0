"""An executor over several workers: hands out units, stores what comes back, replaces workers that die or hang.

What a worker is, subclasses say: a process of this machine or an actor of a cluster. Workers write no file: the
caller alone owns the journal, so nothing is stored twice.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from wcse.synth.handout import ATTEMPTS, GivenUp, Key, WorkList
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import Failure, SynthRecord
from wcse.synth.run import OnRecord, Task
from wcse.types import WcseError

_START_SECONDS = 120.0


@dataclass(eq=False)
class Worker:
    """What a pool knows of a worker. ``ready``: it has said something, so it has started."""

    heard: float = field(default_factory=time.monotonic)
    ready: bool = False
    hung: bool = False


W = TypeVar("W", bound=Worker)


@dataclass(frozen=True)
class Said(Generic[W]):
    """A worker has returned a record: its unit's key and content. Without a key it says that it is alive."""

    worker: W
    key: Key | None = None
    body: dict[str, Any] | None = None


@dataclass(frozen=True)
class Died(Generic[W]):
    """A worker is gone; ``reason`` is for a person."""

    worker: W
    reason: str


class Pool(ABC, Generic[W]):
    """Use it as a context manager; ``run`` is that of ``wcse.synth.run.Executor``.

    Args:
        recipe: what the workers are told.
        workers: how many.
    """

    def __init__(self, recipe: SynthRecipe, workers: int) -> None:
        self._recipe = recipe
        self._count = workers
        self._workers: list[W] = []
        self._list = WorkList(workers)
        self._deaths = 0
        self._worked = False

    @abstractmethod
    def _start(self) -> W:
        """A new worker."""

    @abstractmethod
    def _give(self, worker: W, batch: Sequence[Task]) -> None:
        """Send a batch; a dead worker is heard of later."""

    @abstractmethod
    def _hear(self, timeout: float) -> Said[W] | Died[W] | None:
        """The next event of any worker; None when there was none in ``timeout`` seconds."""

    @abstractmethod
    def _kill(self, worker: W) -> None:
        """End a worker that is silent for too long; its death is then heard of as any other."""

    @abstractmethod
    def _end(self, worker: W) -> None:
        """Free what belongs to a worker, dead or not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            self._end(worker)
        self._workers = []

    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        """Do the tasks; a unit that ends several workers becomes a failure.

        Raises:
            WcseError: workers cannot start or do nothing but die, or ``on_record`` raised it.
        """
        self._list.add(tasks)
        while self._list.left:
            self._hand_out()
            event = self._hear(min(1.0, self._recipe.unit_seconds / 4))
            if event is None:
                self._kill_silent()
            elif event.worker not in self._workers:
                continue
            elif isinstance(event, Died):
                self._bury(event, on_record)
            else:
                self._store(event, on_record)

    def _hand_out(self) -> None:
        while len(self._workers) < self._count:
            self._workers.append(self._start())
        for worker in self._workers:
            if not self._list.busy(worker):
                now = time.monotonic()
                batch = self._list.take(worker, now)
                if batch:
                    worker.heard = now
                    self._give(worker, batch)

    def _store(self, said: Said[W], on_record: OnRecord) -> None:
        worker = said.worker
        worker.heard, worker.ready = time.monotonic(), True
        if said.key is None or said.body is None:
            return
        self._worked = True
        if self._list.finish(worker, said.key, worker.heard) is not None:
            on_record(SynthRecord.from_json(said.key, said.body))

    def _kill_silent(self) -> None:
        limit = self._recipe.unit_seconds
        for worker in self._workers:
            patience = limit if worker.ready else max(limit, _START_SECONDS)
            if self._list.busy(worker) and not worker.hung and time.monotonic() - worker.heard > patience:
                worker.hung = True
                self._kill(worker)

    def _bury(self, died: Died[W], on_record: OnRecord) -> None:
        """Take back what a dead worker owed, and give up what has cost too many."""
        worker = died.worker
        self._workers.remove(worker)
        self._end(worker)
        self._deaths += 1
        if not self._worked and self._deaths > ATTEMPTS * max(4, self._count):
            raise WcseError(
                f"workers={self._count}: {self._deaths} workers ended without a result ({died.reason}); "
                "run with workers=0 to see why"
            )
        for lost in self._list.lose(worker):
            on_record(SynthRecord(*lost.task, failure=self._failure(lost, died)))

    def _failure(self, lost: GivenUp, died: Died[W]) -> Failure:
        hung = died.worker.hung
        reason = f"silent for {self._recipe.unit_seconds:g} s" if hung else died.reason
        return Failure(
            "timeout" if hung else "worker_died",
            f"{lost.attempts} workers were lost on it; the last: {reason}",
        )
