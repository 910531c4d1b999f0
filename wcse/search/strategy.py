"""The record that makes a generator a strategy: what it needs, and what it refuses before anything runs.

Also reads a strategy as the user writes it: a name, and in parentheses the options that differ from the run's,
as in ``beam_search(n=16,lookahead=2)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from wcse.names import suggest
from wcse.search.config import SearchConfig, read_option
from wcse.types import Node, Search, WcseError

SHAPE = ("n", "num_iterations", "agg_strategy")
"""Options that every strategy reads, or may be given without harm."""


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
        options: fields of :class:`SearchConfig` that it reads besides ``SHAPE``.
    """

    run: Callable[[Node, SearchConfig], Search]
    selector: str
    needs_prm: bool
    check: Callable[[SearchConfig], None] = accept
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """A strategy as it was asked for: the name of its entry and the options that differ from the run's."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """The canonical spelling: options in the order of :class:`SearchConfig`."""
        order = [field.name for field in fields(SearchConfig) if field.name in self.options]
        listed = ",".join(f"{name}={self.options[name]}" for name in order)
        return f"{self.name}({listed})" if listed else self.name

    def config(self, base: SearchConfig) -> SearchConfig:
        """``base`` with these options.

        Raises:
            WcseError: a value is out of range.
        """
        return replace(base, **self.options)


def split_specs(text: str) -> tuple[str, ...]:
    """The strategies of a comma-separated list; commas inside parentheses separate options."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts if part.strip())


def read_spec(text: str, aliases: Mapping[str, str], registry: Mapping[str, Strategy]) -> Spec:
    """Read ``name`` or ``name(option=value,...)``.

    Raises:
        WcseError: no such strategy, an option that it does not read, or a value of another kind.
    """
    name, paren, rest = text.strip().partition("(")
    name = aliases.get(name.strip(), name.strip())
    if name not in registry:
        raise WcseError(
            f"strategy={name!r} is unknown{suggest(name, registry)}; use one of {', '.join(registry)}"
        )
    if not paren:
        return Spec(name, {})
    if not rest.endswith(")"):
        raise WcseError(f"strategy={text!r}: the parenthesis is not closed; write name(option=value,...)")
    known = (*SHAPE, *registry[name].options)
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest[:-1].split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or option not in known:
            raise WcseError(
                f"strategy={text!r}: {name} has no option {option!r}{suggest(option, known)}; "
                f"it has {', '.join(known)}"
            )
        if option in options:
            raise WcseError(f"strategy={text!r}: {option} is given twice")
        options[option] = read_option(option, value)
    return Spec(name, options)
