"""The vLLM-shaped surface: ``LLM(model).generate(prompts, SamplingParams(...))``.

All prompts and all their completions run in one batch over one KV tree, so ``n`` completions share their
prompt. It knows nothing of steps, strategies or verifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from wcse.engine.engine import Engine
from wcse.engine.fit import footprint, plan_memory
from wcse.engine.generate import Backend, Generation, Prompt
from wcse.engine.memory import KV_GIB, Memory
from wcse.engine.outputs import (
    CompletionOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from wcse.engine.params import SamplingParams
from wcse.engine.pooling import POOLING_TASKS, pool, similarity
from wcse.engine.reader import Reading
from wcse.engine.schedule import FILL_TOKENS
from wcse.models.decoder import Decoder
from wcse.models.load import LoadedModel, load_model, read_config
from wcse.models.weights import Weights, canonical_names
from wcse.prompts import render_chat, render_text
from wcse.types import Quantization, WcseError

__all__ = ["LLM", "CompletionOutput", "PromptInput", "RequestOutput", "to_prompt"]

PromptInput = str | Sequence[int] | Mapping[str, Any]


class LLM:
    """A model ready to generate.

    Args:
        model: a Hugging Face folder, a .gguf file, an embedded model's name ("tiny-wc") or a hub id.
        dtype: of the weights in memory; "auto" and "float32" are the same on a CPU.
        device: "cpu" or "cuda" (see docs/gpu.md).
        quantization: of the weights in memory: None (float32), "int8", "int4", or "gguf" (as the file has them);
            "w8a8", "w4a8" and "gguf_a8" round the inputs of matrices to 8 bits too. On a GPU "fp8". A model that is
            loaded already keeps its own.
        kv_cache_dtype: of keys and values: "auto" (that of the weights); "float16", which takes half the memory of
            float32, on a CPU; "fp8" on a GPU.
        seed: of all random numbers; the same seed gives the same completions whatever the batch.
        max_num_seqs: most completions that decode at once.
        max_model_len: cap on prompt and completion together; the model's own limit where None.
        kv_memory: GiB for keys and values. None: 2 on the CPU; on a GPU what is free beside the weights.
        max_logprobs: most log-probabilities that a request may ask for at each token.

    Raises:
        WcseError: the model cannot be loaded, or an option is out of range.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        quantization: Quantization | None = None,
        kv_cache_dtype: str = "auto",
        seed: int = 0,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
        kv_memory: float | None = None,
        max_logprobs: int = 20,
    ) -> None:
        if isinstance(model, LoadedModel):
            if quantization is not None and quantization != model.decoder.quantization:
                raise WcseError(f"quantization={quantization!r}: give it to load_model; this model is loaded")
            if kv_cache_dtype != "auto":
                raise WcseError(
                    f"kv_cache_dtype={kv_cache_dtype!r}: give it to load_model; this model is loaded"
                )
            loaded = model
        else:
            loaded = _load(
                model, dtype=dtype, device=device, quantization=quantization, kv_cache_dtype=kv_cache_dtype
            )
        if max_model_len is not None:
            if not 2 <= max_model_len <= loaded.context:
                raise WcseError(f"max_model_len={max_model_len}: give a number from 2 to {loaded.context}")
            loaded = replace(loaded, context=max_model_len)
        self.model = loaded
        self.seed = seed
        memory = Memory.gib(kv_memory) if kv_memory is not None else _memory(loaded, rows=max_num_seqs)
        self.engine = Engine(loaded, max_rows=max_num_seqs, memory=memory)
        self.backend = Backend(self.engine, max_logprobs=max_logprobs)
        self._requests = 0

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.model.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What ``generate`` uses when it is given none."""
        return SamplingParams()

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts."""
        self.engine.reclaim()
        self.engine.runner.tree.evict(self.engine.runner.tree.stats()["total"])

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights by those of a ``state_dict`` of the same model; cached prompts are forgotten.

        Raises:
            WcseError: a tensor is missing or of another shape, or work is running.
        """
        swap_weights(self.engine, tensors)
        self.model = self.engine.model

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
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
            WcseError: a prompt is empty or too long, a parameter does not fit the model, or the numbers of
                prompts and parameters differ; nothing was generated.
        """
        many = _as_list(prompts)
        params = sampling_params or SamplingParams()
        each = list(params) if isinstance(params, Sequence) else [params] * len(many)
        if len(each) != len(many):
            raise WcseError(
                f"sampling_params: {len(each)} given for {len(many)} prompts; give one, or one for each"
            )
        finished: list[RequestOutput] = []
        running: list[Generation] = []
        try:
            for prompt, one in zip(many, each, strict=True):
                running.append(self._start(prompt, one, finished))
            with tqdm(total=len(many), disable=not use_tqdm, desc="prompts", leave=False) as bar:
                while self.backend.busy:
                    self.backend.step()
                    bar.update(len(finished) - bar.n)
        except BaseException:
            for generation in running:
                if not generation.output.finished:
                    generation.abort()
            raise
        outputs = [generation.output for generation in running]
        running.clear()
        self.engine.reclaim()
        return outputs

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete one conversation, or a list of them, through the model's chat template.

        Args:
            add_generation_prompt: begin the assistant's turn.
            continue_final_message: go on in the last message instead; turn ``add_generation_prompt`` off.
            chat_template_kwargs: the template's own options, such as ``{"enable_thinking": False}``.

        Raises:
            WcseError: as ``generate``, or the tokenizer has no chat template.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if single else messages
        prompts = [
            {
                "prompt_token_ids": render_chat(
                    self.model.tokenizer,
                    conversation,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    template_options=chat_template_kwargs,
                )
            }
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def encode(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        *,
        pooling_task: str = "token_embed",
    ) -> list[PoolingRequestOutput]:
        """What the model's hidden states say of each prompt; ``outputs.data`` is a float32 tensor.

        Args:
            pooling_task: "token_embed": final-norm states [tokens, hidden size]; "embed": the last of them,
                normed to length 1; "token_classify": probabilities [tokens, labels] of the model's score
                head (a PRM's verdict on each token); "classify": the last row of these.

        Raises:
            WcseError: the task is unknown, the model has no score head, or a prompt does not fit.
        """
        if pooling_task not in POOLING_TASKS:
            raise WcseError(
                f"pooling_task={pooling_task!r} is unknown; use one of {', '.join(POOLING_TASKS)}"
            )
        rendered = [to_prompt(self.model, prompt).ids for prompt in _as_list(prompts)]
        states = self._states(rendered)
        results = []
        for ids, rows in zip(rendered, states, strict=True):
            data = pool(self.model, rows, pooling_task)
            results.append(PoolingRequestOutput(str(self._requests), ids, PoolingOutput(data)))
            self._requests += 1
        return results

    def score(
        self, text_1: PromptInput | Sequence[PromptInput], text_2: PromptInput | Sequence[PromptInput]
    ) -> list[ScoringRequestOutput]:
        """Cosine similarity of the "embed" states of pairs; one text is paired with all of the other side.

        Raises:
            WcseError: the numbers of texts do not fit, or a text does not.
        """
        left, right = _as_list(text_1), _as_list(text_2)
        left = left * len(right) if len(left) == 1 else left
        if len(left) != len(right):
            raise WcseError(f"text_1 has {len(left)} texts and text_2 {len(right)}; give one, or as many")
        rendered = [to_prompt(self.model, text).ids for text in (*left, *right)]
        states = self._states(rendered)
        pairs = zip(states[: len(left)], states[len(left) :], rendered, strict=False)
        return [
            ScoringRequestOutput(str(i), ids, ScoringOutput(similarity(a, b)))
            for i, (a, b, ids) in enumerate(pairs)
        ]

    def loglikelihoods(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[list[float], bool]]:
        """(Log-probability of each continuation token, whether all are the most likely ones) of each
        (context ids, continuation ids). Equal contexts are read once.

        Raises:
            WcseError: a context or continuation is empty, or they do not fit in the model's context.
        """
        found: dict[int, Reading] = {}
        for i, (context, continuation) in enumerate(requests):

            def done(reading: Reading, i: int = i) -> None:
                found[i] = reading

            self.backend.reader.submit(context, continuation, done)
        while self.backend.reader.waiting:
            self.backend.reader.step()
        return [(found[i].logprobs, found[i].greedy) for i in range(len(requests))]

    def _states(self, rendered: Sequence[list[int]]) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for i, ids in enumerate(rendered):

            def done(reading: Reading, i: int = i) -> None:
                found[i] = torch.cat(reading.hidden)

            self.backend.reader.submit((), ids, done, states=True)
        while self.backend.reader.waiting:
            self.backend.reader.step()
        return [found[i] for i in range(len(rendered))]

    def _start(
        self, prompt: PromptInput, params: SamplingParams, finished: list[RequestOutput]
    ) -> Generation:
        name = str(self._requests)
        generation = Generation(
            self.backend,
            name,
            to_prompt(self.model, prompt),
            params,
            seed=self.seed if params.seed is None else params.seed,
            # Equal prompts get different samples unless the caller fixes the seed.
            name=name if params.seed is None else "",
            done=finished.append,
        )
        generation.start()
        self._requests += 1
        return generation


def swap_weights(engine: Engine, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace an engine's weights by those of a ``state_dict``.

    Raises:
        WcseError: as ``LLM.load_weights``.
    """
    adapters = [name for name in tensors if "lora_" in name]
    if adapters:
        raise WcseError(f"weights: {adapters[0]} belongs to an adapter; merge it into the model first")
    names = canonical_names(list(tensors), "weights")
    weights = Weights.of({names[name]: tensor for name, tensor in tensors.items()})
    engine.swap(Decoder(engine.model.spec, weights))


def to_prompt(model: LoadedModel, prompt: PromptInput) -> Prompt:
    """Token ids of any form of prompt.

    Raises:
        WcseError: it is of no known form, or an id is not in the vocabulary.
    """
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - {"prompt", "prompt_token_ids"}
        if unknown or not prompt:
            raise WcseError(f"prompt={prompt!r}: give the key 'prompt' or 'prompt_token_ids'")
        prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
    if isinstance(prompt, str):
        return Prompt(ids=render_text(model.tokenizer, prompt), text=prompt)
    ids = [int(token) for token in prompt]
    bad = [token for token in ids if not 0 <= token < model.spec.vocab_size]
    if bad:
        raise WcseError(
            f"prompt_token_ids: {bad[0]} is not an id of the {model.spec.vocab_size} of this model"
        )
    return Prompt(ids=ids)


def _memory(model: LoadedModel, *, rows: int) -> Memory:
    """For keys and values of a loaded model: 2 GiB on the CPU, on a GPU most of what is free."""
    decoder = model.decoder
    if decoder.device.type != "cuda":
        return Memory.gib(KV_GIB)
    kinds: dict[str, Any] = {
        "dtype": decoder.dtype,
        "kv_dtype": decoder.kv_dtype,
        "quantization": decoder.quantization,
    }
    need = footprint(model.spec, role="model", name=model.name, rows=rows + FILL_TOKENS, **kinds)
    fit = plan_memory(str(decoder.device), (replace(need, weights=0),), kv_gib=None)
    return Memory(fit.kv)


def _load(model: str | Path, **options: Any) -> LoadedModel:
    """A classifier needs no output matrix, and often has none."""
    kinds = read_config(model).get("architectures") or [""]
    generates = not str(kinds[0]).endswith(("ForTokenClassification", "ForSequenceClassification"))
    return load_model(model, lm_head=generates, **options)


def _as_list(prompts: PromptInput | Sequence[PromptInput]) -> list[PromptInput]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], int) else items
