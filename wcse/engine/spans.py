"""Spans of tokens: what a runner knows of a node, and of the pages that hold it.

Records only; who stores them is ``runner``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

PAGE = 16


class Span:
    """A run of token ids below a parent span.

    ``n_kv`` of the tokens have keys and values in tree node ``kv`` (-1: none, they will be recomputed).
    ``start`` is the position of the first token. A ``closed`` span takes no more tokens; those of a ``prompt``
    stay cached for the next problem that begins alike. ``hidden`` [hidden
    size] is the final-norm hidden state of the last token, set when a closed span is wholly stored.
    """

    __slots__ = (
        "__weakref__",
        "base",
        "closed",
        "hidden",
        "kids",
        "kv",
        "n_kv",
        "parent",
        "prompt",
        "start",
        "tick",
        "tokens",
    )

    def __init__(
        self, parent: Span | None, tokens: Sequence[int] = (), *, prompt: bool = False, base: int = 0
    ) -> None:
        self.parent = parent
        self.base = base  # the tree node below which a first span begins: its tenant's
        self.tokens = list(tokens)
        self.start: int = parent.start + len(parent.tokens) if parent else 0
        self.kv = -1
        self.n_kv = 0
        self.kids = 0  # child spans that have a tree node
        self.closed = prompt
        self.prompt = prompt
        self.hidden: torch.Tensor | None = None
        self.tick = 0

    @property
    def depth(self) -> int:
        """Tokens from the start of the prompt to the end of this span."""
        return self.start + len(self.tokens)

    def lineage(self) -> list[Span]:
        """The spans from the first of the prompt to this one."""
        chain: list[Span] = []
        span: Span | None = self
        while span is not None:
            chain.append(span)
            span = span.parent
        return chain[::-1]


def pages(tokens: int) -> int:
    """Pages that a node of so many tokens owns."""
    return -(-tokens // PAGE)


def opened_pages(slots: np.ndarray) -> np.ndarray:
    """The pages that consecutive slots [rows, count] open, in order: int32 [rows, pages], -1 for none."""
    found = np.full((len(slots), pages(slots.shape[1])), -1, np.int32)
    opens = slots % PAGE == 0
    found[np.nonzero(opens)[0], (opens.cumsum(1) - 1)[opens]] = slots[opens] // PAGE
    return found
