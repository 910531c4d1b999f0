"""Many HTTP clients in one thread: completions from ``wcse serve``, each connection asking as soon as it is answered.

``python http_load.py PORT CLIENTS < bodies.json`` prints seconds and tokens. Raw sockets and one selector, replies
parsed after the clock has stopped: on a small machine every cycle of a client is taken from the server. Knows just
enough HTTP for this.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import deque
from typing import Any

HEAD = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
)


class Client:
    """One connection that takes requests from ``waiting`` until none is left."""

    def __init__(self, port: int, waiting: deque[bytes], replies: list[bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.waiting = waiting
        self.replies = replies
        self.reply = bytearray()

    def ask(self) -> bool:
        """Send the next request; False when there is none."""
        if not self.waiting:
            return False
        self.socket.sendall(self.waiting.popleft())
        return True

    def read(self) -> bool:
        """Take what has come, and ask again after a whole reply; False when there is nothing left to ask."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError(f"the server hung up after {bytes(self.reply[:200])!r}")
        self.reply += data
        if not self._whole():
            return True
        self.replies.append(bytes(self.reply))
        self.reply.clear()
        return self.ask()

    def _whole(self) -> bool:
        head, end, body = self.reply.partition(b"\r\n\r\n")
        if not end:
            return False
        _, found, rest = head.lower().partition(b"content-length: ")
        if found:
            return len(body) >= int(rest.partition(b"\r\n")[0])
        return self.reply.endswith(b"\r\n0\r\n\r\n")  # the last chunk; JSON has no bare line ends


def load(port: int, clients: int, bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Send the bodies, at most ``clients`` at once; seconds, processor seconds of this process, and tokens written.

    Raises:
        ConnectionError: the server hung up.
        ValueError: a reply is no completion.
    """
    texts = [json.dumps(body) for body in bodies]
    waiting = deque(f"{HEAD}{len(text)}\r\n\r\n{text}".encode() for text in texts)
    replies: list[bytes] = []
    everyone = [Client(port, waiting, replies) for _ in range(min(clients, len(bodies)))]
    with selectors.DefaultSelector() as ready:
        for client in everyone:
            ready.register(client.socket, selectors.EVENT_READ, client)
        start, cpu = time.perf_counter(), time.process_time()
        for client in everyone:
            client.ask()
        running = len(everyone)
        while running:
            for key, _ in ready.select():
                if not key.data.read():
                    ready.unregister(key.fileobj)
                    running -= 1
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    for client in everyone:
        client.socket.close()
    return {"seconds": seconds, "cpu": cpu, "tokens": sum(map(tokens, replies))}


def tokens(reply: bytes) -> int:
    """``usage.completion_tokens`` of a whole reply, or of a stream's last part."""
    if not reply.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"no completion: {reply[:300]!r}")
    text = reply.partition(b"\r\n\r\n")[2]
    if b"data: [DONE]" in text:
        text = text.split(b"data: ")[-2].partition(b"\n\n")[0]
    return int(json.loads(text)["usage"]["completion_tokens"])


if __name__ == "__main__":
    print(json.dumps(load(int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin))))
