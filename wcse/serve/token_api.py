"""The endpoints beside OpenAI's: tokens, hidden states, token-in token-out generation, health, metrics."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from wcse.engine.generate import Prompt
from wcse.engine.pooling import POOLING_TASKS, pool, similarity
from wcse.prompts import render_text
from wcse.serve import fields, schema
from wcse.serve.admission import Cost
from wcse.serve.errors import ApiError, bad, json_reply
from wcse.serve.fields import as_api_error
from wcse.serve.replies import token_choice, usage
from wcse.serve.service import MOST_CHARS, Service
from wcse.serve.stream import last_event
from wcse.serve.work import CompletionWork, ReadWork, without_limit
from wcse.tokens import decode
from wcse.types import WcseError


class Tokens:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def health(self, request: Request) -> Response:
        if not self.service.loop.alive:
            raise ApiError(503, "the engine has stopped")
        return json_reply({"status": "ok"})

    async def version(self, request: Request) -> Response:
        return json_reply({"version": version("wcse")})

    async def metrics(self, request: Request) -> Response:
        page = self.service.metrics.page(self.service.engine, self.service.admission.running)
        return Response(page, media_type="text/plain; version=0.0.4")

    async def tokenize(self, request: Request) -> Response:
        service = self.service
        body = await service.body(request, schema.TOKENIZE)
        service.plan(body)
        switches, shown = fields.chat_switches(body), fields.flag(body, "return_token_strs")
        special = fields.flag(body, "add_special_tokens", True)
        if "messages" in body:
            if "prompt" in body:
                raise bad("prompt", "give prompt or messages, not both")
            prompt = await service.conversation(fields.messages(body), switches)
            ids = prompt.ids
        else:
            text = fields.text_of(body, "prompt")
            if len(text) > 4 * MOST_CHARS * service.model.context:
                raise bad("prompt", "the text is too long")
            ids = await run_in_threadpool(render_text, service.model.tokenizer, text, special=special)
        reply: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": service.model.context,
            "tokens": ids,
            "token_strs": None,
        }
        if shown:
            reply["token_strs"] = service.model.tokenizer.convert_ids_to_tokens(ids)
        return json_reply(reply)

    async def detokenize(self, request: Request) -> Response:
        service = self.service
        body = await service.body(request, schema.DETOKENIZE)
        service.plan(body)
        tokens = body.get("tokens")
        vocab = service.model.spec.vocab_size
        if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < vocab for t in tokens):
            raise bad("tokens", f"tokens must be a list of ids from 0 to {vocab - 1}")
        return json_reply({"prompt": decode(service.backend.vocabulary.full, tokens)})

    async def tokenizer_info(self, request: Request) -> Response:
        tokenizer = self.service.model.tokenizer
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        found = {name: getattr(tokenizer, name, None) for name in names}
        return json_reply({"tokenizer_class": type(tokenizer).__name__, **found})

    async def pooling(self, request: Request) -> Response:
        service = self.service
        body = await service.body(request, schema.POOLING)
        service.plan(body)
        task = body.get("task", "token_embed")
        if task not in POOLING_TASKS:
            raise bad("task", f"task must be one of {', '.join(POOLING_TASKS)}")
        if body.get("encoding_format", "float") != "float":
            raise bad("encoding_format", "only float is offered")
        texts = fields.prompts(body, fields.MAX_TEXTS, "input")
        prompts = [await service.prompt(text, "input") for text in texts]
        states = await self._states(request, prompts)
        data = []
        for i, rows in enumerate(states):
            try:
                found = await run_in_threadpool(pool, service.model, rows, task)
            except WcseError as error:
                raise as_api_error(error, "task") from None
            data.append({"index": i, "object": "pooling", "data": found.tolist()})
        return self._list(data, prompts)

    async def score(self, request: Request) -> Response:
        service = self.service
        body = await service.body(request, schema.SCORE)
        service.plan(body)
        left, right = (_texts(body, name) for name in ("text_1", "text_2"))
        left = left * len(right) if len(left) == 1 else left
        if len(left) != len(right):
            raise bad("text_1", f"text_1 has {len(left)} texts and text_2 {len(right)}; give one, or as many")
        prompts = [await service.prompt(text, "text_1") for text in left]
        prompts += [await service.prompt(text, "text_2") for text in right]
        states = await self._states(request, prompts)
        pairs = zip(states[: len(left)], states[len(left) :], strict=True)
        data = [{"index": i, "object": "score", "score": similarity(a, b)} for i, (a, b) in enumerate(pairs)]
        return self._list(data, prompts)

    async def _states(self, request: Request, prompts: list[Prompt]) -> Any:
        lengths = [len(prompt.ids) for prompt in prompts]
        ticket = self.service.admission.enter(Cost(sum(lengths), 0, 0, longest=max(lengths)))
        try:
            work = ReadWork([prompt.ids for prompt in prompts])
            return await last_event(work, self.service.loop, request)
        finally:
            ticket.close()

    def _list(self, data: list[Any], prompts: list[Prompt]) -> Response:
        counted = usage(sum(len(prompt.ids) for prompt in prompts), 0, 0)
        return json_reply({"object": "list", "model": self.service.name, "data": data, "usage": counted})

    async def generate(self, request: Request) -> Response:
        """Token ids in, token ids out; text never enters."""
        service = self.service
        body = await service.body(request, schema.GENERATE)
        service.plan(body)
        if fields.flag(body, "stream"):
            raise bad("stream", "this endpoint does not stream; use /v1/completions with return_token_ids")
        ids = body.get("token_ids")
        if not isinstance(ids, list) or not ids or not all(type(t) is int for t in ids):
            raise bad("token_ids", "token_ids must be a list of token ids")
        given = body.get("sampling_params", {})
        if not isinstance(given, dict):
            raise bad("sampling_params", "sampling_params must be an object")
        chosen = fields.check_names(given, schema.GENERATE_SAMPLING)
        extra = {name: chosen[name] for name in ("logprobs", "detokenize") if name in chosen}
        params = fields.sampling(chosen, structured=service.config.structured, **extra)
        service.backend.check(params)
        prompt = await service.prompt(ids, "token_ids")
        params = without_limit(params, service.model.context - len(prompt.ids))
        name = service.next_name()
        shown = fields.text_of(body, "request_id", default=name)
        salt = fields.text_of(body, "cache_salt", default="")
        tenant = service.tenant(request) + (f"/{salt}" if salt else "")
        ticket = service.admission.enter(service.cost([prompt], params))
        try:
            work = CompletionWork([prompt], params, stream=False, name=name, tenant=tenant)
            (output,) = await last_event(work, service.loop, request)
        finally:
            ticket.close()
        written = sum(len(part.token_ids) for part in output.outputs)
        service.metrics.finished(len(ids), written, [part.finish_reason or "" for part in output.outputs])
        return json_reply(
            {
                "request_id": shown,
                "choices": [token_choice(part) for part in output.outputs],
                "prompt_token_ids": ids,
                "usage": usage(len(ids), written, output.num_cached_tokens),
            }
        )


def _texts(body: dict[str, Any], name: str) -> list[str]:
    value = body.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= fields.MAX_TEXTS:
        raise bad(name, f"{name} must be a string or a list of 1 to {fields.MAX_TEXTS} strings")
    return [fields.checked_text(text, name) for text in texts]
