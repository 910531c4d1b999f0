"""The server as its clients see it: a real process, the real openai client, bad input, disconnects, overload."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

from doc_examples import run_examples  # noqa: E402
from live_server import Live, serving  # noqa: E402
from serve_storms import bodies, disconnects, noise, shaped  # noqa: E402

from wcse.adapters.remote import LocalVerifier, RemoteSearch  # noqa: E402
from wcse.adapters.token_backend import Completions, Generate  # noqa: E402
from wcse.data.fingerprint import fingerprint_models  # noqa: E402
from wcse.engine.llm import LLM  # noqa: E402
from wcse.engine.params import SamplingParams  # noqa: E402
from wcse.models.load import LoadedModel, load_model  # noqa: E402
from wcse.reward.load import load_prm  # noqa: E402
from wcse.search import STRATEGIES  # noqa: E402
from wcse.serve.admission import Limits  # noqa: E402
from wcse.serve.app import make_server  # noqa: E402
from wcse.serve.service import ServeConfig, Service  # noqa: E402
from wcse.types import PROBE, WcseError  # noqa: E402

QUESTION = [{"role": "user", "content": "Calculate 17 + 25."}]
GENERATE = {"prompt": "Calculate", "max_tokens": 4}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("tiny-wc")


@pytest.fixture(scope="module")
def live(model: LoadedModel) -> Iterator[Live]:
    config = ServeConfig(model="tiny-wc", prm="shared", kv_memory=0.1, structured=True)
    with serving(config, model) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(model: LoadedModel) -> Iterator[Live]:
    limits = Limits(running=2, running_tokens=4000, body_bytes=20_000)
    config = ServeConfig(
        model="tiny-wc", name="m", keys=("alpha", "beta"), kv_memory=0.1, limits=limits, max_num_seqs=8
    )
    with serving(config, model) as running:
        yield running


@pytest.fixture(scope="module")
def client(live: Live) -> Any:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)


# -- the openai client -----------------------------------------------------------------------------------


def test_models_and_their_searches(client: Any) -> None:
    names = [entry.id for entry in client.models.list()]
    assert {name.partition("@")[2].partition("-")[0] for name in names} == {"", *STRATEGIES} - {"auto"}
    assert names[0] == "tiny-wc" and "tiny-wc@dvts-n16-m4" in names and "tiny-wc@majority-n32" in names
    assert client.models.retrieve("tiny-wc@dvts-n4-m2").id == "tiny-wc@dvts-n4-m2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_chat_equals_the_offline_engine(client: Any, model: LoadedModel) -> None:
    reply = client.chat.completions.create(
        model="tiny-wc", messages=QUESTION, n=3, seed=7, max_tokens=30, logprobs=True, top_logprobs=2
    )
    offline = LLM(model, kv_memory=0.1).chat(
        QUESTION, SamplingParams(n=3, seed=7, max_tokens=30, logprobs=2), use_tqdm=False
    )[0]
    for choice, output in zip(reply.choices, offline.outputs, strict=True):
        assert choice.message.content == output.text and choice.finish_reason == output.finish_reason
        assert output.logprobs is not None
        for entry, token, row in zip(choice.logprobs.content, output.token_ids, output.logprobs, strict=True):
            assert entry.logprob == pytest.approx(row[token].logprob)
            assert len(entry.top_logprobs) == 2
    assert reply.usage.completion_tokens == sum(len(o.token_ids) for o in offline.outputs)
    assert reply.usage.prompt_tokens == len(offline.prompt_token_ids)


@pytest.mark.parametrize("stop", [None, ["\\box", "42"]])
def test_a_stream_adds_up_to_the_whole_reply(client: Any, stop: Any) -> None:
    options = {
        "model": "tiny-wc",
        "messages": QUESTION,
        "n": 2,
        "seed": 3,
        "max_tokens": 30,
        "stop": stop,
        "logprobs": True,
        "extra_body": {"return_token_ids": True},
    }
    whole = client.chat.completions.create(**options)
    texts, reasons, ids, logprobs = ["", ""], ["", ""], [[], []], [[], []]
    used = None
    parts = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    for part in parts:
        used = part.usage or used
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            ids[choice.index] += getattr(choice, "token_ids", None) or []
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert ids == [choice.token_ids for choice in whole.choices]
    assert [[e.logprob for e in row] for row in logprobs] == [
        [e.logprob for e in choice.logprobs.content] for choice in whole.choices
    ]
    assert used is not None and used == whole.usage


def test_completions_prompt_forms_and_order(client: Any, model: LoadedModel) -> None:
    ids = model.tokenizer.encode("1 + 1")
    for prompt in ("1 + 1", ids, ["1 + 1", "2"], [ids, ids]):
        reply = client.completions.create(model="tiny-wc", prompt=prompt, n=2, seed=1, max_tokens=5)
        count = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        assert [choice.index for choice in reply.choices] == list(range(2 * count))
        first = [choice.text for choice in reply.choices][:2]
        assert first == [
            c.text
            for c in client.completions.create(
                model="tiny-wc", prompt="1 + 1", n=2, seed=1, max_tokens=5
            ).choices
        ]


def test_echo_gives_the_prompts_logprobs(client: Any, model: LoadedModel) -> None:
    text = "The answer is 4"
    ids = model.tokenizer.encode(text)
    ((expected, _),) = LLM(model, kv_memory=0.1).loglikelihoods([(ids[:1], ids[1:])])
    for most in (0, 1):
        reply = client.completions.create(
            model="tiny-wc", prompt=text, echo=True, logprobs=1, max_tokens=most, temperature=0
        )
        choice = reply.choices[0]
        assert choice.text.startswith(text) and (choice.text == text or most)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-5)
        assert len(choice.logprobs.tokens) == len(ids) + most


def test_cached_tokens_are_reported(client: Any) -> None:
    prompt = "Anna has 12 apples and buys 7 more. " * 12
    counts = [client.completions.create(model="tiny-wc", prompt=prompt, max_tokens=1).usage for _ in range(2)]
    assert counts[0].prompt_tokens_details.cached_tokens == 0
    assert counts[1].prompt_tokens_details.cached_tokens == counts[1].prompt_tokens // 64 * 64 > 0


def test_structured_output(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    reply = client.chat.completions.create(
        model="tiny-wc",
        messages=QUESTION,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        temperature=0,
        max_tokens=200,
    )
    assert isinstance(json.loads(reply.choices[0].message.content)["a"], bool)


def test_continue_a_message(client: Any, model: LoadedModel) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "17 + 25 ="}]
    switches = {"continue_final_message": True, "add_generation_prompt": False}
    reply = client.chat.completions.create(
        model="tiny-wc", messages=messages, extra_body=switches, temperature=0, max_tokens=6
    )
    offline = LLM(model, kv_memory=0.1).chat(
        messages, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False, **switches
    )[0]
    assert model.tokenizer.decode(offline.prompt_token_ids).endswith("17 + 25 =")
    assert reply.choices[0].message.content == offline.outputs[0].text


# -- searches --------------------------------------------------------------------------------------------


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


# -- the other endpoints ---------------------------------------------------------------------------------


def test_tokens_there_and_back(live: Live, model: LoadedModel) -> None:
    status, reply = live.post("/tokenize", {"prompt": "1 + 1 = 2", "return_token_strs": True})
    assert status == 200 and reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert live.post("/detokenize", {"tokens": reply["tokens"]})[1]["prompt"] == "1 + 1 = 2"
    chat = live.post("/tokenize", {"messages": QUESTION})[1]
    assert chat["tokens"] == model.tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    assert live.call("GET", "/tokenizer_info")[2]["eos_token"] == model.tokenizer.eos_token


def test_health_version_metrics(live: Live) -> None:
    assert live.call("GET", "/health")[2] == {"status": "ok"}
    assert live.call("GET", "/version")[2]["version"]
    live.post("/v1/completions", GENERATE)
    page = live.call("GET", "/metrics")[2]
    for name in ("num_requests_running", "kv_cache_usage_perc", "generation_tokens_total", "search_nodes"):
        assert f"wcse:{name}" in page
    assert "Calculate" not in page


def test_pooling_and_score(live: Live) -> None:
    status, reply = live.post("/pooling", {"input": ["a b", "c"], "task": "embed"})
    assert status == 200 and len(reply["data"]) == 2
    assert math.fsum(x * x for x in reply["data"][0]["data"]) == pytest.approx(1, abs=1e-3)
    reply = live.post("/score", {"text_1": "a b", "text_2": ["a b", "zzz"]})[1]
    assert reply["data"][0]["score"] == pytest.approx(1) and reply["data"][1]["score"] < 0.9999


def test_tokens_in_tokens_out(live: Live, model: LoadedModel) -> None:
    ids = model.tokenizer.encode("1 + 1 =")
    params = {"logprobs": 1, "max_tokens": 6, "temperature": 0, "skip_special_tokens": False}
    body = {"request_id": "r1", "model": "tiny-wc", "token_ids": ids, "sampling_params": params}
    status, reply = live.post("/inference/v1/generate", body | {"cache_salt": "s"})
    choice = reply["choices"][0]
    assert status == 200 and reply["request_id"] == "r1" and reply["prompt_token_ids"] == ids
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    for entry, token in zip(choice["logprobs"]["content"], choice["token_ids"], strict=True):
        assert entry["token"] == f"token_id:{token}" and entry["token_id"] == token and entry["rank"] == 1
        assert math.isfinite(entry["logprob"])


# -- bad input -------------------------------------------------------------------------------------------

NUMERIC = {
    "n": (0, -1, 2**31, 2**63, 1.5),
    "best_of": (0, -1, 2**63),
    "max_tokens": (0, -1, 1.5, 2**63),
    "min_tokens": (-1, 2**63),
    "temperature": (-1, 2.1, 1e300, 2**70),
    "top_p": (0, -1, 1.1, 10**400),
    "top_k": (-2, 2**31, 2**63, 0.5),
    "min_p": (-1, 1.1),
    "seed": (2**63, -(2**63) - 1, 0.1),
    "logprobs": (-2, 21, 2**63, -1),
    "prompt_logprobs": (-2, 21, 2**63),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, -1, 1e300),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/inference/v1/generate"])
def test_numbers_out_of_range_elsewhere(live: Live, path: str) -> None:
    """The other writing endpoints check the same fields, beside or inside ``sampling_params``."""
    before = live.settle()
    for name, values in NUMERIC.items():
        if path.endswith("completions") and name == "logprobs":
            name, values = "top_logprobs", (-1, 21, 2**63, 0.5)
        for value in (*values, "NaN", "-Infinity", "seven", [1]):
            shown = value if value in ("NaN", "-Infinity") else json.dumps(value)
            field = f'"{name}": {shown}'
            raw = f'{{"messages": {json.dumps(QUESTION)}, "logprobs": true, {field}}}'
            if path.endswith("generate"):
                raw = f'{{"token_ids": [5], "sampling_params": {{{field}}}}}'
            status, _, reply = live.call("POST", path, raw.encode())
            named = {name, "logprobs"} if name == "top_logprobs" else {name}
            assert status == 400 and reply["error"]["param"] in named, (name, value, reply)
    assert live.settle() == before, "a refused request allocates nothing"


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_out_of_range_name_their_field(live: Live, name: str) -> None:
    before = live.settle()
    for value in (*NUMERIC[name], "NaN", "Infinity", "-Infinity", "1e400"):
        shown = value if isinstance(value, str) else json.dumps(value)
        fields = {k: v for k, v in GENERATE.items() if k != name}
        raw = json.dumps(fields)[:-1] + f', "{name}": {shown}}}'
        status, _, reply = live.call("POST", "/v1/completions", raw.encode())
        assert status == 400 and reply["error"]["param"] == name, (value, reply)
        assert reply["error"]["type"] == "invalid_request_error"
    for value in ("seven", [1], {"a": 1}, True):
        status, reply = live.post("/v1/completions", GENERATE | {name: value})
        assert status == 400 and reply["error"]["param"] == name, (value, reply)
    assert live.settle() == before, "a refused request allocates nothing"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[]]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [10**9]}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": ["a"] * 300}, 400, "prompt"),
        ({"prompt": {"a": 1}}, 400, "prompt"),
        ({"prompt": "\ud800"}, 400, "prompt"),
        ({"prompt": "x " * 3000}, 400, "prompt"),
        ({"prompt": "x" * 100_000}, 400, "prompt"),
        ({"prompt": [5] * 5000}, 400, "prompt"),
        ({"prompt": "x", "model": "gpt-9"}, 404, "model"),
        ({"prompt": "x", "model": 7}, 400, "model"),
        ({"prompt": "x", "stop": [""]}, 400, "stop"),
        ({"prompt": "x", "stop": "y" * 300}, 400, "stop"),
        ({"prompt": "x", "stop": ["y"] * 17}, 400, "stop"),
        ({"prompt": "x", "stop": ["\ud800"]}, 400, "stop"),
        ({"prompt": "x", "temprature": 1}, 400, "temprature"),
        ({"prompt": "x", "\ud800": 1}, 400, "\ud800"),
        ({"prompt": "x", "stream": "yes"}, 400, "stream"),
        ({"prompt": "x", "stream_options": {}}, 400, "stream_options"),
        ({"prompt": "x", "stream": True, "best_of": 3}, 400, "best_of"),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, 400, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"prompt": "x", "allowed_token_ids": [99999]}, 400, "allowed_token_ids"),
        ({"prompt": "x", "stop_token_ids": [99999]}, 400, "stop_token_ids"),
        ({"prompt": "x", "n": 2000}, 400, "n"),
        ({"prompt": ["x"] * 200, "n": 20}, 400, "n"),
        ({"prompt": "x", "n": 1024, "max_tokens": 2**40, "logprobs": 20}, 400, "logprobs"),
        ({"prompt": "x", "structured_outputs": {"regex": "("}}, 400, "structured_outputs"),
        ({"prompt": "x", "response_format": {"type": "xml"}}, 400, "response_format.type"),
    ],
)
def test_bad_completions_are_named(live: Live, body: dict[str, Any], status: int, param: str) -> None:
    found, reply = live.post("/v1/completions", body)
    assert (found, reply["error"]["param"]) == (status, param), reply
    assert set(reply["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "god", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "tool": 1}]}, "messages[0].tool"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages[0].content"),
        ({"messages": QUESTION, "chat_template": "{{ 1 }}"}, "chat_template"),
        (
            {"messages": QUESTION, "chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs.tokenize",
        ),
        ({"messages": QUESTION, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": QUESTION, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"messages": QUESTION, "tools": [{"type": "function"}]}, "tools"),
        (
            {"messages": QUESTION, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
)
def test_bad_chats_are_named(live: Live, body: dict[str, Any], param: str) -> None:
    status, reply = live.post("/v1/chat/completions", body)
    assert (status, reply["error"]["param"]) == (400, param), reply


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": "x", "prompt": "y"}',
        b'{"a":' * 5000,
        b"[" * 200_000,
        b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": [1, NaN]}',
        b"\x00" * 100,
        '{"prompt": "x"}'.encode("utf-16"),
    ],
)
def test_bodies_that_are_no_requests(live: Live, raw: bytes) -> None:
    status, _, reply = live.call("POST", "/v1/completions", raw)
    assert status == 400 and reply["error"]["type"] == "invalid_request_error"


def test_unknown_fields_can_be_ignored_on_request(live: Live) -> None:
    body = GENERATE | {"made_up": 1}
    assert live.post("/v1/completions", body)[0] == 400
    headers = {"X-Wcse-Ignore-Unknown": "1"}
    assert live.call("POST", "/v1/completions", body, headers)[0] == 200
    assert live.post("/v1/completions", GENERATE | {"user": "u", "metadata": {"a": "b"}})[0] == 200


def test_other_paths_and_methods(live: Live) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("PUT", "/", 404),
    ):
        found, _, reply = live.call(method, path)
        assert found == status and set(reply["error"]) == {"message", "type", "param", "code"}


def test_a_foreign_host_name_is_refused_without_a_key(live: Live) -> None:
    assert live.call("GET", "/v1/models", None, {"Host": "evil.example"})[0] == 403


@pytest.mark.parametrize(
    "extreme", [{"top_p": 1e-323}, {"min_p": 1e-323}, {"temperature": 1e-300}, {"repetition_penalty": 1e-4}]
)
def test_numbers_too_small_for_single_precision(live: Live, extreme: dict[str, float]) -> None:
    """They are valid, so they work, and they stop nobody else's request."""
    failures = live.service.loop.failures
    assert live.post("/v1/completions", GENERATE | extreme)[0] == 200
    assert live.service.loop.failures == failures


def test_requests_made_from_the_schema(live: Live) -> None:
    """schemathesis: what breaks the schema is refused, replies keep to it, nothing is a 5xx."""
    pytest.importorskip("schemathesis")
    statuses = shaped(live.port, 100, seed=7)
    assert set(statuses) <= {200, 400, 404, 405} and statuses[200] and statuses[400]
    assert live.settle()["pinned"] == 0


def test_a_stream_keeps_to_the_schema(live: Live) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import response_schema_conformance

    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    body = GENERATE | {"stream": True}
    case = schema["/v1/completions"]["POST"].Case(body=body, media_type="application/json")
    reply = case.call(base_url=live.url)
    assert reply.status_code == 200 and b"[DONE]" in reply.content
    case.validate_response(reply, checks=[response_schema_conformance])


def test_fuzzed_bodies_never_break_the_server(live: Live) -> None:
    """Random mutations of good requests and random values in every field: no 5xx, pages at their baseline."""
    statuses = bodies(live.port, 400, seed=11)
    assert set(statuses) <= {200, 400, 404} and statuses[200] and statuses[400]
    after = live.settle()
    assert after["pinned"] == after["in_flight"] == 0


def test_headers_have_an_end(live: Live) -> None:
    """A request line, headers or trailers of any length would be memory of any size."""
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    for head in (start, start + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"):
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
            try:
                raw.sendall(head + b"X: " + b"y" * 2**24)
                line = raw.makefile("rb").readline()  # without a bound it waits for more
            except ConnectionError:  # it hung up while we were sending
                continue
            assert line.startswith(b"HTTP/1.1 400"), line
    assert live.post("/v1/completions", GENERATE)[0] == 200


def test_raw_bytes_on_the_socket(live: Live) -> None:
    statuses = noise(live.port, 80, seed=5)
    assert set(statuses) <= {0, 200, 400, 403, 404, 431}
    assert live.post("/v1/completions", GENERATE)[0] == 200
    assert live.settle()["pinned"] == 0


# -- load, disconnects, keys -----------------------------------------------------------------------------


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
            assert status == (200 if path == "/health" and method == "GET" else 401), (method, path)
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


def test_searches_over_this_server_as_another_engine(live: Live, capsys: Any) -> None:
    run_examples("backends.md", {"http://127.0.0.1:8000": live.url})
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("True ") and all(line.startswith("False ") for line in others)


@pytest.mark.parametrize("strategy", ["majority", "beam_search"])
def test_a_search_over_tokens_is_the_one_over_completions(
    live: Live, model: LoadedModel, strategy: str
) -> None:
    """``/inference/v1/generate`` and ``/v1/completions`` drive a search to the same ids, scores and answers."""
    prm = load_prm("tiny-wc-prm", kv_memory=0.1)

    async def run(server: Any) -> list[Any]:
        verifier = LocalVerifier(prm)
        ids = await server.chat_ids(QUESTION)
        params = SamplingParams(temperature=0.8, max_tokens=48)
        search = RemoteSearch(server, verifier=verifier, params=params, delimiter="\n\n", seed=2)
        found = await search.solve(ids, QUESTION[0]["content"], strategy=strategy, n=4)
        await server.close()
        return [(part.node.completion_ids, part.node.completion, part.score, part.answer) for part in found]

    url = f"{live.url}/v1"
    tokens = Generate(url, "tiny-wc", decode=partial(model.tokenizer.decode, skip_special_tokens=True))
    found = asyncio.run(run(tokens))
    assert found and found == asyncio.run(run(Completions(url, "tiny-wc")))


def test_the_example_of_the_documentation(live: Live, capsys: Any) -> None:
    run_examples("serve.md", {"http://127.0.0.1:8000": live.url})
    assert "sampled_tokens" in capsys.readouterr().out
