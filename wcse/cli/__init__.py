"""The command line: ``wcse COMMAND``; each module beside this one has commands of its own.

Only argparse is imported here, so that ``wcse --help`` answers at once; everything heavy waits for the
command that needs it. A mistake of the user is one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from wcse.cli import audit, experiment, optimal, plot, prm, prm_train, serve, solve, synth, train, versus
from wcse.cli import eval as evaluation
from wcse.cli.command import INTERRUPTED, Command
from wcse.names import suggest
from wcse.types import WcseError

COMMANDS: tuple[Command, ...] = (
    *solve.COMMANDS,
    *serve.COMMANDS,
    *evaluation.COMMANDS,
    *optimal.COMMANDS,
    *versus.COMMANDS,
    *plot.COMMANDS,
    *synth.COMMANDS,
    *train.COMMANDS,
    *experiment.COMMANDS,
    *audit.COMMANDS,
    *prm.COMMANDS,
    *prm_train.COMMANDS,
)

GROUPS: dict[str, str] = {
    "prm": "process reward models by themselves",
    "experiment": "studies that run end to end and print their tables",
}
"""What a group of commands is about, by its first word."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted.

    Args:
        argv: arguments without the program's name; None takes the process's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end the run
    try:
        return _dispatch(argv)
    except WcseError as error:
        print(f"wcse: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nwcse: interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    options = dict(vars(args))
    command: Command | None = options.pop("command", None)
    if command is not None and command.foreign:
        options["rest"] = unknown
    elif unknown:
        raise WcseError(_unknown_argument(unknown[0], command))
    if command is None:
        parser.print_help()
        return 2
    fields = {name: str(settings.get("dest", name.replace("-", "_"))) for name, settings in command.options}
    missing = [f"--{name}" for name in command.needs if fields[name] not in options]
    if missing:
        raise WcseError(f"{', '.join(missing)} missing; see wcse {command.name} --help")
    return command.run(options)


def _unknown_argument(argument: str, command: Command | None) -> str:
    name = argument.partition("=")[0]
    known = [f"--{option}" for option, _ in command.options] if command else []
    shown = f"{command.name} " if command else ""
    return f"unknown argument {name!r}{suggest(name, known)}; see wcse {shown}--help"


class _Parser(argparse.ArgumentParser):
    """Mistakes become a WcseError instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        raise WcseError(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"wcse {version('wcse')}")
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wcse",
        description="Search over partial solutions with a weak, cheap policy and a verifier.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version"
    )
    top = parser.add_subparsers(metavar="command", parser_class=_Parser)
    groups: dict[str, Any] = {"": top}
    for name, about in GROUPS.items():
        group = top.add_parser(name, help=about, description=about, allow_abbrev=False)
        groups[name] = group.add_subparsers(metavar="command", parser_class=_Parser, required=True)
    for command in COMMANDS:
        group_name, _, name = command.name.rpartition(" ")
        _add(groups[group_name], name, command)
    return parser


def _add(group: Any, name: str, command: Command) -> None:
    parser = group.add_parser(
        name,
        help=command.about,
        description=command.about,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not command.foreign,
    )
    for argument, settings in command.arguments:
        parser.add_argument(argument, **settings)
    for option, settings in command.options:
        parser.add_argument(f"--{option}", default=argparse.SUPPRESS, **settings)
    parser.set_defaults(command=command)
