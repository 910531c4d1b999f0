"""Bad input: a 4xx in OpenAI's form that names the field, before anything is allocated."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import GENERATE, QUESTION, Live

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
