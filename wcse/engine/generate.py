"""One request inside an engine: its prompt, its completions as they are written, its prompt's log-probabilities.

``LLM`` runs many of them to their end, the server streams and aborts them. Knows no chat templates and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wcse.engine.engine import Engine
from wcse.engine.growth import Growth, Root
from wcse.engine.outputs import CompletionOutput, Draft, RequestOutput, Vocabulary
from wcse.engine.params import WHOLE, FieldError, SamplingParams
from wcse.engine.reader import Reader, Reading
from wcse.types import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is completed: ids, and the text they come from where there was one."""

    ids: list[int]
    text: str | None = None


class Backend:
    """An engine, its reader and its vocabulary: what requests run on.

    Args:
        max_logprobs: most log-probabilities that a request may ask for at each token.
    """

    def __init__(self, engine: Engine, *, max_logprobs: int = 20) -> None:
        self.engine = engine
        self.reader = Reader(engine)
        self.vocabulary = Vocabulary(engine.table, engine.model.tokenizer)
        self.max_logprobs = max_logprobs

    @property
    def busy(self) -> bool:
        return self.engine.busy or self.reader.waiting > 0

    def step(self) -> None:
        """One batch of writing and one of reading, where there is work."""
        if self.engine.busy:
            self.engine.step()
        if self.reader.waiting:
            self.reader.step()

    def check(self, params: SamplingParams) -> None:
        """Refuse what this model cannot do, before anything is allocated.

        Raises:
            FieldError: more log-probabilities than allowed, or a token id that the model does not have.
        """
        vocab = self.engine.model.spec.vocab_size
        for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            wanted = vocab if count == -1 else count or 0
            if wanted > self.max_logprobs:
                raise FieldError(
                    name, count, f"at most {self.max_logprobs} are given for each token (max_logprobs)"
                )
        beyond = [t for t in params.stop_token_ids if t >= vocab]
        if beyond:
            raise FieldError("stop_token_ids", beyond[0], f"this model's token ids are below {vocab}")


@dataclass(eq=False)
class Generation:
    """A running request; ``start`` puts it into the engine.

    Args:
        seed, name: with the path they fix the random numbers.
        tenant: whose cached prompts it may share.
        stream: hears each draft whenever it changed.
        done: hears the whole output, once.
    """

    backend: Backend
    request_id: str
    prompt: Prompt
    params: SamplingParams
    seed: int
    name: str
    done: Callable[[RequestOutput], None]
    tenant: str = ""
    stream: Callable[[Draft], None] | None = None
    output: RequestOutput = field(init=False)
    drafts: list[Draft] = field(init=False)

    def start(self) -> None:
        """Queue the work.

        Raises:
            WcseError: the prompt or the parameters do not fit the model; nothing is left behind.
        """
        backend, params = self.backend, self.params
        backend.check(params)
        ids = self.prompt.ids
        root = backend.engine.open(
            ids, seed=self.seed, problem=self.name, params=params, rule=WHOLE, tenant=self.tenant
        )
        self._root: Root | None = root
        self.output = RequestOutput(
            self.request_id, self.prompt.text, ids, finished=False, num_cached_tokens=root.account.reused
        )
        self.drafts = [Draft(i, params, backend.vocabulary) for i in range(params.draws)]
        self._left = params.draws
        self._reading: Reading | None = None
        if params.prompt_logprobs is not None:
            self._read_prompt(params.prompt_logprobs)
        fed = bool(params.stop) or params.logprobs is not None or self.stream is not None
        for draft in self.drafts:
            draft.listen = self.stream
        growth = Growth(
            root,
            root.node,
            params.draws,
            0,
            to_end=True,
            greedy=False,
            on_node=lambda _: None,
            on_end=self._on_end,
            on_token=self._on_token if fed else None,
        )
        backend.engine.grow(growth)

    def abort(self) -> None:
        """Stop and free everything; nobody hears of it any more."""
        if self._root is None:
            return
        if self._reading is not None:
            self.backend.reader.cancel(self._reading)
        self.backend.engine.abort(self._root)
        self._root = self._reading = None
        self.backend.engine.reclaim()

    def _read_prompt(self, top: int) -> None:
        ids = self.prompt.ids
        if len(ids) == 1:
            self.output.prompt_logprobs = [None]
            return
        self._left += 1

        def read(reading: Reading) -> None:
            shown = [self.backend.vocabulary.logprobs(found) for found in reading.tops]
            self.output.prompt_logprobs = [None, *shown]
            self._count_down()

        self._reading = self.backend.reader.submit(ids[:1], ids[1:], read, top=top)

    def _on_token(
        self, child: int, token: int, logprob: float, top: dict[int, tuple[float, int]] | None
    ) -> None:
        self.drafts[child].on_token(token, logprob, top)

    def _on_end(self, child: int, node: Node) -> None:
        self.drafts[child].on_end(node)
        self._count_down()

    def _count_down(self) -> None:
        self._left -= 1
        if self._left:
            return
        outputs = [draft.output for draft in self.drafts if draft.output is not None]
        self.output.outputs = _best(outputs, self.params.n)
        self.output.finished = True
        self._root = self._reading = (
            None  # the prompt's pages are free from here on, whoever holds the output
        )
        self.done(self.output)


def _best(outputs: Sequence[CompletionOutput], n: int) -> list[CompletionOutput]:
    """The ``n`` with the highest mean log-probability per token, renumbered; all of them in order when n are."""
    if len(outputs) <= n:
        return list(outputs)
    ranked = sorted(outputs, key=lambda o: (-o.cumulative_logprob / max(1, len(o.token_ids)), o.index))[:n]
    for index, output in enumerate(ranked):
        output.index = index
    return ranked
