"""its_hub's language model over our engine.

Its algorithms ask for many conversations at once; they run in one batch. A conversation that ends with an
assistant's message is continued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from its_hub.api.lm import AbstractLanguageModel

from wcse.adapters.async_llm import AsyncLLM
from wcse.engine.params import SamplingParams

Message = Mapping[str, Any]


class WcseLanguageModel(AbstractLanguageModel):
    """A model for its_hub's algorithms.

    Args:
        model: as for ``LLM``.
        params: sampling where a call says nothing.
        options: as for ``LLM``.
    """

    def __init__(self, model: str, *, params: SamplingParams | None = None, **options: Any) -> None:
        self._model = AsyncLLM(model, **options)
        self._params = params or SamplingParams(temperature=0.8, max_tokens=512)

    def close(self) -> None:
        self._model.close()

    async def agenerate(
        self, messages: Sequence[Any], stop: str | None = None, **kwargs: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer one conversation or a list of them; ``temperature`` may be a list then."""
        if not messages or not isinstance(messages[0], list | tuple):
            return await self.agenerate_single(list(messages), stop, **kwargs)
        heat = kwargs.pop("temperature", None)
        heats = heat if isinstance(heat, list) else [heat] * len(messages)
        calls = [
            self.agenerate_single(conversation, stop, temperature=t, **kwargs)
            for conversation, t in zip(messages, heats, strict=True)
        ]
        return list(await asyncio.gather(*calls))

    async def agenerate_single(
        self, messages: Sequence[Any], stop: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Answer one conversation."""
        names = ("temperature", "max_tokens", "include_stop_str_in_output", "seed")
        chosen: dict[str, Any] = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if stop:
            chosen["stop"] = stop
        conversation = [_plain(message) for message in messages]
        go_on = conversation[-1]["role"] == "assistant"
        output = await self._model.chat(
            conversation,
            replace(self._params, **chosen),
            add_generation_prompt=not go_on,
            continue_final_message=go_on,
        )
        return {"role": "assistant", "content": output.outputs[0].text}


def _plain(message: Any) -> dict[str, str]:
    """its_hub passes plain objects or pydantic ones."""
    if isinstance(message, Mapping):
        return {"role": str(message["role"]), "content": str(message["content"])}
    return {"role": str(message.role), "content": str(message.content)}
