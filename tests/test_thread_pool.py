"""The thread pool: every iteration runs once, whatever is nested, thrown, resized or forked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from wcse import _core

loop = _core._testing.loop


@pytest.fixture(autouse=True)
def restored_pool() -> Iterator[None]:
    threads = _core.num_threads()
    yield
    _core.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("chunk", [0, 1, 3, 100])
def test_every_iteration_runs_once(threads: int, chunk: int) -> None:
    _core.set_num_threads(threads)
    assert _core.num_threads() == threads
    for n in (0, 1, 2, threads - 1, 7, 100, 1001):
        visits, thrown = loop(n, chunk)
        assert visits.tolist() == [1] * n
        assert thrown == ""


@pytest.mark.parametrize("threads", [1, 3])
def test_nested_loops_run_inline(threads: int) -> None:
    _core.set_num_threads(threads)
    visits, _ = loop(40, 1, nested=9)
    assert visits.tolist() == [9] * 40


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_comes_out_and_the_pool_lives_on(threads: int) -> None:
    _core.set_num_threads(threads)
    visits, thrown = loop(40, 1, fail_at=17)
    assert thrown == "index 17"
    if threads > 1:  # the other chunks were run; a single thread runs one chunk
        assert visits.tolist() == [1] * 40
    assert loop(40, 1)[0].tolist() == [1] * 40


def test_two_callers_take_turns() -> None:
    _core.set_num_threads(3)
    with ThreadPoolExecutor(2) as callers:
        results = callers.map(lambda i: loop(200 + i, 1 + i % 4), range(200))
        for i, (visits, _) in enumerate(results):
            assert visits.tolist() == [1] * (200 + i)


def test_a_loop_ends_when_its_last_chunk_has_ended() -> None:
    _core.set_num_threads(3)
    for _ in range(150):  # a busy machine may keep the workers out of most of them
        assert loop(7, 1, nested=20_000)[0].tolist() == [20_000] * 7


def test_many_short_loops() -> None:
    _core.set_num_threads(4)
    assert all(int(loop(5, 1)[0].sum()) == 5 for _ in range(2000))


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_bad_sizes(threads: int) -> None:
    before = _core.num_threads()
    with pytest.raises(ValueError, match=f"num_threads is {threads}, must be between 1 and 1024"):
        _core.set_num_threads(threads)
    assert _core.num_threads() == before


FORKED = """
import os
from wcse import _core
_core.set_num_threads(3)
_core._testing.loop(100, 1)
child = os.fork()
if child == 0:
    assert _core.num_threads() == 1
    assert _core._testing.loop(100, 1)[0].tolist() == [1] * 100
    _core.set_num_threads(2)
    assert _core._testing.loop(100, 1)[0].tolist() == [1] * 100
else:
    assert os.waitpid(child, 0)[1] == 0
    assert _core._testing.loop(100, 1)[0].tolist() == [1] * 100
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_starts_afresh() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
