"""A decode step of a Qwen2.5-0.5B-shaped decoder with 256 rows, and the sampler's share of it.

Random weights: the time does not depend on them. Top-p 0.95 over 151,936 logits that fall off as a language
model's do. Floor of the sampler: one read of the logits.
Floor of the step: its model FLOPs, matrices and attention, at the measured FMA peak of the threads used
(``step_flops_share``, of the whole step: layers, output matrix, sampling).
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from bench_sample import TOP_P, make_logits
from timing import alternate

from wcse import _core
from wcse.flops import ModelCost
from wcse.kernels import ops
from wcse.models.decoder import Batch, Decoder
from wcse.models.kv_pool import KVPool
from wcse.models.spec import spec_from_hf
from wcse.models.weights import Weights

ROWS, PROMPT = 256, 256


def qwen_shape(layers: int) -> Decoder:
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": layers,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    spec = spec_from_hf(config)
    rows = {"q_proj": 896, "k_proj": 128, "v_proj": 128, "o_proj": 896}
    tensors = {
        "embed_tokens.weight": torch.empty(151_936, 896).normal_(0, 0.02),
        "norm.weight": torch.ones(896),
    }
    for i in range(layers):
        for name, size in rows.items():
            tensors[f"layers.{i}.self_attn.{name}.weight"] = torch.empty(size, 896).normal_(0, 0.02)
            tensors[f"layers.{i}.self_attn.{name}.bias"] = torch.zeros(size)
        for name, (size, width) in {
            "gate_proj": (4864, 896),
            "up_proj": (4864, 896),
            "down_proj": (896, 4864),
        }.items():
            tensors[f"layers.{i}.mlp.{name}.weight"] = torch.empty(size, width).normal_(0, 0.02)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"layers.{i}.{norm}.weight"] = torch.ones(896)
    return Decoder(spec, Weights.of(tensors))


def decode_batch(decoder: Decoder) -> tuple[Batch, KVPool]:
    """256 leaves below a prompt whose keys and values are zeros, each about to read one token."""
    pages = PROMPT // 16 + ROWS
    tree, pool = _core.KVTree(pages), KVPool(decoder.spec, pages)
    prompt = tree.fork(0)
    tree.extend(prompt, np.arange(PROMPT, dtype=np.int32))
    tree.settle()
    tree.seal(prompt)
    leaves = np.array([tree.fork(prompt) for _ in range(ROWS)], dtype=np.int32)
    slots = tree.extend_rows(leaves, np.arange(ROWS, dtype=np.int32))
    plan = _core.plan(tree, leaves, np.ones(ROWS, dtype=np.int32))
    order = np.argsort(np.asarray(plan.row_start))
    batch = Batch(
        tokens=torch.arange(ROWS)[torch.from_numpy(order)],
        positions=torch.from_numpy(np.asarray(plan.positions)),
        slots=torch.from_numpy(np.asarray(slots)[order]),
        plan=plan,
        out_rows=torch.arange(ROWS),
    )
    return batch, pool


def test_sampler_share_of_a_step(benchmark: Any) -> None:
    decoder = qwen_shape(layers=1 if benchmark.disabled else 24)
    batch, pool = decode_batch(decoder)
    logits = make_logits("peaked", ROWS)
    index = torch.arange(ROWS, dtype=torch.int32)
    ones, zeros = torch.ones(ROWS), torch.zeros(ROWS)

    def step() -> torch.Tensor:
        return decoder.logits(decoder.forward(batch, pool))

    def sample() -> torch.Tensor:
        keys, first = torch.arange(ROWS), torch.zeros_like(index)
        return ops.sample(logits, index, ones, first, ones * TOP_P, zeros, keys, first)[0]

    assert step().shape == (ROWS, 151_936)
    if benchmark.disabled:
        benchmark(sample)
        return
    seconds = alternate({"step": step, "sample": sample}, 5)
    shares = [s / (s + t) for s, t in zip(seconds["sample"], seconds["step"], strict=True)]
    peak = _core.fma_peak(torch.get_num_threads())
    flops = ROWS * ModelCost.of(decoder.spec).flops(1, PROMPT)
    whole = [s + t for s, t in zip(seconds["sample"], seconds["step"], strict=True)]
    benchmark.extra_info |= {
        "step_flops_share": flops / statistics.median(whole) / peak,
        "fma_peak_gflops": peak / 1e9,
        "sampler_share": {"min": min(shares), "median": statistics.median(shares), "max": max(shares)},
        "step_seconds": statistics.median(seconds["step"]),
        "sample_seconds": statistics.median(seconds["sample"]),
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(sample, rounds=3)
