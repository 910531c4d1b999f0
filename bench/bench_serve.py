"""``wcse serve`` beside the offline engine on the same work, in one run, and what it adds to a token at one client.

Clients live in a process of their own, as they do in life; on a small machine they take processor time from the
server, which is part of the measurement. Both sides draw the same number of tokens from prompts of equal length.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.models.load import load_model
from wcse.serve.service import ServeConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from live_server import Live, serving

CLIENTS = """
import http.client, json, sys, threading, time
port, clients, bodies = int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin)
tokens, lock = [], threading.Lock()
def client(mine):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for body in mine:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = json.loads(connection.getresponse().read())
        with lock:
            tokens.append(reply["usage"]["completion_tokens"])
threads = [threading.Thread(target=client, args=(bodies[i::clients],)) for i in range(clients)]
start = time.perf_counter()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"seconds": time.perf_counter() - start, "tokens": sum(tokens)}))
"""


def storm(live: Live, clients: int, bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Send the bodies from so many clients at once; seconds and tokens."""
    command = [sys.executable, "-c", CLIENTS, str(live.port), str(clients)]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def body(seed: int, new: int, n: int = 1) -> dict[str, Any]:
    return {
        "prompt": [10 + (seed * 7 + i) % 1000 for i in range(64)],
        "max_tokens": new,
        "n": n,
        "seed": seed,
        "ignore_eos": True,
        "temperature": 0.8,
    }


def offline(llm: LLM, bodies: list[dict[str, Any]]) -> float:
    prompts = [{"prompt_token_ids": b["prompt"]} for b in bodies]
    params = [SamplingParams(**{k: v for k, v in b.items() if k != "prompt"}) for b in bodies]
    llm.reset_prefix_cache()
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def test_throughput_at_64_clients(benchmark: Any) -> None:
    clients, requests, new, rounds = (8, 8, 4, 1) if benchmark.disabled else (64, 192, 64, 5)
    model = load_model("tiny-wc")
    llm = LLM(model, kv_memory=0.5, max_num_seqs=64)
    config = ServeConfig(model="tiny-wc", kv_memory=0.5, max_num_seqs=64)
    shares, rates = [], []
    with serving(config, model) as live:
        for round_ in range(rounds):
            bodies = [body(round_ * requests + i, new) for i in range(requests)]
            alone = offline(llm, bodies)
            served = storm(live, clients, bodies)
            assert served["tokens"] == requests * new
            shares.append(alone / served["seconds"])
            rates.append(served["tokens"] / served["seconds"])
        assert live.settle()["pinned"] == 0
        benchmark.extra_info |= {
            "share_of_offline": {"median": statistics.median(shares), "all": shares},
            "tokens_per_second": statistics.median(rates),
            "clients": clients,
        }
        benchmark.pedantic(lambda: storm(live, clients, bodies), rounds=1)


def test_latency_at_one_client(benchmark: Any) -> None:
    new, rounds = (8, 1) if benchmark.disabled else (256, 7)
    model = load_model("tiny-wc")
    llm = LLM(model, kv_memory=0.1)
    added = []
    with serving(ServeConfig(model="tiny-wc", kv_memory=0.1), model) as live:
        for round_ in range(rounds):
            one = [body(round_, new)]
            alone, served = offline(llm, one), storm(live, 1, one)["seconds"]
            added.append((served - alone) / new * 1e3)
        benchmark.extra_info |= {"added_ms_per_token": {"median": statistics.median(added), "all": added}}
        benchmark.pedantic(lambda: storm(live, 1, one), rounds=1)
