"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch

import pytest

from wcse.search import STRATEGIES

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_example_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    with patch.dict(STRATEGIES):  # an example registers its own
        exec(compile(block, "README.md", "exec"), {"__name__": "__readme__"})
    if "print(" in block:
        assert capsys.readouterr().out.strip()


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 3
