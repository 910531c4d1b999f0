"""The examples of the pages about the server run as they stand."""

from __future__ import annotations

from typing import Any

from doc_examples import run_examples
from live_server import Live


def test_the_example_of_the_documentation(live: Live, capsys: Any) -> None:
    run_examples("serve.md", {"http://127.0.0.1:8000": live.url})
    assert "sampled_tokens" in capsys.readouterr().out
