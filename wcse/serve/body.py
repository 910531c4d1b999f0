"""Reads a request's body: bounded in size, time and depth, strict JSON, an object. Knows no endpoint."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from wcse.serve.errors import ApiError, bad

MAX_DEPTH = 32
MAX_SECONDS = 30.0
IN_PLACE = 64 * 1024  # larger bodies are parsed beside the event loop


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        ApiError: 413 too large, 408 too slow, 400 not a JSON object or with values that JSON does not have.
    """
    try:
        raw = await asyncio.wait_for(_read(request, max_bytes), MAX_SECONDS)
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away") from None
    return parse(raw) if len(raw) <= IN_PLACE else await run_in_threadpool(parse, raw)


async def _read(request: Request, max_bytes: int) -> bytes:
    parts = bytearray()
    async for chunk in request.stream():
        parts += chunk
        if len(parts) > max_bytes:
            raise ApiError(413, f"the body is larger than {max_bytes} bytes")
    return bytes(parts)


def parse(raw: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, no NaN or Infinity, no doubled names, at most ``MAX_DEPTH`` deep.

    Raises:
        ApiError: 400.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=lambda _: _NOT_FINITE,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid UTF-8") from None
    except RecursionError:
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    _check_depth(value)
    return value


_NOT_FINITE = object()
"""Stands for NaN, Infinity and numbers beyond a double, until the field that holds it is known."""


def _finite(text: str) -> Any:
    value = float(text)
    return value if math.isfinite(value) else _NOT_FINITE


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice in one object")
    for name, value in pairs:
        if value is _NOT_FINITE:
            raise bad(name[:64], f"{name[:64]!r} is not a finite number")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(part, list) and _NOT_FINITE in part for part in level):
            raise ApiError(400, "a list holds a number that is not finite")
        level = [
            item
            for part in level
            if isinstance(part, dict | list)
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep")
