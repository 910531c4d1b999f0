"""The comparison with peers: its driver with sides that have no model, and wcse's own side on an embedded one."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.peers import report
from bench.peers.__main__ import main
from bench.peers.driver import Campaign, Model, Seat, Task, Turn
from bench.peers.floor import Floor
from bench.peers.plan import Block, of_sizes, read_plan
from bench.peers.process import SideError, SideProcess
from bench.peers.registry import RECIPES, Entry, Recipe, entry_named
from bench.peers.workloads import Cell, Prompts, Shape, request
from wcse import zoo

FAKE = Path(__file__).with_name("fake_side.py")
SHAPE = Shape(prompt_tokens=12, new_tokens=4, steps=3, step_tokens=2)


class FakeEntry:
    """A side whose behaviour is its precision."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.label = f"fake:{precision}"

    def install(self) -> None:
        if self.precision == "uninstallable":
            raise RuntimeError("pip install failed: no wheel")

    def start(self, log: Path, threads: int) -> SideProcess:
        return SideProcess([sys.executable, str(FAKE)], {"OMP_NUM_THREADS": str(threads)}, log)


def play(folder: Path, *precisions: str, **options: Any) -> tuple[list[Turn], list[Seat]]:
    """The turns of a campaign of fake sides."""
    turns: list[Turn] = []
    prompts = Prompts(lambda text: list(text.encode()), 12)
    seats = [Seat(FakeEntry(precision), Model("m", {}, prompts)) for precision in precisions]
    task = {"cells": cells("ab", 1, 4), "rounds": 2, "limit": 60.0, "together": True, "modes": ()}
    named = {name: options.pop(name) for name in set(task) & set(options)}
    Campaign([Task(seats, **task | named)], SHAPE, 1, folder, turns.append, **options).run()
    return turns, seats


def cells(letters: str, *sizes: int) -> list[Cell]:
    return Block("m", ("wcse",), letters, sizes).cells


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.driver.PAUSE", 0.0)


@pytest.mark.parametrize("together", [True, False])
def test_sides_take_turns_and_the_first_one_changes(tmp_path: Path, together: bool) -> None:
    turns, seats = play(tmp_path, "fast", "slow", together=together)
    order = [(turn.round, turn.workload, turn.n, turn.side.removeprefix("fake:")) for turn in turns]
    tasks = [("sample", 1), ("sample", 4), ("search", 1), ("search", 4)]
    if together:
        rounds = [(0, "fast", "slow"), (1, "slow", "fast")]
        assert order == [(r, *task, side) for r, *sides in rounds for task in tasks for side in sides]
    else:
        blocks = [(0, "fast"), (0, "slow"), (1, "slow"), (1, "fast")]
        assert order == [(r, *task, side) for r, side in blocks for task in tasks]
    assert all(not turn.failed and turn.extra["prompt"] == 12 for turn in turns)
    assert [len(seat.load_seconds) for seat in seats] == ([1, 1] if together else [2, 2])
    assert len({turn.peak_rss for turn in turns}) == (
        2 if together else 4
    )  # the fakes tell their process ids
    assert all(seat.process is None for seat in seats)


def test_a_side_that_fails_is_reported_with_its_reason(tmp_path: Path) -> None:
    turns, seats = play(tmp_path, "fast", "uninstallable", "unloadable", "refusing", "mortal", "short")
    status = {seat.entry.precision: seat.status for seat in seats}
    assert status["uninstallable"] == "not installed: pip install failed: no wheel"
    assert status["unloadable"] == "not loaded: no such weights"
    failed = {(t.side.removeprefix("fake:"), t.n, t.failed) for t in turns if t.failed}
    assert failed == {
        ("refusing", 4, "n=4: MemoryError: too many"),
        ("mortal", 4, "n=4: ended with status 3: out of luck"),
        *(("short", n, f"wrote {n * k - 1} tokens of {n * k}") for n in (1, 4) for k in (4, 6)),
    }
    done = [(t.side, t.n) for t in turns if not t.failed]
    assert done.count(("fake:mortal", 1)) == done.count(("fake:fast", 1)) == 4  # it was started again
    text = report.table(report.summary(turns, {}, {}), seats)
    assert "fake:uninstallable (m): not installed: pip install failed: no wheel" in text
    assert "| a | 4 | fake:mortal plain |  | failed: n=4: ended with status 3: out of luck |" in text


def test_a_side_that_takes_too_long_is_cut_off_with_its_rate_and_not_asked_the_same_again(
    tmp_path: Path,
) -> None:
    turns, seats = play(tmp_path, "fast", "late", cells=cells("a", 1, 4, 8))
    late = [turn for turn in turns if turn.side == "fake:late"]
    assert [(t.round, t.n, t.cut_off, t.tokens, t.failed) for t in late] == [
        (0, 1, False, 4, ""), (0, 4, True, 6, ""), (0, 8, True, 6, ""), (1, 1, False, 4, "")
    ]  # fmt: skip
    record = next(r for r in report.summary(turns, {}, {}) if r["side"] == "fake:late" and r["n"] == 4)
    assert record["cut_off"] and record["tokens_per_second"]["median"] == 3.0
    text = report.table([record], seats)
    assert "| a | 4 | fake:late plain |  | ~3.0 |" in text and "cut off at its time limit" in text


def test_a_side_that_does_not_notice_its_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.peers.driver.GRACE", 1.0)
    turns, _ = play(tmp_path, "hanging", cells=cells("a", 1, 4, 8), limit=1.0)
    reasons = {turn.n: turn.failed for turn in turns}
    assert reasons == {1: "", 4: "n=4: took longer than 2 s", 8: "n=4: took longer than 2 s"}
    assert [turn.n for turn in turns if not turn.failed] == [1, 1]


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, _ = play(tmp_path, "fast", "late", "mortal")
    rounds: list[int] = []
    more, seats = play(tmp_path, "fast", "late", "mortal", done=whole[:9], on_round=lambda: rounds.append(1))
    assert [turn.key for turn in [*whole[:9], *more]] == [turn.key for turn in whole]
    assert len(rounds) == 2
    facts = [seat.facts for seat in seats]
    none, seats = play(tmp_path, "fast", done=whole)
    assert none == [] and len(seats[0].load_seconds) == 1  # what it can do was not known
    prompts = seats[0].model.prompts
    seat = Seat(FakeEntry("fast"), Model("m", {}, prompts), facts=facts[0])
    task = Task([seat], cells("ab", 1, 4), 2, 60.0, True)
    Campaign([task], SHAPE, 1, tmp_path, none.append, done=whole).run()
    assert none == [] and seat.load_seconds == []


def test_no_turn_begins_after_the_time_of_a_run(tmp_path: Path) -> None:
    turns, (seat,) = play(tmp_path, "fast", until=0.0)
    assert turns == [] and seat.load_seconds == []


def test_ways_that_a_plan_asks_for(tmp_path: Path) -> None:
    some, _ = play(tmp_path, "double", modes=["second", "unknown"])
    assert {turn.mode for turn in some} == {"second"}
    all_, _ = play(tmp_path, "double", "fast", modes=["unknown"])
    assert {(turn.side, turn.mode) for turn in all_} == {
        ("fake:double", "plain"),
        ("fake:double", "second"),
        ("fake:fast", "plain"),
    }


def test_a_side_stays_for_the_next_task_and_is_loaded_anew_for_more(tmp_path: Path) -> None:
    model = Model("m", {}, Prompts(lambda text: list(text.encode()), 12))
    stays, leaves = Seat(FakeEntry("fast"), model), Seat(FakeEntry("slow"), model)
    tasks = [
        Task([stays, leaves], cells("ab", 1), 1, 60.0, True),
        Task([stays], cells("a", 4), 2, 60.0, True),
        Task([stays, leaves], cells("c", 1), 1, 60.0, True),
    ]
    turns: list[Turn] = []
    Campaign(tasks, SHAPE, 1, tmp_path, turns.append).run()
    assert (len(stays.load_seconds), len(leaves.load_seconds)) == (2, 2)
    assert [(t.workload, t.n, t.side[5:]) for t in turns] == [
        ("sample", 1, "fast"), ("sample", 1, "slow"), ("search", 1, "fast"), ("search", 1, "slow"),
        ("sample", 4, "fast"), ("sample", 4, "fast"), ("score", 1, "fast"), ("score", 1, "slow"),
    ]  # fmt: skip


def test_a_side_that_dies_at_once(tmp_path: Path) -> None:
    process = SideProcess([sys.executable, "-c", "raise SystemExit('bad luck')"], {}, tmp_path / "log")
    with pytest.raises(SideError, match="ended with status 1: bad luck") as caught:
        process.ask({"op": "load"}, 60.0)
    assert not caught.value.alive
    process.close()


def turn(round_: int, side: str, seconds: float, n: int = 4, failed: str = "") -> Turn:
    figures: Any = (
        {} if failed else {"tokens": 8, "seconds": seconds, "cpu_seconds": 2 * seconds, "peak_rss": 1 << 20}
    )
    return Turn("m", round_, "sample", n, side, "plain", **figures, extra={"x": seconds}, failed=failed)


def test_ratios_are_taken_round_by_round() -> None:
    turns = [
        turn(0, "wcse:float32", 1.0),
        turn(0, "it:f32", 3.0),
        turn(1, "wcse:float32", 2.0),
        turn(1, "it:f32", 4.0),
    ]
    turns += [turn(2, "wcse:float32", 1.0), turn(2, "it:f32", 0.0, failed="tired"), turn(3, "it:f32", 9.0)]
    us, it = report.summary(turns, {}, {("m", "sample", 4): 16.0})
    assert us["times"] == {"wcse:float32": {"min": 1.0, "median": 1.0, "max": 1.0}}
    assert it["times"] == {"wcse:float32": {"min": 2.0, "median": 2.5, "max": 3.0}}
    assert it["tokens_per_second"] == {"min": 8 / 9, "median": 2.0, "max": 8 / 3}
    assert (it["rounds"], it["failed"], it["peak_rss"], it["extra"]) == (3, ["tired"], 1 << 20, {"x": 4.0})
    assert (it["bits"], it["equal"], it["share_of_floor"]) == (32, "wcse:float32", 0.125)
    last = "| a | 4 | it:f32 plain | 32 | 2.0 | 1.0 | 12% | 1 | 2.00 / 2.50 / 3.00 | 2.00 / 2.50 / 3.00 (float32) |"
    assert report.table([us, it], []).splitlines()[-2] == last


def test_equal_precision_is_the_fastest_of_as_many_bits() -> None:
    names = ("wcse:float32", "wcse:int8", "wcse:w8a8", "peer:q8_0", "peer:file", "other:bfloat16")
    turns = [
        turn(0, name, seconds) for name, seconds in zip(names, (4.0, 3.0, 2.0, 6.0, 5.0, 9.0), strict=True)
    ]
    records = report.summary(turns, {("m", "peer:file"): "Some-0.5B-Model.Q4_K_M"}, {})
    assert [record["bits"] for record in records] == [32, 8, 8, 8, 4, 16]
    assert [record["equal"] for record in records[3:]] == ["wcse:w8a8", "", ""]
    assert records[3]["times"]["wcse:w8a8"]["median"] == 3.0


def test_the_floor_counts_what_must_be_read() -> None:
    shape = Shape(prompt_tokens=100, new_tokens=10, steps=3, step_tokens=5, requests=2)
    assert Cell("sample", 4).read(shape) == (100 + 4 * 9, 0)
    assert Cell("search", 4).read(shape) == (100 + 4 * 15 - 4, 0)
    assert Cell("score", 4).read(shape) == (100 + 4 * 15 - 4, 100 + 4 * 18)
    assert Cell("serve", 4).read(shape) == (2 * (100 + 4 * 9), 0)
    assert Cell("serve", 4).tokens(shape) == 2 * 4 * 10
    floor = Floor(zoo.path("tiny-wc"))
    assert floor.flops(Cell("sample", 4), shape) == 2 * (floor.body * 136 + (floor.whole - floor.body) * 37)


def test_prompts_differ_and_have_their_length() -> None:
    prompts = Prompts(lambda text: list(text.encode()), 700)
    made = [prompts.of(cell, round_) for cell in cells("abcs", 1, 4) for round_ in range(3)]
    assert {len(ids) for ids in made} == {700}
    assert len({tuple(ids[:32]) for ids in made}) == len(made)
    assert prompts.of(Cell("sample", 4), 1) == prompts.of(Cell("sample", 4), 1)


def test_names_of_sides() -> None:
    assert entry_named("llama.cpp") == Entry(RECIPES["llama.cpp"], "q8_0")
    assert entry_named("vllm:bfloat16").label == "vllm:bfloat16"
    assert entry_named("vllm:float32-block32").precision == "float32-block32"
    with pytest.raises(ValueError, match="unknown; known sides: wcse, transformers, vllm"):
        entry_named("sglang")
    with pytest.raises(ValueError, match="transformers offers float32, bfloat16"):
        entry_named("transformers:q8_0")


def test_an_environment_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(
        folder: Path, **_: bool
    ) -> None:  # with pip, but without the seconds that its installation takes
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())

    monkeypatch.setattr("bench.peers.registry.ENVIRONMENTS", tmp_path)
    monkeypatch.setattr("venv.create", bare)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RuntimeError, match=r"pip install failed: ERROR.*no-such-peer"):
        Recipe("absent", "absent.py", ("x",), requires=("no-such-peer==1",)).install()


def test_our_side_writes_every_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.__main__.CACHE", tmp_path / "cache")
    options = (
        "--model tiny-wc --sides wcse --workloads abc --n 1,8 --rounds 1 --threads 1 --prompt-tokens 40 "
        "--new-tokens 6 --steps 3 --step-tokens 5 --name mine --out"
    )
    assert main([*options.split(), str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "mine.json").read_text())
    turns = {(t["workload"], t["n"]): t for t in whole["turns"]}
    assert {key: t["tokens"] for key, t in turns.items()} == {
        ("sample", 1): 6, ("sample", 8): 48, ("search", 1): 15, ("search", 8): 120, ("score", 1): 15, ("score", 8): 120
    }  # fmt: skip
    assert all(not t["failed"] and t["seconds"] > 0 and t["peak_rss"] > 0 for t in turns.values())
    read = turns["score", 8]["extra"]
    assert 15 <= read["verifier_tokens"] <= 160 and read["verifier_seconds"] > 0  # equal texts are read once
    assert whole["sides"]["tiny-wc wcse:float32"]["status"] == "ok" and whole["machine"]["cores"] >= 1
    assert "| a | 8 | wcse:float32 tree | 32 |" in (tmp_path / "mine.md").read_text()
    assert main([*options.split(), str(tmp_path)]) == 0
    again = json.loads((tmp_path / "mine.json").read_text())
    assert again["turns"] == whole["turns"] and len(again["runs"]) == 2 and again["peaks"] == whole["peaks"]
    assert main([*options.replace("--steps 3", "--steps 2").split(), str(tmp_path)]) == 2


def test_sizes_of_a_plan() -> None:
    blocks = [Block("m", ("wcse",), "a", (1, 64)), Block("m", ("wcse",), "b", (16,))]
    assert of_sizes(blocks, None) == blocks
    assert of_sizes(blocks, [64, 256]) == [Block("m", ("wcse",), "a", (64,))]
    with pytest.raises(ValueError, match=r"n=\[2\]: the plan has \[1, 16, 64\]"):
        of_sizes(blocks, [2])


def test_a_server_as_a_side_ends_with_it(tmp_path: Path) -> None:
    """Requests over HTTP through our own server; a side that is told to end takes its server along."""
    side = entry_named("wcse-serve").start(tmp_path / "log", 1)
    model = {"path": "tiny-wc", "cache": str(tmp_path), "policy": "tiny-wc"}
    side.ask(
        {"op": "load", "model": model, "precision": "float32", "threads": 1, "workloads": ["serve"]}, 120
    )
    shape = Shape(prompt_tokens=40, new_tokens=6, requests=2)
    reply = side.ask(request(Cell("serve", 3), "http", list(range(10, 50)), shape, 1), 60)
    assert reply["tokens"] == 2 * 3 * 6 and reply["extra"] == {"completions": 6} and reply["peak_rss"] > 0
    process = side._process.pid
    (server,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    os.kill(process, signal.SIGTERM)
    assert side._process.wait(30) == 143
    assert not Path(f"/proc/{server}").exists()
    side.close()


def test_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path(report.__file__).parent.glob("*.toml"):
        assert all(block.cells and block.entries for block in read_plan(path))
    good = '[[block]]\nmodel = "smollm2"\nsides = ["wcse"]\nworkloads = "ac"\nn = [4, 1]\n'
    path = tmp_path / "plan.toml"
    path.write_text(good)
    (block,) = read_plan(path)
    assert [(cell.workload, cell.n) for cell in block.cells] == [
        ("sample", 1),
        ("sample", 4),
        ("score", 1),
        ("score", 4),
    ]
    for change, words in (
        (('"ac"', '"ax"'), "block 1: workloads='ax': give letters of abcs"),
        (("[4, 1]", "[0]"), "at least 1"),
        (('["wcse"]', '["sglang"]'), "side 'sglang': unknown"),
        (("model", "modle"), "unknown modle"),
        (("n = [4, 1]", ""), "n missing"),
        (("[[block]]", "[block]"), "block"),
        (("[4, 1]", "[4"), "plan"),
        (('workloads = "ac"', 'workloads = "ac"\nrounds = 0'), "rounds=0"),
    ):
        path.write_text(good.replace(*change))
        with pytest.raises(ValueError, match=re.escape(words)):
            read_plan(path)
        assert main(["--plan", str(path)]) == 2 and words in capsys.readouterr().err
    path.write_text(good.replace("smollm2", "other"))
    assert main(["--plan", str(path), "--out", str(tmp_path)]) == 1
    assert "add --model other=PATH" in capsys.readouterr().err


def test_a_request_fits_the_item_of_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(report.__file__).parent / "sides"))
    from side import Item, drive  # the sides' own module, which runs without this package

    class Beams:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def start(self, prompt: list[int], n: int) -> None:
            self.calls.append((len(prompt), n))

        def grow(self, tokens: int) -> None:
            self.calls.append(tokens)

        def score(self) -> list[float]:
            return [0.0, 0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.0]

        def select(self, parents: list[int]) -> None:
            self.calls.append(parents)

    fields = request(Cell("score", 8), "plain", [1, 2, 3], SHAPE, 7)
    assert fields.pop("op") == "run"
    beams, item = Beams(), Item(**fields)
    count = drive(item, beams)
    assert beams.calls == [(3, 8), 2, [2] * 4 + [5] * 4, 2, [2] * 4 + [5] * 4, 2]
    assert (count.tokens, item.keep, item.longest) == (48, 2, 9)
    assert set(count.extra) == {"policy_seconds", "verifier_seconds"}
