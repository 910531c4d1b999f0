"""inspect-ai's model provider ``wcse/NAME``; found through the package's entry point.

inspect asks for one sample at a time from many tasks at once; ``AsyncLLM`` makes one batch of them.
"""

from __future__ import annotations

from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from wcse.adapters.async_llm import AsyncLLM
from wcse.engine.outputs import CompletionOutput
from wcse.engine.params import SamplingParams
from wcse.types import WcseError

MAX_CONNECTIONS = 64
_RENAMED = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop_seqs": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "logit_bias": "logit_bias",
    "num_choices": "n",
    "best_of": "best_of",
}


@modelapi(name="wcse")
class WcseModel(ModelAPI):
    """A model of ours inside inspect's process; ``model_args`` are those of ``LLM``."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self._model = AsyncLLM(model_name, **model_args)

    def max_connections(self) -> int:
        return MAX_CONNECTIONS

    def close(self) -> None:
        self._model.close()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation.

        Raises:
            WcseError: tools are asked for, or a setting does not fit the model.
        """
        if tools:
            raise WcseError("tools: this provider has none; run the task without tools")
        messages = [{"role": message.role, "content": message.text} for message in input]
        output = await self._model.chat(messages, _params(config))
        read, written = len(output.prompt_token_ids), sum(len(part.token_ids) for part in output.outputs)
        return ModelOutput(
            model=self.model_name,
            choices=[_choice(part, self.model_name) for part in output.outputs],
            usage=ModelUsage(
                input_tokens=read,
                output_tokens=written,
                total_tokens=read + written,
                input_tokens_cache_read=output.num_cached_tokens,
            ),
        )


def _params(config: GenerateConfig) -> SamplingParams:
    given = {ours: getattr(config, theirs) for theirs, ours in _RENAMED.items()}
    chosen = {name: value for name, value in given.items() if value is not None}
    if config.logprobs:
        chosen["logprobs"] = config.top_logprobs or 0
    return SamplingParams(**({"max_tokens": None} | chosen))


def _choice(part: CompletionOutput, model: str) -> ChatCompletionChoice:
    return ChatCompletionChoice(
        message=ChatMessageAssistant(content=part.text, model=model, source="generate"),
        stop_reason="stop" if part.finish_reason == "stop" else "max_tokens",
        logprobs=_logprobs(part),
    )


def _logprobs(part: CompletionOutput) -> Logprobs | None:
    if part.logprobs is None:
        return None
    content = []
    for token, row in zip(part.token_ids, part.logprobs, strict=True):
        likely = [TopLogprob(token=found.decoded_token, logprob=found.logprob) for found in row.values()]
        own = row[token]
        content.append(Logprob(token=own.decoded_token, logprob=own.logprob, top_logprobs=likely))
    return Logprobs(content=content)
