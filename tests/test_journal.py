"""The journal's promises: nothing acknowledged is lost, nothing is there twice, recipes never mix."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import sample_runs

from wcse.data.disk import Disk, atomic_file
from wcse.data.fingerprint import fingerprint_path, fingerprint_problems
from wcse.data.journal import FILE, Header, Journal, _frame, read_header, read_records
from wcse.data.record import NodeRecord, SolveRecord
from wcse.ledger import Ledger
from wcse.recipe import Recipe
from wcse.types import Finish, Node, Problem, WcseError

HEADER = sample_runs.header()


def fill(folder: Path, *records: SolveRecord, header: Header = HEADER) -> None:
    with Journal.open(folder, header, disk=_NoSync()) as journal:
        for record in records:
            journal.append(record)


def stored(folder: Path) -> list[tuple[str, str]]:
    return [record.key for record in read_records(folder)]


# records


def test_record_round_trip_is_exact() -> None:
    for record in sample_runs.run(problems=2):
        assert SolveRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_record_is_total_on_text_and_numbers(tmp_path: Path) -> None:
    text = "\ud800 lone \udfff, \x00, \u2028, \r\n\t tab, \U0001f600, </script>"
    base = sample_runs.record()
    odd = NodeRecord((0,), None, (1,), text, "eos", float("nan"), float("inf"))
    nasty = replace(base, problem=Problem(text, text, text, {text: text}), nodes=(odd,), answer=text)
    fill(tmp_path, nasty)
    (back,) = read_records(tmp_path)
    assert back.problem == nasty.problem and back.answer == text and back.nodes[0].text == text
    assert back.nodes[0].logprob is None and back.nodes[0].score is None
    assert nasty.key in Journal.open(tmp_path, HEADER).done


def test_record_of_a_search_node() -> None:
    root = Node(None, (), (1, 2))
    node = Node(root, (3,), (5, 6), text="hi", finish=Finish.EOS, logprobs=(-0.5, -0.25), score=0.5)
    assert NodeRecord.of(node) == NodeRecord((3,), None, (5, 6), "hi", "eos", -0.75, 0.5)
    child = Node(node, (3, 0), (7,), finish=Finish.ERROR, logprobs=(float("nan"),))
    assert NodeRecord.of(child).parent == (3,) and NodeRecord.of(child).logprob is None


def test_independent_samples_are_told_from_searches() -> None:
    assert sample_runs.record(strategy="best_of_n").independent
    assert sample_runs.record(strategy="greedy").independent
    assert not sample_runs.record(strategy="beam_search").independent


def test_ledgers_add_and_page_counts_take_the_maximum() -> None:
    total = Ledger(1, 2, 3, 4, 5, kv_pages=6, kv_pages_unshared=9, seconds=0.5) + Ledger(
        10, kv_pages=4, seconds=1.0
    )
    assert total == Ledger(11, 2, 3, 4, 5, kv_pages=6, kv_pages_unshared=9, seconds=1.5)
    assert Ledger.from_json(total.to_json()) == total


# append and resume


def test_resume_knows_what_is_done_and_appends_after_it(tmp_path: Path) -> None:
    records = sample_runs.run(problems=2)
    fill(tmp_path, *records[:5])
    with Journal.open(tmp_path, HEADER) as journal:
        assert journal.done == {record.key for record in records[:5]}
        assert (journal.torn, journal.damaged) == (0, 0)
        journal.append(records[5])
    assert list(read_records(tmp_path)) == records[:6]
    assert read_header(tmp_path) == HEADER


def test_the_same_key_is_refused_twice(tmp_path: Path) -> None:
    with Journal.open(tmp_path, HEADER) as journal:
        journal.append(sample_runs.record())
        with pytest.raises(ValueError, match="already in the journal"):
            journal.append(sample_runs.record())


def test_body_column_is_plain_json(tmp_path: Path) -> None:
    fill(tmp_path, sample_runs.record())
    for line in (tmp_path / FILE).read_text(encoding="ascii").splitlines():
        json.loads(line.split("\t")[3])


@pytest.mark.parametrize("cut", [1, 2, 17, 400])
def test_torn_tail_is_cut_and_the_record_is_done_again(tmp_path: Path, cut: int) -> None:
    records = sample_runs.run(problems=1)[:3]
    fill(tmp_path, *records)
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal.open(tmp_path, HEADER) as journal:
        assert journal.torn > 0 and journal.damaged == 0
        assert journal.done == {record.key for record in records[:2]}
        journal.append(records[2])
    assert path.read_bytes() == whole


def test_every_cut_of_a_journal_can_be_resumed(tmp_path: Path) -> None:
    small = [
        replace(record, nodes=(), solutions=(), selectors={}) for record in sample_runs.run(problems=1)[:3]
    ]
    fill(tmp_path, *small)
    path = tmp_path / FILE
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    near = {end + offset for end in ends for offset in (-2, -1, 0, 1, 2, 10, 20)}
    for size in sorted({*near, *range(ends[0], len(whole), 13)} & {*range(ends[0], len(whole))}):
        path.write_bytes(whole[:size])
        with Journal.open(tmp_path, HEADER, disk=_NoSync()) as journal:
            assert len(journal.done) == sum(end <= size for end in ends[1:])
        assert path.stat().st_size == max(end for end in ends if end <= size)


def test_damage_before_intact_records_costs_only_the_damaged_one(tmp_path: Path) -> None:
    records = sample_runs.run(problems=1)[:3]
    fill(tmp_path, *records)
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    lines = data.splitlines(keepends=True)
    data[len(lines[0]) + len(lines[1]) + 40] ^= 1
    path.write_bytes(data)
    with Journal.open(tmp_path, HEADER) as journal:
        assert journal.damaged == 1 and journal.torn == 0
        assert journal.done == {records[0].key, records[2].key}
        journal.append(records[1])
    assert sorted(stored(tmp_path)) == sorted(record.key for record in records)


def test_a_repeated_line_counts_once_and_a_wrong_length_not_at_all(tmp_path: Path) -> None:
    record = sample_runs.record()
    fill(tmp_path, record)
    path = tmp_path / FILE
    head, line = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + line + line)
    assert stored(tmp_path) == [record.key]
    crc, length, content = line.split(b"\t", 2)
    path.write_bytes(head + b"\t".join([crc, b"%d" % (int(length) + 1), content]))
    assert stored(tmp_path) == []


def test_a_foreign_or_damaged_header_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for content in (b"", b"my own table\t1\n", b"0\t1\t2\n" * 3):
        path.write_bytes(content)
        with pytest.raises(WcseError, match="not an intact wcse header; nothing was changed"):
            Journal.open(tmp_path, HEADER)
        assert path.read_bytes() == content


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(_frame("wcse", asdict(replace(HEADER, format=99))))
    with pytest.raises(WcseError, match="format 99, but this version reads format 1"):
        read_header(tmp_path)


# recipes never mix


CHANGES: dict[str, object] = {
    "budget": "tokens=5000",
    "policy": "other",
    "prm": "other",
    "prm_family": "token_classification",
    "quantization": "int8",
    "problems": "other",
    "limit": 2,
    "strategies": ("greedy",),
    "n": 16,
    "beam_width": 2,
    "num_iterations": 5,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "max_tokens": 64,
    "max_step_tokens": 16,
    "delimiter": "\n",
    "agg_strategy": "min",
    "seed": 43,
    "system_prompt": "Be brief.",
    "few_shot": "grade_school",
    "kv_cache_dtype": "float16",
}
RUNTIME: dict[str, object] = {"batch_size": 3, "kv_memory_gb": 1.0, "threads": 1, "out": "elsewhere"}


NOT_ALONE = ("strategy_policy", "prm_quantization", "few_shot_k")  # they need another field


def test_every_field_is_classified() -> None:
    by_effect = {name: Recipe.effect(name) for name in Recipe.model_fields}
    assert {name for name, effect in by_effect.items() if effect == "results"} == {*CHANGES, *NOT_ALONE}
    assert {name for name, effect in by_effect.items() if effect == "runtime"} == set(RUNTIME)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_is_refused_and_named(tmp_path: Path, name: str) -> None:
    fill(tmp_path, sample_runs.record())
    changed = sample_runs.recipe(**{name: CHANGES[name]})
    assert changed.diff(sample_runs.recipe()) == [name]
    assert changed.digest != sample_runs.recipe().digest
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(WcseError, match="holds a run of another recipe") as caught:
        Journal.open(tmp_path, replace(HEADER, recipe=changed.results()))
    message = str(caught.value)
    old, new = sample_runs.recipe().results()[name], changed.results()[name]
    assert f"{name} was {json.dumps(old)}, now {json.dumps(new)};" in message and "--out" in message
    assert message.count(" was ") == 1
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("name", RUNTIME)
def test_runtime_fields_may_change(tmp_path: Path, name: str) -> None:
    fill(tmp_path, sample_runs.record())
    changed = sample_runs.recipe(**{name: RUNTIME[name]})
    assert changed.digest == sample_runs.recipe().digest and not changed.diff(sample_runs.recipe())
    with Journal.open(tmp_path, replace(HEADER, recipe=changed.results())) as journal:
        assert len(journal.done) == 1


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, sample_runs.record())
    with pytest.raises(
        WcseError, match="the content of problems changed \\(fingerprint abababababab, now cdcd"
    ):
        Journal.open(tmp_path, replace(HEADER, inputs={"problems": "cd" * 32}))


def test_a_journal_without_records_takes_the_new_recipe(tmp_path: Path) -> None:
    fill(tmp_path)
    other = sample_runs.header(seed=5)
    fill(tmp_path, sample_runs.record(), header=other)
    assert read_header(tmp_path) == other


def test_other_versions_may_resume(tmp_path: Path) -> None:
    fill(tmp_path, sample_runs.record())
    with Journal.open(tmp_path, replace(HEADER, versions={"wcse": "9"})) as journal:
        assert len(journal.done) == 1


def test_recipe_refuses_what_it_does_not_know() -> None:
    good = {"policy": "p", "problems": "q"}
    cases = {
        "unknown option 'temprature' (did you mean 'temperature'?)": good | {"temprature": 1},
        "policy is missing": {"problems": "q"},
        "temperature=-1: Input should be greater than or equal to 0": good | {"temperature": -1},
        "temperature=nan: Input should be a finite number": good | {"temperature": float("nan")},
        "strategy='dtvs' is unknown (did you mean 'dvts'?)": good | {"strategies": ["dtvs"]},
        "a strategy is given twice": good | {"strategies": ["greedy", "greedy"]},
        "strategy dvts needs a verifier; set prm": good | {"strategies": ["dvts"]},
        "n=6 is not divisible by beam_width=4; use n=4 or 8": good
        | {"prm": "r", "strategies": ["beam"], "n": 6},
        "agg_strategy='mode' is unknown": good | {"agg_strategy": "mode"},
    }
    for expected, options in cases.items():
        with pytest.raises(WcseError) as caught:
            Recipe.parse(options)
        assert expected in str(caught.value) and "\n" not in str(caught.value)


# one writer


def test_a_second_process_is_refused_and_a_dead_one_does_not_hold(tmp_path: Path) -> None:
    script = (
        "import sys, sample_runs\n"
        "from wcse.data.journal import Journal\n"
        "journal = Journal.open(sys.argv[1], sample_runs.header())\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with _python(script, str(tmp_path)) as child:
        assert child.stdout is not None and child.stdout.readline() == b"open\n"
        with pytest.raises(WcseError, match=f"in use by another wcse process \\(pid {child.pid}\\)"):
            Journal.open(tmp_path, HEADER)
        assert read_header(tmp_path) == HEADER  # reading needs no lock
        child.kill()
    Journal.open(tmp_path, HEADER).close()


def test_unwritable_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(WcseError, match=r"cannot be written: .*; give a writable directory"):
            Journal.open(folder, HEADER)


# kills, full disks, power cuts


def test_sigkill_at_any_time_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(12)
    acknowledged: list[str] = []
    for round_ in range(20):
        with _python(_WRITER, str(tmp_path), str(10_000)) as child:
            assert child.stdout is not None
            for _ in range(rng.randrange(1, 12)):  # kill amid the writes, not at a moment a timer chose
                acknowledged.append(child.stdout.readline().decode().strip())
            child.kill()
            acknowledged += child.stdout.read().decode().splitlines()
        names = [key[0] for key in stored(tmp_path)]
        assert len(set(names)) == len(names), f"kill {round_}"
        assert set(acknowledged) <= set(names), f"kill {round_}"
        assert len(names) <= len(set(acknowledged)) + round_ + 1  # at most one unacknowledged record a kill
    done = len(stored(tmp_path))
    with _python(_WRITER, str(tmp_path), str(done + 3)) as child:
        child.communicate()
    assert child.returncode == 0
    assert sorted(stored(tmp_path)) == sorted(
        (f"p{i}", "greedy") for i in range(done + 3)
    )  # as an unkilled run


_WRITER = """
import os, random, signal, sys
from dataclasses import replace
import sample_runs
from wcse.data.journal import Journal
from wcse.types import Problem
base = sample_runs.record(0, "greedy")
rng = random.Random(os.getpid())
with Journal.open(sys.argv[1], sample_runs.header()) as journal:
    for i in range(int(sys.argv[2])):
        if (f"p{i}", "greedy") not in journal.done:
            prompt = "x" * rng.choice([0, 100, 100_000])
            journal.append(replace(base, problem=Problem(f"p{i}", prompt)))
            sys.stdout.write(f"p{i}\\n")
            sys.stdout.flush()
"""


class _python:
    """A child interpreter with the tests' modules, reaped on exit."""

    def __init__(self, script: str, *arguments: str) -> None:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self.child = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.child.__enter__()

    def __exit__(self, *details: object) -> None:
        self.child.kill()
        self.child.__exit__(None, None, None)


class _NoSync(Disk):
    """Fast: for tests that cut files themselves."""

    def fsync(self, fd: int) -> None:
        pass


class _Failing(Disk):
    """Fails the ``at``-th operation, and all later ones if ``for_good``; its writes are short."""

    def __init__(self, at: int, code: int, *, for_good: bool) -> None:
        self.at, self.code, self.for_good = at, code, for_good
        self.count = 0

    def _maybe_fail(self) -> None:
        self.count += 1
        if self.count == self.at or (self.for_good and self.count > self.at):
            raise OSError(self.code, os.strerror(self.code))

    def write(self, fd: int, data: bytes) -> int:
        self._maybe_fail()
        return super().write(fd, data[: max(1, len(data) // 2)])

    def fsync(self, fd: int) -> None:
        self._maybe_fail()

    def truncate(self, fd: int, size: int) -> None:
        self._maybe_fail()
        super().truncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        self._maybe_fail()
        super().replace(source, target)


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_nth_operation_fails_for_every_n(tmp_path: Path, code: int, for_good: bool) -> None:
    records = [replace(record, nodes=(), solutions=(), selectors={}) for record in sample_runs.run(1)[:3]]
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        disk = _Failing(at, code, for_good=for_good)
        acknowledged = _try_to_write(folder, records, disk)
        fill(folder, *[r for r in records if r.key not in _done(folder)])  # the same command, run again
        assert sorted(stored(folder)) == sorted(record.key for record in records)
        if disk.count < at:
            assert len(acknowledged) == len(records)
            break
    assert at > 10


def _try_to_write(folder: Path, records: list[SolveRecord], disk: Disk) -> list[tuple[str, str]]:
    """Append until the disk fails; the error is typed, and the journal then refuses further records."""
    acknowledged: list[tuple[str, str]] = []
    try:
        with Journal.open(folder, HEADER, disk=disk) as journal:
            for record in records:
                try:
                    journal.append(record)
                except WcseError as error:
                    assert "nothing stored is lost" in str(error) and "run the same command again" in str(
                        error
                    )
                    with pytest.raises(WcseError, match="cannot be written"):
                        journal.append(record)
                    break
                acknowledged.append(record.key)
    except WcseError as error:
        assert "cannot be written" in str(error)
    assert set(acknowledged) <= _done(folder)
    return acknowledged


def _done(folder: Path) -> set[tuple[str, str]]:
    with Journal.open(folder, HEADER) as journal:
        return set(journal.done)


def test_an_interrupted_append_closes_the_journal_for_writing(tmp_path: Path) -> None:
    class Interrupting(_NoSync):
        def write(self, fd: int, data: bytes) -> int:
            super().write(fd, data[:10])
            raise KeyboardInterrupt

    fill(tmp_path)
    record = sample_runs.record()
    with Journal.open(tmp_path, HEADER, disk=Interrupting()) as journal:
        with pytest.raises(KeyboardInterrupt):
            journal.append(record)
        with pytest.raises(WcseError, match="a write was interrupted; open it again"):
            journal.append(record)
    fill(tmp_path, record)
    assert stored(tmp_path) == [record.key]


class _Crashing(_NoSync):
    """Remembers how much of the journal was synced, to play a power cut."""

    def __init__(self) -> None:
        self.synced = 0

    def fsync(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            self.synced = status.st_size


DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "dropped": lambda rng, tail: b"",
    "cut": lambda rng, tail: tail[: rng.randrange(len(tail) + 1)],
    "zeroed": lambda rng, tail: bytes(len(tail)),
    "flipped": lambda rng, tail: bytes(b ^ (rng.random() < 0.01) for b in tail),
    "reordered": lambda rng, tail: tail[len(tail) // 2 :] + tail[: len(tail) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_power_cut_keeps_every_acknowledged_record(tmp_path: Path, damage: str) -> None:
    rng = random.Random(damage)
    records = sample_runs.run(problems=1)
    for cut in range(25):
        folder = tmp_path / str(cut)
        disk = _Crashing()
        keep = rng.randrange(len(records))
        with Journal.open(folder, HEADER, disk=disk) as journal:
            for record in records[:keep]:
                journal.append(record)
        path = folder / FILE
        synced = path.stat().st_size
        assert disk.synced == synced  # all of it, at the moment append returned
        fill(folder, records[keep])  # was being written when the power went
        data = path.read_bytes()
        path.write_bytes(data[:synced] + DAMAGES[damage](rng, data[synced:]))
        with Journal.open(folder, HEADER, disk=_NoSync()) as journal:
            assert {record.key for record in records[:keep]} <= journal.done
            for record in records:
                if record.key not in journal.done:
                    journal.append(record)
        assert sorted(stored(folder)) == sorted(record.key for record in records)


def test_atomic_write_keeps_the_old_file_when_anything_fails(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    target.write_bytes(b"old")
    for at in (1, 2):
        disk = _Failing(at, errno.ENOSPC, for_good=False)
        with pytest.raises(OSError, match="No space"), atomic_file(target, disk=disk) as file:
            file.write(b"new")
        assert target.read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


# fingerprints


def test_fingerprints_see_every_change(tmp_path: Path) -> None:
    a, b = Problem("a", "q", "1"), Problem("b", "q", "1")
    assert fingerprint_problems([a, b]) == fingerprint_problems([a, b])
    prints = {fingerprint_problems(p) for p in ([a], [a, b], [b, a], [replace(a, answer="2")], [])}
    assert len(prints) == 5
    model = tmp_path / "model"
    model.mkdir()
    big = model / "weights"
    big.write_bytes(bytes(3 << 20))
    seen = {fingerprint_path(model), fingerprint_path(big)}
    for position in (0, (3 << 20) - 1):
        data = bytearray(3 << 20)
        data[position] = 1
        big.write_bytes(data)
        seen.add(fingerprint_path(model))
    (model / "config.json").write_text("{}")
    seen.add(fingerprint_path(model))
    assert len(seen) == 5
