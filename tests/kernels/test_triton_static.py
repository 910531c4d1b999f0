"""The Triton kernels compiled ahead of time, in processes of their own: see bench/gpu_static.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu_static.py"
LOOPS = {  # most instructions in the loop over pages, sm_90: a little above what Triton 3.9 gives
    "M16 G4 d64 bf16": 285,
    "M32 G4 d64 bf16": 390,
    "M64 G4 d64 bf16": 440,
    "M128 G4 d64 bf16": 420,
    "M64 G4 d128 bf16": 545,
    "M128 G4 d128 bf16": 490,
    "M64 G7 d64 bf16": 440,
    "M64 G4 d64 bf16 fp8": 630,
}
BLOCKS = {"M64 G4 d64 bf16": 4, "M128 G4 d64 bf16": 2}  # that share a processor, sm_90
GATED = [
    *LOOPS,
    "M64 G2 d256 bf16 window softcap",
    "M16 G4 d64 fp32",
    "d64 bf16",
    "d64",
    "d128 fp8",
    "2048 bf16",
]
GATED += ["silu", "bf16", "4096 -> 2", "16 places, 64 steps", "3 machines", ""]


def compile_kernels(*arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout)["table"]


def test_hopper() -> None:
    """No spills, shared memory below the limit, tensor cores and asynchronous copies in use, short loops."""
    table = compile_kernels("--arch", "90", "--shapes", *GATED)
    kernels = {row["kernel"] for row in table}
    assert kernels >= {"tree_attention", "merge", "rope_write_kv", "add_rms_norm", "score_steps"}
    assert kernels >= {"sample scan", "sample pick", "sample wide"}
    assert kernels >= {"advance", "grow", "enter_groups", "gated_act"}
    assert not [(row["kernel"], row["shape"], row["failures"]) for row in table if row["failures"]]
    attention = {row["shape"]: row for row in table if row["kernel"] == "tree_attention"}
    assert {shape: attention[shape]["blocks"] for shape in BLOCKS} == BLOCKS
    loops = {row["shape"]: row["loop"] for row in table if row["kernel"] == "tree_attention"}
    assert not {shape: (loops[shape], most) for shape, most in LOOPS.items() if loops[shape] > most}


def test_the_stored_table_is_whole_and_passes() -> None:
    """``bench/results/static/kernels.json``: every device, no gate missed; the gated ones as compiled here."""
    stored = json.loads((SCRIPT.parent / "results/static/kernels.json").read_text())
    assert {row["arch"] for row in stored["table"]} == {"80", "90", "100", "gfx942"}
    assert not [row for row in stored["table"] if row["failures"]]
    hopper = {(row["kernel"], row["shape"]) for row in stored["table"] if row["arch"] == "90"}
    assert {("tree_attention", shape) for shape in LOOPS} < hopper


@pytest.mark.parametrize("arch", ["80", "100", "gfx942"])
def test_other_devices(arch: str) -> None:
    shapes = ["M64 G4 d64 bf16", "M16 G4 d64 fp32"]
    table = compile_kernels("--arch", arch, "--shapes", *shapes, "d64", "bf16", "3 machines")
    assert len(table) == 7
    assert not [(row["kernel"], row["shape"], row["failures"]) for row in table if row["failures"]]
