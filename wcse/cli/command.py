"""What a command of the command line is. Knows no command and imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Options = dict[str, Any]
"""Values of the options that were given, by field name; what was not given is absent."""

Arguments = tuple[tuple[str, dict[str, Any]], ...]
"""(name, settings of ``argparse.add_argument``) of each."""


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: one word, or two ("prm check") for a command of a group.
        about: one line of help.
        run: does the work; returns the exit code.
        options: names without their dashes.
        arguments: positional ones.
        needs: options it cannot do without; checked last, so that a typo is named first.
        epilog: text below the help.
        foreign: the arguments belong to another tool; they arrive as they are, as ``rest``.
    """

    name: str
    about: str
    run: Callable[[Options], int]
    options: Arguments = ()
    arguments: Arguments = ()
    needs: tuple[str, ...] = ()
    epilog: str = ""
    foreign: bool = False
