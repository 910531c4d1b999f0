"""Who may call: keys, hosts, and which part of the prefix cache is a caller's. Pure ASGI, default deny."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from wcse.serve.errors import ApiError

OPEN_PATHS = frozenset({"/health"})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def digest(key: str) -> str:
    """A name for a key that does not give it away."""
    return hashlib.sha256(b"wcse tenant\0" + key.encode("utf-8", "surrogateescape")).hexdigest()


class Guard:
    """Lets a request through with one of the keys; without keys, only one addressed to this machine.

    The caller's ``tenant`` lands in ``scope["state"]``: it is derived from the key, never from the request.
    Keys are compared as digests in constant time, all of them whatever the first ones say.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            tenant = self._admit(scope)
        except ApiError as error:
            await error.reply()(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> str:
        if scope["path"] in OPEN_PATHS:
            return ""
        if not self._digests:
            host = _header(scope, b"host").decode("latin-1")
            name = (
                host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
            )
            if name.lower() not in LOOPBACK:
                raise ApiError(403, "without a key this server answers on its own machine's names only")
            return ""
        scheme, _, key = _header(scope, b"authorization").decode("latin-1").partition(" ")
        given = digest(key.strip()) if scheme.lower() == "bearer" else ""
        matches = [known for known in self._digests if hmac.compare_digest(known, given)]
        if not matches:
            raise ApiError(
                401,
                "give a valid key as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return matches[0]


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")
