"""The comparison with peers: its driver with sides that have no model, and wcse's own side on an embedded one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.peers import report
from bench.peers.__main__ import main
from bench.peers.driver import Campaign, Seat, Turn
from bench.peers.process import SideError, SideProcess
from bench.peers.registry import RECIPES, Entry, Recipe, entry_named
from bench.peers.workloads import Cell, Prompts, Shape, cells, request

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
    seats = [Seat(FakeEntry(precision)) for precision in precisions]
    given: dict[str, Any] = {
        "cells": cells("ab", [1, 4]), "prompts": Prompts(lambda text: list(text.encode()), 12), "shape": SHAPE,
        "rounds": 2, "model": {}, "threads": 1, "limit": 60.0, "together": True,
    }  # fmt: skip
    Campaign(seats, **given | options, logs=folder, hear=turns.append).run()
    return turns, seats


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
    records = report.summary(turns, ["fake:fast"])
    text = report.table(records, seats, ["fake:fast"])
    assert "fake:uninstallable: not installed: pip install failed: no wheel" in text
    assert "| a | 4 | fake:mortal plain | failed: n=4: ended with status 3: out of luck |" in text


def test_a_side_that_takes_too_long_is_ended_and_not_asked_again(tmp_path: Path) -> None:
    turns, _ = play(tmp_path, "hanging", cells=cells("a", [1, 4, 8]), limit=2.0)
    reasons = {turn.n: turn.failed for turn in turns}
    assert reasons == {1: "", 4: "n=4: took longer than 2 s", 8: "n=4: took longer than 2 s"}
    assert [turn.n for turn in turns if not turn.failed] == [1, 1]


def test_a_side_that_dies_at_once(tmp_path: Path) -> None:
    process = SideProcess([sys.executable, "-c", "raise SystemExit('bad luck')"], {}, tmp_path / "log")
    with pytest.raises(SideError, match="ended with status 1: bad luck") as caught:
        process.ask({"op": "load"}, 60.0)
    assert not caught.value.alive
    process.close()


def turn(round_: int, side: str, seconds: float, n: int = 4, failed: str = "") -> Turn:
    return Turn(round_, "sample", n, side, "plain", 8, seconds, 2 * seconds, 1 << 20, {"x": seconds}, failed)


def test_ratios_are_taken_round_by_round() -> None:
    turns = [
        turn(0, "us", 1.0),
        turn(0, "it", 3.0),
        turn(1, "us", 2.0),
        turn(1, "it", 4.0),
        turn(2, "us", 1.0),
    ]
    turns += [turn(2, "it", 0.0, failed="tired"), turn(3, "it", 9.0)]
    us, it = report.summary(turns, ["us"])
    assert us["times"] == {"us": {"min": 1.0, "median": 1.0, "max": 1.0}}
    assert it["times"] == {"us": {"min": 2.0, "median": 2.5, "max": 3.0}}
    assert it["tokens_per_second"] == {"min": 8 / 9, "median": 2.0, "max": 8 / 3}
    assert (it["rounds"], it["failed"], it["peak_rss"], it["extra"]) == (3, ["tired"], 1 << 20, {"x": 4.0})
    text = report.table([us, it], [], ["us"])
    assert text.splitlines()[-1] == "| a | 4 | it plain | 2.0 | 1.0 | 1 | 2.00 / 2.50 / 3.00 |"


def test_prompts_differ_and_have_their_length() -> None:
    prompts = Prompts(lambda text: list(text.encode()), 700)
    made = [prompts.of(cell, round_) for cell in cells("abc", [1, 4]) for round_ in range(3)]
    assert {len(ids) for ids in made} == {700}
    assert len({tuple(ids[:32]) for ids in made}) == len(made)
    assert prompts.of(Cell("sample", 4), 1) == prompts.of(Cell("sample", 4), 1)


def test_names_of_sides() -> None:
    assert entry_named("llama.cpp") == Entry(RECIPES["llama.cpp"], "q8_0")
    assert entry_named("vllm:bfloat16").label == "vllm:bfloat16"
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
        "--model tiny-wc --sides wcse --workloads a,b,c --n 1,8 --rounds 1 --threads 1 --prompt-tokens 40 "
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
    assert read["verifier_tokens"] >= 120 and read["verifier_seconds"] > 0
    assert whole["sides"]["wcse:float32"]["status"] == "ok" and whole["machine"]["cores"] >= 1
    assert "| a | 8 | wcse:float32 tree |" in (tmp_path / "mine.md").read_text()


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
