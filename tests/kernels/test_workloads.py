"""Stored workloads: trees of real searches, and their export as paged decode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import workloads
from safetensors.torch import load_file


def test_stored_trees_are_those_of_searches() -> None:
    stored = workloads.saved()
    assert {w.name for w in stored} == {"tiny-wc-dvts", "tiny-wc-beam_search"}
    for workload in stored:
        grown = workload.grow()
        assert grown.plan.n_rows == len(workload.leaves) >= 64
        seen = sum(map(len, grown.slots))
        assert seen > 2 * len(
            {int(slot) for slots in grown.slots for slot in slots}
        )  # there is much to share


def test_export_states_every_sequence(tmp_path: Path) -> None:
    workload = workloads.Workload("small", "made", [-1, 0, 0, 1], [20, 3, 17, 5], [2, 3])
    workloads.export(tmp_path, [workload], [(4, 2, 8)])
    about = json.loads((tmp_path / "definitions/gqa_paged/gqa_paged_decode_h4_kv2_d8_ps16.json").read_text())
    line = json.loads((tmp_path / "workloads/gqa_paged/gqa_paged_decode_h4_kv2_d8_ps16.jsonl").read_text())
    assert line["definition"] == about["name"] and set(line["workload"]["inputs"]) == set(about["inputs"])
    axes = line["workload"]["axes"]
    assert set(axes) == {name for name, axis in about["axes"].items() if axis["type"] == "var"}
    entry = line["workload"]["inputs"]["kv_indices"]
    tensors = load_file(tmp_path / entry["path"])
    assert tensors["kv_indptr"].tolist() == [0, 4, 8] and axes["num_kv_indices"] == 8
    assert sorted(tensors["kv_last_page_len"].tolist()) == [1, 5]
    grown = workload.grow()
    for row, slots in enumerate(grown.slots):
        mine = tensors["kv_indices"][tensors["kv_indptr"][row] : tensors["kv_indptr"][row + 1]]
        assert mine.tolist() == list(dict.fromkeys((slots // 16).tolist()))
    space: dict = {}
    exec(about["reference"], space)  # our own text, made above
    pools = torch.randn(2, grown.pages, 16, 2, 8)
    q = torch.randn(2, 4, 8)
    names = ("kv_indptr", "kv_indices", "kv_last_page_len")
    out = space["run"](q, pools[0], pools[1], *(tensors[n] for n in names), 8**-0.5)["output"]
    assert out.shape == q.shape and bool(out.isfinite().all())


def test_a_missing_tree_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        workloads.Workload.load(tmp_path / "none.json")
