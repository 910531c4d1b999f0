"""Batched greedy decoding of a model in training, in plain torch: no engine, no search."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .tiny_llama import Cache, TinyLlama
from .tokenizer import END, PAD, prompt_text, token_id

_BOXED = re.compile(r"\\boxed\{(-?\d+(?:\.\d+)?)\}")


class _Rows:
    """Left-padded sequences that grow together; finished rows are dropped now and then."""

    def __init__(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        width = max(map(len, prompts))
        self.ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        self.start = torch.tensor([width - len(p) for p in prompts])
        self.index = torch.arange(len(prompts))
        self.cache: Cache | None = None

    def extend(self, model: TinyLlama) -> Tensor:
        """Logits of the next token of every row."""
        old = self.cache[0][0].shape[2] if self.cache else 0
        column = torch.arange(self.ids.shape[1])
        positions = (column[None, old:] - self.start[:, None]).clamp(min=0)
        visible = (column[None, None, :] <= column[None, old:, None]) & (
            column[None, None, :] >= self.start[:, None, None]
        )
        visible = visible | (column[None, None, :] == column[None, old:, None])
        states, self.cache = model.extend(self.ids[:, old:], positions, visible.unsqueeze(1), self.cache)
        return model.logits(states[:, -1])

    def keep(self, rows: Tensor) -> None:
        """Forget all but the given rows."""
        self.ids, self.start, self.index = self.ids[rows], self.start[rows], self.index[rows]
        self.cache = [(k[rows], v[rows]) for k, v in self.cache] if self.cache else None


@torch.inference_mode()
def generate(
    model: TinyLlama,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    pad: int,
    max_new: int = 256,
) -> list[list[int]]:
    """Continue every prompt until ``end`` (which is not returned) or ``max_new`` tokens."""
    rows = _Rows(prompts, pad)
    out: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_new):
        logits = rows.extend(model)
        token = logits.argmax(-1)
        rows.ids = torch.cat([rows.ids, token[:, None]], dim=1)
        alive = token != end
        for i, t, a in zip(rows.index.tolist(), token.tolist(), alive.tolist(), strict=True):
            if a:
                out[i].append(t)
        if not alive.any():
            break
        if not alive.all():
            rows.keep(alive.nonzero().squeeze(1))
    return out


def boxed(text: str) -> float | None:
    """The number in the last box, if there is one."""
    found = _BOXED.findall(text)
    return float(found[-1]) if found else None


def solve(
    model: TinyLlama,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    *,
    batch: int = 96,
    max_new: int = 256,
) -> list[str]:
    """One solution text per question, decoded in batches of similar length."""
    prompts = [e.ids for e in tokenizer.encode_batch([prompt_text(q) for q in questions])]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        ids = generate(
            model,
            [prompts[i] for i in chunk],
            end=end,
            pad=pad,
            max_new=max_new,
        )
        for i, text in zip(chunk, tokenizer.decode_batch(ids), strict=True):
            texts[i] = text
    return texts


def is_correct(text: str, answer: str) -> bool:
    """Whether the boxed number equals the reference."""
    return boxed(text) == float(answer)
