"""How PRM families lay out a problem and its steps as token ids, append-only.

A family says what ids the prompt and each further step become; the score of a step is read at the last id of
its piece. Ids that a family writes after a read position begin the next piece, so nothing is ever re-read. It
knows nothing of models' weights or caches.

Layouts: TRL stepwise supervision (token classification); implicit PRMs, arXiv 2412.01981; Math-Shepherd,
arXiv 2312.08935; RLHFlow
(https://github.com/RLHFlow/RLHF-Reward-Modeling).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wcse.prompts import render_problem
from wcse.types import WcseError

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Family:
    """One PRM family.

    Args:
        name: what ``prm_family`` calls it.
        prefix: (layout, problem) -> ids before the first step.
        step: (layout, step text without its delimiter, step index) -> ids up to the read position.
        columns: the (good, bad) tokens of language-model columns; None for a classification head.
        default_agg: the aggregation that fits how the family was trained.
        tag: text that must be a single token for the layout to work.
        ratio: the score is a log-ratio between the model and a reference, over the steps' tokens.
    """

    name: str
    prefix: Callable[[Layout, str], list[int]]
    step: Callable[[Layout, str, int], list[int]]
    default_agg: str
    columns: tuple[str, str] | None = None
    tag: str | None = None
    ratio: bool = False


@dataclass
class Layout:
    """A family bound to a tokenizer.

    Raises:
        WcseError: the tag or a column is not a single token of this tokenizer.
    """

    family: Family
    tokenizer: Any
    separator: str = "\n\n"
    source: str = ""
    column_ids: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.family.tag is not None:
            self.single(self.family.tag)
        if self.family.columns is not None:
            good, bad = self.family.columns
            self.column_ids = (self.single(good), self.single(bad))

    def ids(self, text: str) -> list[int]:
        """Ids of plain text: control strings in it stay text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def bos(self) -> list[int]:
        token = self.tokenizer.bos_token_id
        return [] if token is None else [token]

    def special(self, text: str) -> list[int]:
        """Ids of template text, in which control strings are control tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def single(self, text: str) -> int:
        ids = self.special(text)
        if len(ids) > 1 and len(self.tokenizer.convert_ids_to_tokens(ids[0]).strip("▁")) == 0:
            ids = ids[1:]  # sentencepiece puts a word mark of its own before the text
        if len(ids) != 1:
            raise WcseError(
                f"prm={self.source!r}: family {self.family.name!r} needs {text!r} to be one token and this tokenizer "
                f"makes {len(ids)} of it; use the PRM's own tokenizer or another prm_family"
            )
        return ids[0]

    def prefix(self, problem: str) -> list[int]:
        return self.family.prefix(self, problem)

    def step(self, text: str, index: int) -> list[int]:
        return self.family.step(self, text, index)


def _trl_prefix(layout: Layout, problem: str) -> list[int]:
    return layout.bos() + layout.ids(problem)


def _trl_step(layout: Layout, text: str, index: int) -> list[int]:
    return layout.ids(text) + layout.special(layout.separator)


def _chat_prefix(layout: Layout, problem: str) -> list[int]:
    return render_problem(layout.tokenizer, problem)


def _joined_step(layout: Layout, text: str, index: int) -> list[int]:
    joint = [] if index == 0 else layout.special(layout.separator)
    return joint + layout.ids(text)


def _shepherd_prefix(layout: Layout, problem: str) -> list[int]:
    return layout.bos() + layout.ids(problem)


def _shepherd_step(layout: Layout, text: str, index: int) -> list[int]:
    lead = "" if text.lstrip().startswith("Step ") else f"Step {index + 1}: "
    newline = "" if index == 0 else "\n"
    return [*layout.ids(f"{newline}{lead}{text}"), layout.single("ки")]


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_RLHFLOW_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def _rlhflow_prefix(layout: Layout, problem: str) -> list[int]:
    head = layout.bos() + layout.special(
        _HEADER.format("system") + _RLHFLOW_SYSTEM + "<|eot_id|>" + _HEADER.format("user")
    )
    return head + layout.ids(problem.strip())


def _rlhflow_step(layout: Layout, text: str, index: int) -> list[int]:
    opening = [] if index == 0 else layout.special("+<|eot_id|>" + _HEADER.format("user"))
    lead = " " if index == 0 else ""
    closing = layout.special("<|eot_id|>" + _HEADER.format("assistant"))
    return opening + layout.ids(lead + text.strip()) + closing


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("token_classification", _trl_prefix, _trl_step, "last"),
        Family("implicit", _chat_prefix, _joined_step, "last", ratio=True),
        Family("math_shepherd", _shepherd_prefix, _shepherd_step, "last", ("+", "-"), "ки"),
        Family("rlhflow", _rlhflow_prefix, _rlhflow_step, "mean", ("+", "-"), "<|eot_id|>"),
    )
}


def family_named(name: str) -> Family:
    """The family called ``name``.

    Raises:
        WcseError: unknown; the message lists the known ones.
    """
    if name not in FAMILIES:
        raise WcseError(f"prm_family={name!r}: unknown; known families: {', '.join(FAMILIES)}")
    return FAMILIES[name]
