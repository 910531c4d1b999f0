"""HTTP/1.1 by httptools, as uvicorn speaks it, with a bound on what is no body: request line, headers, framing."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_OVERHEAD = 64 * 1024
"""Bytes of a request beside its body. The parser itself would keep headers of any length."""


class BoundedProtocol(HttpToolsProtocol):
    """Hangs up on a request whose request line, headers, chunk sizes and trailers pass ``MAX_OVERHEAD``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._overhead = 0

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MAX_OVERHEAD and not self.transport.is_closing():
            self.send_400_response("The headers are too long.")

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._overhead = 0
        super().on_message_complete()
