"""``LLM.generate`` beside transformers' ``generate``: one prompt, many completions, alternating in one run.

Floor: the multiply-adds of the weight matrices for the tokens computed, at the measured FMA peak of the
threads used (``fma_peak``); attention, sampling and Python are on top of it. ``host_share`` is what one profiled
generation spent on Python, tree, plan and text. Both sides run fp32 with the same
number of threads and draw the same number of tokens at temperature 0.8.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from wcse import _core, zoo
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams
from wcse.models.load import load_model
from wcse.profile import TREE, Profile

ROUNDS, PAUSE = 2, 0.5  # seconds in which idle threads of the side before fall asleep


def gemm_flops(llm: LLM, prompt: int, n: int, new: int) -> float:
    """Multiply-adds (2 FLOPs each) of the weight matrices: shared prompt, ``new - 1`` reads and ``new`` draws."""
    spec = llm.model.spec
    heads = (spec.n_heads * 2 + spec.n_kv_heads * 2) * spec.head_dim * spec.dim
    body = len(spec.layers) * (heads + 3 * spec.dim * spec.ffn_dim)
    return 2.0 * (body * (prompt + n * (new - 1)) + spec.vocab_size * spec.dim * (1 + n * (new - 1)))


def turns(sides: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Wall seconds of ``ROUNDS`` calls of each side, which take turns after one untimed call of ours."""
    sides["ours"]()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(benchmark: Any, llm: LLM, peer: Any, prompt: int, n: int, new: int) -> None:
    ids = torch.randint(
        10, llm.model.spec.vocab_size - 10, (1, prompt), generator=torch.Generator().manual_seed(0)
    )
    params = SamplingParams(n=n, max_tokens=new, temperature=0.8, ignore_eos=True)

    def ours() -> None:
        # A new prompt each time: a cached prefix would be an unfair help.
        outputs = llm.generate([[int(t) for t in ids[0].roll(llm._requests)]], params, use_tqdm=False)
        assert [len(o.token_ids) for o in outputs[0].outputs] == [new] * n

    def transformers() -> None:
        out = peer.generate(
            ids, do_sample=True, temperature=0.8, top_k=0, top_p=1.0, num_return_sequences=n,
            max_new_tokens=new, min_new_tokens=new, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out.shape == (n, prompt + new)

    if benchmark.disabled:
        benchmark(ours)
        transformers()
        return
    seconds = turns({"ours": ours, "transformers": transformers})
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)]
    with Profile() as profile:
        ours()
    times = profile.times
    peak = _core.fma_peak(torch.get_num_threads())
    floor = gemm_flops(llm, prompt, n, new) / peak
    benchmark.extra_info |= {
        "tokens_per_second": n * new / statistics.median(seconds["ours"]),
        "transformers_tokens_per_second": n * new / statistics.median(seconds["transformers"]),
        "times_transformers": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        "fma_peak_gflops": peak / 1e9,
        "gemm_floor_share": floor / statistics.median(seconds["ours"]),
        "host_share": sum(times.parts[part] for part in ("Python", TREE, "tokenizer")) / times.wall,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }
    benchmark.pedantic(ours, rounds=1)


def same_shape(llm: LLM) -> LlamaForCausalLM:
    """transformers' model of the same shape, random weights: its speed does not depend on them."""
    spec = llm.model.spec
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.dim,
        intermediate_size=spec.ffn_dim,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        tie_word_embeddings=spec.tied,
    )
    return LlamaForCausalLM(config).eval()


def test_generate_tiny(benchmark: Any) -> None:
    folder = zoo.path("tiny-wc")
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    size = (40, 4, 8) if benchmark.disabled else (100, 64, 128)
    compare(benchmark, LLM(str(folder)), peer, *size)


@pytest.mark.parametrize("n", [1, 16])  # more of them, and other engines, in ``bench.peers``
def test_generate_smollm2(benchmark: Any, n: int) -> None:
    if benchmark.disabled and n > 1:
        pytest.skip("one size is enough without timing")
    gguf: Path = models.smollm2()
    llm = LLM(load_model(gguf))
    new = 4 if benchmark.disabled else 128
    compare(benchmark, llm, same_shape(llm), 400, n, new)
