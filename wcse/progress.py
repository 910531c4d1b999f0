"""The live progress line of a run.

Knows nothing of engines: it is told numbers and writes one line, rewritten in place on a terminal and
repeated every few seconds elsewhere.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. Counts are of this process; ``problems_*`` count (problem, strategy) pairs.

    Attributes:
        problems_done: finished pairs, those found in the journal included.
        problems_total: pairs of the whole run.
        policy_tokens: tokens that the policy computed so far.
        reused_tokens: prefix tokens that the policy's tree saved so far.
        pages_used, pages_total: pages of the policy's KV pool.
        seconds: since the engine started on the first problem.
        problems_skipped: pairs found in the journal, which cost this process no time.
    """

    problems_done: int
    problems_total: int
    policy_tokens: int
    reused_tokens: int
    pages_used: int
    pages_total: int
    seconds: float
    problems_skipped: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.policy_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def reuse(self) -> float:
        """Share of the tokens needed so far that came from the tree, 0..1."""
        needed = self.policy_tokens + self.reused_tokens
        return self.reused_tokens / needed if needed else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds left at the mean pace of this process; None before the first pair is done."""
        done = self.problems_done - self.problems_skipped
        if done <= 0:
            return None
        return self.seconds / done * (self.problems_total - self.problems_done)


def format_progress(progress: Progress) -> str:
    """One line: problems, tokens/s, reuse, pages, time left."""
    pages = f"pages {progress.pages_used}/{progress.pages_total}"
    return " · ".join(
        [
            f"{progress.problems_done}/{progress.problems_total}",
            f"{progress.tokens_per_second:,.0f} tok/s",
            f"reuse {progress.reuse:.0%}",
            pages,
            f"ETA {format_seconds(progress.eta)}",
        ]
    )


def format_seconds(seconds: float | None) -> str:
    """``3.2s``, ``4m05s``, ``2h07m``; ``--`` when unknown."""
    if seconds is None:
        return "--"
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"
    return f"{int(seconds) // 3600}h{int(seconds) % 3600 // 60:02d}m"


class ProgressLine:
    """Writes progress to a stream: in place on a terminal, else a line every ``interval`` seconds.

    Call it with each ``Progress``; ``close`` ends the line with the last state. ``quiet`` writes nothing.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool = False,
        interval: float = 10.0,
        redraw: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._quiet = quiet
        self._terminal = stream.isatty()
        self._interval = redraw if self._terminal else interval
        self._clock = clock
        self._written_at: float | None = None
        self._last: Progress | None = None
        self._shown: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        now = self._clock()
        if self._written_at is None and not self._terminal:
            self._written_at = now  # the first line of a log comes after one interval, not at zero
        if self._written_at is None or now - self._written_at >= self._interval:
            self._written_at = now
            self._write(progress)

    def close(self) -> None:
        """Show the last state and end the line."""
        if self._last is not None and self._last != self._shown:
            self._write(self._last)
        if self._terminal and self._shown is not None and not self._quiet:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, progress: Progress) -> None:
        self._shown = progress
        if self._quiet:
            return
        line = format_progress(progress)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:width]}\x1b[K")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
