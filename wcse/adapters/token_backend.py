"""What a search asks of an engine, wherever it runs: token ids in, token ids out. And that over HTTP.

``Completions`` goes to any server whose ``/v1/completions`` takes ids and returns them (``wcse serve``; vLLM's, with
its ``return_token_ids``), ``Generate`` to one with ``/inference/v1/generate``, through which no text passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wcse.engine.params import FieldError, SamplingParams
from wcse.types import WcseError

_PASSED = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "seed",
    "stop_token_ids",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "structured_outputs",
)
"""Parameters that go to a server as they are; beside them the stop strings, which stay in the text."""

_REFUSED = {
    "best_of": "the engine's own choice would hide what it drew; set n",
    "logprobs": "those of the drawn tokens are returned always, others never; leave it out",
    "prompt_logprobs": "the prompt's log-probabilities are not returned; leave it out",
    "skip_special_tokens": "the text has none; leave it on",
    "detokenize": "the text is returned always; leave it on",
}
"""Parameters that a completion here has no place for: what to do instead."""


@dataclass(frozen=True, slots=True)
class Written:
    """One completion: the ids that were drawn, their log-probabilities and text, and why it ended ("stop",
    "length"); ``stop_reason`` is the stop string or token id, None for the end of sequence."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    stop_reason: str | int | None


class TokenBackend(Protocol):
    """An engine, wherever it runs."""

    async def complete(self, token_ids: Sequence[int], params: SamplingParams) -> list[Written]:
        """``params.n`` completions of the ids.

        Raises:
            FieldError: a parameter is set that the engine cannot be told.
        """


class _Server:
    """A server with ``/tokenize``; needs the package ``openai``.

    Args:
        base_url: with its ``/v1``.
        model: its name there.
        api_key: the server's key.
    """

    def __init__(self, base_url: str, model: str, *, api_key: str = "none") -> None:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(base_url=base_url, api_key=api_key)
        self._root = base_url.rstrip("/").removesuffix("/v1")
        self._model = model

    async def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The server's own rendering of a conversation, from its ``/tokenize``."""
        reply = await self._post("/tokenize", {"messages": list(messages)})
        return list(reply["tokens"])

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._client.post(self._root + path, body={"model": self._model, **body}, cast_to=object)


class Completions(_Server):
    """A server's ``/v1/completions``."""

    async def complete(self, token_ids: Sequence[int], params: SamplingParams) -> list[Written]:
        """See ``TokenBackend``.

        Raises:
            WcseError: the server does not return token ids.
        """
        body = _passed(params) | {"logprobs": 0, "return_token_ids": True, "prompt": list(token_ids)}
        reply = await self._post("/v1/completions", body)
        return [self._written(choice) for choice in reply["choices"]]

    def _written(self, choice: Mapping[str, Any]) -> Written:
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if ids is None or logprobs is None:
            raise WcseError(f"{self._root}: it returns no token ids; use a server with return_token_ids")
        values = tuple(logprobs["token_logprobs"] or ())
        return Written(tuple(ids), values, choice["text"], *_end(choice))


class Generate(_Server):
    """A server's ``/inference/v1/generate``.

    Args:
        base_url, model, api_key: see ``Completions``.
        decode: text of ids, by the model's tokenizer.
    """

    def __init__(
        self, base_url: str, model: str, *, decode: Callable[[Sequence[int]], str], api_key: str = "none"
    ) -> None:
        super().__init__(base_url, model, api_key=api_key)
        self._decode = decode

    async def complete(self, token_ids: Sequence[int], params: SamplingParams) -> list[Written]:
        """See ``TokenBackend``.

        Raises:
            WcseError: the server does not return log-probabilities.
        """
        sampling = _passed(params) | {"logprobs": 1}
        reply = await self._post(
            "/inference/v1/generate", {"token_ids": list(token_ids), "sampling_params": sampling}
        )
        return [self._written(choice) for choice in reply["choices"]]

    def _written(self, choice: Mapping[str, Any]) -> Written:
        ids, content = choice["token_ids"], (choice.get("logprobs") or {}).get("content")
        if content is None or len(content) != len(ids):
            raise WcseError(f"{self._root}: it returns no log-probability for each token id")
        values = tuple(entry["logprob"] for entry in content)
        return Written(tuple(ids), values, self._decode(ids), *_end(choice))


def _passed(params: SamplingParams) -> dict[str, Any]:
    """The fields of a request.

    Raises:
        FieldError: a parameter is set that is not passed.
    """
    plain = SamplingParams()
    for name, fix in _REFUSED.items():
        if getattr(params, name) != getattr(plain, name):
            raise FieldError(name, getattr(params, name), f"a token backend does not take it: {fix}")
    values = ((name, getattr(params, name)) for name in _PASSED)
    # Not even empty where nothing was asked for: a server that lacks the field need not know it then.
    found = {name: value for name, value in values if value is not None and value != ()}
    return found | {"stop": list(params.stop), "include_stop_str_in_output": True}


def _end(choice: Mapping[str, Any]) -> tuple[str, str | int | None]:
    return choice.get("finish_reason") or "", choice.get("stop_reason")
