"""Every field of every endpoint with values it must refuse, driven by ``/openapi.json``: none can be forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

jsonschema_rs = pytest.importorskip("jsonschema_rs")

from live_server import Live  # noqa: E402
from serve_storms import GOOD  # noqa: E402

WITH = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}
"""What a field needs beside it."""
SEARCH = {"strategy": "beam_search(n=4,beam_width=2)"}
VALUES: tuple[Any, ...] = (
    0, -1, 0.5, 2**31, 2**63, 2**200, -(2**200), 1e308, -1e308, True, "seven", "", "\ud800", [], [[]], [0.5],
    ["\ud800"], [-1], [2**63], {}, {"zz": 1}, [{"zz": 1}],
)  # fmt: skip
NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "[NaN]", '{"zz": Infinity}')


@pytest.fixture(scope="module")
def requests(live: Live) -> dict[str, Any]:
    paths = live.call("GET", "/openapi.json")[2]["paths"]
    return {
        path: found["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, found in paths.items()
        if "post" in found
    }


def fields(schema: Mapping[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field with a schema of its own, those inside objects too."""
    for name, inner in schema.get("properties", {}).items():
        if inner is True:  # accepted and without an effect, or as the grammar's library takes it
            continue
        yield (*where, name), inner
        for part in inner.get("anyOf", [inner]):
            yield from fields(part, (*where, name))


def objects(schema: Mapping[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every object whose fields are listed."""
    if schema.get("additionalProperties") is False:
        yield where
    for path, inner in fields(schema, where):
        if len(path) == len(where) + 1:
            for part in inner.get("anyOf", [inner]):
                yield from objects(part, path)


def body(path: str, where: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A good request but for one field."""
    found = json.loads(json.dumps(GOOD[path] | WITH.get(where[0], {})))
    if where[0] == "search" and len(where) > 1:
        found["search"] = dict(SEARCH)
    if where[0] == "messages":
        found.pop("prompt", None)
    inner = found
    for name in where[:-1]:
        inner = inner.setdefault(name, {})
    inner[where[-1]] = value
    return found


def names(param: str | None, where: tuple[str, ...]) -> bool:
    full = ".".join(where)
    return param is not None and (param in (full, where[-1]) or param.startswith((f"{full}.", f"{full}[")))


@pytest.mark.parametrize("path", GOOD)
def test_what_breaks_the_schema_is_refused_by_name(live: Live, requests: dict[str, Any], path: str) -> None:
    """Wrong types and numbers out of range: a 400 in OpenAI's form that names the field; nothing is allocated."""
    before, found = live.settle(), list(fields(requests[path]))
    assert found and set(GOOD) == set(requests)
    wrong = []
    for where, schema in found:
        valid = jsonschema_rs.validator_for(schema)
        for value in VALUES:
            if not _breaks(valid, value):
                continue
            status, reply = live.post(path, body(path, where, value))
            param = reply["error"]["param"] if status == 400 else None
            if not names(param, where) and not (isinstance(value, dict) and param in value):
                wrong.append((".".join(where), value, status, reply.get("error")))
    assert not wrong, "\n".join(map(str, wrong))
    assert live.settle() == before, "a refused request allocates nothing"


def _breaks(valid: Any, value: Any) -> bool:
    try:
        return not valid.is_valid(value)
    except (ValueError, UnicodeEncodeError):  # half a surrogate pair is no JSON to the validator
        return True


@pytest.mark.parametrize("path", GOOD)
def test_numbers_that_json_does_not_have(live: Live, requests: dict[str, Any], path: str) -> None:
    before = live.settle()
    for where, _ in fields(requests[path]):
        for literal in NOT_FINITE:
            raw = json.dumps(body(path, where, "@")).replace('"@"', literal)
            status, _, reply = live.call("POST", path, raw.encode())
            param = reply["error"]["param"]
            assert status == 400, (where, literal, reply)
            assert names(param, where) or literal[0] in "[{", (where, literal, reply)
    assert live.settle() == before


@pytest.mark.parametrize("path", GOOD)
def test_unknown_fields_at_every_level(live: Live, requests: dict[str, Any], path: str) -> None:
    found = list(objects(requests[path]))
    assert () in found
    for where in found:
        if where and where[0] == "messages":
            continue  # a list; test_bad_chats_are_named
        status, reply = live.post(path, body(path, (*where, "made_up"), 1))
        error = reply["error"]
        assert status == 400 and "made_up" in error["message"] + error["param"], (where, reply)
        assert names(error["param"], (*where, "made_up")) or names(error["param"], where), (where, reply)
