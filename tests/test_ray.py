"""Data over a Ray cluster of several processes: workers are killed, nothing is lost or doubled, digests agree.

Ray is large, so it is no part of the test environment: ``make test-ray`` installs it and runs this file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synth_runs

from wcse import cli
from wcse.synth.outputs import read_synth, write_synth
from wcse.synth.ray_pool import RayPool
from wcse.synth.run import OnRecord, Task, synthesize
from wcse.types import WcseError

ray = pytest.importorskip("ray", minversion="2")  # a folder of that name would import, too


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # workers inherit it
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


class Fragile(synth_runs.FakeExecutor):
    """Dies or hangs where a problem says so; ``once`` needs a folder for its marks."""

    def run(self, tasks: Sequence[Task], on_record: OnRecord) -> None:
        for unit, problem in tasks:
            does, marks = problem.meta.get("does"), problem.meta.get("marks")
            mark = Path(str(marks), f"{unit.key}".replace("/", "-"))
            if does == "kill" or (does == "kill once" and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if does == "hang":
                threading.Event().wait()
            on_record(synth_runs.fake_record(self._recipe, unit, problem))


def marked(count: int, does: dict[int, str], marks: Path) -> list[Any]:
    marks.mkdir()
    return [
        replace(p, meta={**p.meta, "does": does.get(index), "marks": str(marks)})
        for index, p in enumerate(synth_runs.problems(count))
    ]


def derive(folder: Path, recipe: Any, todo: Any, executor: Any) -> str:
    with synth_runs.open_journal(folder, recipe, todo) as journal:
        totals, balances = synthesize(recipe, todo, journal, executor, synth_runs.SIZES)
    return write_synth(folder, recipe, totals, balances, synth_runs.SIZES).digest


def test_killed_actors_lose_and_double_nothing(cluster: None, tmp_path: Path) -> None:
    recipe = synth_runs.recipe(n=2, threads=1)
    does = {index: "kill once" for index in range(0, 30, 6)}
    todo = marked(30, does, tmp_path / "marks")
    with RayPool(recipe, 2, "auto", make=Fragile) as pool:
        rough = derive(tmp_path / "rough", recipe, todo, pool)
    assert len(list((tmp_path / "marks").iterdir())) >= 5  # that many actors died
    assert rough == derive(tmp_path / "calm", recipe, todo, synth_runs.FakeExecutor(recipe))
    keys = [record.key for record in read_synth(tmp_path / "rough")]
    assert len(keys) == len(set(keys)) and not (tmp_path / "rough" / "errors.jsonl").read_bytes()


def test_poison_and_hanging_problems_become_failures(cluster: None, tmp_path: Path) -> None:
    recipe = synth_runs.recipe(match="samples", n=1, threads=1, unit_seconds=10.0)
    todo = marked(8, {2: "kill", 5: "hang"}, tmp_path / "marks")
    with RayPool(recipe, 2, "auto", make=Fragile) as pool:
        derive(tmp_path / "run", recipe, todo, pool)
    records = list(read_synth(tmp_path / "run"))
    failed = {record.problem.id: record.failure for record in records if record.failure}
    assert len(records) == 16 and set(failed) == {"p2", "p5"}
    kinds = [failed[name].kind for name in ("p2", "p5") if failed[name]]  # type: ignore[union-attr]
    assert kinds == ["worker_died", "timeout"]


def test_the_command_draws_what_this_process_draws(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ({"problem": f"Calculate {n} + 4.", "answer": str(n + 4)} for n in range(10, 16))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["synth", f"--problems={tmp_path / 'p.jsonl'}", "--wc=tiny-wc", "--n=2"]
    digests = []
    for name, more in (("here", []), ("there", ["--ray=auto", "--workers=2"])):
        options = [f"--out={tmp_path / name}", "--wc-max-tokens=48", "--threads=1", "--quiet", *more]
        assert cli.main([*given, *options]) == 0, capsys.readouterr().err
        digests.append(capsys.readouterr().out.rsplit("digest ", 1)[1])
    assert digests[0] == digests[1]


def test_no_cluster_is_one_error(tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(WcseError, match=r"ray='127.0.0.1:1': no cluster there"):
        RayPool(synth_runs.recipe(), 1, "127.0.0.1:1")
