"""``wcse bench kernels``: the kernels' benches of a clone, on what this machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from wcse.cli.command import Command, Options
from wcse.types import WcseError

CPU_FILES = ("bench_attention.py", "bench_linear.py", "bench_rows.py", "bench_sample.py")


def kernels(options: Options) -> int:
    """Run the GPU suite where there is a GPU (or for a dry run), else the CPU kernels beside their peers."""
    import torch

    folder = _folder()
    dry, parts = options.get("dry_run", False), options.get("parts", "")
    if dry or torch.cuda.is_available():
        command = [sys.executable, str(folder / "bench_gpu.py")]
        command += ["--dry-run"] * dry + ["--quick"] * options.get("quick", False)
        command += ["--parts", *parts.split(",")] if parts else []
    else:
        if parts:
            raise WcseError(
                f"parts={parts!r}: torch {torch.__version__} finds no GPU; parts are the GPU suite's"
            )
        result = folder / "results" / "latest.json"
        print(f"no GPU: the CPU kernels beside torch; results in {result}")
        command = [sys.executable, "-m", "pytest", "-q", f"--benchmark-json={result}"]
        if options.get("quick"):
            command += ["-k", "rope_write_kv or gated_act or add_rms_norm"]
        command += [str(folder / name) for name in CPU_FILES]
    return subprocess.run(command, cwd=folder.parent, check=False).returncode


def _folder() -> Path:
    import wcse

    folder = Path(wcse.__file__).parents[1] / "bench"
    if not (folder / "bench_gpu.py").is_file():
        raise WcseError(f"wcse bench needs a clone, installed with pip install -e; {folder} holds no benches")
    return folder


COMMANDS = (
    Command(
        "bench kernels",
        "time the kernels beside their peers",
        kernels,
        (
            (
                "parts",
                {
                    "metavar": "P[,P2]",
                    "help": "of the GPU suite: rates, attention, extend, rows, sample, ...",
                },
            ),
            ("quick", {"action": "store_true", "help": "fewer shapes"}),
            (
                "dry-run",
                {"action": "store_true", "help": "run all parts of the GPU suite on the CPU, at toy sizes"},
            ),
        ),
    ),
)
