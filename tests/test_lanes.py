"""Lanes: what is queued, what waits for what, and what the host does meanwhile, with streams that run late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wcse.engine.device_loop import Round, RoundRows
from wcse.engine.driver import Driver
from wcse.engine.growth import Growth
from wcse.engine.lanes import Lane
from wcse.engine.llm import LLM
from wcse.engine.params import SamplingParams, StepRule
from wcse.engine.rounds import Rounds
from wcse.engine.runner import KVMemoryHeld


@dataclass(eq=False)
class Stream:
    """Runs nothing until somebody waits for it."""

    device: Any = None
    queue: list[Callable[[], None]] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(SimpleNamespace(queued=(other, list(other.queue))))

    def wait_event(self, event: Any) -> None:
        """Behind what stood in a stream when the event was recorded, and not what came after."""
        stream, before = event.queued
        self.queue += [lambda: stream.run(before)]

    def run(self, some: list[Callable[[], None]] | None = None) -> None:
        queue = self.queue if some is None else [work for work in some if work in self.queue]
        self.queue = [work for work in self.queue if work not in queue]
        for work in queue:
            work()


class Cuda:
    """``torch.cuda`` with such streams; ``write`` and ``empty`` make tensors of its device and of the host."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.default = self.current = Stream()
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        patch.setattr(torch.cuda, "stream", self._inside)
        patch.setattr(torch.cuda, "Event", self._event)
        patch.setattr(torch, "empty", lambda *a, **k: Host(self))

    def _inside(self, stream: Stream) -> Any:
        cuda, outer = self, self.current

        class Inside:
            def __enter__(self) -> None:
                cuda.current = stream

            def __exit__(self, *error: object) -> None:
                cuda.current = outer

        return Inside()

    def _event(self) -> Any:
        event = SimpleNamespace(queued=None)

        def record(stream: Stream | None = None) -> None:
            stream = stream or self.current
            event.queued = (stream, list(stream.queue))

        event.record = record
        event.synchronize = lambda: event.queued[0].run(event.queued[1])
        return event

    def write(self, value: int) -> SimpleNamespace:
        """A tensor that the current stream will hold ``value`` in, once it has run so far."""
        tensor = SimpleNamespace(is_cuda=True, shape=(1,), dtype=torch.int32, value=None)
        self.current.queue.append(lambda: setattr(tensor, "value", value))
        return tensor


class Host:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.value: int | None = None

    def copy_(self, source: Any, *, non_blocking: bool) -> None:
        assert non_blocking
        self.cuda.current.queue.append(lambda: setattr(self, "value", source.value))

    def numpy(self) -> np.ndarray:
        assert self.value is not None, "read before it was written"
        return np.asarray([self.value])


def test_a_download_ends_when_its_copy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    policy, verifier = (Lane(SimpleNamespace(type="cuda")) for _ in range(2))  # type: ignore[arg-type]
    weights = cuda.write(1)
    with policy.entered():
        tokens = policy.download(cuda.write(7))
    with verifier.entered():
        scores = verifier.download(cuda.write(9))
    assert tokens._host.value is None and cuda.current is cuda.default
    assert scores.wait().tolist() == [9]
    assert weights.value == 1, "a lane began before what the caller had queued"
    assert tokens._host.value is None, "the lanes wait for one another"
    assert tokens.wait().tolist() == [7]


def test_memory_that_is_given_away_waits_for_what_was_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    policy, verifier = (Lane(SimpleNamespace(type="cuda")) for _ in range(2))  # type: ignore[arg-type]
    verifier.follow(policy)  # nothing was settled yet
    with policy.entered():
        last_reader = cuda.write(1)
        policy.settle()
        round_ = policy.download(cuda.write(2))  # does not read what was free when it was planned
    verifier.follow(policy)
    with verifier.entered():
        cleared = verifier.download(cuda.write(3))
    assert cleared.wait().tolist() == [3]
    assert last_reader.value == 1, "a block was cleared under its last reader"
    assert round_._host.value is None, "the verifier waited for the round that runs"
    assert round_.wait().tolist() == [2]


def test_what_is_sent_beside_a_round_is_there_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    lane = Lane(SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    with lane.entered():
        tokens = lane.download(cuda.write(1))
        with lane.beside():
            lists = cuda.write(2)
        after = lane.download(cuda.write(3))
    assert lane._side is not None
    lane._side.run()
    assert lists.value == 2 and tokens._host.value is None, "the copy waits for the round"
    lists.value = None
    with lane.entered(), lane.beside():
        late = cuda.write(4)
    assert tokens.wait().tolist() == [1] and after.wait().tolist() == [3] and late.value is None
    with lane.entered():
        assert lane.download(cuda.write(5)).wait().tolist() == [5]
    assert late.value == 4, "the next round began before its lists were there"


def test_on_a_cpu_nothing_is_queued() -> None:
    lane = Lane(torch.device("cpu"))
    x = torch.zeros(2)
    with lane.entered(), lane.beside():
        found = lane.download(x)
    lane.settle()
    lane.follow(lane)
    assert found.wait().tolist() == [0.0, 0.0]


class LateLoop:
    """A device loop that writes nothing until somebody waits for it; then tokens in turn. Logs what is asked of it."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.token = log, 20

    def prepare(self, plan: Any, ahead: np.ndarray, *, count: int) -> Any:
        self.log.append("plan")
        return SimpleNamespace(order=np.asarray(plan.order))

    def foresee(self, plan: Any, ahead: np.ndarray, *, count: int) -> Any:
        self.log.append("foresee")
        return SimpleNamespace(order=np.asarray(plan.order))

    def start(self, prepared: Any, rows: RoundRows, table: Any, *, count: int) -> Any:
        self.log.append("start")
        counts = np.minimum(rows.left, count)
        return SimpleNamespace(wait=lambda: self.write(counts, count))

    def write(self, counts: np.ndarray, count: int) -> Round:
        self.log.append("wait")
        tokens = self.token + np.arange(count * len(counts), dtype=np.int32).reshape(count, -1) % 50
        return Round(tokens, np.zeros(tokens.shape, np.float32), counts)


def test_the_next_round_is_planned_while_one_runs() -> None:
    """As long as rows only grow; the last round, in which all end, plans none."""
    llm = LLM("tiny-wc", kv_memory=0.01)
    log: list[str] = []
    rounds = llm.engine.rounds = Rounds(llm.engine, tokens=4)
    rounds._loop = LateLoop(log)  # type: ignore[assignment]
    params = SamplingParams(n=3, max_tokens=17, ignore_eos=True)
    outputs = llm.generate("12 + 7 =", params, use_tqdm=False)[0].outputs
    assert [len(output.token_ids) for output in outputs] == [17] * 3
    first, *rest = [part.split() for part in " ".join(log).split(" wait")][:-1]
    assert first == ["plan", "start", "foresee"]
    assert rest == [["start", "foresee"]] * (rounds.done - 2) + [["start"]]
    assert rounds.done == 4 and rounds.foreseen == 3
    llm.engine.runner.memory.check()


def test_rows_that_somebody_aborts_meanwhile_are_left_out() -> None:
    llm = LLM("tiny-wc", kv_memory=0.01)
    engine, log = llm.engine, list[str]()
    engine.rounds = Rounds(engine, tokens=4)
    engine.rounds._loop = LateLoop(log)  # type: ignore[assignment]
    params, ended = SamplingParams(max_tokens=17, ignore_eos=True), list[str]()
    roots = {
        name: engine.open([5, 6, 7, 8], seed=0, problem=name, params=params, rule=StepRule()) for name in "ab"
    }
    for name, root in roots.items():
        on_end = lambda child, node, name=name: ended.append(name)  # noqa: E731
        engine.grow(Growth(root, root.node, 1, 0, True, False, lambda node: None, on_end))
    while engine.busy:
        if engine.begin():
            if "b" in roots:
                engine.abort(roots.pop("b"))
            engine.finish()
            engine.runner.memory.check()
    assert ended == ["a"] and engine.rounds.done == 4
    stats = engine.runner.tree.stats()
    assert stats["in_flight"] == 0


class Engine:
    """Logs its steps; ``on_device`` says that they end with ``finish``."""

    busy, rows, demand, max_rows = True, (), 0, 1

    def __init__(self, log: list[str], *, on_device: bool) -> None:
        self.log, self.on_device = log, on_device

    def begin(self) -> bool:
        self.log.append("begin")
        return self.on_device

    def finish(self) -> None:
        self.log.append("finish")


def driver(log: list[str], *, on_device: bool, fails: bool = False) -> Driver:
    def step() -> None:
        log.append("verifier")
        if fails:
            raise ValueError("no memory")

    scorer: Any = SimpleNamespace(waiting=1, step=step)
    engine: Any = Engine(log, on_device=on_device)
    return Driver(engine, scorer, params=SamplingParams(), rule=StepRule())


def test_the_verifier_works_while_the_device_writes() -> None:
    log: list[str] = []
    assert driver(log, on_device=True).advance()
    assert log == ["begin", "verifier", "finish"]
    log.clear()
    assert driver(log, on_device=False).advance()
    assert log == ["begin", "verifier"]


def test_a_verifier_that_needs_the_rounds_memory_comes_after_it() -> None:
    log: list[str] = []
    turn = driver(log, on_device=True)
    tries = iter([KVMemoryHeld("held"), None])

    def step() -> None:
        log.append("verifier")
        if error := next(tries):
            raise error

    turn.scorer.step = step  # type: ignore[union-attr, method-assign]
    assert turn.advance()
    assert log == ["begin", "verifier", "finish", "verifier"]
    turn = driver(log, on_device=False)
    turn.scorer.step = lambda: (_ for _ in ()).throw(KVMemoryHeld("held"))  # type: ignore[union-attr, method-assign]
    with pytest.raises(KVMemoryHeld):
        turn.advance()


def test_a_round_is_taken_in_when_the_verifier_fails() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="no memory"):
        driver(log, on_device=True, fails=True).advance()
    assert log == ["begin", "verifier", "finish"]
