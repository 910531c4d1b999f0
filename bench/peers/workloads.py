"""What is compared: the three workloads, their sizes, and prompts that no side has seen before.

Knows tokens and counts, not sides or time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WORKLOADS = {"a": "sample", "b": "search", "c": "score", "s": "serve"}
"""By letter: sampling, tree search without a verifier, with one, requests to a server. See ``sides/side.py``."""

_THINGS = (
    "apples",
    "marbles",
    "stamps",
    "coins",
    "books",
    "pencils",
    "cards",
    "shells",
    "buttons",
    "tickets",
)
_NAMES = ("Anna", "Ben", "Chloe", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam")


@dataclass(frozen=True)
class Shape:
    """Sizes that all items of a run share."""

    prompt_tokens: int = 400
    new_tokens: int = 128
    steps: int = 6
    step_tokens: int = 32
    requests: int = 4
    temperature: float = 0.8
    top_p: float = 0.95


@dataclass(frozen=True)
class Cell:
    """One line of the comparison: a workload with ``n`` completions (of a request, for ``serve``) or beams."""

    workload: str
    n: int

    def tokens(self, shape: Shape) -> int:
        """Tokens that every side has to write."""
        each = shape.new_tokens if self.workload in ("sample", "serve") else shape.steps * shape.step_tokens
        return self.n * each * (shape.requests if self.workload == "serve" else 1)

    def read(self, shape: Shape) -> tuple[int, int]:
        """Tokens that a policy and a verifier have to read at least: a prompt once, and what was written but the last
        token (whole steps and their separators, for the verifier)."""
        written = self.tokens(shape)
        prompts = shape.requests if self.workload == "serve" else 1
        verified = shape.prompt_tokens + written + self.n * shape.steps if self.workload == "score" else 0
        return prompts * shape.prompt_tokens + written - self.n * prompts, verified


class Prompts:
    """Prompts of a fixed number of tokens, one for each round and cell.

    Args:
        encode: text to token ids.
        tokens: length of a prompt.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], tokens: int) -> None:
        self.encode = encode
        self.tokens = tokens

    def of(self, cell: Cell, round_: int) -> list[int]:
        """Ids of worked word problems with numbers of their own; they differ from the first line on."""
        rng = random.Random(f"{cell.workload} {cell.n} {round_}")
        text = ""
        for problem in _problems(rng):
            text += problem
            ids = list(self.encode(text))
            if len(ids) >= self.tokens:
                return ids[: self.tokens]
        raise AssertionError("problems never end")


def _problems(rng: random.Random) -> Iterator[str]:
    while True:
        name, other = rng.sample(_NAMES, 2)
        thing = rng.choice(_THINGS)
        a, b, c = rng.randint(100, 999), rng.randint(10, 99), rng.randint(2, 9)
        yield (
            f"Problem {rng.randint(1000, 9999)}: {name} has {a} {thing} and buys {c} boxes of {b} {thing} each. "
            f"{other} takes {b} of them. How many {thing} does {name} have now?\n"
            f"The boxes hold {c} * {b} = {c * b} {thing}. Together that is {a} + {c * b} = {a + c * b}. "
            f"After {other} took {b} there are {a + c * b} - {b} = {a + c * b - b} left.\n\n"
        )


def request(cell: Cell, mode: str, prompt: Sequence[int], shape: Shape, seed: int) -> dict[str, Any]:
    """An item as it goes to a side."""
    return {
        "op": "run",
        "workload": cell.workload,
        "mode": mode,
        "prompt": list(prompt),
        "n": cell.n,
        "new_tokens": shape.new_tokens,
        "steps": shape.requests if cell.workload == "serve" else shape.steps,
        "step_tokens": shape.step_tokens,
        "temperature": shape.temperature,
        "top_p": shape.top_p,
        "seed": seed,
    }
