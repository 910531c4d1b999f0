"""Lanes: what is queued, what waits for what, and what the host does meanwhile, with streams that run late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wcse.engine.driver import Driver
from wcse.engine.lanes import Lane
from wcse.engine.params import SamplingParams, StepRule


@dataclass(eq=False)
class Stream:
    """Runs nothing until somebody waits for it."""

    device: Any = None
    queue: list[Callable[[], None]] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.queue += [other.run]

    def run(self) -> None:
        queue, self.queue = self.queue, []
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
        event = SimpleNamespace(stream=None)
        event.record = lambda: setattr(event, "stream", self.current)
        event.synchronize = lambda: event.stream.run()
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


def test_on_a_cpu_nothing_is_queued() -> None:
    lane = Lane(torch.device("cpu"))
    x = torch.zeros(2)
    with lane.entered():
        found = lane.download(x)
    assert found.wait().tolist() == [0.0, 0.0]


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


def test_a_round_is_taken_in_when_the_verifier_fails() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="no memory"):
        driver(log, on_device=True, fails=True).advance()
    assert log == ["begin", "verifier", "finish"]
