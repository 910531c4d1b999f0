"""The vLLM-shaped surface: ``LLM(model).generate(prompts, SamplingParams(...))``.

All prompts and all their completions run in one batch over one KV tree, so ``n`` completions share their
prompt. It knows nothing of steps, strategies or verifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wcse.engine.engine import Engine, Growth
from wcse.engine.params import WHOLE, SamplingParams
from wcse.models.decoder import KVPool
from wcse.models.load import LoadedModel, load_model
from wcse.prompts import render_chat, render_text
from wcse.types import Finish, Node, Quantization, WcseError

Prompt = str | Sequence[int] | Mapping[str, Any]


@dataclass(slots=True)
class CompletionOutput:
    """One completion. ``finish_reason`` is "stop" or "length"; "error" when its numbers broke down."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[float] | None
    finish_reason: str
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions, in index order."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    num_cached_tokens: int = 0


class LLM:
    """A model ready to generate.

    Args:
        model: a Hugging Face folder, a .gguf file, an embedded model's name ("tiny-wc") or a hub id.
        dtype: of the weights in memory; "auto" and "float32" are the same on a CPU.
        quantization: of the weights in memory: None (float32), "int8", "int4", or "gguf" (as the file has them); a
            model that is loaded already keeps its own.
        seed: of all random numbers; the same seed gives the same completions whatever the batch.
        max_num_seqs: most completions that decode at once.
        max_model_len: cap on prompt and completion together; the model's own limit where None.
        kv_memory: GiB for keys and values.

    Raises:
        WcseError: the model cannot be loaded, or an option is out of range.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        dtype: str = "auto",
        quantization: Quantization | None = None,
        seed: int = 0,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
        kv_memory: float = 2.0,
    ) -> None:
        if isinstance(model, LoadedModel):
            if quantization is not None and quantization != model.decoder.quantization:
                raise WcseError(f"quantization={quantization!r}: give it to load_model; this model is loaded")
            loaded = model
        else:
            loaded = load_model(model, dtype=dtype, quantization=quantization)
        if max_model_len is not None:
            if not 2 <= max_model_len <= loaded.context:
                raise WcseError(f"max_model_len={max_model_len}: give a number from 2 to {loaded.context}")
            loaded = replace(loaded, context=max_model_len)
        self.model = loaded
        self.seed = seed
        self.engine = Engine(loaded, max_rows=max_num_seqs, num_pages=pages_in(loaded, kv_memory))
        self._requests = 0

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.model.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete the prompts.

        Args:
            prompts: text, token ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``; one or a list.
            sampling_params: one for all, or one for each prompt.
            use_tqdm: show a progress bar.

        Raises:
            WcseError: a prompt is empty or too long, or the numbers of prompts and parameters differ.
        """
        many = _as_list(prompts)
        params = sampling_params or SamplingParams()
        each = list(params) if isinstance(params, Sequence) else [params] * len(many)
        if len(each) != len(many):
            raise WcseError(
                f"sampling_params: {len(each)} given for {len(many)} prompts; give one, or one for each"
            )
        requests = [self._submit(prompt, p) for prompt, p in zip(many, each, strict=True)]
        with tqdm(total=sum(p.n for p in each), disable=not use_tqdm, desc="completions", leave=False) as bar:
            while self.engine.busy:
                self.engine.step()
                bar.update(sum(len(r.outputs) for r in requests) - bar.n)
        for request in requests:
            request.outputs.sort(key=lambda output: output.index)
        return requests

    def chat(
        self,
        messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete one conversation, or a list of them, through the model's chat template.

        Raises:
            WcseError: as ``generate``, or the tokenizer has no chat template.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if single else messages
        prompts = [{"prompt_token_ids": render_chat(self.model.tokenizer, c)} for c in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def _submit(self, prompt: Prompt, params: SamplingParams) -> RequestOutput:
        text, ids = self._render(prompt)
        name = str(self._requests)
        seed = self.seed if params.seed is None else params.seed
        root = self.engine.open(ids, seed=seed, problem=name, params=params, rule=WHOLE)
        request = RequestOutput(name, text, ids, num_cached_tokens=root.account.reused)
        self._requests += 1

        def on_end(index: int, node: Node) -> None:
            request.outputs.append(_completion(index, node, params))

        self.engine.grow(
            Growth(
                root, root.node, params.n, 0, to_end=True, greedy=False, on_node=lambda _: None, on_end=on_end
            )
        )
        return request

    def _render(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            unknown = set(prompt) - {"prompt", "prompt_token_ids"}
            if unknown or not prompt:
                raise WcseError(f"prompt={prompt!r}: give the key 'prompt' or 'prompt_token_ids'")
            prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
        if isinstance(prompt, str):
            return prompt, render_text(self.model.tokenizer, prompt)
        ids = [int(token) for token in prompt]
        bad = [token for token in ids if not 0 <= token < self.model.spec.vocab_size]
        if bad:
            raise WcseError(
                f"prompt_token_ids: {bad[0]} is not an id of the {self.model.spec.vocab_size} of this model"
            )
        return None, ids


def pages_in(model: LoadedModel, gib: float) -> int:
    """Pages of 16 tokens that fit in ``gib`` GiB of keys and values.

    Raises:
        WcseError: not even a few pages fit.
    """
    count = int(gib * 2**30) // KVPool.page_bytes(model.spec)
    if count < 8:
        raise WcseError(f"kv_memory={gib}: holds {count} pages of 16 tokens; give more GiB")
    return min(count, 2**20)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], int) else items


def _completion(index: int, node: Node, params: SamplingParams) -> CompletionOutput:
    reason = "stop" if node.complete else "error" if node.finish is Finish.ERROR else "length"
    logprobs = list(node.logprobs) if params.logprobs is not None else None
    return CompletionOutput(
        index, node.text, list(node.token_ids), sum(node.logprobs), logprobs, reason, node.stop_reason
    )
