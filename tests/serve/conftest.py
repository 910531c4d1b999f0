"""Servers that the tests of this folder share: one open to this machine, one with keys and narrow limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

from live_server import Live, serving  # noqa: E402

from wcse.models.load import LoadedModel, load_model  # noqa: E402
from wcse.serve.admission import Limits  # noqa: E402
from wcse.serve.service import ServeConfig  # noqa: E402


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    return load_model("tiny-wc")


@pytest.fixture(scope="session")
def live(model: LoadedModel) -> Iterator[Live]:
    config = ServeConfig(model="tiny-wc", prm="shared", kv_memory=0.1, structured=True)
    with serving(config, model) as running:
        yield running


@pytest.fixture(scope="session")
def keyed(model: LoadedModel) -> Iterator[Live]:
    limits = Limits(running=2, running_tokens=4000, body_bytes=20_000)
    config = ServeConfig(
        model="tiny-wc", name="m", keys=("alpha", "beta"), kv_memory=0.1, limits=limits, max_num_seqs=8
    )
    with serving(config, model) as running:
        yield running


@pytest.fixture(scope="session")
def client(live: Live) -> Any:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
