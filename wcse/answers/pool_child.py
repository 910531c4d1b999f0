"""The child process of wcse.answers.pool: reads a question a line, writes ``true``, ``false`` or ``null``.

``["a", "b"]`` asks whether a equals b; ``["a"]`` whether a can be read and compared with something at all.

Run as a script, so that it imports math-verify and nothing of wcse. It limits its own memory, writes no files,
and asks the kernel to end it if a question takes too long, so it cannot outlive a parent that was killed.
Only the LaTeX reader of math-verify is used: its reader of plain expressions calls ``eval``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache

CACHED_TEXTS = 256
SLACK_SECONDS = 1.0


def make_judge() -> Callable[..., bool | None]:
    """Equality of two texts by math-verify, in either direction; None if one cannot be read."""
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    config = [LatexExtractionConfig()]

    @lru_cache(CACHED_TEXTS)
    def read(text: str) -> list[object]:
        latex = "$" + text.replace("$", " ").replace("\n", " ") + "$"
        return parse(latex, config, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)

    def judge(a: str, b: str | None = None) -> bool | None:
        left, right = read(a), read(b or "0")
        if not left or not right:
            return None
        if b is None:
            verify(left, right, timeout_seconds=None)
            return True
        return bool(
            verify(left, right, timeout_seconds=None, raise_on_error=True)
            or verify(right, left, timeout_seconds=None, raise_on_error=True)
        )

    return judge


def limit_resources(memory: int) -> None:
    """Address space, no files written, no core dumps. Where the system has no limits, the clock has to do."""
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def set_alarm(seconds: float) -> None:
    """Without a handler the kernel ends the process, also in the middle of C code; 0 switches it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(time_limit: float, memory_limit: int) -> None:
    """Answer questions until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not look like a reply
    logging.disable()
    judge = make_judge()
    limit_resources(memory_limit)
    replies.write("ready\n")
    for line in sys.stdin:
        set_alarm(time_limit + SLACK_SECONDS)
        try:
            verdict = judge(*json.loads(line))
        except Exception:  # whatever sympy makes of hostile text: the parent hears that it was not decided
            verdict = None
        replies.write(json.dumps(verdict) + "\n")
        set_alarm(0)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
