"""The kinds of work of the server: completions, searches, readings. Run in the engine thread; know no HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from wcse.engine.driver import Job, Outcome
from wcse.engine.generate import Generation, Prompt
from wcse.engine.growth import Root
from wcse.engine.outputs import Draft, Logprob, RequestOutput
from wcse.engine.params import FieldError, SamplingParams
from wcse.engine.reader import Reading
from wcse.serve.loop import EngineLoop, Work
from wcse.types import Node, Search, WcseError


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one choice."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass
class _Sent:
    chars: int = 0
    tokens: int = 0
    finished: bool = False


class CompletionWork(Work):
    """Prompts and their completions. Events: lists of ``Delta`` when streaming, then the list of outputs.

    Args:
        name: what the random numbers of unseeded requests depend on.
        tenant: whose cached prompts it may share.
    """

    def __init__(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, stream: bool, name: str, tenant: str
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self.params = params
        self.stream = stream
        self.name = name
        self.tenant = tenant
        self.cached_tokens = 0
        self._running: list[Generation] = []
        self._left = len(prompts)
        self._changed: dict[tuple[int, int], Draft] = {}
        self._sent: dict[tuple[int, int], _Sent] = {}
        self._last = -math.inf  # when something was sent
        self._loop: EngineLoop | None = None

    def start(self, loop: EngineLoop) -> None:
        self._loop = loop
        try:
            for i, prompt in enumerate(self.prompts):
                self._running.append(self._start_one(loop, i, prompt))
        except BaseException:
            self.abort(loop)
            raise
        self.cached_tokens = sum(g.output.num_cached_tokens for g in self._running)

    def _start_one(self, loop: EngineLoop, i: int, prompt: Prompt) -> Generation:
        seed = self.params.seed

        def changed(draft: Draft) -> None:
            self._changed[i, draft.index] = draft

        generation = Generation(
            loop.backend,
            self.name,
            prompt,
            self.params,
            seed=0 if seed is None else seed,
            name=f"{self.name}.{i}" if seed is None else "",
            done=self._ended,
            tenant=self.tenant,
            stream=changed if self.stream else None,
        )
        generation.start()
        return generation

    def _ended(self, output: RequestOutput) -> None:
        self._left -= 1
        if self._left == 0 and self._loop is not None:
            self._send_changes()
            self.send([generation.output for generation in self._running])
            self._loop.done(self)
            self._running = []

    def flush(self, now: float, gap: float) -> None:
        """A reader that is behind, or one of many, gets the tokens of several steps at once."""
        if self._changed and self.wanted and now - self._last >= gap:
            self._last = now
            self._send_changes()

    def _send_changes(self) -> None:
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        deltas = [delta for key, draft in changed.items() if (delta := self._delta(key, draft)) is not None]
        if deltas:
            self.wanted = False
            self.send(deltas)

    def _delta(self, key: tuple[int, int], draft: Draft) -> Delta | None:
        sent = self._sent.setdefault(key, _Sent())
        text, count = draft.settled()
        output = draft.output
        if sent.finished or (len(text) <= sent.chars and output is None):
            return None
        logprobs = None
        if self.params.logprobs is not None and self._loop is not None:
            vocabulary = self._loop.backend.vocabulary
            logprobs = [vocabulary.logprobs(top or {}) for top in draft.tops[sent.tokens : count]]
        delta = Delta(
            key[0] * self.params.n + key[1],
            text[sent.chars :],
            draft.tokens[sent.tokens : count],
            logprobs,
            output.finish_reason if output else None,
            output.stop_reason if output else None,
        )
        sent.chars, sent.tokens, sent.finished = len(text), count, output is not None
        return delta

    def abort(self, loop: EngineLoop) -> None:
        for generation in self._running:
            generation.abort()
        self._running = []


@dataclass(frozen=True)
class SearchRequest:
    """A search to run on one prompt: token ids, the problem's text for the verifier, and the strategy."""

    prompt_ids: list[int]
    problem: str
    strategy: Callable[[Node], Search]
    params: SamplingParams
    seed: int
    name: str
    tenant: str = ""


class SearchWork(Work):
    """A search. Event: its ``Outcome``."""

    def __init__(self, request: SearchRequest) -> None:
        super().__init__()
        self.request = request
        self._root: Root | None = None
        self._job: Job | None = None
        self._error: WcseError | None = None

    def start(self, loop: EngineLoop) -> None:
        request = self.request
        self._job = Job(
            request.name,
            request.prompt_ids,
            request.problem,
            self._guarded,
            request.seed,
            params=request.params,
            tenant=request.tenant,
        )
        self._loop = loop
        self._root = loop.search(self._job, self._ended)

    def _guarded(self, root: Node) -> Search:
        """The strategy; its mistakes end this search and not the engine's step."""
        try:
            return (yield from self.request.strategy(root))
        except WcseError as error:
            self._error = error
            return []

    def _ended(self, outcome: Outcome) -> None:
        self.send(self._error or outcome)
        self._loop.done(self)
        self._root = self._job = None

    def abort(self, loop: EngineLoop) -> None:
        if self._root is not None and self._job is not None:
            loop.forget(self._job)
            loop.driver.abort(self._root)
        self._root = self._job = None


@dataclass
class ReadWork(Work):
    """Texts to read. Event: one tensor of hidden states [tokens, hidden size] for each."""

    texts: Sequence[Sequence[int]]
    found: dict[int, torch.Tensor] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)

    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__init__()

    def start(self, loop: EngineLoop) -> None:
        for i, ids in enumerate(self.texts):

            def done(reading: Reading, i: int = i) -> None:
                self.found[i] = torch.cat(reading.hidden)
                if len(self.found) == len(self.texts):
                    self.send([self.found[j] for j in range(len(self.texts))])
                    loop.done(self)

            self.readings.append(loop.backend.reader.submit((), ids, done, states=True))

    def abort(self, loop: EngineLoop) -> None:
        for reading in self.readings:
            loop.backend.reader.cancel(reading)


def without_limit(params: SamplingParams, room: int) -> SamplingParams:
    """Parameters whose ``max_tokens`` is a number: at most ``room``, the rest of the context.

    Raises:
        FieldError: ``min_tokens`` do not fit there.
    """
    if params.min_tokens > room:
        raise FieldError("min_tokens", params.min_tokens, f"the context has room for {room} more tokens")
    most = max(1, room if params.max_tokens is None else min(params.max_tokens, room))
    return params if params.max_tokens == most else replace(params, max_tokens=most)
