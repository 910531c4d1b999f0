"""The examples of the pages about the server run as they stand."""

from __future__ import annotations

from typing import Any

import pytest
from doc_examples import run_examples
from live_server import Live


@pytest.mark.parametrize(("page", "shown"), [("serve", "sampled_tokens"), ("openai", "temperature=7")])
def test_the_examples_of_the_documentation(live: Live, capsys: Any, page: str, shown: str) -> None:
    run_examples(f"{page}.md", {"http://127.0.0.1:8000": live.url})
    assert shown in capsys.readouterr().out
