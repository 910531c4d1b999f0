"""Keys and values in float16: what is stored, and that attention counts them as the floats that they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from kernel_cases import OPTIONS, TREES, attend, each_isa, each_thread_count, grow
from torch import Tensor

from wcse import LLM, SamplingParams
from wcse.kernels import ops, reference
from wcse.models.load import load_model
from wcse.types import WcseError


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(("softcap", "window"), OPTIONS)
def test_attention_has_the_bits_of_the_floats_that_the_halves_are(
    name: str, softcap: float, window: int
) -> None:
    spec, segments = TREES[name]
    for head_dim in (8, 40, 64):
        forest = grow(spec, kv_heads=2, group=3, head_dim=head_dim)
        plan = forest.plan(segments)
        q, k, v = forest.queries(segments, plan), forest.k.half(), forest.v.half()
        for _ in each_isa():
            want = attend(q, k.float(), v.float(), plan, softcap, window)
            got = each_thread_count(lambda: attend(q, k, v, plan, softcap, window))  # noqa: B023 - called at once
            assert all(torch.equal(rows, want) for rows in got)


def written(backend: ops.Backend, dtype: torch.dtype, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pages, heads, d = 3, 2, 24
    k, v = torch.zeros(pages, heads, d, 16, dtype=dtype), torch.zeros(pages, heads, 16, d, dtype=dtype)
    rows = len(qkv)
    slots = torch.arange(rows, dtype=torch.int32) * 3
    none = torch.ones(64, d // 2), torch.zeros(64, d // 2)  # no rotation: what goes in is what is stored
    q = ops.rope_write_kv(qkv, slots, slots, *none, k, v, n_heads=4, n_kv_heads=heads, backend=backend)
    return q, k, v


def test_writing_rounds_to_the_nearest_half() -> None:
    """Normal and subnormal numbers, ties, what is too large, and what is not finite, as torch converts them."""
    bits = np.random.default_rng(0).integers(0x32000000, 0x48000000, (15, 8 * 24), dtype=np.uint32)
    bits[:5] &= 0xFFFFF000  # half way between two halves, often
    qkv = torch.from_numpy(bits.view(np.float32).copy()) * torch.tensor([1.0, -1.0]).repeat(96)
    qkv[0, -48:-44] = torch.tensor([1e6, -7e4, 65519.0, 3e-8])
    qkv[1, -48:-45] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    want = written("torch", torch.float16, qkv)
    assert want[2].isfinite().all() and want[2].abs().max() == 65504
    for _ in each_isa():
        for got, expected in zip(written("cpp", torch.float16, qkv), want, strict=True):
            assert torch.equal(got, expected)


def test_pools_of_two_kinds_are_refused() -> None:
    spec, segments = TREES["chain"]
    forest = grow(spec, kv_heads=1, group=1, head_dim=8)
    plan = forest.plan(segments)
    with pytest.raises(WcseError, match=r"v_pages has dtype torch\.float32"):
        attend(forest.queries(segments, plan), forest.k.half(), forest.v, plan)
    with pytest.raises(WcseError, match=r"k_pages has dtype torch\.bfloat16"):
        attend(forest.queries(segments, plan), forest.k.bfloat16(), forest.v.bfloat16(), plan)


def test_float32_pools_keep_their_bits() -> None:
    x = torch.randn(4, 8)
    assert reference._storable(x, torch.float32) is not x
    assert torch.equal(reference._storable(x, torch.float32), x)


def test_a_model_with_halves_writes_nearly_the_same(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path)
    prompt = {"prompt_token_ids": list(range(60))}
    params = SamplingParams(n=3, max_tokens=12, ignore_eos=True)
    full, half = (LLM(load_model(folder, kv_cache_dtype=dtype)) for dtype in ("auto", "float16"))
    assert half.engine.runner.pool.bytes_per_page * 2 == full.engine.runner.pool.bytes_per_page
    assert half.engine.runner.tree.stats()["total"] == 2 * full.engine.runner.tree.stats()["total"]
    first = [llm.generate([prompt], params, use_tqdm=False)[0].outputs[0] for llm in (full, half)]
    assert first[0].token_ids[0] == first[1].token_ids[0]
    with pytest.raises(
        WcseError, match="kv_cache_dtype='fp8' needs a GPU; use 'auto' or 'float16' on the CPU"
    ):
        load_model(folder, kv_cache_dtype="fp8")
    with pytest.raises(WcseError, match="kv_cache_dtype='int8' is unknown; use 'auto', 'float16' or 'fp8'"):
        load_model(folder, kv_cache_dtype="int8")
    with pytest.raises(WcseError, match="give it to load_model"):
        LLM(half.model, kv_cache_dtype="float16")
