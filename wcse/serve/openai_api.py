"""``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``. Knows HTTP and shapes; the work is elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from wcse.engine.driver import Outcome
from wcse.engine.generate import Prompt
from wcse.engine.outputs import RequestOutput
from wcse.engine.params import SamplingParams
from wcse.serve import fields
from wcse.serve.admission import Ticket
from wcse.serve.errors import bad, json_reply
from wcse.serve.replies import (
    Header,
    Names,
    chat_choice,
    chat_logprobs,
    completion_choice,
    prompt_extras,
    search_usage,
    text_logprobs,
    token_extras,
    usage,
)
from wcse.serve.search import Plan, Ranked, rank
from wcse.serve.service import Service
from wcse.serve.stream import EventStream, events, last_event
from wcse.serve.work import CompletionWork, Delta, SearchRequest, SearchWork, without_limit
from wcse.types import Search


@dataclass(frozen=True)
class Call:
    """A request that was understood and checked, before it is let in."""

    chat: bool
    header: Header
    prompts: list[Prompt]
    params: SamplingParams
    options: fields.Options
    plan: Plan | None
    problem: str
    tenant: str
    name: str


class OpenAI:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def models(self, request: Request) -> Response:
        """The model and its searches."""
        service = self.service
        names = [service.name, *service.planner.aliases(service.name)]
        return json_reply({"object": "list", "data": [self._entry(name) for name in names]})

    async def model(self, request: Request) -> Response:
        """One model, or any search on it."""
        name, _ = self.service.plan({"model": request.path_params["name"]})
        return json_reply(self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        service = self.service
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "wcse",
            "root": service.config.model,
            "max_model_len": service.model.context,
        }

    async def completions(self, request: Request) -> Response:
        service = self.service
        body = await service.body(request, fields.COMPLETION)
        if body.get("suffix", "") != "":
            raise bad("suffix", "suffix is not offered")
        options = fields.options(body)
        reads_only = options.echo and body.get("max_tokens") == 0 and body.get("max_tokens") is not False
        extra: dict[str, Any] = {"max_tokens": 1} if reads_only else {}
        if options.echo and body.get("logprobs") is not None and "prompt_logprobs" not in body:
            extra["prompt_logprobs"] = body["logprobs"]
        if "max_tokens" not in body:
            extra["max_tokens"] = max(16, body["min_tokens"]) if _is_count(body.get("min_tokens")) else 16
        if "logprobs" in body:
            extra["logprobs"] = body["logprobs"]
        params = fields.sampling(body, structured=service.config.structured, **extra)
        special = fields.flag(body, "add_special_tokens", True)
        raw = fields.prompts(body, service.config.limits.prompts)
        prompts = [await service.prompt(prompt, special=special) for prompt in raw]
        call = await self._call(request, body, options, params, prompts, False)
        if reads_only:
            return await self._read_only(request, call)
        return await self._answer(request, call)

    async def chat(self, request: Request) -> Response:
        service = self.service
        body = await service.body(request, fields.CHAT)
        options = fields.options(body)
        if options.echo:
            raise bad("echo", "echo belongs to /v1/completions; use continue_final_message")
        extra: dict[str, Any] = {"logprobs": fields.chat_logprobs(body, service.most_logprobs)}
        if "max_completion_tokens" in body:
            extra["max_tokens"] = fields.number(body, "max_completion_tokens", 1, 2**63, 1)
        elif "max_tokens" not in body:
            extra["max_tokens"] = None
        params = fields.sampling(body, structured=service.config.structured, **extra)
        messages = fields.messages(body)
        prompt = await service.conversation(messages, fields.chat_switches(body))
        problem = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        call = await self._call(request, body, options, params, [prompt], True, problem)
        return await self._answer(request, call)

    # -- checked requests --------------------------------------------------------------------------------

    async def _call(
        self,
        request: Request,
        body: Mapping[str, Any],
        options: fields.Options,
        params: SamplingParams,
        prompts: list[Prompt],
        chat: bool,
        problem: str = "",
    ) -> Call:
        service = self.service
        model, plan = service.plan(body)
        if options.stream and params.draws > params.n:
            raise bad("best_of", "best_of cannot be streamed: the best are known at the end")
        service.backend.check(params)
        if plan is not None:
            _check_search(plan, params, prompts)
        longest = max(len(prompt.ids) for prompt in prompts)
        params = without_limit(params, service.model.context - longest)
        name = service.next_name()
        header = Header(f"{'chatcmpl' if chat else 'cmpl'}-{name}", model, int(time.time()), chat)
        tenant = service.tenant(request)
        return Call(chat, header, prompts, params, options, plan, problem, tenant, name)

    async def _answer(self, request: Request, call: Call) -> Response:
        service = self.service
        ticket = service.admission.enter(service.cost(call.prompts, call.params, call.plan))
        try:
            if call.plan is not None:
                reply = await self._search(request, call, call.plan)
                if call.options.stream:
                    return EventStream(_as_stream(reply, call), ticket.close)
                ticket.close()
                return json_reply(reply)
            if call.options.stream:
                return await self._stream(request, call, ticket)
            outputs = await last_event(self._work(call), service.loop, request)
            reply = self._whole(call, outputs)
        except BaseException:
            ticket.close()
            raise
        ticket.close()
        return json_reply(reply)

    def _work(self, call: Call) -> CompletionWork:
        params = call.params
        return CompletionWork(
            call.prompts, params, stream=call.options.stream, name=call.name, tenant=call.tenant
        )

    async def _read_only(self, request: Request, call: Call) -> Response:
        """``max_tokens=0`` with ``echo``: the prompt's log-probabilities and nothing written."""
        ticket = self.service.admission.enter(self.service.cost(call.prompts, call.params))
        try:
            outputs = await last_event(self._work(call), self.service.loop, request)
        finally:
            ticket.close()
        for output in outputs:
            for part in output.outputs:
                part.text, part.token_ids, part.finish_reason = "", [], "length"
                part.logprobs = None if part.logprobs is None else []
        return json_reply(self._whole(call, outputs))

    def _whole(self, call: Call, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        vocabulary, wanted = self.service.backend.vocabulary, call.params.logprobs
        choices = []
        for i, output in enumerate(outputs):
            for part in output.outputs:
                index = i * call.params.n + part.index
                if call.chat:
                    choices.append(chat_choice(index, part, call.options, vocabulary, wanted))
                else:
                    choices.append(completion_choice(index, output, part, call.options, vocabulary, wanted))
        reply = call.header.top("chat.completion" if call.chat else "text_completion", choices)
        if call.chat:
            reply |= prompt_extras(outputs[0], call.options, vocabulary)
        return reply | {"usage": self._count(call, outputs)}

    def _count(self, call: Call, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        written = sum(len(part.token_ids) for output in outputs for part in output.outputs)
        read = sum(len(prompt.ids) for prompt in call.prompts)
        reasons = [part.finish_reason or "" for output in outputs for part in output.outputs]
        self.service.metrics.finished(read, written, reasons)
        return usage(read, written, sum(output.num_cached_tokens for output in outputs))

    # -- streams -----------------------------------------------------------------------------------------

    async def _stream(self, request: Request, call: Call, ticket: Ticket) -> Response:
        service = self.service
        work = self._work(call)
        service.loop.submit(work)
        source = events(work, service.loop, request.receive)
        begun = time.perf_counter()
        try:
            first = await anext(source)  # a request that fails at once gets a status, not a stream
        except BaseException:
            await source.aclose()  # type: ignore[attr-defined]
            raise
        service.metrics.first_text(time.perf_counter() - begun)
        return EventStream(self._parts(call, first, source), ticket.close)

    async def _parts(self, call: Call, first: Any, source: AsyncIterator[Any]) -> AsyncIterator[list[Any]]:
        chunk = _Chunks(call, Names(self.service.backend.vocabulary, call.options))
        async with aclosing(source):  # type: ignore[type-var]
            event = first
            while isinstance(event[0], Delta):
                yield [part for delta in event for part in chunk.of(delta)]
                event = await anext(source)
            counted = self._count(call, event)
            if call.options.usage_in_stream:
                yield [call.header.top(chunk.kind, []) | {"usage": counted}]

    # -- searches ----------------------------------------------------------------------------------------

    async def _search(self, request: Request, call: Call, plan: Plan) -> dict[str, Any]:
        service, params = self.service, call.params

        def strategy(root: Any) -> Search:
            return plan.strategy.run(root, plan.config)

        work = SearchWork(
            SearchRequest(
                call.prompts[0].ids,
                call.problem or call.prompts[0].text or "",
                strategy,
                replace(params, n=1),
                service.config.seed if params.seed is None else params.seed,
                call.name if params.seed is None else "",
                call.tenant,
            )
        )
        outcome: Outcome = await last_event(work, service.loop, request)
        ranked = await run_in_threadpool(rank, outcome.solutions, outcome.selector, plan, service.judge)
        chosen = ranked[: params.n]
        choices = [_search_choice(i, found, call) for i, found in enumerate(chosen)]
        cost = search_usage(outcome.policy, outcome.verifier, len(outcome.nodes))
        service.metrics.searched(len(outcome.nodes), cost["prm_tokens"], cost["prm_reused_tokens"])
        read = len(call.prompts[0].ids)
        service.metrics.finished(read, cost["sampled_tokens"], [c["finish_reason"] for c in choices])
        reply = call.header.top("chat.completion" if call.chat else "text_completion", choices)
        return reply | {"usage": usage(read, cost["sampled_tokens"], 0, cost)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_search(plan: Plan, params: SamplingParams, prompts: Sequence[Prompt]) -> None:
    if len(prompts) != 1:
        raise bad("prompt", "a search takes one prompt")
    if params.n > plan.config.n:
        raise bad("n", f"n={params.n} answers are more than the search's budget of {plan.config.n}")
    for name, value in (
        ("logprobs", params.logprobs),
        ("prompt_logprobs", params.prompt_logprobs),
        ("best_of", params.best_of),
    ):
        if value is not None:
            raise bad(name, f"{name} does not go with a search")


def _search_choice(index: int, found: Ranked, call: Call) -> dict[str, Any]:
    node = found.node
    text = node.completion
    choice: dict[str, Any] = {
        "index": index,
        "finish_reason": "stop" if node.complete else "length",
        "stop_reason": node.stop_reason,
        "logprobs": None,
        "search": found.detail(),
    }
    if call.chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = (call.prompts[0].text or "") + text if call.options.echo else text
    return choice | token_extras(node.completion_ids, call.options)


async def _as_stream(reply: dict[str, Any], call: Call) -> AsyncIterator[list[Any]]:
    """A finished reply as a stream of one part for each choice."""
    kind = "chat.completion.chunk" if call.chat else "text_completion"
    for choice in reply["choices"]:
        if call.chat:
            choice["delta"] = choice.pop("message")
        yield [call.header.top(kind, [choice])]
    if call.options.usage_in_stream:
        yield [call.header.top(kind, []) | {"usage": reply["usage"]}]


class _Chunks:
    """Turns deltas into the parts of a stream."""

    def __init__(self, call: Call, names: Names) -> None:
        self.call = call
        self.kind = "chat.completion.chunk" if call.chat else "text_completion"
        self._names = names
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def of(self, delta: Delta) -> list[dict[str, Any]]:
        """The parts for one delta; a choice's first part announces it."""
        call, parts = self.call, []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            parts += self._opening(delta.index)
        choice: dict[str, Any] = {
            "index": delta.index,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        } | token_extras(delta.token_ids, call.options)
        choice |= {"delta": {"content": delta.text}} if call.chat else {"text": delta.text}
        return [*parts, call.header.top(self.kind, [choice])]

    def _opening(self, index: int) -> list[dict[str, Any]]:
        call = self.call
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
        if call.chat:
            return [call.header.top(self.kind, [choice | {"delta": {"role": "assistant", "content": ""}}])]
        if not call.options.echo:
            return []
        prompt = call.prompts[index // call.params.n]
        return [call.header.top(self.kind, [choice | {"text": prompt.text or ""}])]

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        wanted = self.call.params.logprobs
        if wanted is None or delta.logprobs is None:
            return None
        if self.call.chat:
            return chat_logprobs(delta.logprobs, delta.token_ids, wanted, self._names)
        offset = self._offsets.get(delta.index, 0)
        self._offsets[delta.index] = offset + len(delta.text)
        return text_logprobs(delta.logprobs, delta.token_ids, self._names, top=wanted > 0, offset=offset)
