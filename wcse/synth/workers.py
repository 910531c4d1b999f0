"""Worker processes on this machine: units go out in small batches, records come back as JSON lines.

A worker that dies or falls silent is replaced. What it had not returned is done again, each unit alone, and
one that ends several workers becomes a failure. Workers write no file: the parent alone owns the journal, so
nothing is stored twice. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import Failure, SynthRecord, Unit
from wcse.synth.run import OnRecord, Task
from wcse.types import Problem, WcseError

WORKER = (sys.executable, "-m", "wcse.synth.worker")
_ATTEMPTS = 3
_LARGEST_BATCH = 64
_START_SECONDS = 120.0
_GOODBYE_SECONDS = 5.0


@dataclass(eq=False)
class _Worker:
    """A child process and what it was given."""

    process: subprocess.Popen[bytes]
    tasks: dict[tuple[str, str], Task] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False
    hung: bool = False


class WorkerPool:
    """An executor over ``workers`` processes; use it as a context manager.

    Args:
        recipe: what the workers are told.
        workers: how many.
        command: of a worker; it speaks the protocol of ``wcse.synth.worker``.
    """

    def __init__(self, recipe: SynthRecipe, workers: int, command: Sequence[str] = WORKER) -> None:
        self._recipe = recipe
        self._count = workers
        self._command = tuple(command)
        self._workers: list[_Worker] = []
        self._inbox: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._attempts: dict[tuple[str, str], int] = {}
        self._fruitless = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            _end(worker.process)
        self._workers = []

    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        """Do the tasks; see ``wcse.synth.run.Executor``.

        Raises:
            WcseError: workers cannot start or do nothing but die, or ``on_record`` raised it.
        """
        size = max(1, min(_LARGEST_BATCH, len(tasks) // (4 * self._count)))
        batches = deque(list(tasks[i : i + size]) for i in range(0, len(tasks), size))
        left = len(tasks)
        while left:
            self._hand_out(batches)
            worker, message = self._next_message()
            if message is None:
                left -= self._bury(worker, batches, on_record)
            elif "key" in message and (task := worker.tasks.pop(tuple(message["key"]), None)) is not None:
                self._fruitless = 0
                on_record(_record(task, message["body"]))
                left -= 1

    def _hand_out(self, batches: deque[list[Task]]) -> None:
        while len(self._workers) < self._count:
            self._workers.append(self._start())
        for worker in self._workers:
            if not worker.tasks and batches:
                batch = batches.popleft()
                worker.tasks = {unit.key: (unit, problem) for unit, problem in batch}
                worker.heard = time.monotonic()
                _send(worker, {"tasks": [_task_to_json(task) for task in batch]})

    def _start(self) -> _Worker:
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise WcseError(f"workers={self._count}: cannot start {self._command[0]!r}: {error}") from error
        worker = _Worker(process)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        _send(worker, {"recipe": self._recipe.model_dump(mode="json")})
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            try:
                self._inbox.put((worker, json.loads(line)))
            except ValueError:
                break  # a line cut by the worker's death
        self._inbox.put((worker, None))

    def _next_message(self) -> tuple[_Worker, dict[str, Any] | None]:
        """The next message; kills workers that are silent for too long."""
        limit = self._recipe.unit_seconds
        while True:
            try:
                worker, message = self._inbox.get(timeout=min(1.0, limit / 4))
            except queue.Empty:
                now = time.monotonic()
                for worker in self._workers:
                    silent = now - worker.heard
                    if worker.tasks and silent > (limit if worker.ready else max(limit, _START_SECONDS)):
                        worker.hung = True
                        worker.process.kill()
                continue
            worker.heard = time.monotonic()
            worker.ready = True
            if worker in self._workers:
                return worker, message

    def _bury(self, worker: _Worker, batches: deque[list[Task]], on_record: OnRecord) -> int:
        """Take back what a dead worker owed; returns how many units are given up."""
        self._workers.remove(worker)
        _end(worker.process)
        self._fruitless += 1
        if self._fruitless > _ATTEMPTS * max(4, self._count):
            raise WcseError(
                f"workers={self._count}: the last {self._fruitless} workers ended without a result "
                f"(exit code {worker.process.returncode}); run with workers=0 to see why"
            )
        given_up = 0
        for key, task in worker.tasks.items():
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if self._attempts[key] < _ATTEMPTS or len(worker.tasks) > 1:
                batches.append([task])  # alone, so that it harms no other
                continue
            kind = "timeout" if worker.hung else "worker_died"
            reason = (
                f"silent for {self._recipe.unit_seconds:g} s"
                if worker.hung
                else f"exit {worker.process.returncode}"
            )
            failure = Failure(kind, f"{self._attempts[key]} workers were lost on it; the last: {reason}")
            self._fruitless = 0
            on_record(SynthRecord(*task, failure=failure))
            given_up += 1
        return given_up


def _send(worker: _Worker, message: dict[str, Any]) -> None:
    assert worker.process.stdin is not None
    with suppress(OSError):  # it is dead; its listener says so
        worker.process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
        worker.process.stdin.flush()


def _task_to_json(task: Task) -> dict[str, Any]:
    unit, problem = task
    return {
        "sampler": unit.sampler,
        "block": unit.block,
        "n": unit.n,
        "problem": [problem.id, problem.prompt, problem.answer, dict(problem.meta)],
    }


def task_from_json(data: dict[str, Any]) -> Task:
    """A task as it was sent."""
    name, prompt, answer, meta = data["problem"]
    return Unit(data["sampler"], data["block"], name, data["n"]), Problem(name, prompt, answer, meta)


def _record(task: Task, body: dict[str, Any]) -> SynthRecord:
    return SynthRecord.from_json(task[0].key, body)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker and reap it: it stops at the end of its input; what does not is killed."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=_GOODBYE_SECONDS)
