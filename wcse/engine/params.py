"""Sampling parameters under vLLM's names, validated as vLLM does. Knows nothing of models or batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from wcse.names import suggest
from wcse.types import WcseError

MAX_N = 16384
"""Most completions of one request."""

LEAST_TEMPERATURE = 0.01
"""Smaller temperatures above 0 are raised to this: they would overflow the logits."""

LEAST_TOP_P = 2.0**-126
"""Smaller ones are 0 in single precision. They mean the same: the most likely token."""

STRUCTURED_KINDS = ("json", "regex", "choice", "grammar")

_BEAMS = "beam search by likelihood is not offered; docs/search.md has the one by a verifier's scores"
_ROWS = "log-probabilities of chosen tokens are not picked out; ask for logprobs=-1 and look them up"
_PROMPT_ROWS = "the prompt's log-probabilities are given whole; ask for prompt_logprobs"
REFUSED: Mapping[str, str] = {
    "early_stopping": _BEAMS,
    "extra_args": "there is no plugin that would read them; leave it out",
    "flat_logprobs": "log-probabilities are a list of dicts; leave it out",
    "guided_decoding": "it is called structured_outputs",
    "length_penalty": _BEAMS,
    "logits_processors": "no function is called for a token; use logit_bias, allowed_token_ids or bad_words",
    "logprob_token_ids": _ROWS,
    "output_kind": "outputs are whole when they are returned; wcse serve streams",
    "prompt_logprob_start": _PROMPT_ROWS,
    "prompt_logprob_token_ids": _PROMPT_ROWS,
    "repetition_detection": "repetition ends no completion; use frequency_penalty or repetition_penalty",
    "routed_experts_prompt_start": "routes of experts are not returned; leave it out",
    "skip_clone": "parameters cannot change, so they are never copied; leave it out",
    "skip_reading_prefix_cache": "a cached prefix gives the same numbers; LLM.reset_prefix_cache() forgets them all",
    "spaces_between_special_tokens": "text is what the tokens say, with nothing between them; leave it out",
    "stream_interval": "outputs are whole when they are returned; wcse serve streams",
    "thinking_token_budget": "thinking has no budget of its own; use max_tokens",
    "trace_decode_token_ids": "put the tokens into the prompt and ask for prompt_logprobs",
    "truncate_prompt_tokens": "prompts are never cut; pass fewer token ids",
    "use_beam_search": _BEAMS,
    "watermarking": "text is not marked; leave it out",
}
"""Sampling fields of vLLM, past ones included, that are not taken: what to do instead."""


class FieldError(WcseError):
    """A mistake in one named field; ``field`` is its name."""

    def __init__(self, field: str, value: object, fix: str) -> None:
        shown = repr(value)
        super().__init__(f"{field}={shown if len(shown) <= 80 else shown[:77] + '...'}: {fix}")
        self.field = field


class UnknownField(FieldError, TypeError):
    """A name that there is not: a ``TypeError``, as of any call with an unknown keyword argument."""


def _integer(name: str, value: object, low: int, high: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not good or (high is not None and isinstance(value, int) and value > high):
        bound = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise FieldError(name, value, f"give an integer {bound}")


def _number(name: str, value: object, low: float, high: float, shown: str) -> None:
    """``low`` and ``high`` belong to the range."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**64
    if not good or not math.isfinite(float(value)) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise FieldError(name, value, f"give a number in {shown}")


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or not all(isinstance(s, str) and s for s in value):
        raise FieldError(name, value, "give non-empty strings")
    if any("\ud800" <= char <= "\udfff" for text in value for char in text):
        raise FieldError(name, value, "it holds a lone surrogate, which is not text; give valid Unicode")
    return tuple(value)


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    good = isinstance(value, Sequence) and not isinstance(value, str)
    if not good or not all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in value):  # type: ignore[attr-defined]
        raise FieldError(name, value, "give a list of token ids")
    return tuple(value)  # type: ignore[arg-type]


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise FieldError(name, value, "give true or false")


NUMBERS = {
    "temperature": (0.0, 2.0, "[0, 2]"),
    "top_p": (5e-324, 1.0, "(0, 1]"),
    "min_p": (0.0, 1.0, "[0, 1]"),
    "presence_penalty": (-2.0, 2.0, "[-2, 2]"),
    "frequency_penalty": (-2.0, 2.0, "[-2, 2]"),
    "repetition_penalty": (1e-4, 1e4, "[0.0001, 10000]"),
}
_FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "detokenize")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled.

    Args:
        n: completions per prompt.
        best_of: draw this many and return the ``n`` with the highest mean log-probability per token.
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probability reaches it, in (0, 1].
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        max_tokens: cap on the tokens of one completion; None: as many as the context holds.
        min_tokens: neither end-of-sequence nor stop strings end a completion before this many tokens.
        stop: strings that end the completion. ``text`` is cut exactly there; ids and logprobs at the last
            whole token before it.
        include_stop_str_in_output: keep the stop string (or the text of the stop token).
        stop_token_ids: token ids that end the completion besides the model's own.
        ignore_eos: go on after the end-of-sequence token.
        seed: overrides the engine's seed; the same seed and prompt give the same completions in any batch. -1
            is the same as None.
        logprobs: log-probabilities of the k most likely tokens beside the sampled one; 0: of the sampled one
            only; -1: of the whole vocabulary. All are of the model's raw logits, before any parameter here.
        prompt_logprobs: the same for the tokens of the prompt.
        presence_penalty, frequency_penalty: taken from the logit of a token that was written: once, or once
            for each time; in [-2, 2].
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or completion.
        logit_bias: token id -> number added to its logit, in [-100, 100].
        allowed_token_ids: no other token can be drawn.
        bad_words: strings whose tokens are not written in a row.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: False leaves ``text`` empty.
        structured_outputs: ``{"json": schema}``, ``{"regex": ...}``, ``{"choice": [...]}`` or
            ``{"grammar": lark}``; needs the extra ``structured``.

    Raises:
        FieldError: a value is out of range; the message names field, value and fix.
        UnknownField: a name is unknown; a FieldError and a TypeError.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = 256
    min_tokens: int = 0
    stop: Sequence[str] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    skip_special_tokens: bool = True
    detokenize: bool = True
    structured_outputs: Mapping[str, Any] | None = None

    def __new__(cls, **options: Any) -> Self:
        """Names are checked before the values are."""
        known = cls.__dataclass_fields__
        for name, value in options.items():
            if name not in known:
                reason = REFUSED.get(name) or f"there is no such sampling parameter{suggest(name, known)}"
                raise UnknownField(name, value, reason)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name, empty in (("stop", ()), ("stop_token_ids", ()), ("bad_words", ())):
            if getattr(self, name) is None:  # vLLM's default for these
                self._set(name, empty)
        self._set("stop", _strings("stop", self.stop))
        self._set("bad_words", _strings("bad_words", self.bad_words))
        self._set("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        for name in _FLAGS:
            _flag(name, getattr(self, name))
        for name, (low, high, shown) in NUMBERS.items():
            _number(name, getattr(self, name), low, high, shown)
        self._check_integers()
        if self.stop and not self.detokenize:
            raise FieldError("detokenize", False, "stop strings are found in the text; leave it on")
        if self.logit_bias is not None:
            self._check_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            self._set("allowed_token_ids", _token_ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                raise FieldError("allowed_token_ids", [], "it allows nothing; give token ids, or None")
        if self.structured_outputs is not None:
            _check_structured(self.structured_outputs)
            if self.ignore_eos:
                raise FieldError("ignore_eos", True, "structured_outputs end with the end-of-sequence token")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            warnings.warn(f"temperature={self.temperature} is raised to {LEAST_TEMPERATURE}", stacklevel=4)
            self._set("temperature", LEAST_TEMPERATURE)
        if self.top_p < LEAST_TOP_P:
            self._set("top_p", LEAST_TOP_P)
        if self.seed == -1:
            self._set("seed", None)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_integers(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        if self.best_of is not None:
            _integer("best_of", self.best_of, self.n, MAX_N)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**63 - 1)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), -1)

    def _check_bias(self, bias: object) -> None:
        if not isinstance(bias, Mapping):
            raise FieldError("logit_bias", bias, "give a mapping of token id to number")
        checked: dict[int, float] = {}
        for token, value in bias.items():
            digits = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 12
            good = digits or (isinstance(token, int) and not isinstance(token, bool) and token >= 0)
            if not good:
                raise FieldError("logit_bias", token, "keys are token ids")
            _number("logit_bias", value, -100.0, 100.0, "[-100, 100]")
            checked[int(token)] = float(value)
        self._set("logit_bias", checked)

    @property
    def most_tokens(self) -> int:
        """``max_tokens`` as a number; where None, only the context is a limit."""
        return 2**31 - 1 if self.max_tokens is None else self.max_tokens

    @property
    def draws(self) -> int:
        """Completions to draw for the ``n`` to return."""
        return self.best_of or self.n


def _check_structured(value: object) -> None:
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in STRUCTURED_KINDS:
        raise FieldError(
            "structured_outputs", value, f"give an object with one of {', '.join(STRUCTURED_KINDS)}"
        )
    kind, rule = next(iter(value.items()))
    if kind == "json":
        good = isinstance(rule, str | Mapping)
    elif kind == "choice":
        good = isinstance(rule, Sequence) and not isinstance(rule, str) and bool(rule)
        good = good and all(isinstance(text, str) and text for text in rule)
    else:
        good = isinstance(rule, str) and bool(rule)
    if not good:
        raise FieldError(
            f"structured_outputs.{kind}", rule, "json takes a schema, choice strings, the others text"
        )


@dataclass(frozen=True, slots=True)
class StepRule:
    """Where a step ends: at ``delimiter`` (empty: never) or after ``max_tokens`` tokens (0: no cap)."""

    delimiter: str = "\n\n"
    max_tokens: int = 0


WHOLE = StepRule(delimiter="")
"""A completion is one step."""
