"""The record that makes a generator a strategy: what it needs, and what it refuses before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wcse.search.config import SearchConfig
from wcse.types import Node, Search, WcseError


def accept(config: SearchConfig) -> None:
    """The check of a strategy that can work with every config."""


def check_divisible(config: SearchConfig) -> None:
    """Refuse a budget that does not split into whole groups of ``beam_width`` children.

    Raises:
        WcseError: names both values and the nearest budgets that do.
    """
    n, width = config.n, config.beam_width
    if n % width == 0:
        return
    below = n - n % width
    nearest = f"{below} or {below + width}" if below else f"{width}"
    raise WcseError(f"n={n} is not divisible by beam_width={width}; use n={nearest}, or another beam_width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One entry of the registry.

    Attributes:
        run: makes the generator for one problem from its root; see :data:`wcse.types.Search`.
        selector: name in :data:`wcse.votes.SELECTORS` of the rule that picks the answer by default.
        needs_prm: the generator or the selector reads step scores.
        check: raises WcseError when the config makes no sense for this strategy.
    """

    run: Callable[[Node, SearchConfig], Search]
    selector: str
    needs_prm: bool
    check: Callable[[SearchConfig], None] = accept
