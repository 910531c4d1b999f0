"""docs/prm.md says what the records say, and its Python example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wcse.reward.families import FAMILIES

TEXT = (Path(__file__).parents[1] / "docs" / "prm.md").read_text(encoding="utf-8")


def test_the_table_has_every_family_with_its_aggregation() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \| (\w+) \|$", TEXT, re.MULTILINE)
    rows.remove(("prm_family", "head -> score", "aggregation"))
    assert {name: agg for name, _, agg in rows} == {name: family.agg for name, family in FAMILIES.items()}
    assert {name for name, head, _ in rows if "unbounded" in head} == {
        name for name, family in FAMILIES.items() if not family.bounded
    }


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "docs/prm.md", "exec"), {"__name__": "__docs__"})
    assert capsys.readouterr().out.startswith("[[")
