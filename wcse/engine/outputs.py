"""What a generation returns, under vLLM's names, and how it is put together token by token.

Knows tokens and text, nothing of models or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wcse.engine.draw import Top
from wcse.engine.params import SamplingParams
from wcse.tokens import decode
from wcse.types import Finish, Node


class Logprob(NamedTuple):
    """Log-probability of a token under the model's raw logits; ``rank`` 1 is the most likely one."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One completion.

    ``finish_reason`` is "stop" or "length"; "error" when its numbers broke down; "abort". ``text`` is cut exactly
    before the stop string. ``token_ids`` are whole tokens, so they may end a few characters earlier;
    ``ids_chars`` says how many characters of ``text`` they cover. An end-of-sequence token is among the ids.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    ids_chars: int = 0


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions, in index order. ``metrics`` and ``lora_request`` are for code that reads vLLM's."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: None = None
    lora_request: None = None


@dataclass(slots=True)
class PoolingOutput:
    """``data``: a float32 tensor; its shape depends on the task of ``LLM.encode``."""

    data: Any


@dataclass(slots=True)
class PoolingRequestOutput:
    """A prompt and what was computed from its hidden states."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: PoolingOutput
    finished: bool = True


@dataclass(slots=True)
class ScoringOutput:
    """A similarity."""

    score: float


@dataclass(slots=True)
class ScoringRequestOutput:
    """A pair of texts and their similarity."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: ScoringOutput
    finished: bool = True


class Vocabulary:
    """The bytes of each token id, with and without special tokens."""

    def __init__(self, table: Sequence[bytes], tokenizer: Any) -> None:
        self.plain = table
        self._tokenizer = tokenizer
        self._full: list[bytes] | None = None

    def table(self, params: SamplingParams) -> Sequence[bytes]:
        """The table that a request's text is made with."""
        return self.plain if params.skip_special_tokens else self.full

    @property
    def full(self) -> Sequence[bytes]:
        """The table in which special tokens show their names."""
        if self._full is None:
            self._full = list(self.plain)
            for token in range(min(len(self._full), len(self._tokenizer))):
                if not self._full[token]:
                    self._full[token] = str(self._tokenizer.convert_ids_to_tokens(token) or "").encode()
        return self._full

    def show(self, token: int) -> str:
        """One token's text; half a character becomes U+FFFD."""
        return decode(self.full, [token])

    def logprobs(self, top: Top) -> dict[int, Logprob]:
        """A ``Top`` under vLLM's names."""
        return {t: Logprob(logprob, rank, self.show(t)) for t, (logprob, rank) in top.items()}


class Draft:
    """One completion as it is written.

    ``listen`` hears, after each token, whether it ended or not, the text that can no longer change and how many
    tokens are behind it: held back are half a character and what may become a stop string.
    """

    def __init__(self, index: int, params: SamplingParams, vocabulary: Vocabulary) -> None:
        self.index = index
        self.params = params
        self.tokens: list[int] = []
        self.logprob_list: list[float] = []
        self.tops: list[Top | None] = []
        self._vocabulary = vocabulary
        self._table = vocabulary.table(params)
        self._bytes = bytearray()
        self._ends: list[int] = []  # end of each token in the bytes
        longest = max((len(stop.encode()) for stop in params.stop), default=1)
        self._hold = 0 if params.include_stop_str_in_output else longest - 1
        self.listen: Callable[[Draft], None] | None = None
        self.output: CompletionOutput | None = None

    def on_token(self, token: int, logprob: float, top: Top | None) -> None:
        self._take(token, logprob, top)
        if self.listen is not None:
            self.listen(self)

    def _take(self, token: int, logprob: float, top: Top | None) -> None:
        self.tokens.append(token)
        self.logprob_list.append(logprob)
        self.tops.append(top)
        self._bytes += self._table[token]
        self._ends.append(len(self._bytes))

    def settled(self) -> tuple[str, int]:
        """Text that will not change any more, and the number of tokens wholly inside it."""
        if self.output is not None:
            return self.output.text, len(self.output.token_ids)
        if not self.params.detokenize:
            return "", max(0, len(self.tokens) - 1)
        end = max(0, len(self._bytes) - self._hold)
        text = bytes(self._bytes[:end])
        whole = len(text) - _half_character(text)
        count = len(self.tokens)
        while count and (self._ends[count - 1] > whole or count == len(self.tokens)):
            count -= 1  # the last token may turn out to be a stop token
        return text[:whole].decode("utf-8", errors="replace"), count

    def on_end(self, node: Node) -> None:
        """The completion has ended; tokens that a stop string cut off are gone from the node."""
        kept = len(node.token_ids)
        if not self.tokens:  # nobody listened while they were drawn
            for token, logprob in zip(node.token_ids, node.logprobs, strict=True):
                self._take(token, logprob, None)
        text = self._text(node) if self.params.detokenize else ""
        logprobs = None
        if self.params.logprobs is not None:
            logprobs = [self._vocabulary.logprobs(top) for top in self.tops[:kept] if top is not None]
        self.output = CompletionOutput(
            self.index,
            text,
            list(node.token_ids),
            sum(node.logprobs),
            logprobs,
            _reason(node),
            node.stop_reason,
            min(len(decode(self._table, node.token_ids)), len(text)),
        )
        if self.listen is not None:
            self.listen(self)

    def _text(self, node: Node) -> str:
        tokens = self.tokens
        written = bytes(self._bytes)
        keep = self.params.include_stop_str_in_output
        if isinstance(node.stop_reason, int) and not keep:
            written = written[: self._ends[-2] if len(tokens) > 1 else 0]
        elif isinstance(node.stop_reason, str):
            stop = node.stop_reason.encode()
            before = self._ends[-2] if len(tokens) > 1 else 0
            at = written.find(stop, max(0, before - len(stop) + 1))
            if at >= 0:
                written = written[: at + len(stop)] if keep else written[:at]
        elif node.finish is Finish.ERROR:  # its last token was taken back
            written = written[: self._ends[len(node.token_ids) - 1]] if node.token_ids else b""
        return written.decode("utf-8", errors="replace")


def _reason(node: Node) -> str:
    if node.complete:
        return "stop"
    return "error" if node.finish is Finish.ERROR else "length"


def _half_character(text: bytes) -> int:
    """Bytes at the end that begin a UTF-8 character without finishing it."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return back if need > back else 0
    return 0
