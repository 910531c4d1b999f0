"""Worker processes on this machine: units go out in small batches, records come back as JSON lines.

A worker that dies or falls silent is replaced. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from wcse.synth.pool import Died, Pool, Said, Worker
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import Unit
from wcse.synth.run import Task
from wcse.types import Problem, WcseError

WORKER = (sys.executable, "-m", "wcse.synth.worker")
_GOODBYE_SECONDS = 5.0


@dataclass(eq=False)
class _Child(Worker):
    """A child process."""

    process: subprocess.Popen[bytes] | None = None


class WorkerPool(Pool[_Child]):
    """An executor over ``workers`` processes.

    Args:
        recipe: what the workers are told. Where it names no thread count, they share this machine's cores.
        workers: how many.
        command: of a worker; it speaks the protocol of ``wcse.synth.worker``.
    """

    def __init__(self, recipe: SynthRecipe, workers: int, command: Sequence[str] = WORKER) -> None:
        super().__init__(recipe, workers)
        self._command = tuple(command)
        self._inbox: queue.SimpleQueue[Said[_Child] | Died[_Child]] = queue.SimpleQueue()
        threads = recipe.threads or max(1, len(os.sched_getaffinity(0)) // workers)
        self._told = recipe.model_copy(update={"threads": threads}).model_dump(mode="json")

    def _start(self) -> _Child:
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise WcseError(f"workers={self._count}: cannot start {self._command[0]!r}: {error}") from error
        worker = _Child(process=process)
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()
        _send(process, {"recipe": self._told})
        return worker

    def _listen(self, worker: _Child, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                break  # a line cut by the worker's death
            key = message.get("key")
            self._inbox.put(Said(worker, (key[0], key[1]) if key else None, message.get("body")))
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GOODBYE_SECONDS)
        code = process.returncode
        self._inbox.put(Died(worker, "unreadable output" if code is None else f"exit code {code}"))

    def _give(self, worker: _Child, batch: Sequence[Task]) -> None:
        assert worker.process is not None
        _send(worker.process, {"tasks": [task_to_json(task) for task in batch]})

    def _hear(self, timeout: float) -> Said[_Child] | Died[_Child] | None:
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def _kill(self, worker: _Child) -> None:
        assert worker.process is not None
        worker.process.kill()

    def _end(self, worker: _Child) -> None:
        """It stops at the end of its input; what does not is killed."""
        process = worker.process
        assert process is not None and process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=_GOODBYE_SECONDS)


def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it is dead; its listener says so
        process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
        process.stdin.flush()


def task_to_json(task: Task) -> dict[str, Any]:
    """A task as it is sent to a worker."""
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
