"""its_hub's language model and reward model over our engine and verifiers.

Its algorithms ask for many conversations at once; they run in one batch. A conversation that ends with an
assistant's message is continued.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from its_hub.api.lm import AbstractLanguageModel
from its_hub.api.reward_models import AbstractProcessRewardModel

from wcse.adapters.async_llm import AsyncLLM
from wcse.engine.params import SamplingParams
from wcse.reward.load import load_prm
from wcse.reward.text import score_texts
from wcse.types import WcseError
from wcse.votes import AGGREGATIONS, aggregate

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


class WcseRewardModel(AbstractProcessRewardModel):
    """A verifier for its_hub's algorithms: one number a response, from the scores of its steps.

    Args:
        prm: as for ``wcse solve --prm``: a model of its own.
        delimiter: what ends a step of a response.
        agg_strategy: last, min, prod or mean; None: the verifier's own.
        kv_memory: GiB for keys and values.
        family: how it reads steps; None: what the model says of itself.
    """

    def __init__(
        self,
        prm: str,
        *,
        delimiter: str = "\n\n",
        agg_strategy: str | None = None,
        kv_memory: float = 2.0,
        family: str | None = None,
    ) -> None:
        if agg_strategy is not None and agg_strategy not in AGGREGATIONS:
            raise WcseError(f"agg_strategy={agg_strategy!r}: use one of {', '.join(AGGREGATIONS)}")
        self._prm = load_prm(prm, kv_memory=kv_memory, family=family)
        self._agg = agg_strategy or self._prm.default_agg
        self._delimiter = delimiter
        self._turn = threading.Lock()

    async def ascore(self, prompt_or_messages: Any, steps: Any) -> Any:
        """The score of each response; its_hub passes whole responses here, or one as a string."""
        return await asyncio.to_thread(self.score, prompt_or_messages, steps)

    def score(self, prompt_or_messages: Any, steps: Any) -> Any:
        """As ``ascore``."""
        responses = [steps] if isinstance(steps, str) else list(steps)
        problem = _problem(prompt_or_messages)
        with self._turn:
            found = [self._one(problem, response) for response in responses]
        return found[0] if isinstance(steps, str) else found

    def _one(self, problem: str, response: str) -> float:
        parts = [part for part in response.split(self._delimiter) if part.strip()]
        if not parts:  # nothing was written: worse than anything
            return 0.0 if self._prm.bounded else -math.inf
        (scores,) = score_texts(self._prm, problem, [parts])
        return aggregate(scores, self._agg)


def _problem(given: Any) -> str:
    """The last question of a prompt in any of its_hub's forms."""
    if isinstance(given, str):
        return given
    messages = given.to_chat_messages() if hasattr(given, "to_chat_messages") else given
    plain = [_plain(message) for message in messages]
    return next((m["content"] for m in reversed(plain) if m["role"] == "user"), "")
