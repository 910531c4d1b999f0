"""Exactly once: kills, full disks, lost workers, poison problems; a resumed run equals an unkilled one."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import crash_lab
import pytest
import synth_runs

from wcse.data.disk import Disk, temporary
from wcse.data.journal import Journal
from wcse.synth.outputs import read_synth, write_synth
from wcse.synth.ray_pool import Seat
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import Unit
from wcse.synth.run import OnRecord, Task, finished, stored_totals, synthesize
from wcse.synth.workers import WorkerPool, task_to_json
from wcse.types import Problem, WcseError

LAB = Path(__file__).with_name("crash_lab.py")


def test_two_hundred_kills_and_a_hundred_thousand_crash_points_lose_and_double_nothing() -> None:
    """In a process of its own, for it forks."""
    path = os.pathsep.join([str(LAB.parent), *sys.path])
    command = [sys.executable, str(LAB), "--kills=200", "--points=100000", "--seed=7"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(
        r"(\d+) kills in (\d+) runs .(\d+) left a torn record, (\d+) an unsealed file., (\d+) crash points: 0 faults",
        done.stdout,
    )
    assert (
        found
        and int(found[1]) == 200
        and int(found[3]) > 0
        and int(found[4]) > 0
        and int(found[5]) >= 100_000
    )


def test_the_lab_notices_a_doubled_and_a_lost_record(tmp_path: Path) -> None:
    recipe, todo = synth_runs.recipe(), synth_runs.problems(3)
    crash_lab.work(tmp_path, recipe, todo)
    before = crash_lab.content(tmp_path)
    path = tmp_path / "journal.tsv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert crash_lab.content(tmp_path) != before
    path.write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(AssertionError, match="is there twice"):
        crash_lab.content(tmp_path)


class _Full(Disk):
    """Writes that fit, until they do not."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def write(self, fd: int, data: bytes) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        pass


def _derive(folder: Path, recipe: SynthRecipe, todo: Sequence[Problem], **options: Any) -> str:
    with synth_runs.open_journal(folder, recipe, todo, **options) as journal:
        totals, balances = synthesize(
            recipe, todo, journal, synth_runs.FakeExecutor(recipe), synth_runs.SIZES
        )
    return write_synth(folder, recipe, totals, balances, synth_runs.SIZES).digest


@pytest.mark.parametrize("writes", [1, 2, 5, 11, 23])
def test_a_full_disk_stops_cleanly_and_resumes_to_the_same_digest(tmp_path: Path, writes: int) -> None:
    recipe, todo = synth_runs.recipe(), synth_runs.problems(6)
    with pytest.raises(WcseError, match="free some space, then run the same command again"):
        _derive(tmp_path / "rough", recipe, todo, disk=_Full(writes))
    assert not finished(
        recipe, [p.id for p in todo], stored_totals(tmp_path / "rough", recipe), synth_runs.SIZES
    )
    assert _derive(tmp_path / "rough", recipe, todo) == _derive(tmp_path / "calm", recipe, todo)
    assert finished(recipe, [p.id for p in todo], stored_totals(tmp_path / "rough", recipe), synth_runs.SIZES)


def test_the_next_samples_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    made = threading.Event()

    class Slow(synth_runs.NoSync):
        slow = False

        def fsync(self, fd: int) -> None:
            assert not self.slow or made.wait(60), "the executor waited"

    class Executor(synth_runs.FakeExecutor):
        def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
            super().run(tasks, on_record)
            made.set()

    recipe, todo, disk = synth_runs.recipe(samplers={"wc": {"model": "weak"}}), synth_runs.problems(6), Slow()
    with synth_runs.open_journal(tmp_path, recipe, todo, disk=disk) as journal:
        disk.slow = True
        synthesize(recipe, todo, journal, Executor(recipe), synth_runs.SIZES)
        assert len(journal.done) == 6  # but it does not end before all is stored


def test_what_killed_processes_left_goes_and_a_living_ones_or_another_hosts_file_stays(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = temporary(tmp_path / "card")
    left = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{dead.pid}."))
    elsewhere = f".card.another-host.{dead.pid}.tmp"
    for path in (mine, left, tmp_path / elsewhere, tmp_path / ".other.tmp"):
        path.touch()
    synth_runs.open_journal(tmp_path, synth_runs.recipe(), synth_runs.problems(1)).close()
    assert {path.name for path in tmp_path.glob(".*")} == {mine.name, elsewhere, ".other.tmp"}


def test_a_finished_run_does_nothing_again(tmp_path: Path) -> None:
    recipe, todo = synth_runs.recipe(), synth_runs.problems(5)
    _derive(tmp_path, recipe, todo)
    executor = synth_runs.FakeExecutor(recipe)
    with synth_runs.open_journal(tmp_path, recipe, todo) as journal:
        synthesize(recipe, todo, journal, executor, synth_runs.SIZES)
    assert not executor.units


def test_a_changed_recipe_is_refused_with_the_fields_name(tmp_path: Path) -> None:
    todo = synth_runs.problems(3)
    _derive(tmp_path, synth_runs.recipe(), todo)
    samplers = {"wc": {"model": "weak", "temperature": 0.7}, "se": {"model": "strong"}}
    with pytest.raises(WcseError, match=r"samplers\.wc\.temperature was 0\.8, now 0\.7"):
        synth_runs.open_journal(tmp_path, synth_runs.recipe(samplers=samplers), todo)
    with pytest.raises(WcseError, match="n was 3, now 4"):
        synth_runs.open_journal(tmp_path, synth_runs.recipe(n=4), todo)
    with pytest.raises(WcseError, match=r"samplers\.wc\.model changed"):
        header = synth_runs.header(synth_runs.recipe(), todo)
        Journal.open(tmp_path, replace(header, inputs={"samplers.wc.model": "ab" * 32}))


# --- workers


def _pool(recipe: SynthRecipe, workers: int, folder: Path) -> WorkerPool:
    folder.mkdir(exist_ok=True)
    return WorkerPool(recipe, workers, (sys.executable, "-m", "synth_worker", str(folder)))


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(LAB.parent), *sys.path]))


def test_workers_that_die_cost_nothing_and_poison_becomes_a_failure(tmp_path: Path) -> None:
    recipe = synth_runs.recipe(match="samples", n=2, unit_seconds=20)
    todo = synth_runs.problems(14)
    does = {2: "kill once", 5: "noise", 8: "kill", 9: "kill once"}
    marked = [replace(p, meta={**p.meta, "does": does.get(i)}) for i, p in enumerate(todo)]
    with (
        synth_runs.open_journal(tmp_path / "pool", recipe, marked) as journal,
        _pool(recipe, 2, tmp_path / "marks") as pool,
    ):
        totals, _ = synthesize(recipe, marked, journal, pool, synth_runs.SIZES)
    records = list(read_synth(tmp_path / "pool"))
    assert len({record.key for record in records}) == len(records) == 28
    failed = {record.problem.id: record.failure for record in records if record.failure}
    assert set(failed) == {"p8"} and totals.failures == 2
    failure = failed["p8"]
    assert (
        failure is not None
        and failure.kind == "worker_died"
        and "3 workers were lost on it" in failure.message
    )
    with synth_runs.open_journal(tmp_path / "here", recipe, todo) as journal:
        synthesize(recipe, todo, journal, synth_runs.FakeExecutor(recipe), synth_runs.SIZES)
    here = {record.key: record for record in read_synth(tmp_path / "here")}
    for record in records:
        if record.solved is not None:
            other = here[record.key].solved
            assert other is not None and record.solved.nodes == other.nodes


def test_a_hung_worker_is_killed(tmp_path: Path) -> None:
    recipe = synth_runs.recipe(match="samples", n=1, unit_seconds=1.0, samplers={"wc": {"model": "weak"}})
    todo = [
        replace(p, meta={**p.meta, "does": "hang" if i == 1 else None})
        for i, p in enumerate(synth_runs.problems(3))
    ]
    with (
        synth_runs.open_journal(tmp_path / "run", recipe, todo) as journal,
        _pool(recipe, 1, tmp_path / "marks") as pool,
    ):
        synthesize(recipe, todo, journal, pool, {"wc": synth_runs.SIZES["wc"]})
    failures = {record.problem.id: record.failure for record in read_synth(tmp_path / "run")}
    assert failures["p0"] is None and failures["p2"] is None
    hung = failures["p1"]
    assert hung is not None and hung.kind == "timeout" and "silent for 1 s" in hung.message


def test_workers_that_cannot_work_are_one_error(tmp_path: Path) -> None:
    recipe, todo = synth_runs.recipe(), synth_runs.problems(6)
    for command, message in (
        ((sys.executable, "-c", "raise SystemExit(7)"), r"workers ended without a result \(exit code 7\)"),
        (("/nonexistent/worker",), "cannot start"),
    ):
        with (
            synth_runs.open_journal(tmp_path, recipe, todo) as journal,
            WorkerPool(recipe, 2, command) as pool,
            pytest.raises(WcseError, match=message),
        ):
            synthesize(recipe, todo, journal, pool, synth_runs.SIZES)


# --- what runs inside an actor of a cluster; the cluster itself is in test_ray.py


def _tasks(count: int) -> list[dict[str, Any]]:
    return [task_to_json((Unit("wc", 0, p.id, 2), p)) for p in synth_runs.problems(count)]


def test_a_seat_streams_records_as_they_are_made() -> None:
    recipe = synth_runs.recipe(threads=1)
    seat = Seat(recipe.model_dump(mode="json"), {}, synth_runs.FakeExecutor)
    begun, *rows = seat.run(_tasks(3))
    found = dict(row for row in rows if row is not None)
    assert begun is None and len(found) == 3
    for name in ("p0", "p1", "p2"):
        problem = synth_runs.problem(int(name[1]))
        record = synth_runs.fake_record(recipe, Unit("wc", 0, name, 2), problem)
        assert found[record.key] == record.to_json()


def test_a_seat_refuses_other_models_and_passes_errors_on() -> None:
    recipe = synth_runs.recipe(samplers={"wc": {"model": "tiny-wc"}}).model_dump(mode="json")
    with pytest.raises(WcseError, match=r"samplers\.wc\.model: a worker's node has another model"):
        list(Seat(recipe, {"samplers.wc.model": "ab" * 32}, synth_runs.FakeExecutor).run(_tasks(1)))

    def broken(_: SynthRecipe) -> Any:
        raise WcseError("no such model")

    with pytest.raises(WcseError, match="no such model"):
        list(Seat(recipe, {}, broken).run(_tasks(1)))
