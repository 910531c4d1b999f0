"""``LLM`` for asynchronous callers: each awaits its own request, and all of them share one batch.

Tools that call once per sample (inspect, its_hub, agent loops) run at batch size 1 without this.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from wcse.adapters.token_backend import Written
from wcse.engine.driver import Driver
from wcse.engine.llm import LLM, PromptInput, to_prompt
from wcse.engine.outputs import RequestOutput
from wcse.engine.params import WHOLE, SamplingParams
from wcse.models.load import LoadedModel
from wcse.prompts import render_chat
from wcse.serve.loop import EngineLoop
from wcse.serve.work import CompletionWork


class AsyncLLM:
    """A model in an engine thread. ``close`` it, or use it as a context manager.

    Args:
        model, options: as for ``LLM``.

    Raises:
        WcseError: as ``LLM``.
    """

    def __init__(self, model: str | Path | LoadedModel, **options: Any) -> None:
        self.llm = LLM(model, **options)
        driver = Driver(self.llm.engine, None, params=SamplingParams(), rule=WHOLE)
        self._loop = EngineLoop(self.llm.backend, driver)
        self._names = itertools.count()
        self._loop.start()

    async def generate(self, prompt: PromptInput, params: SamplingParams) -> RequestOutput:
        """Complete one prompt; a cancelled caller frees its pages at once.

        Raises:
            WcseError: the prompt or the parameters do not fit the model.
        """
        name = f"{self.llm.seed}.{next(self._names)}"
        work = CompletionWork([to_prompt(self.llm.model, prompt)], params, stream=False, name=name, tenant="")
        self._loop.submit(work)
        try:
            event = await work.events.get()
        finally:
            self._loop.cancel(work)
        if isinstance(event, Exception):
            raise event
        output: RequestOutput = event[0]
        return output

    async def complete(self, token_ids: Sequence[int], params: SamplingParams) -> list[Written]:
        """``TokenBackend`` of ``wcse.adapters.token_backend``: ids in, ids out."""
        wanted = replace(params, logprobs=0, include_stop_str_in_output=True)
        output = await self.generate({"prompt_token_ids": list(token_ids)}, wanted)
        return [
            Written(
                tuple(part.token_ids),
                tuple(
                    row[token].logprob for token, row in zip(part.token_ids, part.logprobs or (), strict=True)
                ),
                part.text,
                part.finish_reason or "",
                part.stop_reason,
            )
            for part in output.outputs
        ]

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams, **switches: Any
    ) -> RequestOutput:
        """Complete a conversation; ``switches`` are those of ``render_chat``.

        Raises:
            WcseError: as ``generate``, or the template refuses the messages.
        """
        ids = render_chat(self.llm.model.tokenizer, messages, **switches)
        return await self.generate({"prompt_token_ids": ids}, params)

    def close(self) -> None:
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
