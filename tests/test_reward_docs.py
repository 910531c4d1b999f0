"""docs/prm.md says what the records say, and its Python example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prm_models import CASES

from wcse.reward.families import FAMILIES

TEXT = (Path(__file__).parents[1] / "docs" / "prm.md").read_text(encoding="utf-8")


def test_the_table_has_every_family_with_its_aggregation() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \| (\w+) \| (.*) \|$", TEXT, re.MULTILINE)
    rows.remove(("prm_family", "head -> score", "aggregation", "test"))
    assert {name: agg for name, _, agg, _ in rows} == {name: family.agg for name, family in FAMILIES.items()}
    for name, _, _, test in rows:
        file = Path(__file__).with_name(test.strip("`"))
        assert f'"{name}"' in file.read_text() or (name in CASES and "params=CASES" in file.read_text())
    assert {name for name, head, *_ in rows if "unbounded" in head} == {
        name for name, family in FAMILIES.items() if not family.bounded
    }


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "docs/prm.md", "exec"), {"__name__": "__docs__"})
    assert capsys.readouterr().out.startswith("[[")
