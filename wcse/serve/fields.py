"""From the fields of a request to sampling parameters and options, each checked and named when it is wrong.

Knows the names of OpenAI's and vLLM's fields, nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wcse.engine.params import REFUSED, FieldError, SamplingParams
from wcse.names import suggest
from wcse.serve.errors import ApiError, bad
from wcse.types import WcseError

SAMPLING = (
    "n",
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "stop",
    "include_stop_str_in_output",
    "stop_token_ids",
    "ignore_eos",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
    "structured_outputs",
    "prompt_logprobs",
)
_BOTH = (
    "model",
    "stream",
    "stream_options",
    "logprobs",
    "search",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "response_format",
    "echo",
)
COMPLETION = (*SAMPLING, *_BOTH, "prompt", "suffix", "add_special_tokens")
CHAT = (
    *SAMPLING,
    *_BOTH,
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "tools",
    "tool_choice",
)
IGNORED = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "reasoning_effort",
        "verbosity",
        "priority",
        "request_id",
        "spaces_between_special_tokens",
    }
)
"""Public fields that have no effect here."""

MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_BIASES = 1024
MAX_BAD_WORDS = 64
MAX_GRAMMAR_CHARS = 65536
MAX_TEXTS = 64
"""Texts of one request to /pooling or /score."""
STREAM_OPTIONS = ("include_usage", "continuous_usage_stats", "include_obfuscation")


def check_names(body: Mapping[str, Any], known: Iterable[str], *, lenient: bool = False) -> dict[str, Any]:
    """The body's known fields that have a value (null is the same as absent).

    Raises:
        ApiError: a field is unknown and the client did not ask for ``lenient``.
    """
    names = frozenset(known)
    for name in body:
        if name not in names and name not in IGNORED and not lenient:
            shown = name[:64]
            reason = f": {REFUSED[name]}" if name in REFUSED else suggest(shown, names)
            raise bad(shown, f"unknown field {shown!r}{reason}", "unknown_parameter")
    return {name: value for name, value in body.items() if name in names and value is not None}


def text_of(body: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    """A field that is text.

    Raises:
        ApiError: it is absent without a default, no text, or holds half a surrogate pair.
    """
    value = body.get(name, default)
    if value is None:
        raise bad(name, f"{name} is missing", "missing_required_parameter")
    return checked_text(value, name)


def checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise bad(name, f"{name} must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise bad(name, f"{name} holds half a surrogate pair, which is not text") from None
    return value


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A field that is true or false.

    Raises:
        ApiError: it is neither.
    """
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise bad(name, f"{name} must be true or false")
    return value


def number(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A whole number in a range.

    Raises:
        ApiError: it is not.
    """
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad(name, f"{name} must be a whole number from {low} to {high}")
    return value


@dataclass(frozen=True, slots=True)
class Options:
    """How a reply is shaped."""

    stream: bool = False
    usage_in_stream: bool = False
    echo: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    search: Mapping[str, Any] = field(default_factory=dict)


def options(body: Mapping[str, Any]) -> Options:
    """The fields that shape the reply.

    Raises:
        ApiError: one has a wrong type.
    """
    stream_options = body.get("stream_options", {})
    if not isinstance(stream_options, dict):
        raise bad("stream_options", "stream_options must be an object")
    for name, value in stream_options.items():
        if name not in STREAM_OPTIONS:
            raise bad(f"stream_options.{name[:64]}", "unknown field in stream_options", "unknown_parameter")
        if value is not None and not isinstance(value, bool):
            raise bad(f"stream_options.{name}", f"stream_options.{name} must be true or false")
    search = body.get("search", {})
    if not isinstance(search, dict):
        raise bad("search", "search must be an object such as {'strategy': 'majority', 'n': 8}")
    stream = flag(body, "stream")
    if "stream_options" in body and not stream:
        raise bad("stream_options", "stream_options needs stream=true")
    return Options(
        stream=stream,
        usage_in_stream=bool(stream_options.get("include_usage")),
        echo=flag(body, "echo"),
        token_ids=flag(body, "return_token_ids"),
        tokens_as_ids=flag(body, "return_tokens_as_token_ids"),
        search=search,
    )


def sampling(body: Mapping[str, Any], *, structured: bool, **extra: Any) -> SamplingParams:
    """Sampling parameters from a body that passed ``check_names``; ``extra`` overrides its fields.

    Raises:
        ApiError: a value is wrong, or asks for more than the server's bounds.
    """
    chosen = {name: body[name] for name in SAMPLING if name in body} | extra
    if body.get("response_format") is not None:
        chosen.update(_response_format(body["response_format"]))
    try:
        params = SamplingParams(**chosen)
    except FieldError as error:
        raise bad(error.field, str(error)) from None
    _check_sizes(params)
    if params.structured_outputs is not None and not structured:
        raise bad(
            "structured_outputs", "structured output is off; start the server with --structured-outputs"
        )
    return params


def _check_sizes(params: SamplingParams) -> None:
    if len(params.stop) > MAX_STOPS or any(len(text) > MAX_STOP_CHARS for text in params.stop):
        raise bad("stop", f"give at most {MAX_STOPS} strings of at most {MAX_STOP_CHARS} characters")
    if len(params.bad_words) > MAX_BAD_WORDS or any(len(text) > MAX_STOP_CHARS for text in params.bad_words):
        raise bad("bad_words", f"give at most {MAX_BAD_WORDS} strings of {MAX_STOP_CHARS} characters")
    if params.logit_bias and len(params.logit_bias) > MAX_BIASES:
        raise bad("logit_bias", f"give at most {MAX_BIASES} token ids")
    if len(params.stop_token_ids) > MAX_BIASES:
        raise bad("stop_token_ids", f"give at most {MAX_BIASES} token ids")
    if params.structured_outputs is not None and len(str(params.structured_outputs)) > MAX_GRAMMAR_CHARS:
        raise bad("structured_outputs", f"give at most {MAX_GRAMMAR_CHARS} characters")


def _response_format(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad("response_format", "response_format must be an object with a type")
    if value.get("type") not in ("text", "json_object", "json_schema"):
        raise bad("response_format.type", "response_format.type must be text, json_object or json_schema")
    if value["type"] == "text":
        return {}
    if value["type"] == "json_object":
        return {"structured_outputs": {"json": {"type": "object"}}}
    schema = value.get("json_schema")
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise bad("response_format", "response_format.json_schema.schema must be an object")
    return {"structured_outputs": {"json": schema["schema"]}}


def prompts(body: Mapping[str, Any], most: int, name: str = "prompt") -> list[str | list[int]]:
    """The prompts in a field: text or token ids, one or a list of them.

    Raises:
        ApiError: they are of another form, or too many.
    """
    value = body.get(name)
    if value is None:
        raise bad(name, f"{name} is missing", "missing_required_parameter")
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        value = [value]
    if not isinstance(value, list) or not value:
        raise _no_prompt(name)
    if len(value) > most:
        raise bad(name, f"{len(value)} prompts are more than {most}")
    return [_one_prompt(part, name) for part in value]


def _one_prompt(part: Any, name: str) -> str | list[int]:
    if isinstance(part, str):
        return checked_text(part, name)
    if isinstance(part, list) and part and all(_is_id(token) for token in part):
        return part
    raise _no_prompt(name)


def _no_prompt(name: str) -> ApiError:
    return bad(name, f"{name} must be a string, a list of token ids, or a list of either")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE = (
    "role",
    "content",
    "name",
    "refusal",
    "tool_calls",
    "tool_call_id",
    "reasoning",
    "reasoning_content",
)
MAX_MESSAGES = 4096
TEMPLATE_KWARGS = ("enable_thinking",)
"""Template options that a request may set."""


def messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation, every content as one string.

    Raises:
        ApiError: a message is not of a known form.
    """
    value = body.get("messages")
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise bad("messages", f"messages must be a list of 1 to {MAX_MESSAGES} messages")
    return [_message(i, part) for i, part in enumerate(value)]


def _message(i: int, part: Any) -> dict[str, str]:
    where = f"messages[{i}]"
    if not isinstance(part, dict) or part.get("role") not in ROLES:
        raise bad(f"{where}.role", f"{where} must be an object with a role of {', '.join(ROLES)}")
    for name in part:
        if name not in MESSAGE:
            raise bad(f"{where}.{name[:64]}", f"unknown field in {where}", "unknown_parameter")
    if part.get("tool_calls"):
        raise bad(f"{where}.tool_calls", "tool calls are not offered")
    return {"role": part["role"], "content": _content(part.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return checked_text(value, where)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise bad(where, f"{where}: only parts of type text are taken")
        texts.append(checked_text(part.get("text"), where))
    return "\n".join(texts)


def chat_switches(body: Mapping[str, Any]) -> dict[str, Any]:
    """How the chat template is applied.

    Raises:
        ApiError: an option is wrong, or not one that a request may set.
    """
    kwargs = body.get("chat_template_kwargs", {})
    if not isinstance(kwargs, dict):
        raise bad("chat_template_kwargs", "chat_template_kwargs must be an object")
    for name in kwargs:
        if name not in TEMPLATE_KWARGS:
            raise bad(
                f"chat_template_kwargs.{name[:64]}", f"a request may set only {', '.join(TEMPLATE_KWARGS)}"
            )
        flag(kwargs, name)
    if body.get("tools", []) != []:
        raise bad("tools", "tools are not offered")
    if body.get("tool_choice", "none") not in ("none", "auto"):
        raise bad("tool_choice", "tools are not offered; tool_choice may be none or auto")
    go_on = flag(body, "continue_final_message")
    begin = flag(body, "add_generation_prompt", not go_on)
    if go_on and begin:
        raise bad("continue_final_message", "set add_generation_prompt to false with it")
    return {"add_generation_prompt": begin, "continue_final_message": go_on, "template_options": kwargs}


def chat_logprobs(body: Mapping[str, Any], most: int) -> int | None:
    """``SamplingParams.logprobs`` from chat's two fields.

    Raises:
        ApiError: they are wrong or do not go together.
    """
    wanted = flag(body, "logprobs")
    top = number(body, "top_logprobs", 0, most, 0)
    if top and not wanted:
        raise bad("top_logprobs", "top_logprobs needs logprobs=true")
    return top if wanted else None


def as_api_error(error: WcseError, param: str | None = None) -> ApiError:
    """A user's mistake found deeper down."""
    return ApiError(400, str(error), param=error.field if isinstance(error, FieldError) else param)
