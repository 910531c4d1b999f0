"""The Python examples of a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def run_examples(page: str, replace: dict[str, str] | None = None) -> None:
    """Run the page's examples in order, as they stand but for ``replace``."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for old, new in (replace or {}).items():
            assert old in block
            block = block.replace(old, new)
        exec(compile(block, page, "exec"), {"__name__": "__docs__"})
