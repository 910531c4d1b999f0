"""Random, shaped and raw input, as far as it takes seconds; ``make storm`` sends 100,000 of it."""

from __future__ import annotations

import socket

import pytest
from live_server import GENERATE, Live
from serve_storms import bodies, noise, shaped


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
