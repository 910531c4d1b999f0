"""The engines' own servers, each as its users start it, asked over HTTP by clients at once: ``serve``.

``python server_side.py NAME`` runs in the environment of the engine; NAME is one of ``SERVERS``. Every request is an
OpenAI completion with ``n``, of a prompt that no other request has. The clients live in this process, the server in
its own; only the server's processor time and memory are counted. Knows no batches and no caches.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import distribution, version
from pathlib import Path

from side import Count, CutOff, Facts, Item, forget_peak, memory, serve

START = 900.0  # seconds until a server answers
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Launch:
    """How a server is started: command, and variables on top of our own; whether it takes a seed with a request."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    seeds: bool = True


def wcse(model: dict[str, str], precision: str, threads: int, port: int) -> Launch:
    weights = [] if precision == "float32" else ["--quantization", precision]
    command = [_script("wcse"), "serve", "--policy", model["path"], "--port", str(port), *weights]
    return Launch(command, {"OMP_NUM_THREADS": str(threads)})


def llama(model: dict[str, str], precision: str, threads: int, port: int) -> Launch:
    """A slot for every completion, each with a stream of its own in the cache; nothing is saved between requests."""
    from llama_cpp_side import quantised

    source = Path(model["path"])
    path = source if precision == "file" else quantised(source, Path(model["cache"]), precision, threads)
    options = (
        f"-t {threads} -tb {threads} -np {SLOTS} -c {SLOTS * CONTEXT} --no-kv-unified --cache-ram 0 -lm none"
    )
    command = [_llama_server(), "-m", str(path), "--port", str(port), *options.split(), "--no-ui", "-lv", "1"]
    return Launch(command, {"LD_LIBRARY_PATH": str(Path(command[0]).parents[1] / "lib")})


def vllm(model: dict[str, str], precision: str, threads: int, port: int) -> Launch:
    options = f"--dtype {precision} --max-model-len 2048 --max-num-seqs 256 --host 127.0.0.1 --port {port}"
    # The module behind ``vllm serve``: that command asks for a distribution of another name than the CPU build's.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model["policy"]]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    env = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    # A seed ends its CPU engine: "CPU Generator does not use offset".
    return Launch([*command, *options.split()], env, seeds=False)


Start = Callable[[dict[str, str], str, int, int], Launch]
SERVERS: dict[str, tuple[str, Start]] = {
    "wcse": ("wcse", wcse),
    "llama": ("llama-cpp-python", llama),
    "vllm": ("vllm-cpu", vllm),
}
SLOTS, CONTEXT = 64, 640  # of llama.cpp: four requests of sixteen completions at once


class ServerSide:
    """One server, started once.

    Args:
        name: of ``SERVERS``.
    """

    def __init__(self, name: str) -> None:
        self.package, self.start = SERVERS[name]
        self.process: subprocess.Popen[bytes] | None = None

    def load(self, model: dict[str, str], precision: str, threads: int, workloads: Sequence[str]) -> Facts:
        self.port = _free_port()
        launch = self.start(model, precision, threads, self.port)
        self.seeds = launch.seeds
        self.process = subprocess.Popen(launch.command, env=os.environ | launch.env, stdout=sys.stderr)
        end = time.monotonic() + START
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"{launch.command[0]} ended with status {self.process.returncode}")
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {START:.0f} s")
            time.sleep(0.2)
        (found,) = self._get("/v1/models")["data"][:1]
        self.name = found["id"]
        return {
            "versions": {self.package: version(self.package)},
            "dtype": precision,
            "modes": {"serve": ["http"]},
        }

    def close(self) -> None:
        """End the server and all that it started."""
        if self.process is None or self.process.poll() is not None:
            return
        _, *below = self._processes()
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in below:  # those that did not end with it
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    def prepare(self, item: Item) -> None:
        """Peaks of memory begin anew."""
        for process in self._processes():
            forget_peak(process)

    def run(self, item: Item) -> Count:
        """All requests at once; ``steps`` says how many."""
        before, replies = self._cpu(), Replies()
        clients = [threading.Thread(target=self._client, args=(item, i, replies)) for i in range(item.steps)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        if replies.errors:
            raise RuntimeError("; ".join(sorted(set(replies.errors))))
        item.meter.tokens = replies.tokens
        if replies.late:
            raise CutOff
        measured = {"cpu_seconds": self._cpu() - before, "peak_rss": self._peak()}
        return Count(replies.tokens, {"completions": float(item.steps * item.n)}, measured)

    def _client(self, item: Item, number: int, replies: Replies) -> None:
        body = {
            "model": self.name,
            "prompt": item.prompt[number:] + item.prompt[:number],
            "n": item.n,
            "max_tokens": item.new_tokens,
            "temperature": item.temperature,
            "top_p": item.top_p,
            "ignore_eos": True,
        }
        if self.seeds:
            body["seed"] = item.seed * 64 + number
        left = min(item.meter.deadline - time.perf_counter(), 86400.0)
        try:
            reply = self._post("/v1/completions", body, max(left, 0.1))
        except TimeoutError:
            replies.late = True
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            replies.errors.append(f"{type(error).__name__}: {error}"[:300])
            return
        # Not the reply's usage: llama.cpp's counts one choice of them all.
        whole = sum(choice["finish_reason"] == "length" for choice in reply["choices"])
        if whole != item.n:
            replies.errors.append(f"{whole} choices of {item.n} have {item.new_tokens} tokens")
        replies.add(whole * item.new_tokens)

    def _answers(self) -> bool:
        try:
            self._get("/health")
        except (OSError, ValueError, http.client.HTTPException):
            return False
        return True

    def _get(self, path: str) -> Facts:
        return self._ask("GET", path, None, 30.0)

    def _post(self, path: str, body: Facts, timeout: float) -> Facts:
        return self._ask("POST", path, json.dumps(body), timeout)

    def _ask(self, method: str, path: str, body: str | None, timeout: float) -> Facts:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if reply.status != 200:
            raise ValueError(f"{path} gave {reply.status}: {text[:200]}")
        found: Facts = json.loads(text) if text.startswith("{") else {}
        return found

    def _processes(self) -> list[str]:
        """The server's process and all below it."""
        assert self.process is not None
        found, waiting = [], [str(self.process.pid)]
        while waiting:
            process = waiting.pop()
            found.append(process)
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                try:
                    waiting += children.read_text().split()
                except OSError:  # a thread that ended meanwhile
                    continue
        return found

    def _cpu(self) -> float:
        """Processor seconds of the server so far."""
        fields = [
            Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            for process in self._processes()
        ]
        return sum(int(one[11]) + int(one[12]) for one in fields) / TICKS

    def _peak(self) -> int:
        return sum(memory(process)["peak_rss"] for process in self._processes())


@dataclass
class Replies:
    """What the clients got."""

    tokens: int = 0
    late: bool = False
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tokens: int) -> None:
        with self.lock:
            self.tokens += tokens


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _llama_server() -> str:
    """The program that llama.cpp's build left beside the Python package.

    Raises:
        RuntimeError: it was built without.
    """
    program = Path(str(distribution("llama-cpp-python").locate_file("bin/llama-server")))
    if program.is_file():
        return str(program)
    raise RuntimeError("llama-cpp-python was built without llama-server")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    side = ServerSide(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the server would stay
    try:
        serve(side)
    finally:
        side.close()
