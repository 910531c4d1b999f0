"""The examples of the pages about other tools run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_examples import run_examples

TOOLS = {
    "lm-eval": "lm_eval",
    "inspect": "inspect_ai",
    "trl": "trl",
    "its_hub": "its_hub",
    "distilabel": "distilabel",
    "ray": "ray.data",
}


@pytest.mark.parametrize("page", TOOLS)
def test_example_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(TOOLS[page])
    monkeypatch.chdir(tmp_path)
    run_examples(f"{page}.md", {"/tmp/wcse-grpo": str(tmp_path)} if page == "trl" else None)
    assert capsys.readouterr().out.strip()
