"""The model of the machine: what must follow from its ceilings, and that the stored figures are its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import roofline
import torch
from gpu_trees import KINDS, Grown, grow

pytest.importorskip("triton")

from wcse.kernels.triton import rates, sampler
from wcse.kernels.triton.rates import Load, loop_instructions

H200 = roofline.MACHINES["h200"]
SHAPE = roofline.SHAPES["1B"]


@pytest.fixture(scope="module")
def beam() -> Grown:
    return grow("beam", leaves=64, depth=10, trees=4)


def test_nothing_is_faster_than_its_slowest_resource(beam: Grown) -> None:
    found = roofline.attention(H200, SHAPE, roofline.list_of(H200, SHAPE, beam.plan))
    parts = found.resources
    assert found.bound < found.seconds
    assert found.seconds <= parts.data + parts.tensor + parts.exponents + parts.issue + found.launches
    assert found.unique / found.seconds < H200.memory


def test_unique_bytes_are_those_of_the_tree(beam: Grown) -> None:
    tokens = len({int(slot) for slots in beam.slots for slot in slots})
    list_ = roofline.list_of(H200, SHAPE, beam.plan)
    assert roofline.attention(H200, SHAPE, list_).unique == tokens * SHAPE.kv
    assert roofline._unique(beam) == tokens


def test_rates_scale(beam: Grown) -> None:
    """Twice the machine is twice as fast but for its launches; a measured one keeps the proportions."""
    twice = replace(
        H200.measured(memory=2 * H200.memory, gemm=2 * H200.gemm), clock=2 * H200.clock, launch=0.0
    )
    once = replace(H200, launch=0.0)
    list_ = roofline.list_of(H200, SHAPE, beam.plan)
    one, two = (roofline.attention(machine, SHAPE, list_).seconds for machine in (once, twice))
    assert one == pytest.approx(2 * two)


@pytest.mark.parametrize("kind", KINDS)
def test_tree_attention_is_never_slower_by_the_model(kind: str) -> None:
    """Than a kernel that reads each sequence; on a chain there is nothing to share and only launches to lose."""
    grown = grow(kind, leaves=64, depth=10, trees=1 if kind == "chain" else 4)
    ours = roofline.attention(H200, SHAPE, roofline.list_of(H200, SHAPE, grown.plan)).seconds
    alone = roofline.per_sequence(H200, SHAPE, grown)
    assert ours < alone + (3e-6 if kind == "chain" else 0.0)


def test_a_step_of_one_row_reads_every_weight_once() -> None:
    step = roofline.decode_step(H200, SHAPE, 0.0, 1)
    assert step.body + step.head == pytest.approx((SHAPE.body + SHAPE.head) * 2 / (0.92 * H200.memory) * 1e3)
    parts = (step.body, step.head, step.attention, step.elementwise, step.sampling, step.launches)
    assert step.total == sum(parts)


def test_shapes_count_what_models_have() -> None:
    """Llama-3.2-1B has 1,235,814,400 parameters: ours, its tied vocabulary, and 33 norms."""
    assert SHAPE.body + SHAPE.head + 33 * SHAPE.hidden == 1_235_814_400
    assert SHAPE.kv * SHAPE.layers == 32_768


def test_assumed_instructions_are_those_counted() -> None:
    """In ``results/static``: the loop of attention within a sixth, and no fewer of the sampler than it has."""
    table = json.loads((roofline.RESULTS / "kernels.json").read_text())["table"]
    hopper = {(row["kernel"], row["shape"]): row for row in table if row["arch"] == "90"}
    for tile, d in ((16, 64), (32, 64), (64, 64), (128, 64), (64, 128), (128, 128)):
        row = hopper["tree_attention", f"M{tile} G4 d{d} bf16"]
        assert loop_instructions(tile, d) == pytest.approx(row["loop"] * row["warps"], rel=1 / 6)
    scan = hopper["sample scan", "bf16"]
    logits = sampler.TILE * sampler.CHUNK / (32 * scan["warps"])  # of a thread
    assert scan["instructions"] / logits <= roofline.SAMPLERS["top-p"][0] * 1.01


def test_published_figures_of_flash_attention_follow() -> None:
    """Tiles of 128 rows, within a sixth, though our loop masks as well; see ``rates.OVERLAP``."""
    for d, published in ((128, 648e12), (64, 497e12)):
        load = Load(tile_m=128, kv_heads=1, head_dim=d, stored=0, read=1e9, items=132)
        found = replace(rates.H200, cache=1e18).resources(load)
        assert 4.0 * 1e9 * 128 * d / found.seconds == pytest.approx(published, rel=1 / 6)


def test_the_stored_figures_are_those_of_the_model() -> None:
    stored = json.loads((roofline.RESULTS / "roofline.json").read_text())
    row = next(r for r in stored["attention"] if (r["model"], r["tree"], r["leaves"]) == ("1B", "dvts", 1024))
    grown = grow("dvts", leaves=64, depth=10, prompt=roofline.PROMPT, trees=16)
    assert row == roofline._attention_row(H200, SHAPE, "dvts", grown)
    assert torch.tensor(list(stored["sampling"].values())).min() > 0
