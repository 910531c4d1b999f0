"""A search is a model, or a field of a request: answers, scores, usage, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_server import QUESTION, Live, serving

from wcse.data.fingerprint import fingerprint_models
from wcse.models.load import LoadedModel
from wcse.reward.scorer import ImplicitPRM
from wcse.serve.service import ServeConfig, Service
from wcse.types import PROBE, WcseError


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("tiny-wc@majority-n8", {}),
        ("tiny-wc@dvts-n8-m4", {}),
        ("tiny-wc", {"search": {"strategy": "beam_search", "n": 8, "beam_width": 2, "num_iterations": 5}}),
        ("tiny-wc@best_of_n-n4", {"search": {"n": 8}}),
        ("tiny-wc", {"search": {"strategy": "beam_search(lookahead=1)", "n": 8}}),
        ("tiny-wc@rebase-n8", {"search": {"softmax_temperature": 0.1}}),
    ],
)
def test_search_is_a_model(client: Any, name: str, extra: dict[str, Any]) -> None:
    options = {"model": name, "messages": QUESTION, "max_tokens": 60, "seed": 5, "extra_body": extra}
    reply = client.chat.completions.create(**options, n=2)
    first = reply.choices[0]
    assert first.search["selected"] and first.search["answer"] is not None and len(reply.choices) == 2
    scored = "majority" not in name
    assert (first.search["score"] is not None) == scored
    if scored:
        assert all(0 <= score <= 1 for score in first.search["step_scores"])
    used = reply.usage.search
    assert used["sampled_tokens"] == reply.usage.completion_tokens
    assert used["sampled_tokens"] > sum(len(c.message.content.split()) for c in reply.choices)
    assert used["nodes"] >= 8 and used["computed_tokens"] > 0
    again = client.chat.completions.create(**options, n=2)
    assert [c.message.content for c in again.choices] == [c.message.content for c in reply.choices]
    text = ""
    for part in client.chat.completions.create(**options, stream=True):
        text += part.choices[0].delta.content
    assert text == first.message.content


def test_the_policys_own_uncertainty_as_a_verifier(model: LoadedModel) -> None:
    with serving(ServeConfig(model="tiny-wc", prm="policy:self_certainty", kv_memory=0.1), model) as own:
        body = {"model": "tiny-wc@weighted_best_of_n-n4", "messages": QUESTION, "max_tokens": 40}
        status, reply = own.post("/v1/chat/completions", body)
        assert status == 200 and 0 <= reply["choices"][0]["search"]["score"] <= 1
        status, reply = own.post("/v1/chat/completions", body | {"search": {"agg_strategy": "prod"}})
        assert status == 400 and reply["error"]["param"] == "search"


def test_the_compute_optimal_search_is_a_model(model: LoadedModel, tmp_path: Path) -> None:
    """``auto-2x``: twice the smallest budget of the policy file, which chooses the strategy by the samples."""
    models = {"policy": "tiny-wc", "prm": "shared"}
    table = {
        "format": 2,
        "models": {
            k: {"name": v, "fingerprint": fingerprint_models(models).get(k)} for k, v in models.items()
        },
        "difficulty": {"feature": "agreement", "samples": 2, "agg_strategy": "last"},
        "edges": [1.0],
        "budgets": {
            "4": {"probed": True, "strategies": ["majority", "beam_search(n=2,beam_width=2)"]},
            "8": {"probed": True, "strategies": ["best_of_n", "best_of_n"]},
        },
    }
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(table))
    config = ServeConfig(model="tiny-wc", prm="shared", strategy_policy=str(path), kv_memory=0.1)
    with serving(config, model) as running:
        path.unlink()  # it was read at the start
        names = [entry["id"] for entry in running.call("GET", "/v1/models")[2]["data"]]
        assert [name for name in names if "auto" in name] == ["tiny-wc@auto-1x", "tiny-wc@auto-2x"]
        body = {"messages": QUESTION, "max_tokens": 60, "seed": 1}
        for name, budget, n in (("auto-1x", 4, 2), ("auto-2x", 8, 8), ("auto-n11", 8, 8)):
            asked = body | {"model": f"tiny-wc@{name}", "n": n}
            status, reply = running.post("/v1/chat/completions", asked)
            assert status == 200 and reply["choices"][0]["search"]["selected"] and len(reply["choices"]) == n
            roots = {choice["search"]["node_path"][0] for choice in reply["choices"]}
            assert n < 8 or roots == {*range(6), PROBE, PROBE + 1}, "the samples are solutions too"
            assert reply["usage"]["search"]["nodes"] >= budget
        assert running.post("/v1/chat/completions", body | {"model": "tiny-wc@auto-n2"})[0] == 400
    with pytest.raises(WcseError, match="needs a verifier"):
        Service(ServeConfig(model="tiny-wc", strategy_policy=str(path), kv_memory=0.01), model)


def test_the_verifiers_weights_are_quantised_as_asked(model: LoadedModel) -> None:
    for prm in (None, "shared", "policy:self_certainty"):
        with pytest.raises(WcseError, match="prm_quantization='int8'"):
            Service(ServeConfig(model="tiny-wc", prm=prm, prm_quantization="int8", kv_memory=0.01), model)
    config = ServeConfig(model="tiny-wc", prm="tiny-wc-prm", prm_quantization="int8", kv_memory=0.05)
    service = Service(config, model)
    assert isinstance(service.scorer, ImplicitPRM)
    assert service.scorer.model.runner.decoder.quantization == "int8"
    service.judge.close()


@pytest.mark.parametrize(
    ("model_name", "extra", "param"),
    [
        ("tiny-wc@nothing-n4", {}, "model"),
        ("tiny-wc@dvts-n6-m4", {}, "model"),
        ("tiny-wc@dvts-n0", {}, "model"),
        ("tiny-wc@DROP TABLE", {}, "model"),
        ("tiny-wc", {"search": {"n": 8}}, "search.strategy"),
        ("tiny-wc@majority-n8-m4", {}, "model"),
        ("tiny-wc@auto-2x", {}, "model"),
        ("tiny-wc@majority-2x", {}, "model"),
        ("tiny-wc", {"search": {"strategy": "nothing"}}, "search.strategy"),
        ("tiny-wc", {"search": {"strategy": "majority", "n": -1}}, "search.n"),
        ("tiny-wc", {"search": {"strategy": "majority", "n": 2.5}}, "search.n"),
        ("tiny-wc", {"search": {"strategy": "majority", "times": 2}}, "search.times"),
        ("tiny-wc", {"search": {"strategy": "majority", "beam_width": 2}}, "search.beam_width"),
        ("tiny-wc", {"search": {"strategy": "dvts", "n": 4, "agg_strategy": []}}, "search.agg_strategy"),
        ("tiny-wc", {"search": {"strategy": "dvts", "n": 4, "selector": ["x"]}}, "search.selector"),
        ("tiny-wc", {"search": {"strategy": "dvts", "n": 4, "lookahead": 10**9}}, "n"),
        (
            "tiny-wc",
            {"search": {"strategy": "rebase", "softmax_temperature": 0}},
            "search.softmax_temperature",
        ),
        ("tiny-wc", {"search": {"strategy": "majority", "n": 10**9}}, "n"),
        ("tiny-wc", {"search": {"strategy": "majority", "depth": 1}}, "search.depth"),
        ("tiny-wc", {"search": {"strategy": "majority", "n": 2}, "logprobs": True}, "logprobs"),
        ("tiny-wc", {"search": {"strategy": "majority", "n": 2}, "n": 3}, "n"),
        ("tiny-wc", {"search": [1]}, "search"),
    ],
)
def test_bad_searches_are_named(live: Live, model_name: str, extra: dict[str, Any], param: str) -> None:
    status, reply = live.post("/v1/chat/completions", {"model": model_name, "messages": QUESTION} | extra)
    assert status == 400 and reply["error"]["param"] == param, reply
