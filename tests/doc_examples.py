"""The Python examples of a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def examples(page: str, language: str = "python") -> list[str]:
    """The page's examples in a language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found


def run_examples(page: str, replace: dict[str, str] | None = None) -> None:
    """Run the page's examples in order, as they stand but for ``replace``."""
    for block in examples(page):
        for old, new in (replace or {}).items():
            assert old in block
            block = block.replace(old, new)
        exec(compile(block, page, "exec"), {"__name__": "__docs__"})
