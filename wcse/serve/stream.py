"""Waits for work while watching the client, and sends server-sent events. A client that goes away ends its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wcse.serve.errors import ApiError, dumps
from wcse.serve.fields import as_api_error
from wcse.serve.loop import EngineLoop, Stopped, Work
from wcse.types import WcseError


class ClientGone(Exception):
    """Nobody waits for the reply any more."""


async def events(work: Work, loop: EngineLoop, receive: Receive) -> AsyncIterator[Any]:
    """What a submitted work sends, up to and including its first event that is no list of deltas.

    Raises:
        ClientGone: the client disconnected.
        ApiError: the work failed.
    """
    gone = asyncio.create_task(_disconnected(receive, work))
    try:
        while True:
            event = await work.events.get()
            if isinstance(event, ClientGone):
                raise event
            if isinstance(event, WcseError):
                raise as_api_error(event)
            if isinstance(event, Stopped):
                raise ApiError(503, str(event), headers={"Retry-After": "1"})
            if isinstance(event, Exception):
                raise ApiError(500, "the engine failed on this request; others were stopped with it")
            yield event
            work.wanted = True
    finally:
        gone.cancel()
        loop.cancel(work)


async def _disconnected(receive: Receive, work: Work) -> None:
    """Tell the work's reader that the client has gone; it wakes at once, with no task for each event."""
    while (await receive())["type"] != "http.disconnect":
        continue
    work.events.put_nowait(ClientGone())


async def last_event(work: Work, loop: EngineLoop, request: Request) -> Any:
    """The single event of a work that does not stream.

    Raises:
        ClientGone, ApiError: as ``events``.
    """
    loop.submit(work)
    stream = events(work, loop, request.receive)
    try:
        async for event in stream:
            return event
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    raise ClientGone


class EventStream(Response):
    """Sends objects as server-sent events, each list of them at once, then ``[DONE]``; ``close`` runs in every case."""

    def __init__(self, parts: AsyncIterator[list[Any]], close: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._parts = parts
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for parts in self._parts:
                    await _send(send, b"".join(map(_event, parts)))
            except ApiError as error:
                await _send(send, _event(error.body()))
            await _send(send, b"data: [DONE]\n\n", more=False)
        except (ClientGone, OSError):
            return
        finally:
            with suppress(Exception):
                await self._parts.aclose()  # type: ignore[attr-defined]
            self._close()


def _event(part: Any) -> bytes:
    return b"data: " + dumps(part) + b"\n\n"


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
