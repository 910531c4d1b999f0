"""inspect-ai itself: a task on our provider, found by its entry point, and the same over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

import inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from live_server import serving

from wcse.serve.service import ServeConfig

SUMS = [Sample(input=f"Calculate {a} + {b}.", target=str(a + b)) for a, b in ((17, 25), (3, 4), (20, 30))]


def run(model: str, log_dir: Path, **options: object) -> inspect_ai.log.EvalLog:
    task = inspect_ai.Task(
        dataset=SUMS, solver=generate(), scorer=includes(), config=GenerateConfig(**options)
    )
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(log_dir), display="none")
    assert log.status == "success", log.error
    return log


def test_in_process(tmp_path: Path) -> None:
    log = run("wcse/tiny-wc", tmp_path, max_tokens=40, temperature=0, logprobs=True, top_logprobs=2)
    used = log.stats.model_usage["wcse/tiny-wc"]
    assert used.input_tokens > 0 and 0 < used.output_tokens <= 3 * 40
    assert log.samples is not None
    for sample in log.samples:
        assert sample.output.choices[0].logprobs is not None


def test_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ServeConfig(model="tiny-wc", kv_memory=0.1)) as live:
        monkeypatch.setenv("WCSE_LOCAL_API_KEY", "none")
        monkeypatch.setenv("WCSE_LOCAL_BASE_URL", f"{live.url}/v1")
        log = run("openai-api/wcse-local/tiny-wc", tmp_path, max_tokens=40, temperature=0)
    assert log.stats.model_usage["openai-api/wcse-local/tiny-wc"].output_tokens > 0
