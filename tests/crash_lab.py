"""Kills data runs with SIGKILL, and cuts journals at every byte. Used by the tests and, at size, by itself:

``python tests/crash_lab.py --kills 10000 --points 10000000`` (``make campaign``) prints what it did and how many
rows were lost or doubled; it exits with 1 if any was.

Imports no torch and computes nothing itself, so that it may fork: each kill is of a real process that runs the real
loop with an executor that needs no model. Records have up to a megabyte; every fourth run also derives and seals its
files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import synth_runs

from wcse.data.disk import Disk, atomic_file
from wcse.data.journal import FILE, _frame, _scan_lines
from wcse.synth.outputs import MANIFEST, write_synth
from wcse.synth.recipe import EXPORTS, SynthRecipe
from wcse.synth.run import synthesize
from wcse.types import Problem

_PADDINGS = (0,) * 60 + (2_000,) * 30 + (100_000,) * 9 + (1_000_000,)
"""Characters that problems of a run have besides their own, by lot."""

_KILLS_A_RUN = 10
"""At most: sealing starts anew each time, and would never end."""


class ShortWrites(synth_runs.NoSync):
    """Writes a third at a time, so that kills hit the middle of records."""

    def write(self, fd: int, data: bytes) -> int:
        return super().write(fd, data[: max(1, len(data) // 3)])


@dataclass
class Tally:
    """What a campaign found."""

    runs: int = 0
    kills: int = 0
    torn: int = 0
    unsealed: int = 0
    points: int = 0
    faults: int = 0

    def __str__(self) -> str:
        trials = max(1, self.kills + self.points)
        left = f"{self.torn} left a torn record, {self.unsealed} an unsealed file"
        return (
            f"{self.kills} kills in {self.runs} runs ({left}), {self.points} crash points: {self.faults} faults; "
            f"with none the rate is below {3 / trials:.1g} (95 %)"
        )


def work(folder: Path, recipe: SynthRecipe, todo: Sequence[Problem], *, seal: bool = False) -> None:
    """The run itself: resumes what is there; ``seal`` derives the files, too."""
    executor = synth_runs.FakeExecutor(recipe, order=os.getpid())
    with synth_runs.open_journal(folder, recipe, todo, disk=ShortWrites()) as journal:
        totals, balances = synthesize(recipe, todo, journal, executor, synth_runs.SIZES)
        if seal:
            write_synth(folder, recipe, totals, balances, synth_runs.SIZES)


def content(folder: Path) -> dict[bytes, bytes]:
    """Key -> body of every record, name -> content of every sealed file; a key that occurs twice raises."""
    records: dict[bytes, bytes] = {}
    for line in (folder / FILE).read_bytes().splitlines()[1:]:
        _, _, key, body = line.split(b"\t", 3)
        assert key not in records, f"{key!r} is there twice"
        records[key] = body
    sealed = [folder / MANIFEST, *(folder / "data").glob("[!.]*")]
    left = [*folder.rglob(".*.tmp")]
    assert not left, f"{left} were left behind"
    return records | {path.name.encode(): path.read_bytes() for path in sealed if path.exists()}


def killed_runs(kills: int, seed: str, tally: Tally) -> None:
    """Start runs, kill each some times at random moments, let it end, compare it with an unkilled run."""
    rng = random.Random(seed)
    while tally.kills < kills:
        padding = "x" * rng.choice(_PADDINGS)
        todo = [replace(p, prompt=f"{p.prompt} {padding}") for p in synth_runs.problems(12)]
        recipe = synth_runs.recipe(
            seed=rng.randrange(1000), n=rng.randrange(1, 4), export=EXPORTS, rows_per_shard=10
        )
        seal = tally.runs % 4 == 3
        with tempfile.TemporaryDirectory() as name:
            calm, rough = Path(name, "calm"), Path(name, "rough")
            start = time.perf_counter()
            _wait(_fork(calm, recipe, todo, seal))
            seconds = time.perf_counter() - start
            done, last = False, min(kills, tally.kills + _KILLS_A_RUN)
            while not done and tally.kills < last:
                child = _fork(rough, recipe, todo, seal)
                time.sleep(rng.random() * seconds * 0.6)
                os.kill(child, signal.SIGKILL)
                done = _wait(child) == 0
                tally.kills += not done
                path = rough / FILE
                tally.torn += path.exists() and not path.read_bytes().endswith(b"\n")
                tally.unsealed += any(rough.rglob(".*.tmp"))
            tally.faults += _wait(_fork(rough, recipe, todo, seal)) != 0
            tally.runs += 1
            tally.faults += content(calm) != content(rough)


def _fork(folder: Path, recipe: SynthRecipe, todo: Sequence[Problem], seal: bool) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        Disk.fsync = synth_runs.NoSync.fsync  # type: ignore[method-assign]
        work(folder, recipe, todo, seal=seal)
        code = 0
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_points(points: int, seed: str, tally: Tally) -> None:
    """Cut small journals at every byte, in three ways, resume each, and compare with the whole one.

    A crash leaves a prefix; or a prefix and zeros, where the length was written before the data; or a prefix and
    garbage, from a page that was half written.
    """
    rng = random.Random(seed)
    path = Path("journal")
    while tally.points < points:
        records = [_small(rng, index) for index in range(rng.randrange(2, 5))]
        header = _frame(
            "wcse", {"format": 1, "problems": [], "recipe": {"seed": 1}, "inputs": {}, "versions": {}}
        )
        whole = header + b"".join(records)
        ends = [len(header)]
        for record in records:
            ends.append(ends[-1] + len(record))
        for cut in range(len(header), len(whole) + 1):
            for tail in (b"", b"\0" * rng.randrange(1, 60), rng.randbytes(rng.randrange(1, 60))):
                left = whole[:cut] + (tail if cut < len(whole) else b"")
                scan = _scan_lines(path, _lines(left))
                whole_ends = [end for end in ends if left[:end] == whole[:end]]
                survivors = len(whole_ends) - 1
                resumed = left[: scan.end] + b"".join(records[survivors:])
                good = len(scan.places) == survivors and scan.end == whole_ends[-1] and resumed == whole
                tally.faults += not good
                tally.points += 1
            if tally.points >= points:
                return


def _lines(data: bytes) -> list[bytes]:
    """Lines as a file gives them: split at newlines alone."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _small(rng: random.Random, index: int) -> bytes:
    return _frame([f"p{index}", "wc/0000"], {"n": 1, "text": "x" * rng.randrange(40)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--state", type=Path, help="file of the tally; the same command goes on from it")
    args = parser.parse_args()
    tally, seed = Tally(), args.seed
    if args.state and args.state.exists():
        stored = json.loads(args.state.read_text())
        tally, seed = Tally(**stored["tally"]), stored["seed"]
    print(f"seed {seed}", flush=True)

    def save() -> None:
        if args.state:
            with atomic_file(args.state) as file:
                file.write(json.dumps({"seed": seed, "tally": asdict(tally)}).encode())

    while tally.points < args.points:
        crash_points(min(args.points, tally.points + 100_000), f"{seed} points {tally.points}", tally)
        save()
    print(f"{tally.points} crash points done, {tally.faults} faults; now the kills", flush=True)
    while tally.kills < args.kills:
        killed_runs(min(args.kills, tally.kills + 100), f"{seed} kills {tally.kills}", tally)
        save()
    print(tally)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
