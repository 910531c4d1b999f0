"""``wcse serve`` beside the offline engine on the same work, what it adds to a token at one client, and its start.

Server, clients and offline engine are processes of their own, as they are in life; on a small machine the clients
take processor time from the server, which is part of the measurement. The two sides take turns in one run and draw
the same number of tokens from the same prompts.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import pytest

from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams

CLIENTS = Path(__file__).with_name("http_load.py")
GREETING = {"prompt": "Calculate 17 + 25.", "max_tokens": 1, "stream": True}


class Server:
    """A ``wcse serve`` of its own."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def cpu(self) -> float:
        """Seconds of processor time so far, all threads."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")

    def first_token(self) -> float:
        """Try until the first byte of a stream comes; when that was (``time.perf_counter``)."""
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request(
                    "POST", "/v1/completions", json.dumps(GREETING), {"Content-Type": "application/json"}
                )
                connection.getresponse().read(1)
                return time.perf_counter()
            except ConnectionRefusedError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.02)
            finally:
                connection.close()


@contextmanager
def server(*options: str, policy: str = "tiny-wc") -> Iterator[Server]:
    """Run the command until the block ends; it may still be loading when the block begins."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "wcse.cli", "serve", f"--policy={policy}", f"--port={port}", "--quiet"]
    process = subprocess.Popen([*command, *options])
    try:
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait(30)


def storm(port: int, clients: int, bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Send the bodies from so many clients at once; seconds and tokens."""
    command = [sys.executable, str(CLIENTS), str(port), str(clients)]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def body(seed: int, new: int) -> dict[str, Any]:
    return {
        "prompt": [10 + (seed * 7 + i) % 1000 for i in range(64)],
        "max_tokens": new,
        "seed": seed,
        "ignore_eos": True,
        "temperature": 0.8,
    }


def streamed(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [b | {"stream": True, "stream_options": {"include_usage": True}} for b in bodies]


def offline(llm: LLM, bodies: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    prompts = [{"prompt_token_ids": b["prompt"]} for b in bodies]
    params = [SamplingParams(**{k: v for k, v in b.items() if k != "prompt"}) for b in bodies]
    llm.reset_prefix_cache()
    start, cpu = time.perf_counter(), time.process_time()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start, time.process_time() - cpu


def summary(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "all": [round(value, 4) for value in values]}


@pytest.mark.parametrize("name", ["tiny-wc", "smollm2"])
def test_throughput_at_64_clients(benchmark: Any, name: str) -> None:
    small = name == "tiny-wc"
    policy = name if small else str(models.smollm2())
    clients, requests, rounds = (
        (8, 8, 1) if benchmark.disabled else (64, 256 if small else 96, 5 if small else 3)
    )
    llm = LLM(policy, kv_memory=0.5, max_num_seqs=64)
    shares: dict[str, list[float]] = {"wall": [], "processor": [], "wall, streams": []}
    spent: dict[str, list[float]] = {
        side: [] for side in ("offline", "server", "clients", "server, streams", "clients, streams")
    }
    rates = []
    with server("--kv-memory=0.5", "--max-num-seqs=64", policy=policy) as live:
        live.first_token()
        for round_ in range(rounds):
            seeds = range(round_ * requests, (round_ + 1) * requests)
            bodies = [body(seed, 4 if benchmark.disabled else 16 + seed * 37 % 33) for seed in seeds]
            seconds, cpu = offline(llm, bodies)
            before = live.cpu()
            served = storm(live.port, clients, bodies)
            used = live.cpu() - before
            again = storm(live.port, clients, streamed(bodies))
            streams = live.cpu() - before - used
            for side, value in zip(spent, (cpu, used, served["cpu"], streams, again["cpu"]), strict=True):
                spent[side].append(value / requests * 1e3)
            assert served["tokens"] == again["tokens"] == sum(b["max_tokens"] for b in bodies)
            shares["wall"].append(seconds / served["seconds"])
            shares["processor"].append(cpu / max(used, 1e-9))
            shares["wall, streams"].append(seconds / again["seconds"])
            rates.append(served["tokens"] / served["seconds"])
        benchmark.extra_info |= {
            "share_of_offline": {name: summary(values) for name, values in shares.items()},
            "processor_ms_per_request": {side: summary(values) for side, values in spent.items()},
            "tokens_per_second": summary(rates),
            "clients": clients,
        }
        benchmark.pedantic(lambda: storm(live.port, clients, bodies), rounds=1)


def test_latency_at_one_client(benchmark: Any) -> None:
    new, rounds = (8, 1) if benchmark.disabled else (256, 9)
    llm = LLM("tiny-wc", kv_memory=0.1)
    whole, streams = [], []
    with server("--kv-memory=0.1") as live:
        live.first_token()
        for round_ in range(rounds):
            one = [body(round_, new)]
            alone, _ = offline(llm, one)
            whole.append((storm(live.port, 1, one)["seconds"] - alone) / new * 1e3)
            streams.append((storm(live.port, 1, streamed(one))["seconds"] - alone) / new * 1e3)
        benchmark.extra_info |= {
            "added_ms_per_token": {"whole replies": summary(whole), "streams": summary(streams)}
        }
        benchmark.pedantic(lambda: storm(live.port, 1, one), rounds=1)


def test_first_token_after_start(benchmark: Any) -> None:
    found = []
    for _ in range(1 if benchmark.disabled else 5):
        start = time.perf_counter()
        with server("--kv-memory=0.1") as live:
            found.append(live.first_token() - start)
    benchmark.extra_info |= {"seconds": summary(found)}
    benchmark.pedantic(lambda: None, rounds=1)
