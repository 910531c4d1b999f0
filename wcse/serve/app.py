"""Routes, error handling, and the process: ``create_app`` for tests and other servers, ``run`` for the command."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wcse.serve.errors import ApiError, json_reply
from wcse.serve.fields import as_api_error
from wcse.serve.guard import LOOPBACK, Guard
from wcse.serve.openai_api import OpenAI
from wcse.serve.protocol import BoundedProtocol
from wcse.serve.schema import Schemas
from wcse.serve.service import ServeConfig, Service
from wcse.serve.stream import ClientGone
from wcse.serve.token_api import Tokens
from wcse.types import WcseError

MAX_CONNECTIONS = 2048
_LOG = logging.getLogger("wcse.serve")


def create_app(service: Service) -> FastAPI:
    """The application; it starts and stops the service's engine thread."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    openai, tokens = OpenAI(service), Tokens(service)
    schemas = Schemas(service.config.limits, service.model.spec.vocab_size, service.config.max_logprobs)
    routes: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/health", tokens.health),
        ("GET", "/version", tokens.version),
        ("GET", "/metrics", tokens.metrics),
        ("GET", "/v1/models", openai.models),
        ("GET", "/v1/models/{name:path}", openai.model),
        ("POST", "/v1/completions", openai.completions),
        ("POST", "/v1/chat/completions", openai.chat),
        ("POST", "/tokenize", tokens.tokenize),
        ("POST", "/detokenize", tokens.detokenize),
        ("GET", "/tokenizer_info", tokens.tokenizer_info),
        ("POST", "/pooling", tokens.pooling),
        ("POST", "/score", tokens.score),
        ("POST", "/inference/v1/generate", tokens.generate),
    ]
    described = APIRouter()
    for method, path, endpoint in routes:
        # Endpoints read their requests themselves: a plain route, without what FastAPI would prepare for each call.
        app.add_route(path, endpoint, methods=[method])
        described.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=None,
            openapi_extra=schemas.operation(path),
            summary=(endpoint.__doc__ or "").strip() or None,
        )
    schema = get_openapi(title="wcse", version="1", routes=described.routes)
    app.add_route("/openapi.json", lambda _: json_reply(schema), methods=["GET"])
    _add_error_handlers(app, service)
    app.add_middleware(Guard, keys=service.config.keys)
    return app


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        service.metrics.refused(error.status)
        return error.reply()

    async def mistaken(request: Request, error: Exception) -> Response:
        assert isinstance(error, WcseError)
        return await refused(request, as_api_error(error))

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: "there is no such path", 405: "this path takes another method"}
        return await refused(request, ApiError(error.status_code, message.get(error.status_code, "refused")))

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def broken(_: Request, error: Exception) -> Response:
        _LOG.error("request failed: %s", type(error).__name__)  # never its text: it may quote a prompt
        service.metrics.refused(500)
        return ApiError(500, "internal error").reply()

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(WcseError, mistaken)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(Exception, broken)


def make_server(service: Service, *, host: str, port: int) -> uvicorn.Server:
    """A server that is not running yet.

    Raises:
        WcseError: a host other than this machine's own without a key.
    """
    if host not in LOOPBACK and not service.config.keys:
        raise WcseError(f"host={host!r} can be reached from other machines: set an API key, or use 127.0.0.1")
    return uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            host=host,
            port=port,
            log_level="error",  # not a line for each broken request
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks where a request came from
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=30,
            http=BoundedProtocol,
        )
    )


def run(config: ServeConfig, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; ``ready`` hears the address once models are loaded.

    Raises:
        WcseError: as ``Service`` and ``make_server``.
    """
    if host not in LOOPBACK and not config.keys:  # before minutes of loading
        raise WcseError(f"host={host!r} can be reached from other machines: set an API key, or use 127.0.0.1")
    service = Service(config)
    server = make_server(service, host=host, port=port)
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{port}/v1")
    server.run()
