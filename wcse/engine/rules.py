"""What a request does to logits before a token is drawn: masks, biases, penalties, grammars.

``Rules`` are what a request's parameters ask for; a ``Guide`` applies them along one path. Everything depends on
the tokens of the path only, so a token is the same in every batch. The order is vLLM's: masks, bias, penalties.
Knows nothing of trees, batches or drawing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wcse.engine.params import FieldError, SamplingParams
from wcse.engine.structured import Grammar, GrammarState, compile_grammar
from wcse.types import WcseError


class Rules:
    """The rules of one request.

    Args:
        params: what was asked for.
        prompt: the prompt's token ids.
        end_ids: ids that end a completion; they are what ``min_tokens`` holds back.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        end_ids: Iterable[int],
        *,
        bad: Sequence[Sequence[int]],
        grammar: Grammar | None,
        vocab_size: int,
    ) -> None:
        self.params = params
        self.prompt = np.unique(np.asarray(prompt, dtype=np.int64))
        self.ends = np.asarray(sorted({*end_ids, *params.stop_token_ids}), dtype=np.int64)
        self.bad = bad
        self.grammar = grammar
        self.bias = sorted((params.logit_bias or {}).items())
        self.banned: np.ndarray | None = None
        if params.allowed_token_ids is not None:
            self.banned = np.ones(vocab_size, dtype=bool)
            self.banned[list(params.allowed_token_ids)] = False

    def guide(self, written: Sequence[int]) -> Guide:
        """A guide for a path on which ``written`` was written so far."""
        guide = Guide(self)
        for token in written:
            guide.advance(token)
        return guide


class Guide:
    """Rules along one path."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.count = 0
        self._recent: list[int] = []
        self._longest = max((len(bad) for bad in rules.bad), default=0)
        self._seen: Counter[int] = Counter()
        self._state: GrammarState | None = rules.grammar.start() if rules.grammar else None

    def advance(self, token: int) -> None:
        """The next token of the path."""
        self.count += 1
        self._seen[token] += 1
        if self._longest > 1:
            self._recent = [*self._recent, token][1 - self._longest :]
        if self._state is not None:
            self._state.advance(token)

    def apply(self, logits: np.ndarray) -> None:
        """Change a row of logits, float32 [vocabulary], in place."""
        rules, params = self.rules, self.rules.params
        if self._state is not None:
            self._state.mask(logits)
        if rules.banned is not None:
            logits[rules.banned] = -np.inf
        for bad in rules.bad:
            before = len(bad) - 1
            if before <= len(self._recent) and self._recent[len(self._recent) - before :] == list(bad[:-1]):
                logits[bad[-1]] = -np.inf
        # A grammar that is complete allows nothing but the end.
        if self.count < params.min_tokens and not (self._state and self._state.complete):
            logits[rules.ends] = -np.inf
        for token, bias in rules.bias:
            logits[token] += np.float32(bias)
        self._penalise(logits)

    def _penalise(self, logits: np.ndarray) -> None:
        rules, params = self.rules, self.rules.params
        written = np.fromiter(self._seen, np.int64, len(self._seen))
        if params.repetition_penalty != 1.0:
            known = np.union1d(rules.prompt, written)
            factor = np.float32(params.repetition_penalty)
            found = logits[known]
            logits[known] = np.where(found > 0, found / factor, found * factor)
        if len(written) and (params.frequency_penalty or params.presence_penalty):
            times = np.fromiter(self._seen.values(), np.float32, len(self._seen))
            logits[written] -= np.float32(params.frequency_penalty) * times
            logits[written] -= np.float32(params.presence_penalty)


def make_rules(
    params: SamplingParams, prompt: Sequence[int], tokenizer: Any, end_ids: Iterable[int], vocab_size: int
) -> Rules | None:
    """The rules that the parameters ask for; None when they ask for none, which costs nothing.

    Raises:
        FieldError: a token id is not in the vocabulary, or the grammar does not compile.
    """
    bad = [ids for word in params.bad_words for ids in _spellings(tokenizer, word)]
    asked = (
        bad,
        params.structured_outputs,
        params.allowed_token_ids,
        params.logit_bias,
        params.min_tokens,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty != 1.0,
    )
    if not any(asked):
        return None
    for name, ids in (
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("logit_bias", params.logit_bias or ()),
        ("stop_token_ids", params.stop_token_ids),
    ):
        beyond = [token for token in ids if token >= vocab_size]
        if beyond:
            raise FieldError(name, beyond[0], f"this model's token ids are below {vocab_size}")
    grammar = None
    if params.structured_outputs is not None:
        try:
            grammar = compile_grammar(tokenizer, params.structured_outputs, end_ids, vocab_size)
        except WcseError as error:
            raise FieldError("structured_outputs", dict(params.structured_outputs), str(error)) from None
    return Rules(params, prompt, end_ids, bad=bad, grammar=grammar, vocab_size=vocab_size)


def _spellings(tokenizer: Any, word: str) -> list[list[int]]:
    """The ids of a word at the start of a text and after a space."""
    bare = word.lstrip()
    spelled = [
        list(tokenizer.encode(text, add_special_tokens=False)) for text in dict.fromkeys((bare, f" {bare}"))
    ]
    return [ids for i, ids in enumerate(spelled) if ids and ids not in spelled[:i]]
