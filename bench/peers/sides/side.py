"""What every side of the comparison shares: the protocol on stdin and stdout, the clock, the memory meter.

One JSON object a line. ``{"op": "load", ...}`` once, ``{"op": "run", ...}`` any number of times; the reply says
``ok`` and either the facts or ``error``. Standard library only: it runs in every peer's own environment. It knows
nothing of models, rounds or ratios.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Facts = dict[str, Any]


class CutOff(Exception):
    """An item has had its time. Raised by ``Meter.add``; a side lets it pass, and is ready for another item."""


@dataclass
class Meter:
    """Counts tokens as they are written, so that an item which takes too long ends with a rate all the same."""

    tokens: int = 0
    deadline: float = math.inf  # of time.perf_counter

    def add(self, tokens: int) -> None:
        """So many more are written; none, to ask only whether time is left.

        Raises:
            CutOff: it is not.
        """
        self.tokens += tokens
        if time.perf_counter() > self.deadline:
            raise CutOff


@dataclass(frozen=True)
class Item:
    """One piece of work.

    ``sample``: ``n`` completions of ``new_tokens`` tokens. ``search``: ``steps`` steps of ``step_tokens`` tokens of
    ``n`` beams, of which a quarter, drawn at random, is kept and expanded by four after each step but the last.
    ``score``: the same, but a verifier scores every step and the best quarter is kept. Ends of sequence are ignored,
    so that every side writes the same number of tokens. ``serve``: ``steps`` requests at once to a server, of ``n``
    completions of ``new_tokens`` tokens each. An item ends after ``limit`` seconds, whatever it has reached.
    """

    workload: str
    mode: str
    prompt: list[int]
    n: int
    new_tokens: int
    steps: int
    step_tokens: int
    temperature: float
    top_p: float
    seed: int
    limit: float = math.inf
    meter: Meter = field(default_factory=Meter)

    @property
    def keep(self) -> int:
        """Beams kept after a step."""
        return max(1, self.n // 4)

    @property
    def longest(self) -> int:
        """Tokens of one whole path, the prompt included."""
        return len(self.prompt) + (
            self.new_tokens if self.workload == "sample" else self.steps * self.step_tokens
        )


@dataclass
class Count:
    """What a side did: tokens written, and whatever else is worth keeping, in ``extra``.

    ``measured`` replaces what ``serve`` measures of this process, where other processes did the work.
    """

    tokens: int
    extra: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)


class Side(Protocol):
    """An engine on this side of the protocol."""

    def load(self, model: dict[str, str], precision: str, threads: int, workloads: Sequence[str]) -> Facts:
        """Load the model, in the forms that ``workloads`` need.

        Returns:
            ``versions``, ``dtype`` and ``modes``: for each workload, the ways in which this side does it.
        """

    def prepare(self, item: Item) -> None:
        """What an item needs and nobody should be timed for, such as a cache of another size."""

    def run(self, item: Item) -> Count:
        """Do the item; this is timed."""


class Beams(Protocol):
    """``n`` sequences that grow together: what a peer offers to ``drive``."""

    def start(self, prompt: list[int], n: int) -> None: ...
    def grow(self, tokens: int) -> None:
        """Append so many sampled tokens to every beam."""

    def score(self) -> list[float]:
        """The verifier's score of the last step of every beam."""

    def select(self, parents: list[int]) -> None:
        """Beam i goes on as a copy of beam ``parents[i]``."""


def drive(item: Item, beams: Beams) -> Count:
    """Run an item on a peer's beams, which count their tokens on the item's meter."""
    rng, clock = random.Random(item.seed), Stopwatch()
    with clock("policy_seconds"):
        beams.start(item.prompt, item.n)
        if item.workload == "sample":
            beams.grow(item.new_tokens)
            return Count(item.n * item.new_tokens)
    for step in range(1, item.steps + 1):
        with clock("policy_seconds"):
            beams.grow(item.step_tokens)
        if item.workload == "score":
            with clock("verifier_seconds"):
                scores = beams.score()
            kept = sorted(range(item.n), key=lambda i: -scores[i])[: item.keep]
        else:
            kept = rng.sample(range(item.n), item.keep)
        if step < item.steps:
            with clock("policy_seconds"):
                beams.select([kept[i * item.keep // item.n] for i in range(item.n)])
    return Count(item.n * item.steps * item.step_tokens, clock.seconds)


class Stopwatch:
    """Wall time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def memory(process: str = "self") -> dict[str, int]:
    """Bytes of a process in memory: now, and the most since the last ``forget_peak``."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"rss": 0, "peak_rss": most * (1 if sys.platform == "darwin" else 1024)}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return {
        name: int(fields[key].split()[0]) * 1024 for name, key in (("rss", "VmRSS"), ("peak_rss", "VmHWM"))
    }


def forget_peak(process: str = "self") -> None:
    """Start the peak of ``memory`` anew where the system lets a process do so."""
    try:
        Path(f"/proc/{process}/clear_refs").write_text("5")
    except OSError:
        return


def serve(side: Side) -> None:
    """Answer requests until stdin ends. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    handlers: dict[str, Callable[[Facts], Facts]] = {
        "load": lambda request: _load(side, request),
        "run": lambda request: _run(side, request),
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply: Facts = {"ok": True} | handlers[request.pop("op")](request)
        except Exception as error:
            traceback.print_exc()
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}".strip()[:600]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _load(side: Side, request: Facts) -> Facts:
    begin = time.perf_counter()
    facts = side.load(**request)
    return facts | memory() | {"seconds": time.perf_counter() - begin}


def _run(side: Side, request: Facts) -> Facts:
    item = Item(**request)
    side.prepare(item)
    forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    item.meter.deadline = wall + item.limit
    try:
        count, cut_off = side.run(item), False
    except CutOff:
        count, cut_off = Count(item.meter.tokens), True
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = {"seconds": wall, "cpu_seconds": cpu, "tokens": count.tokens, "extra": count.extra}
    return done | memory() | {"cut_off": cut_off} | count.measured
