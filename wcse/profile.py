"""Where the time goes: cProfile's own times, summed by what they were spent on.

Everything that runs under ``Profile`` is accounted for, down to the last call: native kernels by what they do, the
tree, the tokenizer, and what is left as Python. Knows the names of kernels and methods, and no engine.
cProfile costs every Python call a little, so the share of Python is an upper bound.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from wcse import _core

NATIVE = "<built-in method wcse._core."
KERNELS = {
    "tree_attention": "attention",
    "linear": "weight GEMMs",
    "rms_norm": "norms, rope, activation",
    "rope_write_kv": "norms, rope, activation",
    "gated_act": "norms, rope, activation",
    "forward": "norms, rope, activation",
    "sample": "sampling",
    "token_logprobs": "sampling",
}
FORWARD = NATIVE + "forward>"
STAGES = ("weight GEMMs", "attention", "norms, rope, activation")
"""What ``_core.stage_seconds`` counts: a forward pass of all layers is one call, which keeps its own account."""

TREE = "tree, plan, text"
FILES = (
    ("/tokenizers", "tokenizer"),
    ("/transformers/", "tokenizer"),
    ("/wcse/answers/", "answers"),
    ("/wcse/data/", "journal"),
)
"""Python code whose time has a name of its own, by a part of its path."""

LM_HEAD = ("decoder.py", "logits")
PARTS = (
    "weight GEMMs",
    "lm_head",
    "attention",
    "norms, rope, activation",
    "sampling",
    TREE,
    "tokenizer",
    "answers",
    "journal",
    "Python",
)


@dataclass(frozen=True)
class Times:
    """Seconds by part (``PARTS``), their sum, and the wall time that they explain."""

    parts: dict[str, float]
    wall: float

    @property
    def explained(self) -> float:
        """The share of the wall time that the parts add up to."""
        return sum(self.parts.values()) / self.wall if self.wall else 1.0

    def table(self) -> str:
        """Lines of part, seconds and share, largest first."""
        rows = sorted(self.parts.items(), key=lambda item: -item[1])
        lines = [f"{name:<24} {seconds:9.3f} s {seconds / self.wall:7.1%}" for name, seconds in rows]
        return "\n".join([*lines, f"{'accounted for':<24} {self.wall:9.3f} s {self.explained:7.1%}"])

    def to_json(self) -> dict[str, Any]:
        """For a file beside the run."""
        return {"wall_seconds": self.wall, "explained": self.explained, "seconds": self.parts}


class Profile:
    """A context manager; ``times`` has the account once it is left."""

    times: Times

    def __enter__(self) -> Profile:
        self._profile = cProfile.Profile()
        self._stages = _core.stage_seconds()
        self._start = time.perf_counter()
        self._profile.enable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.disable()
        wall = time.perf_counter() - self._start
        spent = [b - a for a, b in zip(self._stages, _core.stage_seconds(), strict=True)]
        self.times = account(self._profile, wall, dict(zip(STAGES, spent, strict=True)))


def account(profile: cProfile.Profile, wall: float, stages: Mapping[str, float]) -> Times:
    """Sum a profile's own times by part; ``stages`` is what the forward passes say of themselves."""
    parts = dict.fromkeys(PARTS, 0.0) | dict(stages)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, name), (_, _, own, total, _) in stats.items():
        parts[_part(file, name)] += own
        if name == FORWARD:  # what its stages do not explain: copies of rows, and the buffers
            parts["norms, rope, activation"] -= sum(stages.values())
        if file.endswith(LM_HEAD[0]) and name == LM_HEAD[1]:
            # What the output matrix takes was counted with the other matrices, and a little with Python.
            parts["lm_head"] += total - own
            parts["weight GEMMs"] -= total - own
    return Times(parts, wall)


def _part(file: str, name: str) -> str:
    if name.startswith(NATIVE):
        kernel = name.removeprefix(NATIVE).rstrip(">")
        return KERNELS.get(kernel, TREE)
    for fragment, part in FILES:
        if fragment in file:
            return part
    return "tokenizer" if "tokenizers.Tokenizer" in name else "Python"
