"""Child processes that decide with math-verify what exact arithmetic cannot, and that may be killed at any time.

A child reads pairs of texts as JSON lines and writes verdicts; it holds nothing of value, so time and memory
limits are enforced by ending it. Works from any thread. This process never parses or evaluates the texts, and
does not import math-verify.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from wcse.answers.compare import Verdict
from wcse.types import WcseError

MAX_LENGTH = 1000
MAX_REMEMBERED = 10_000
START_SECONDS = 120.0
_CHILD = Path(__file__).with_name("pool_child.py")
_VERDICTS = {True: Verdict.EQUAL, False: Verdict.DIFFERENT, None: Verdict.UNDECIDED}


class MathPool:
    """Judges pairs of answers with math-verify in child processes.

    Children start at the first question. Where math-verify is missing or does not start, every question stays
    undecided and one warning says so. Close the pool, or use it as a context manager.

    Args:
        workers: child processes, one question at a time each; about 100 MB of memory each.
        time_limit: seconds for one question; then its child is killed and the answer is undecided.
        memory_limit: bytes of address space of a child (POSIX only).
    """

    def __init__(self, *, workers: int = 1, time_limit: float = 5.0, memory_limit: int = 1 << 30) -> None:
        for name, value in (("workers", workers), ("time_limit", time_limit), ("memory_limit", memory_limit)):
            if value <= 0:
                raise WcseError(f"{name}={value!r} must be positive")
        self._children = [_Child(time_limit, memory_limit) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for child in self._children:
            self._idle.put(child)
        self._hard: dict[str, bool] = {}
        missing = find_spec("math_verify") is None
        self._unavailable = "math-verify is not installed; install wcse[math]" if missing else ""
        self._said = threading.Lock()
        self._finalizer = weakref.finalize(self, _close_all, self._children)

    def judge(self, a: str, b: str) -> Verdict:
        """Equal, different, or undecided: not understood, too long, out of time or memory.

        A text that cannot be handled even by itself is remembered and not tried again.
        """
        if max(len(a), len(b)) > MAX_LENGTH or self._is_hard(a) or self._is_hard(b):
            return Verdict.UNDECIDED
        return self._ask(a, b)

    def close(self) -> None:
        """End the children; questions asked from now on stay undecided."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_hard(self, text: str) -> bool:
        """Asked once for each text, so that a hostile one costs one time limit and not one for each partner."""
        hard = self._hard.get(text)
        if hard is None:
            hard = self._ask(text) is Verdict.UNDECIDED
            if len(self._hard) >= MAX_REMEMBERED:
                self._hard.clear()
            self._hard[text] = hard
        return hard

    def _ask(self, *texts: str) -> Verdict:
        if not self._unavailable:
            child = self._idle.get()
            try:
                return child.ask(texts)
            except _NoChildError as error:
                self._unavailable = str(error)
            finally:
                self._idle.put(child)
        if self._said.acquire(blocking=False):  # and never released: said once for each pool
            warnings.warn(
                f"answers that need symbolic algebra stay undecided: {self._unavailable}", stacklevel=4
            )
        return Verdict.UNDECIDED


class _NoChildError(Exception):
    """A child cannot be started; the message says why."""


class _Child:
    """One child process, started when needed. Used by one thread at a time."""

    def __init__(self, time_limit: float, memory_limit: int) -> None:
        self._time_limit, self._memory_limit = time_limit, memory_limit
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def ask(self, texts: Sequence[str]) -> Verdict:
        """The verdict on one question of pool_child; undecided if the child ends before it answers."""
        if self._closed:
            return Verdict.UNDECIDED
        process = self._running()
        reply = _exchange(process, json.dumps(texts) + "\n", self._time_limit)
        if not reply:
            self.stop()
            return Verdict.UNDECIDED
        return _VERDICTS[json.loads(reply)]

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        # -P: the folder of the script must not become an import path.
        command = [sys.executable, "-P", str(_CHILD), str(self._time_limit), str(self._memory_limit)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise _NoChildError(f"a child process could not be started ({error})") from error
        if _exchange(self._process, "", START_SECONDS) != "ready\n":
            self.stop()
            raise _NoChildError("the math-verify child process ended before it was ready")
        return self._process

    def stop(self) -> None:
        """Kill the process, if any, and reap it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def close(self) -> None:
        self._closed = True
        self.stop()


def _exchange(process: subprocess.Popen[str], line: str, seconds: float) -> str:
    """Send a line and read one; "" if the process ended or ran out of time (then it is killed)."""
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        reply = process.stdout.readline()
    except (BrokenPipeError, ValueError):  # it ended earlier, or close() closed its pipes
        reply = ""
    finally:
        timer.cancel()
        timer.join()
    return reply if reply.endswith("\n") else ""


def _close_all(children: list[_Child]) -> None:
    for child in children:
        child.close()
