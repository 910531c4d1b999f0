"""Kills data runs with SIGKILL, and cuts journals at every byte. Used by the tests and, at size, by itself:

``python tests/crash_lab.py --kills 10000 --points 10000000`` (``make campaign``) prints what it did and how many
rows were lost or doubled; it exits with 1 if any was.

Imports nothing heavy, so that it may fork: each kill is of a real process that runs the real loop with an
executor that needs no model.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import synth_runs

from wcse.data.journal import FILE, _frame, _scan_lines
from wcse.synth.recipe import SynthRecipe
from wcse.synth.run import synthesize
from wcse.types import Problem


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
    points: int = 0
    faults: int = 0

    def __str__(self) -> str:
        trials = max(1, self.kills + self.points)
        return (
            f"{self.kills} kills in {self.runs} runs ({self.torn} left a torn record), {self.points} crash points: "
            f"{self.faults} faults; with none the rate is below {3 / trials:.1g} (95 %)"
        )


def work(folder: Path, recipe: SynthRecipe, todo: Sequence[Problem]) -> None:
    """The run itself: resumes what is there."""
    with synth_runs.open_journal(folder, recipe, todo, disk=ShortWrites()) as journal:
        synthesize(
            recipe, todo, journal, synth_runs.FakeExecutor(recipe, order=os.getpid()), synth_runs.SIZES
        )


def content(folder: Path) -> dict[bytes, bytes]:
    """Key -> body of every record; a key that occurs twice raises."""
    records: dict[bytes, bytes] = {}
    for line in (folder / FILE).read_bytes().splitlines()[1:]:
        _, _, key, body = line.split(b"\t", 3)
        assert key not in records, f"{key!r} is there twice"
        records[key] = body
    return records


def killed_runs(kills: int, seed: int, tally: Tally) -> None:
    """Start runs, kill each some times at random moments, let it end, compare it with an unkilled run."""
    rng = random.Random(seed)
    todo = synth_runs.problems(12)
    while tally.kills < kills:
        recipe = synth_runs.recipe(seed=rng.randrange(1000), n=rng.randrange(1, 4))
        with tempfile.TemporaryDirectory() as name:
            calm, rough = Path(name, "calm"), Path(name, "rough")
            start = time.perf_counter()
            _wait(_fork(calm, recipe, todo))
            seconds = time.perf_counter() - start
            done = False
            while not done and tally.kills < kills:
                child = _fork(rough, recipe, todo)
                time.sleep(rng.random() * seconds * 0.6)
                os.kill(child, signal.SIGKILL)
                done = _wait(child) == 0
                tally.kills += not done
                path = rough / FILE
                tally.torn += path.exists() and not path.read_bytes().endswith(b"\n")
            _wait(_fork(rough, recipe, todo))
            tally.runs += 1
            tally.faults += content(calm) != content(rough)


def _fork(folder: Path, recipe: SynthRecipe, todo: Sequence[Problem]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(folder, recipe, todo)
        code = 0
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_points(points: int, seed: int, tally: Tally) -> None:
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
    args = parser.parse_args()
    tally = Tally()
    print(f"seed {args.seed}", flush=True)
    crash_points(args.points, args.seed, tally)
    print(f"{tally.points} crash points done, {tally.faults} faults; now the kills", flush=True)
    killed_runs(args.kills, args.seed, tally)
    print(tally)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
