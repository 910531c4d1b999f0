"""All layers in one native call: the bits of the ops one by one, for every architecture, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from kernel_cases import each_isa, each_thread_count
from torch import Tensor

from wcse import _core
from wcse.kernels import ops
from wcse.models.decoder import Decoder
from wcse.models.hf import open_hf, read_json
from wcse.models.kv_pool import KVPool
from wcse.models.spec import spec_from_hf
from wcse.types import WcseError

PAGES = 24


class Case:
    """A prompt of 70 tokens and five leaves of one to nine tokens below it, of which three rows are wanted."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.decoder = Decoder(spec_from_hf(read_json(folder / "config.json")), open_hf(folder), **options)
        tree = _core.KVTree(PAGES)
        prompt = tree.fork(0)
        nodes, counts = [prompt], [70]
        slots = [tree.extend(prompt, np.arange(70, dtype=np.int32))]
        tree.settle()
        tree.seal(prompt)
        for i in range(5):
            nodes.append(tree.fork(prompt))
            counts.append(1 + 2 * i)
            slots.append(tree.extend(nodes[-1], np.arange(counts[-1], dtype=np.int32)))
        self.plan = _core.plan(tree, nodes, counts)
        self.slots = torch.from_numpy(np.concatenate([slots[i] for i in self.plan.order]))
        self.positions = torch.from_numpy(self.plan.positions)
        self.x = torch.randn(self.plan.n_rows, self.decoder.spec.dim)
        self.out_rows = torch.tensor([70, 3, 94])
        for table in self.decoder._ropes:
            table.grow(128)

    def run(
        self, function: Any = ops.decoder_layers, *, backend: ops.Backend = "auto", **changed: Any
    ) -> Tensor:
        """Results, and all keys and values that were written, as one row of numbers."""
        pool = KVPool(self.decoder.spec, PAGES)
        arguments: dict[str, Any] = {
            "x": self.x.clone(),
            "positions": self.positions,
            "slots": self.slots,
            "plan": self.plan,
            "ropes": [(table.cos, table.sin) for table in self.decoder._ropes],
            "k_pages": pool.k,
            "v_pages": pool.v,
            "out_rows": self.out_rows,
        }
        out = function(self.decoder._stack, ops.Step(**(arguments | changed)), backend=backend)
        return torch.cat([part.flatten() for part in (out, pool.k, pool.v)])


@pytest.fixture
def llama(tmp_path: Path) -> Case:
    return Case(tiny_models.build("llama", tmp_path))


@pytest.mark.parametrize("variant", tiny_models.VARIANTS)
def test_bits_of_the_single_ops(tmp_path: Path, variant: str) -> None:
    case = Case(tiny_models.build(variant, tmp_path))
    for _ in each_isa():
        want = case.run(ops.layers_by_ops, backend="cpp")
        assert want[: 3 * case.decoder.spec.dim].isfinite().all() and want.any()
        for got in each_thread_count(case.run):
            assert torch.equal(got, want)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_bits_of_the_single_ops_with_codes(tmp_path: Path, quantization: str) -> None:
    case = Case(tiny_models.build("gemma3", tmp_path), quantization=quantization)
    assert torch.equal(case.run(), case.run(ops.layers_by_ops, backend="cpp"))


def test_long_batches_go_through_the_mlp_in_pieces(llama: Case) -> None:
    tree = _core.KVTree(64)
    node = tree.fork(0)
    llama.slots = torch.from_numpy(tree.extend(node, np.arange(600, dtype=np.int32)))
    llama.plan = _core.plan(tree, [node], [600])
    llama.positions = torch.from_numpy(llama.plan.positions)
    llama.x, llama.out_rows = torch.randn(600, llama.decoder.spec.dim), torch.arange(600).flip(0)
    for table in llama.decoder._ropes:
        table.grow(600)
    pool = KVPool(llama.decoder.spec, 64)
    pages = {"k_pages": pool.k, "v_pages": pool.v}
    assert torch.equal(llama.run(**pages), llama.run(ops.layers_by_ops, backend="cpp", **pages))


def test_the_time_is_accounted_for(llama: Case) -> None:
    before = _core.stage_seconds()
    llama.run()
    assert all(b > a for a, b in zip(before, _core.stage_seconds(), strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out_rows": torch.tensor([95])}, r"out_rows\[0\]=95 is outside the 95 rows"),
        ({"out_rows": torch.tensor([1.0])}, "out_rows has dtype"),
        ({"positions": torch.full((95,), 4000, dtype=torch.int32)}, "outside the rotary table"),
        ({"slots": torch.full((95,), PAGES * 16, dtype=torch.int32)}, "outside the pool of 24 pages"),
        ({"x": torch.zeros(95, 8)}, r"x has shape \(95, 8\); expected \(95, 64\)"),
        ({"x": torch.zeros(3, 64)}, "x has 3 rows but the plan has 95"),
        ({"k_pages": torch.zeros(2, PAGES, 2, 32, 16)}, "k_pages has shape"),
        ({"ropes": []}, "the step has 0 rotary tables"),
    ],
)
def test_what_does_not_fit_is_refused(llama: Case, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WcseError, match=message):
        llama.run(**changed)
