"""Grammars that a completion must follow: JSON schemas, regular expressions, choices, Lark; by llguidance.

A compiled grammar is a start state; a state masks logits and follows the tokens drawn. Knows nothing of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from wcse.types import WcseError


class GrammarState:
    """Where in a grammar one path is."""

    def __init__(self, matcher: Any, vocab_size: int, end_ids: np.ndarray) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)
        self._ends = end_ids

    @property
    def complete(self) -> bool:
        """Nothing can follow."""
        return bool(self._matcher.is_stopped())

    def advance(self, token: int) -> None:
        if not self.complete:
            self._matcher.consume_token(token)

    def mask(self, logits: np.ndarray) -> None:
        """Set what may not follow to -inf in float32 [vocabulary]."""
        allowed = np.zeros(len(logits), dtype=bool)
        if self.complete:
            allowed[self._ends] = True
        else:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            allowed[:] = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: len(logits)]
        logits[~allowed] = -np.inf


class Grammar:
    """A compiled grammar over one tokenizer."""

    def __init__(self, matcher: Any, vocab_size: int, end_ids: np.ndarray) -> None:
        self._matcher = matcher
        self._size = vocab_size
        self._ends = end_ids

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self._size, self._ends)


class GrammarCompiler:
    """llguidance's view of one tokenizer, made once: it takes a while."""

    def __init__(self, tokenizer: Any, end_ids: Iterable[int], vocab_size: int) -> None:
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise WcseError("it needs llguidance: pip install 'wcse[structured]'") from None
        self._library = llguidance
        self._size = vocab_size
        self._ends = np.asarray(sorted(end_ids), dtype=np.int64)
        self._tokens = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=max(vocab_size, len(tokenizer)), eos_token=self._ends.tolist() or None
        )

    def compile(self, rule: Mapping[str, Any]) -> Grammar:
        """Compile one of json, regex, choice, grammar.

        Raises:
            WcseError: it is not valid.
        """
        kind, value = next(iter(rule.items()))
        matcher_class = self._library.LLMatcher
        try:
            if kind == "json":
                schema = value if isinstance(value, str) else json.dumps(value)
                # Free whitespace is where weak models get lost: they can write it for ever.
                text = matcher_class.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            elif kind == "regex":
                text = matcher_class.grammar_from_regex(value)
            elif kind == "choice":
                text = matcher_class.grammar_from_regex("|".join(f"({re.escape(c)})" for c in value))
            else:
                text = matcher_class.grammar_from_lark(value)
            matcher = matcher_class(self._tokens, text, log_level=0)
        except ValueError as error:
            raise WcseError(f"it does not compile: {_first_line(error)}") from None
        if matcher.is_error():
            raise WcseError(f"it does not compile: {_first_line(matcher.get_error())}")
        return Grammar(matcher, self._size, self._ends)


_COMPILERS: WeakKeyDictionary[Any, GrammarCompiler] = WeakKeyDictionary()
"""One per tokenizer, gone with it."""


def compile_grammar(
    tokenizer: Any, rule: Mapping[str, Any], end_ids: Iterable[int], vocab_size: int
) -> Grammar:
    """Compile a grammar for a tokenizer.

    Raises:
        WcseError: llguidance is not installed, or the grammar is not valid.
    """
    if tokenizer not in _COMPILERS:
        _COMPILERS[tokenizer] = GrammarCompiler(tokenizer, end_ids, vocab_size)
    return _COMPILERS[tokenizer].compile(rule)


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "unknown error"
