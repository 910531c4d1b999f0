"""DSPy itself over HTTP: samples of one prompt, a search as a model, a program, an error that names its field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

dspy = pytest.importorskip("dspy")

from doc_examples import run_examples  # noqa: E402
from live_server import Live, serving  # noqa: E402

from wcse.serve.service import ServeConfig  # noqa: E402


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(ServeConfig(model="tiny-wc", prm="tiny-wc-prm", kv_memory=0.2)) as running:
        yield running


def lm(live: Live, name: str = "tiny-wc", **options: Any) -> Any:
    return dspy.LM(f"openai/{name}", api_base=f"{live.url}/v1", api_key="none", cache=False, **options)


def test_samples_of_one_prompt(live: Live) -> None:
    texts = lm(live, max_tokens=40, temperature=0.8)("Calculate 17 + 25.", n=4)
    assert len(texts) == 4 and all(isinstance(text, str) and text for text in texts)
    greedy = {lm(live, max_tokens=40, temperature=0.0)("Calculate 17 + 25.")[0] for _ in range(2)}
    assert len(greedy) == 1


def test_a_search_is_a_model(live: Live) -> None:
    (text,) = lm(live, "tiny-wc@dvts-n8-m4", max_tokens=96)("Calculate 17 + 25.")
    assert "42" in text
    assert len(lm(live, "tiny-wc@majority-n8", max_tokens=96)("Calculate 17 + 25.", n=2)) == 2


def test_mistakes_reach_the_program(live: Live) -> None:
    with pytest.raises(Exception, match="no_such_strategy"):
        lm(live, "tiny-wc@no_such_strategy-n8", num_retries=0)("x")


def test_the_page(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples("dspy.md", {"http://127.0.0.1:8000": live.url})
    *_, one, search, voted = capsys.readouterr().out.splitlines()
    assert one.startswith("openai/tiny-wc ") and search.startswith("openai/tiny-wc@dvts-n8-m4 ")
    assert int(search.split()[1]) >= 3 and voted == "42"
