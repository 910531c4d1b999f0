"""Many clients at once, some that vanish, overload, a broken step, and keys."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from live_server import GENERATE, Live
from serve_storms import disconnects

from wcse import cli
from wcse.models.load import LoadedModel
from wcse.serve.app import make_server
from wcse.serve.service import ServeConfig, Service
from wcse.types import WcseError


def test_requests_in_parallel_share_the_batch_and_nothing_else(live: Live) -> None:
    def ask(i: int) -> Any:
        body = {"prompt": f"Calculate {i % 8} + 5.", "seed": i % 8, "max_tokens": 12, "n": 2}
        status, reply = live.post("/v1/completions", body)
        assert status == 200
        return [choice["text"] for choice in reply["choices"]]

    alone = [ask(i) for i in range(8)]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, range(64)))
    assert together == [alone[i % 8] for i in range(64)]
    assert live.settle()["pinned"] == 0


def test_streams_share_what_the_front_can_send(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many streams gets several tokens at once; what it gets adds up to the whole reply."""
    body = {"prompt": "1 + 1", "seed": 4, "max_tokens": 60, "ignore_eos": True}
    whole = live.post("/v1/completions", body)[1]["choices"][0]["text"]

    def stream(_: int) -> tuple[str, int]:
        status, text = live.post("/v1/completions", body | {"stream": True})
        assert status == 200
        parts = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        return "".join(part["choices"][0]["text"] for part in parts), len(parts)

    alone, parts = stream(0)  # it hears of each token, but for those that came while it was busy with one
    assert alone == whole and parts > 8
    monkeypatch.setattr("wcse.serve.loop.PART_SECONDS", 10.0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(stream, range(8)))
    assert {text for text, _ in found} == {whole}
    assert sum(parts for _, parts in found) < 8 * 60 / 2


def test_disconnects_give_every_page_back(live: Live) -> None:
    """Clients that vanish at any moment, streaming or not, plain or searching, alone or together."""
    before = live.settle()
    survivor = GENERATE | {"seed": 1, "max_tokens": 40, "ignore_eos": True}
    expected = live.post("/v1/completions", survivor)[1]["choices"][0]["text"]
    disconnects(live.port, 80, seed=3)
    assert live.post("/v1/completions", survivor)[1]["choices"][0]["text"] == expected
    after = live.settle()
    assert after["pinned"] == 0 and after["free"] + after["cached"] == before["total"]
    assert live.service.admission.running == 0 and live.service.admission.tokens == 0
    assert live.service.loop.failures == 0


def test_a_broken_step_ends_its_requests_and_not_the_server(live: Live, monkeypatch: Any) -> None:
    engine = live.service.engine

    def broken(*_: Any) -> None:
        monkeypatch.undo()
        raise RuntimeError("secret prompt text")

    failures = live.service.loop.failures
    monkeypatch.setattr(engine.runner, "run", broken)
    status, reply = live.post("/v1/completions", GENERATE)
    assert status == 500 and "secret" not in reply["error"]["message"]
    assert live.post("/v1/completions", GENERATE)[0] == 200
    assert live.settle()["pinned"] == 0 and live.service.loop.failures == failures + 1


def test_overload_is_refused_with_a_time_to_come_back(keyed: Live) -> None:
    auth = {"Authorization": "Bearer alpha"}
    body = {"prompt": "x", "max_tokens": 600, "ignore_eos": True, "n": 3}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: keyed.call("POST", "/v1/completions", body, auth), range(8)))
    statuses = [status for status, _, _ in replies]
    assert set(statuses) == {200, 429}
    for status, headers, reply in replies:
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 60
            assert reply["error"]["type"] == "rate_limit_error"
    assert keyed.call("POST", "/v1/completions", GENERATE, auth)[0] == 200


def test_every_route_needs_the_key(keyed: Live) -> None:
    app = keyed.server.config.app
    routes = [(m, r.path) for r in app.routes for m in r.methods or ()]
    assert len(routes) > 12
    wrong = [
        {},
        {"Authorization": "Bearer gamma"},
        {"Authorization": "alpha"},
        {"Authorization": "Basic alpha"},
    ]
    for method, path in [*routes, ("OPTIONS", "/v1/models"), ("GET", "//v1/models"), ("GET", "/HEALTH")]:
        for headers in wrong:
            status, _, _ = keyed.call(method, path, None, headers)
            assert status == (200 if path == "/health" and method in ("GET", "HEAD") else 401), (method, path)
    assert keyed.call("GET", "/v1/models?api_key=alpha")[0] == 401
    for key in ("alpha", "beta"):
        assert keyed.call("GET", "/v1/models", None, {"Authorization": f"Bearer {key}"})[0] == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="no", max_retries=0).models.list()


def test_keys_do_not_see_each_others_cache(keyed: Live) -> None:
    body = {"prompt": "The cake is in the oven. " * 20, "max_tokens": 1}
    cached = []
    for key in ("alpha", "beta", "alpha", "beta"):
        status, _, reply = keyed.call("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
        assert status == 200
        cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0] and cached[2] == cached[3] > 0


def test_oversized_bodies_and_searches_without_a_verifier(keyed: Live) -> None:
    auth = {"Authorization": "Bearer alpha"}
    status, _, reply = keyed.call("POST", "/v1/completions", {"prompt": "x" * 30_000}, auth)
    assert status == 413 and reply["error"]["type"] == "invalid_request_error"
    status, _, reply = keyed.call("POST", "/v1/completions", GENERATE | {"model": "m@dvts-n8-m4"}, auth)
    assert status == 400 and "--prm" in reply["error"]["message"]
    names = [entry["id"] for entry in keyed.call("GET", "/v1/models", None, auth)[2]["data"]]
    sizes = [f"m@{name}-{n}" for name in ("majority", "adaptive_vote") for n in ("n8", "n32")]
    assert names == ["m", "m@greedy", *sizes]
    status, _, reply = keyed.call(
        "POST", "/v1/completions", GENERATE | {"structured_outputs": {"regex": "a"}}, auth
    )
    assert status == 400 and reply["error"]["param"] == "structured_outputs"


def test_a_host_beyond_this_machine_needs_a_key(model: LoadedModel) -> None:
    service = Service(ServeConfig(model="tiny-wc", kv_memory=0.01), model)
    with pytest.raises(WcseError, match="API key"):
        make_server(service, host="0.0.0.0", port=1)
    service.judge.close()


def test_the_commands_options_reach_the_server(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found: list[tuple[ServeConfig, int]] = []

    def run(config: ServeConfig, **_: Any) -> None:
        found.append((config, torch.get_num_threads()))

    monkeypatch.setattr("wcse.serve.app.run", run)
    before = torch.get_num_threads()
    command = ["serve", "--policy", "tiny-wc", "--prm", "tiny-wc-prm", "--prm-quantization", "int4"]
    try:
        assert cli.main([*command, "--threads", str(before + 1), "--max-num-seqs", "7"]) == 0
    finally:
        torch.set_num_threads(before)
    ((config, threads),) = found
    assert (config.prm_quantization, config.max_num_seqs, threads) == ("int4", 7, before + 1)
    assert cli.main([*command, "--threads", "0"]) == 2
    assert "--threads: '0': give a whole number of at least 1" in capsys.readouterr().err
