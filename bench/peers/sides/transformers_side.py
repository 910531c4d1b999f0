"""transformers, in two ways: driven as search-and-learn drives an engine, and with caches kept by hand.

``generate`` submits whole sequences and ``full`` scores whole sequences; ``cached`` keeps the keys and values of every
beam, of the policy and of the verifier, and reads new tokens only. Sampling is transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from side import Beams, Count, Facts, Item, drive, serve
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from verifier import Verifier, good


class TransformersSide:
    """Policy and verifier in one process."""

    def load(self, model: dict[str, str], precision: str, threads: int, workloads: Sequence[str]) -> Facts:
        torch.set_num_threads(threads)
        dtype = getattr(torch, precision)
        self.policy = AutoModelForCausalLM.from_pretrained(model["policy"], dtype=dtype).eval()
        self.verifier: Verifier | None = None
        if "score" in workloads:
            self.verifier = Verifier(model["prm"], dtype)
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "dtype": precision,
            "modes": {
                "sample": ["generate", "cached"],
                "search": ["generate", "cached"],
                "score": ["generate+full", "cached"],
            },
        }

    def prepare(self, item: Item) -> None:
        torch.manual_seed(item.seed)

    @torch.inference_mode()
    def run(self, item: Item) -> Count:
        if item.mode == "cached":
            beams: Beams = CachedBeams(self.policy, self.verifier, item)
        else:
            beams = SubmittedBeams(self.policy, self.verifier, item)
        return drive(item, beams)


class Watch(StoppingCriteria):
    """Tells the meter of every token that ``generate`` wrote; it stops nothing itself."""

    def __init__(self, item: Item) -> None:
        self.item = item

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.item.meter.add(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool)


class SubmittedBeams:
    """Whole sequences are handed over at every step and nothing is kept between steps."""

    def __init__(self, policy: Any, verifier: Verifier | None, item: Item) -> None:
        self.policy, self.verifier, self.item = policy, verifier, item

    def start(self, prompt: list[int], n: int) -> None:
        self.paths = torch.tensor([prompt] * n)
        self.read = self.paths  # what the verifier reads: the same with separators

    def grow(self, tokens: int) -> None:
        before = self.paths.shape[1]
        self.paths = self.policy.generate(
            self.paths,
            attention_mask=torch.ones_like(self.paths),
            do_sample=True,
            temperature=self.item.temperature,
            top_p=self.item.top_p,
            top_k=0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([Watch(self.item)]),
        )
        assert self.paths.shape[1] == before + tokens
        self.step = self.paths[:, before:]

    def score(self) -> list[float]:
        assert self.verifier is not None
        self.read = torch.cat([self.read, self.verifier.closed(self.step)], dim=1)
        return self.verifier.full(self.read, lambda: self.item.meter.add(0))

    def select(self, parents: list[int]) -> None:
        self.paths, self.read = self.paths[parents], self.read[parents]


class CachedBeams:
    """The prompt is read once; keys and values of every beam stay, one copy a beam."""

    def __init__(self, policy: Any, verifier: Verifier | None, item: Item) -> None:
        self.policy, self.verifier, self.meter = policy, verifier, item.meter
        self.warp = LogitsProcessorList(
            [TemperatureLogitsWarper(item.temperature), TopPLogitsWarper(item.top_p)]
        )

    def start(self, prompt: list[int], n: int) -> None:
        ids = torch.tensor([prompt])
        self.cache = DynamicCache()
        out = self.policy(ids, past_key_values=self.cache, logits_to_keep=1)
        self.cache.batch_repeat_interleave(n)
        self.logits = out.logits[:, -1].expand(n, -1)
        self.last: torch.Tensor | None = None  # sampled and not read yet
        self.memory: DynamicCache | None = None  # the verifier's, made at the first step
        self.prompt = ids

    def grow(self, tokens: int) -> None:
        new = []
        for _ in range(tokens):
            if self.last is not None:
                out = self.policy(self.last, past_key_values=self.cache, logits_to_keep=1)
                self.logits = out.logits[:, -1]
            weights = self.warp(None, self.logits.float()).softmax(-1)
            self.last = torch.multinomial(weights, 1)
            new.append(self.last)
            self.meter.add(len(self.last))
        self.step = torch.cat(new, dim=1)

    def score(self) -> list[float]:
        assert self.verifier is not None
        if self.memory is None:
            self.memory = DynamicCache()
            self.verifier.model(self.prompt, past_key_values=self.memory, use_cache=True)
            self.memory.batch_repeat_interleave(len(self.step))
        ids = self.verifier.closed(self.step)
        logits = self.verifier.model(ids, past_key_values=self.memory, use_cache=True).logits
        return good(logits[:, -1])

    def select(self, parents: list[int]) -> None:
        rows = torch.tensor(parents)
        self.cache.batch_select_indices(rows)
        if self.memory is not None:
            self.memory.batch_select_indices(rows)
        if self.last is not None:
            self.last = self.last[rows]


if __name__ == "__main__":
    serve(TransformersSide())
