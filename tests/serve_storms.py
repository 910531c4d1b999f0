"""Hostile clients, by the number: broken bodies, and clients that vanish at any moment.

The tests run a few hundred; ``make storm`` runs a hundred thousand bodies and ten thousand disconnects, and prints
status codes, pages and memory.
"""

from __future__ import annotations

import http.client
import json
import random
import resource
import socket
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from live_server import Live, serving

from wcse.serve.service import ServeConfig

GOOD = {"prompt": "Calculate", "max_tokens": 4}
ATOMS: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**64, 1e308, -0.0, "", "x", "\ud800", [], {}, [[]], [None], {"a": [1]},
]  # fmt: skip
FIELDS = [
    "n", "best_of", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs",
    "prompt_logprobs", "presence_penalty", "frequency_penalty", "repetition_penalty", "prompt", "stop", "stream",
    "logit_bias", "model", "echo", "search", "response_format", "allowed_token_ids", "bad_words",
    "stop_token_ids", "stream_options", "structured_outputs", "messages", "input", "text_1", "token_ids", "zz",
]  # fmt: skip
PATHS = [
    "/v1/completions", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/pooling", "/score",
    "/inference/v1/generate",
]  # fmt: skip


def bodies(live: Live, count: int, seed: int) -> Counter[int]:
    """Send mutated good requests and random values in random fields; how often each status came back."""
    draw = random.Random(seed)
    good = json.dumps(GOOD | {"n": 2, "logprobs": 1, "stop": ["q"]}).encode()
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    for round_ in range(count):
        path, raw = "/v1/completions", bytearray(good)
        if round_ % 2:
            changes = {draw.choice(FIELDS): draw.choice(ATOMS) for _ in range(draw.randint(1, 3))}
            path, raw = draw.choice(PATHS), bytearray(json.dumps(GOOD | changes).encode())
        else:
            for _ in range(draw.randint(1, 4)):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
        connection.request("POST", path, bytes(raw), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        statuses[reply.status] += 1
    connection.close()
    return statuses


def disconnects(live: Live, count: int, seed: int) -> None:
    """Clients that vanish: before, while and after their reply begins, streaming or not, plain or searching."""

    def vanish(i: int) -> None:
        draw = random.Random(f"{seed}.{i}")
        body: dict[str, Any] = {
            "prompt": "Anna has 12 apples. " * draw.randint(1, 60),
            "max_tokens": 400,
            "ignore_eos": True,
            "n": draw.randint(1, 6),
            "stream": draw.random() < 0.5,
            "model": draw.choice(["tiny-wc", "tiny-wc", "tiny-wc@best_of_n-n8"]),
        }
        if draw.random() < 0.2 and "@" not in body["model"]:
            body |= {"logprobs": 1, "echo": True}
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", live.port), timeout=60) as raw:
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


def main(n_bodies: int, n_disconnects: int) -> None:
    """The campaign.

    Memory is the process's peak: the clients live in it too, so it bounds the server's from above.
    """
    config = ServeConfig(model="tiny-wc", prm="shared", kv_memory=0.1, structured=True)
    with serving(config) as live:
        for part in range(10):
            statuses = bodies(live, n_bodies // 10, part)
            disconnects(live, n_disconnects // 10, part)
            stats = live.settle()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                part,
                dict(sorted(statuses.items())),
                f"pinned={stats['pinned']}",
                f"peak={peak} MiB",
                flush=True,
            )
            assert not [status for status in statuses if status >= 500]
            assert stats["pinned"] == stats["in_flight"] == 0
            assert stats["free"] + stats["cached"] == stats["total"] and live.service.admission.running == 0
            assert live.service.loop.failures == 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
