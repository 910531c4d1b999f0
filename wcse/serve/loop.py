"""The engine thread: everything that touches model, KV tree and searches happens here, one step at a time.

The front hands over work and cancels it through a queue; all requests share one batch. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from wcse.engine.driver import Driver, Job, Outcome
from wcse.engine.generate import Backend
from wcse.engine.runner import KVMemoryError
from wcse.types import WcseError

PART_SECONDS = 1e-3
"""Time between two parts of a stream for each request that runs: about four times what server and client need for a
part. One client hears of every token at once; many do not slow the engine down."""


class Stopped(Exception):
    """The engine gave up on everything that ran; it may well work again at once."""


class Work(ABC):
    """A request on its way. The methods run in the engine thread; ``events`` belongs to the event loop.

    ``wanted``: the reader has dealt with what it got, so what is new may be sent. The reader sets it.
    """

    def __init__(self) -> None:
        self.wanted = True
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.front = asyncio.get_running_loop()
        self.outbox: list[tuple[Work, Any]] = []  # the engine loop's own, from submit on

    @abstractmethod
    def start(self, loop: EngineLoop) -> None:
        """Queue the work.

        Raises:
            WcseError: it cannot be done; nothing is left behind.
        """

    @abstractmethod
    def abort(self, loop: EngineLoop) -> None:
        """Stop and free everything."""

    def flush(self, now: float, gap: float) -> None:
        """Called after every step: send what changed, if it is wanted and ``gap`` seconds have passed since the last
        time; ``now`` is by ``time.perf_counter``."""
        return

    def send(self, event: Any) -> None:
        """Put an event into ``events`` when the step ends; an exception is a failure, and the last one."""
        self.outbox.append((self, event))


def _deliver(letters: list[tuple[Work, Any]]) -> None:
    for work, event in letters:
        work.events.put_nowait(event)


class EngineLoop:
    """Runs ``backend`` and ``driver`` in a thread of their own.

    Args:
        on_step: called in the engine thread after every step.
    """

    def __init__(
        self, backend: Backend, driver: Driver, *, on_step: Callable[[], None] = lambda: None
    ) -> None:
        self.backend = backend
        self.driver = driver
        self.on_step = on_step
        self.failures = 0
        self.active: set[Work] = set()
        self._searches: dict[Job, Callable[[Outcome], None]] = {}
        self._outbox: list[tuple[Work, Any]] = []
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wcse-engine", daemon=True)

    # -- any thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Abort everything and wait for the thread."""
        self._commands.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, work: Work) -> None:
        work.outbox = self._outbox
        self._commands.put(lambda: self._start(work))

    def cancel(self, work: Work) -> None:
        """Abort the work if it still runs."""
        self._commands.put(lambda: self._abort(work))

    def call(self, function: Callable[[], None]) -> None:
        """Run a function between two steps: swap weights, say."""
        self._commands.put(function)

    # -- engine thread -----------------------------------------------------------------------------------

    def done(self, work: Work) -> None:
        """A work has ended by itself."""
        self.active.discard(work)

    def search(self, job: Job, done: Callable[[Outcome], None]) -> Any:
        """Start a search; ``done`` hears its outcome."""
        root = self.driver.submit(job)
        self._searches[job] = done
        return root

    def forget(self, job: Job) -> None:
        self._searches.pop(job, None)

    @property
    def busy(self) -> bool:
        scorer = self.driver.scorer
        # A search may end as it begins, before anything was written.
        return self.backend.busy or self.driver.ended or (scorer is not None and scorer.waiting > 0)

    def _run(self) -> None:
        while True:
            if not self.busy:
                self.backend.engine.reclaim()
            if not self._obey():
                break
            try:
                self._step()
            except Exception as error:  # whatever it was, it must not end the server
                self._fail_all(error)
            self._post()
        self._fail_all(Stopped("the server is shutting down"))
        self._post()

    def _obey(self) -> bool:
        """Run the commands that wait; wait for one when there is no work. False: close."""
        block = not self.busy
        while True:
            try:
                command = self._commands.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            try:
                command()
            except Exception as error:
                self._fail_all(error)
            self._post()
            block = False

    def _step(self) -> None:
        self.driver.advance()
        if self.backend.reader.waiting:
            self.backend.reader.step()
        for outcome in self.driver.take_finished():
            done = self._searches.pop(outcome.job, None)
            if done is not None:
                done(outcome)
        now, gap = time.perf_counter(), PART_SECONDS * (len(self.active) - 1)
        for work in list(self.active):
            work.flush(now, gap)
        self.on_step()

    def _post(self) -> None:
        """Wake each event loop once for all its events of the step."""
        letters: dict[asyncio.AbstractEventLoop, list[tuple[Work, Any]]] = {}
        for work, event in self._outbox:
            letters.setdefault(work.front, []).append((work, event))
        self._outbox.clear()
        for front, found in letters.items():
            with suppress(RuntimeError):  # the event loop is closed: nobody listens any more
                front.call_soon_threadsafe(_deliver, found)

    def _start(self, work: Work) -> None:
        self.active.add(work)
        try:
            work.start(self)
        except WcseError as error:
            self.active.discard(work)
            work.send(error)

    def _abort(self, work: Work) -> None:
        if work in self.active:
            self.active.discard(work)
            work.abort(self)
            self.backend.engine.reclaim()

    def _fail_all(self, error: Exception) -> None:
        """The state of a broken step is unknown: everything that took part ends, and its memory is freed."""
        self.failures += not isinstance(error, Stopped)
        # A mistake of one user found this deep (no memory for one path) is not the others' mistake.
        shown = Stopped("the engine ran out of memory") if isinstance(error, KVMemoryError) else error
        for work in list(self.active):
            self._abort(work)
            work.send(shown)
        self.backend.reader.reset()
        self.backend.engine.reset()
        if self.driver.scorer is not None:
            self.driver.scorer.reset()
