"""The profile accounts for all of the time and tells kernels from the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wcse import LLM, SamplingParams
from wcse.cli import main
from wcse.profile import PARTS, Profile


def test_a_generation_is_accounted_for_by_what_it_did() -> None:
    llm = LLM("tiny-wc", max_num_seqs=64)
    with Profile() as profile:
        llm.generate(["<|user|>Calculate 17 + 25.<|assistant|>"], SamplingParams(n=48, max_tokens=48))
    times = profile.times
    assert set(times.parts) == set(PARTS)
    assert 0.95 < times.explained <= 1.0
    assert min(times.parts.values()) >= 0
    for part in ("weight GEMMs", "lm_head", "attention", "sampling", "tree, plan, text", "Python"):
        assert times.parts[part] > 0, part
    assert times.table().splitlines()[-1].startswith("accounted for")


def test_solve_prints_and_keeps_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"problem": "Calculate 2 + 2.", "answer": "4"}\n')
    command = [
        "solve",
        "--policy=tiny-wc",
        f"--problems={problems}",
        "--strategy=majority",
        "--max-tokens=16",
    ]
    assert main([*command, f"--out={tmp_path / 'run'}", "--profile"]) == 0
    assert "accounted for" in capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert kept["explained"] > 0.95 and set(kept["seconds"]) == set(PARTS)
