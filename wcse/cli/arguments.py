"""Values of command-line options that several commands read alike, and files that they write.

Functions for ``argparse``'s ``type``: they raise what it turns into an error that names the option.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wcse.types import WcseError


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between them."""
    try:
        numbers = tuple(int(part) for part in words(text))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers of at least 1 with commas between them"
        )
    return numbers


def numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[Any, ...]]:
    """A reader of numbers of a kind with commas between them."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in words(text))
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r}: give {what} with commas between them") from None

    return read


def yes_or_no(text: str) -> bool:
    """yes or no, in the words that YAML has for them."""
    meant = {"yes": True, "true": True, "no": False, "false": False}.get(text.lower())
    if meant is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give yes or no")
    return meant


def prices(text: str) -> tuple[float, ...]:
    """Prices of tokens that are read and written: "0.1,0.4" or "0.1/0.4"."""
    return numbers(float)(text.replace("/", ","))


def specs(text: str) -> tuple[str, ...]:
    """Strategies with commas between them."""
    from wcse.search import split_specs

    return split_specs(text)


def unescaped(text: str) -> str:
    """Text with \\n and \\t for line feed and tab, as a shell gives it."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


@contextmanager
def writing(option: str, path: object) -> Iterator[None]:
    """A file that cannot be written is a mistake in the option that names it.

    Raises:
        WcseError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WcseError(f"{option}={str(path)!r}: cannot be written: {error.strerror or error}") from error
