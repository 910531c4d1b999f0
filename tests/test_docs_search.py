"""The examples of docs/search.md: the Python runs, the commands have options that exist, the table is complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from unittest.mock import patch

import pytest
from fakes import FakePolicy, make_root, run

from wcse.cli import _parser
from wcse.search import STRATEGIES, SearchConfig, parse_strategy

TEXT = (Path(__file__).parents[1] / "docs" / "search.md").read_text(encoding="utf-8")


def test_python_example_is_a_strategy() -> None:
    (code,) = [block for language, block in BLOCKS if language == "python"]
    assert len(code.splitlines()) <= 20
    with patch.dict(STRATEGIES):
        exec(compile(code, "search.md", "exec"), {"__name__": "__docs__"})
        strategy = STRATEGIES["halve_once"]
        leaves = run(strategy.run(make_root(), SearchConfig(n=8, agg_strategy="last")), FakePolicy(1))
    assert 1 <= len(leaves) <= 8 and not any(leaf.live for leaf in leaves)


BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "wcse"
    options, unknown = _parser().parse_known_args(words[1:])
    assert not unknown
    for text in getattr(options, "strategies", ()):
        parse_strategy(text)


def test_table_lists_every_strategy_and_its_options() -> None:
    for name, entry in STRATEGIES.items():
        (row,) = [
            line for line in TEXT.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]
        ]
        listed = set(re.findall(r"`(\w+)`", row.split("|")[3]))
        hidden = {"filter_duplicates", "sort_completed"}
        assert listed == set(entry.options) - hidden, name
