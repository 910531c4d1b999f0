"""Hostile clients, by the number: broken bodies, broken HTTP, schema-made requests, clients that vanish at any moment.

The tests run a few hundred; ``make storm`` runs a hundred thousand requests and ten thousand disconnects against a
server whose process holds nothing else, and writes status codes, pages and memory to a file.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import itertools
import json
import multiprocessing
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

QUESTION = [{"role": "user", "content": "Calculate 17 + 25."}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Calculate", "max_tokens": 4, "n": 2, "logprobs": 1, "stop": ["q"]},
    "/v1/chat/completions": {"messages": QUESTION, "max_tokens": 4, "temperature": 0.5, "seed": 1},
    "/inference/v1/generate": {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 3, "logprobs": 1}},
    "/tokenize": {"prompt": "1 + 1 = 2", "return_token_strs": True},
    "/detokenize": {"tokens": [5, 6, 7]},
    "/pooling": {"input": ["a b", "c"], "task": "embed"},
    "/score": {"text_1": "a", "text_2": ["a", "b"]},
}
PATHS = [*GOOD, "/v1/completions", "/v1/chat/completions"]
TAME: list[Any] = [None, True, False, 0, 1, 2, 3, 0.5, 1.0, "x", "Calculate", [], {}, [1], ["a"], [[1, 2]]]
WILD: list[Any] = [
    -1,
    2**31,
    2**64,
    1e308,
    -0.0,
    "",
    "\ud800",
    [[]],
    [None],
    {"a": [1]},
    "x" * 5000,
    [5] * 3000,
]
FIELDS = [
    "n", "best_of", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs",
    "prompt_logprobs", "presence_penalty", "frequency_penalty", "repetition_penalty", "prompt", "stop", "stream",
    "logit_bias", "model", "echo", "search", "response_format", "allowed_token_ids", "bad_words", "ignore_eos",
    "stop_token_ids", "stream_options", "structured_outputs", "messages", "input", "text_1", "token_ids", "user",
    "return_token_ids", "add_generation_prompt", "top_logprobs", "tokens", "task", "sampling_params", "zz",
]  # fmt: skip
JSON = {"Content-Type": "application/json"}


def bodies(port: int, count: int, seed: int) -> Counter[int]:
    """Send good requests with changed bytes, or with random values in random fields; how often each status came."""
    draw = random.Random(seed)
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for round_ in range(count):
        path = draw.choice(PATHS)
        if round_ % 2:
            chosen = [(draw.choice(FIELDS), draw.choice(TAME if draw.random() < 0.7 else WILD))]
            chosen += [(draw.choice(FIELDS), draw.choice(TAME))] * (draw.random() < 0.3)
            raw = bytearray(json.dumps(GOOD[path] | dict(chosen)).encode())
        else:
            raw = bytearray(json.dumps(GOOD[path]).encode())
            for _ in range(draw.choice([1, 1, 1, 2, 4])):
                raw[draw.randrange(len(raw))] = draw.choice([draw.randrange(256), *b'0123456789"[]{},:'])
        connection.request("POST", path, bytes(raw), JSON)
        reply = connection.getresponse()
        reply.read()
        statuses[reply.status] += 1
    connection.close()
    return statuses


def noise(port: int, count: int, seed: int) -> Counter[int]:
    """Bytes that are no HTTP, or not to its end; the status that came back, 0 where the server only hung up."""
    draw = random.Random(seed)
    statuses: Counter[int] = Counter()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    makers: list[Callable[[], bytes]] = [
        lambda: draw.randbytes(draw.randint(1, 400)),
        lambda: head + b"Content-Length: 900\r\n\r\n{",
        lambda: head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + draw.randbytes(20),
        lambda: head + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * draw.randint(1, 200_000),
        lambda: head + b"Content-Length: -5\r\n\r\n{}",
        lambda: head + b"X: " + b"y" * draw.randint(1, 200_000) + b"\r\n\r\n",
        lambda: head + b"Content-Length: 4\r\nContent-Length: 9\r\n\r\n{}{}",
        lambda: b"GET /" + draw.randbytes(draw.randint(1, 60)) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        lambda: head[: draw.randrange(len(head))],
        lambda: b"GET /v1/models HTTP/1.1\r\nHost: " + draw.randbytes(9).hex().encode() + b"\r\n\r\n",
        lambda: b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ]
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            try:
                raw.sendall(draw.choice(makers)())
                raw.shutdown(socket.SHUT_WR)
                line = raw.makefile("rb").readline()
            except OSError:  # it hung up while we were sending
                line = b""
        statuses[int(line.split()[1]) if line.startswith(b"HTTP/") else 0] += 1
    return statuses


def shaped(port: int, count: int, seed: int) -> Counter[int]:
    """Requests that schemathesis makes from ``/openapi.json``, right and wrong ones; replies must keep to it."""
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.checks import load_all_checks, not_a_server_error
    from schemathesis.specs.openapi import checks

    load_all_checks()
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
    ]
    refusals = {"expected-statuses": [400, 401, 403, 404, 413, 422]}  # 413: a body over the bound
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": refusals}})
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json", config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    kinds = [
        (operation, mode)
        for operation in operations
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or operation.method.upper() != "GET"  # nothing to get wrong there
    ]
    statuses: Counter[int] = Counter()
    turns = itertools.cycle(kinds)
    for turn in itertools.count():  # some operations have few requests to make: others fill the number up
        if statuses.total() >= count:
            break
        operation, mode = next(turns)

        @hypothesis.seed(seed + 1000 * (turn // len(kinds)))
        @hypothesis.settings(
            max_examples=max(1, -(-count // len(kinds))),
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            reply = case.call(base_url=f"http://127.0.0.1:{port}", timeout=120)
            statuses[reply.status_code] += 1
            case.validate_response(reply, checks=held)

        try:
            run()
        except BaseException as error:  # schemathesis' own do not survive the way between processes
            raise AssertionError(f"{operation.label}: {error}") from None
    return statuses


def disconnects(port: int, count: int, seed: int) -> None:
    """Clients that vanish: before, while and after their reply begins, streaming or not, plain or searching."""

    def vanish(i: int) -> None:
        draw = random.Random(f"{seed}.{i}")
        body: dict[str, Any] = {
            "prompt": "Anna has 12 apples. " * draw.randint(1, 60),
            "max_tokens": 400,
            "ignore_eos": True,
            "n": draw.randint(1, 6),
            "stream": draw.random() < 0.5,
            "model": draw.choice(["tiny-wc", "tiny-wc", "tiny-wc@best_of_n-n8", "tiny-wc@beam_search-n8-m4"]),
        }
        if draw.random() < 0.2 and "@" not in body["model"]:
            body |= {"logprobs": 1, "echo": True}
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
            )
            raw.sendall(data[: draw.choice([len(data), len(data), len(data) // 2])])
            raw.settimeout(draw.choice([0.001, 0.01, 0.05]))
            try:
                raw.recv(draw.choice([1, 200, 4000]))
            except TimeoutError:
                return

    with ThreadPoolExecutor(6) as pool:
        assert len(list(pool.map(vanish, range(count)))) == count


# -- the campaign ----------------------------------------------------------------------------------------

PARTS = 10


def resident() -> float:
    """MiB of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def campaign(requests: int, vanishing: int) -> dict[str, Any]:
    """Everything in ten parts; the clients live in processes of their own, so the memory is the server's."""
    from live_server import serving

    from wcse.serve.admission import Limits
    from wcse.serve.service import ServeConfig

    limits = Limits(choices=16, tokens=4096)
    config = ServeConfig(model="tiny-wc", prm="shared", kv_memory=0.1, structured=True, limits=limits)
    shares: dict[str, tuple[Callable[[int, int, int], Any], int]] = {
        "bodies": (bodies, requests * 6 // 10 // PARTS),
        "noise": (noise, requests * 2 // 10 // PARTS),
        "schemathesis": (shaped, requests * 2 // 10 // PARTS),
        "disconnects": (disconnects, vanishing // PARTS),
    }
    statuses: dict[str, Counter[int]] = {name: Counter() for name in shares}
    memory, begun = [], time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with serving(config) as live, ProcessPoolExecutor(2, mp_context=spawn) as clients:
        for part in range(PARTS):
            work = {
                name: clients.submit(function, live.port, count, part)
                for name, (function, count) in shares.items()
            }
            for name, future in work.items():
                statuses[name] += future.result() or Counter()
            stats = live.settle()
            memory.append(round(resident(), 1))
            print(part, {name: dict(sorted(found.items())) for name, found in statuses.items()}, flush=True)
            print(part, f"pinned={stats['pinned']} memory={memory[-1]} MiB", flush=True)
            assert stats["pinned"] == stats["in_flight"] == 0
            assert stats["free"] + stats["cached"] == stats["total"] and live.service.admission.running == 0
            assert live.service.loop.failures == 0
    assert not [status for found in statuses.values() for status in found if status >= 500]
    # The first part fills caches that are bounded (KV pages, compiled grammars, thread pools).
    drift = max(memory[1:]) / memory[1] - 1
    return {
        "requests": sum(found.total() for found in statuses.values()),
        "disconnects": shares["disconnects"][1] * PARTS,
        "statuses": {name: dict(sorted(found.items())) for name, found in statuses.items() if found},
        "pages_pinned_at_the_end": 0,
        "memory_mib_after_each_part": memory,
        "memory_drift_after_the_second_part": round(drift, 4),
        "seconds": round(time.perf_counter() - begun),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=int)
    parser.add_argument("disconnects", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = campaign(options.requests, options.disconnects)
    print(json.dumps(found))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    assert found["memory_drift_after_the_second_part"] < 0.05
