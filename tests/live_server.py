"""A real server on a free port of this machine, in a thread, and a raw HTTP client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from wcse.models.load import LoadedModel
from wcse.serve.app import make_server
from wcse.serve.service import ServeConfig, Service

QUESTION = [{"role": "user", "content": "Calculate 17 + 25."}]
GENERATE = {"prompt": "Calculate", "max_tokens": 4}


class Live:
    """A running server."""

    def __init__(self, service: Service, server: uvicorn.Server, port: int) -> None:
        self.service = service
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, JSON or text) of one request; a body of bytes is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            reply = connection.getresponse()
            raw = reply.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in reply.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return reply.status, found, json.loads(raw) if is_json and raw else raw.decode()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, reply = self.call("POST", path, body, headers)
        return status, reply

    def on_engine(self, function: Any) -> Any:
        """Run a function in the engine thread between two steps and give its result."""
        found: list[Any] = []
        done = threading.Event()

        def run() -> None:
            found.append(function())
            done.set()

        self.service.loop.call(run)
        assert done.wait(60)
        return found[0]

    def settle(self) -> dict[str, int]:
        """Wait until no request runs; the tree's page counts then, after a full check."""
        for _ in range(2000):
            idle = self.on_engine(lambda: not self.service.loop.active and not self.service.loop.busy)
            if idle and self.service.admission.running == 0:
                break
            threading.Event().wait(0.005)

        def stats() -> dict[str, int]:
            engine = self.service.engine
            engine.reclaim()
            engine.runner.tree.check()
            assert not engine.rows and not engine.schedule.listeners
            return dict(engine.runner.tree.stats())

        return dict(self.on_engine(stats))


@contextmanager
def serving(config: ServeConfig, model: LoadedModel | None = None) -> Iterator[Live]:
    """Serve until the block ends."""
    service = Service(config, model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = make_server(service, host="127.0.0.1", port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield Live(service, server, port)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
