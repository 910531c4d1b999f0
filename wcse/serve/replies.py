"""Replies in OpenAI's and vLLM's form. Knows names and shapes, nothing of engines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wcse.engine.outputs import CompletionOutput, Logprob, RequestOutput, Vocabulary
from wcse.ledger import Ledger
from wcse.serve.fields import Options
from wcse.tokens import decode

FLOOR = -9999.0
"""Stands for minus infinity, which JSON does not have."""

Row = Mapping[int, Logprob]


@dataclass(frozen=True, slots=True)
class Header:
    """What every part of a reply repeats."""

    id: str
    model: str
    created: int
    chat: bool

    def top(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class Names:
    """How tokens are named in log-probabilities."""

    def __init__(self, vocabulary: Vocabulary, options: Options) -> None:
        self._vocabulary = vocabulary
        self._as_ids = options.tokens_as_ids

    def of(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self._vocabulary.show(token)

    def bytes(self, token: int) -> list[int]:
        return list(self._vocabulary.full[token])


def usage(
    prompt_tokens: int, completion_tokens: int, cached: int, search: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Token counts; ``search`` says what a search computed and reused."""
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return found | {"search": dict(search)} if search is not None else found


def search_usage(policy: Ledger, verifier: Ledger, nodes: int) -> dict[str, Any]:
    """What a search cost, pruned branches and the verifier included."""
    return {
        "computed_tokens": policy.policy_computed,
        "reused_tokens": policy.policy_reused,
        "sampled_tokens": policy.policy_sampled,
        "prm_tokens": verifier.prm_computed,
        "prm_reused_tokens": verifier.prm_reused,
        "nodes": nodes,
    }


def chat_logprobs(rows: Sequence[Row], tokens: Sequence[int], top: int, names: Names) -> dict[str, Any]:
    """The ``logprobs`` of a chat choice."""
    content = []
    for token, row in zip(tokens, rows, strict=False):
        likely = [t for t in row if row[t].rank <= top][:top]
        content.append(
            _chat_entry(token, row[token], names)
            | {"top_logprobs": [_chat_entry(t, row[t], names) for t in likely]}
        )
    return {"content": content}


def _chat_entry(token: int, found: Logprob, names: Names) -> dict[str, Any]:
    return {"token": names.of(token), "logprob": _finite(found.logprob), "bytes": names.bytes(token)}


def text_logprobs(
    rows: Sequence[Row | None], tokens: Sequence[int], names: Names, *, top: bool, offset: int = 0
) -> dict[str, Any]:
    """The ``logprobs`` of a completion choice; a row of None is a first token, which nothing predicts."""
    shown = [names.of(token) for token in tokens]
    offsets = []
    for text in shown:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": shown,
        "token_logprobs": [
            None if row is None else _finite(row[t].logprob) for t, row in zip(tokens, rows, strict=False)
        ],
        "top_logprobs": [None if row is None or not top else _by_name(row, names) for row in rows],
        "text_offset": offsets,
    }


def _by_name(row: Row, names: Names) -> dict[str, float]:
    """Of tokens that look alike the likeliest counts."""
    found: dict[str, float] = {}
    for token in sorted(row, key=lambda t: row[t].rank):
        found.setdefault(names.of(token), _finite(row[token].logprob))
    return found


def _finite(value: float) -> float:
    return max(value, FLOOR) if math.isfinite(value) else FLOOR


def completion_choice(
    index: int,
    request: RequestOutput,
    output: CompletionOutput,
    options: Options,
    vocabulary: Vocabulary,
    logprobs: int | None,
) -> dict[str, Any]:
    """One choice of ``/v1/completions``."""
    names = Names(vocabulary, options)
    shown = _prompt_text(request, vocabulary) if options.echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": shown + output.text,
        "logprobs": None,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if logprobs is not None and output.logprobs is not None:
        rows: list[Row | None] = list(output.logprobs)
        tokens = list(output.token_ids)
        if options.echo and request.prompt_logprobs is not None:
            rows, tokens = [*request.prompt_logprobs, *rows], [*request.prompt_token_ids, *tokens]
        choice["logprobs"] = text_logprobs(rows, tokens, names, top=logprobs > 0)
    return choice | prompt_extras(request, options, vocabulary) | token_extras(output.token_ids, options)


def prompt_extras(request: RequestOutput, options: Options, vocabulary: Vocabulary) -> dict[str, Any]:
    """vLLM's additions about the prompt, where they were asked for."""
    extras: dict[str, Any] = {}
    if options.token_ids:
        extras["prompt_token_ids"] = request.prompt_token_ids
    if request.prompt_logprobs is not None and not options.echo:
        extras["prompt_logprobs"] = [
            None
            if row is None
            else {
                str(t): {"logprob": _finite(lp.logprob), "rank": lp.rank, "decoded_token": lp.decoded_token}
                for t, lp in row.items()
            }
            for row in request.prompt_logprobs
        ]
    return extras


def token_extras(token_ids: Sequence[int], options: Options) -> dict[str, Any]:
    return {"token_ids": list(token_ids)} if options.token_ids else {}


def _prompt_text(request: RequestOutput, vocabulary: Vocabulary) -> str:
    return (
        request.prompt if request.prompt is not None else decode(vocabulary.plain, request.prompt_token_ids)
    )


def chat_choice(
    index: int,
    output: CompletionOutput,
    options: Options,
    vocabulary: Vocabulary,
    logprobs: int | None,
) -> dict[str, Any]:
    """One choice of ``/v1/chat/completions``."""
    found = None
    if logprobs is not None and output.logprobs is not None:
        found = chat_logprobs(output.logprobs, output.token_ids, logprobs, Names(vocabulary, options))
    return {
        "index": index,
        "message": {"role": "assistant", "content": output.text, "refusal": None},
        "logprobs": found,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    } | token_extras(output.token_ids, options)


def token_choice(output: CompletionOutput) -> dict[str, Any]:
    """One choice of ``/inference/v1/generate``: ids in, ids out."""
    rows = output.logprobs or []
    content = [
        {
            "token": f"token_id:{token}",
            "token_id": token,
            "logprob": _finite(row[token].logprob),
            "rank": row[token].rank,
            "top_logprobs": [
                {"token": f"token_id:{t}", "token_id": t, "logprob": _finite(lp.logprob), "rank": lp.rank}
                for t, lp in row.items()
            ],
        }
        for token, row in zip(output.token_ids, rows, strict=False)
    ]
    return {
        "index": output.index,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "logprobs": {"content": content} if output.logprobs is not None else None,
    }
