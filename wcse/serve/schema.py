"""What ``/openapi.json`` says of requests and replies: JSON schemas with the bounds that the server enforces.

The bounds come from where they are enforced. Knows names and numbers, nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from wcse.engine.params import NUMBERS, STRUCTURED_KINDS
from wcse.engine.pooling import POOLING_TASKS
from wcse.search import SearchConfig
from wcse.search.config import LEAST, RANGES, WORDS
from wcse.serve import fields as known
from wcse.serve.admission import Limits
from wcse.votes import AGGREGATIONS, SELECTORS

Schema = dict[str, Any]

TOKENIZE = (
    "model",
    "prompt",
    "messages",
    "add_special_tokens",
    "return_token_strs",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
)
DETOKENIZE = ("model", "tokens")
POOLING = ("model", "input", "task", "encoding_format")
SCORE = ("model", "text_1", "text_2")
GENERATE = ("model", "token_ids", "sampling_params", "stream", "cache_salt", "request_id")
GENERATE_SAMPLING = (*known.SAMPLING, "logprobs", "detokenize")

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
EVENT: Schema = {"type": "object", "properties": {"data": TEXT}, "required": ["data"]}
"""Of a stream: ``data`` is a part of the reply as JSON, or ``[DONE]``."""
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
REFUSALS = (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Schema, most: int | None = None, least: int = 0) -> Schema:
    found: Schema = {"type": "array", "items": items, "minItems": least}
    return found if most is None else found | {"maxItems": most}


def _one_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _object(properties: Mapping[str, Schema], required: Iterable[str] = (), **more: Any) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    } | more


@dataclass(frozen=True, slots=True)
class Schemas:
    """The schemas of a server with these bounds.

    Args:
        vocab: token ids of the model.
        max_logprobs: most log-probabilities a token.
    """

    limits: Limits
    vocab: int
    max_logprobs: int

    def operation(self, path: str) -> Schema:
        """OpenAPI's description of what a path takes and gives."""
        replies: dict[str, Any] = {
            str(status): {"description": "refused", "content": {"application/json": {"schema": ERROR}}}
            for status in REFUSALS
        }
        kind = "text/plain" if path == "/metrics" else "application/json"
        whole: dict[str, Any] = {kind: {"schema": TEXT if path == "/metrics" else {"type": "object"}}}
        if path in ("/v1/completions", "/v1/chat/completions"):
            whole["text/event-stream"] = {"schema": EVENT}
        found: Schema = {"responses": {"200": {"description": "done", "content": whole}} | replies}
        if "{name" in path:
            found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
        schema = self.request(path)
        if schema is not None:
            found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        return found

    def request(self, path: str) -> Schema | None:
        """The schema of a path's body; None for a path without one."""
        count, bounds = _whole(-1 if self.max_logprobs < 0 else 0, self._logprobs), self._sampling()
        match path:
            case "/v1/completions":
                own = {"max_tokens": _whole(0, 2**63), "logprobs": count, "prompt": self._prompts("prompt")}
                return self._body(known.COMPLETION, bounds | own, ["prompt"])
            case "/v1/chat/completions":
                own = {"logprobs": FLAG, "top_logprobs": _whole(0, self._logprobs)}
                return self._body(known.CHAT, bounds | own, ["messages"])
            case "/inference/v1/generate":
                inner = _nullable(_pick(GENERATE_SAMPLING, bounds | {"logprobs": count}))
                own = {"sampling_params": _object(inner), "cache_salt": TEXT, "request_id": TEXT}
                return self._body(GENERATE, bounds | own, ["token_ids"])
            case "/tokenize":
                return self._body(TOKENIZE, bounds | {"prompt": TEXT}, ())
            case "/detokenize":
                return self._body(DETOKENIZE, bounds, ["tokens"])
            case "/pooling":
                own = {"task": {"enum": list(POOLING_TASKS)}, "encoding_format": {"enum": ["float"]}}
                return self._body(POOLING, bounds | own | {"input": self._prompts("input")}, ["input"])
            case "/score":
                texts = _one_of(TEXT, _list(TEXT, known.MAX_TEXTS, 1))
                return self._body(SCORE, bounds | {"text_1": texts, "text_2": texts}, ["text_1", "text_2"])
        return None

    def _body(self, names: Iterable[str], schemas: Mapping[str, Schema], required: Iterable[str]) -> Schema:
        found = _nullable(_pick(names, schemas), keep=required)
        return _object({name: True for name in sorted(known.IGNORED)} | found, required)  # type: ignore[arg-type]

    @property
    def _logprobs(self) -> int:
        return self.vocab if self.max_logprobs < 0 else self.max_logprobs

    @property
    def _ids(self) -> Schema:
        return _list(_whole(0, self.vocab - 1))

    def _prompts(self, name: str) -> Schema:
        most = self.limits.prompts if name == "prompt" else known.MAX_TEXTS
        ids = self._ids | {"minItems": 1}
        return _one_of(TEXT, ids, _list(TEXT, most, 1), _list(ids, most, 1))

    def _sampling(self) -> dict[str, Schema]:
        """Every field of a body that has one meaning wherever it stands."""
        choices, vocab = self.limits.choices, self.vocab
        stop_text = {"type": "string", "minLength": 1, "maxLength": known.MAX_STOP_CHARS}
        numbers: dict[str, Schema] = {
            name: {"type": "number", "minimum": low, "maximum": high}
            for name, (low, high, _) in NUMBERS.items()
        }
        return numbers | {
            "n": _whole(1, choices),
            "best_of": _whole(1, choices),
            "top_k": _whole(-1, 2**31 - 1),
            "max_tokens": _whole(1, 2**63),
            "max_completion_tokens": _whole(1, 2**63),
            "min_tokens": _whole(0, 2**63),
            "seed": _whole(-(2**63), 2**63 - 1),
            "prompt_logprobs": _whole(-1 if self.max_logprobs < 0 else 0, self._logprobs),
            "stop": _one_of(stop_text, _list(stop_text, known.MAX_STOPS)),
            "bad_words": _one_of(stop_text, _list(stop_text, known.MAX_BAD_WORDS)),
            "stop_token_ids": _list(_whole(0, vocab - 1), known.MAX_BIASES),
            "allowed_token_ids": self._ids | {"minItems": 1},
            "token_ids": self._ids | {"minItems": 1},
            "tokens": self._ids,
            "logit_bias": {
                "type": "object",
                "propertyNames": {"pattern": "^[0-9]{1,11}$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                "maxProperties": known.MAX_BIASES,
            },
            "structured_outputs": {
                "type": "object",
                "properties": {name: True for name in STRUCTURED_KINDS},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
            "response_format": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
            },
            "stream_options": _object(_nullable({name: FLAG for name in known.STREAM_OPTIONS})),
            "search": _object(_settings()),
            "messages": _list(_MESSAGE, known.MAX_MESSAGES, 1),
            "chat_template_kwargs": _object({name: FLAG for name in known.TEMPLATE_KWARGS}),
            "tools": {"type": "array", "maxItems": 0},
            "tool_choice": {"enum": ["none", "auto"]},
            "suffix": {"type": "string", "maxLength": 0},
            "model": TEXT,
        }


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": list(known.ROLES)},
        "content": _one_of(
            TEXT,
            _list(
                {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}}}
            ),
        ),
    }
    | {name: True for name in known.MESSAGE if name not in ("role", "content")},
    "additionalProperties": False,
}


def _settings() -> dict[str, Schema]:
    """The settings of a search, whichever strategy reads them."""
    found: dict[str, Schema] = {name: {"type": "integer", "minimum": low} for name, low in LEAST.items()}
    found |= {
        name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in RANGES.items()
    }
    found |= {name: {"enum": list(words)} for name, words in WORDS.items()}
    found["agg_strategy"] = {"enum": [*AGGREGATIONS, None]}
    found["compat"]["enum"].append(None)
    names = (field.name for field in fields(SearchConfig) if field.name != "choices")
    chosen = {"strategy": TEXT, "selector": {"enum": [*SELECTORS, None]}}
    return chosen | {name: found.get(name, FLAG) for name in names}


def _pick(names: Iterable[str], schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    """The schema of each name; one that nothing is said of is a flag."""
    return {name: schemas.get(name, FLAG) for name in names}


def _nullable(schemas: Mapping[str, Schema], keep: Iterable[str] = ()) -> dict[str, Schema]:
    """Null is the same as absent, but for fields that must be there."""
    must = frozenset(keep)
    return {
        name: schema if name in must else _one_of(schema, {"type": "null"})
        for name, schema in schemas.items()
    }
