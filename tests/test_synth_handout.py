"""Handing out units, simulated: nothing is lost or done twice, and one slow worker does not hold up the rest."""

from __future__ import annotations

import heapq
import random

import pytest
import synth_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.synth.handout import ATTEMPTS, WorkList
from wcse.synth.record import Unit


def tasks(count: int) -> list[tuple[Unit, object]]:
    return [(Unit("wc", 0, f"p{index}", 1), synth_runs.problem(index)) for index in range(count)]


def makespan(speeds: list[float], count: int, *, late: float, largest: int = 64, seed: int = 0) -> float:
    """Seconds until every unit has a record, where worker w does ``speeds[w]`` units' worth of seconds a second."""
    rng = random.Random(seed)
    length = {f"p{index}": rng.expovariate(1) + 0.5 for index in range(count)}
    todo = WorkList(len(speeds), largest, late)
    todo.add(tasks(count))
    events: list[tuple[float, int, str]] = []
    free_at = dict.fromkeys(range(len(speeds)), 0.0)
    now = 0.0
    while todo.left:
        for worker, speed in enumerate(speeds):
            if not todo.busy(worker):
                end = max(now, free_at[worker])
                for unit, _ in todo.take(worker, now):
                    end += length[unit.problem] / speed
                    heapq.heappush(events, (end, worker, unit.problem))
                free_at[worker] = end
        if events:
            now, worker, name = heapq.heappop(events)
            todo.finish(worker, (name, "wc/0000"), now)
        else:
            now += 0.1
    return now


def ideal(speeds: list[float], count: int, seed: int = 0) -> float:
    rng = random.Random(seed)
    return sum(rng.expovariate(1) + 0.5 for _ in range(count)) / sum(speeds)


@pytest.mark.parametrize("seed", range(5))
def test_a_straggler_costs_little(seed: int) -> None:
    """Eight workers, one ten times slower; without copies of late units it would hold up the run."""
    speeds = [1.0] * 7 + [0.1]
    best = ideal(speeds, 800, seed)
    assert makespan(speeds, 800, late=2.0, seed=seed) < 1.15 * best
    assert makespan(speeds, 800, late=float("inf"), largest=800, seed=seed) > 2 * best


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
def test_equal_workers_are_near_linear(workers: int) -> None:
    speeds = [1.0] * workers
    assert makespan(speeds, 400, late=2.0) < 1.12 * ideal(speeds, 400)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), workers=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_every_unit_counts_once_whatever_dies(count: int, workers: int, seed: int) -> None:
    rng = random.Random(seed)
    todo = WorkList(workers)
    todo.add(tasks(count))
    poison = {f"p{index}" for index in range(count) if rng.random() < 0.1}
    held: dict[int, list[str]] = {}
    done: list[str] = []
    given_up: list[str] = []
    names = iter(range(10**6))
    ids = [next(names) for _ in range(workers)]
    now = 0.0
    while todo.left:
        now += rng.random()
        for worker in ids:
            if not todo.busy(worker):
                held[worker] = [unit.problem for unit, _ in todo.take(worker, now)]
        slot = rng.randrange(workers)
        worker = ids[slot]
        if not held.get(worker):
            continue
        name = held[worker].pop(0)
        if name in poison or rng.random() < 0.02:
            lost = todo.lose(worker)
            assert all(item.attempts >= ATTEMPTS for item in lost)
            given_up += [item.task[0].problem for item in lost]
            ids[slot] = next(names)
        elif todo.finish(worker, (name, "wc/0000"), now) is not None:
            done.append(name)
    assert sorted(done + given_up) == sorted(f"p{index}" for index in range(count))
    assert poison <= set(given_up)


def test_a_late_record_is_not_wanted_twice() -> None:
    todo = WorkList(2)
    todo.add(tasks(5))
    (first,) = todo.take("a", 0.0)
    for index in range(4):
        (task,) = todo.take("b", float(index))
        assert todo.finish("b", task[0].key, index + 1.0) is not None
    assert todo.take("b", 1.5) == []  # not late yet
    (copy,) = todo.take("b", 9.0)
    assert copy == first and todo.finish("b", copy[0].key, 10.0) == first and todo.left == 0
    assert todo.busy("a") and todo.finish("a", first[0].key, 11.0) is None and not todo.busy("a")
