"""The command line: what it accepts and refuses, exit codes, resuming. A stand-in solves; no model is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_runs

from wcse import cli
from wcse.cli import solve as solve_command
from wcse.data.journal import read_header, read_records
from wcse.progress import Progress
from wcse.recipe import Recipe
from wcse.types import Problem, WcseError


class Solver:
    """Stands in for ``wcse.solve.solve``; may stop after ``most`` records with ``stop``."""

    def __init__(self, most: int | None = None, stop: BaseException | None = None) -> None:
        self.most, self.stop = most, stop
        self.calls: list[tuple[Recipe, list[Problem], frozenset[tuple[str, str]]]] = []

    def __call__(
        self,
        recipe: Recipe,
        problems: list[Problem],
        on_record: Callable[[Any], None],
        on_progress: Callable[[Progress], None],
        skip: frozenset[tuple[str, str]],
    ) -> None:
        self.calls.append((recipe, problems, skip))
        todo = [(i, name) for i in range(len(problems)) for name in recipe.strategies]
        todo = [(i, name) for i, name in todo if (f"made-up-{i}", name) not in skip]
        for count, (index, name) in enumerate(todo):
            if count == self.most:
                assert self.stop is not None
                raise self.stop
            on_record(sample_runs.record(index, name))
            on_progress(Progress(count + 1, len(todo), 10, 10, 1, 2, 0.5))


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A solve of four made-up problems; the policy is a folder with a file in it."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights").write_bytes(b"1")
    lines = [
        {"id": p.id, "problem": p.prompt, "answer": p.answer} for p in map(sample_runs.problem, range(4))
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "policy": tmp_path / "policy",
        "prm": "shared",
        "problems": tmp_path / "p.jsonl",
        "strategy": "best_of_n,beam_search",
        "n": 8,
        "out": tmp_path / "run",
    }
    return ["solve", *(f"--{name}={value}" for name, value in options.items())]


def main(argv: list[str], solver: Solver | None = None) -> int:
    """The command line with a stand-in for ``wcse.solve.solve``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wcse.solve.solve", solver or Solver())
        return cli.main(argv)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], solver: Solver | None = None) -> str:
    """The one line of an error with exit code 2."""
    assert main(argv, solver) == 2
    streams = capsys.readouterr()
    last = streams.err.splitlines()[-1]
    assert last.startswith("wcse: error: ") and "Traceback" not in streams.err
    return last.removeprefix("wcse: error: ")


def test_solve_writes_everything_and_says_where(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solver = Solver()
    assert main(command, solver) == 0
    streams = capsys.readouterr()
    names = {"journal.tsv", "lock", "nodes.parquet", "report.html", "solutions.parquet", "summary.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    table = streams.out.splitlines()
    assert (
        table[0].startswith("strategy")
        and table[2].startswith("one sample (pass@1)")
        and table[3].startswith("best_of_n")
        and table[4].startswith("beam_search")
    )
    assert table[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert "8/8" in streams.err
    recipe, problems, skip = solver.calls[0]
    assert (
        recipe.n == 8
        and recipe.strategies == ("best_of_n", "beam_search")
        and len(problems) == 4
        and not skip
    )
    header = read_header(tmp_path / "run")
    assert header.recipe == recipe.results() | {"dtype": "float32", "kv_cache_dtype": "float32"}
    assert set(header.inputs) == {"problems", "policy"} and "torch" in header.versions


def test_quiet_leaves_only_the_result(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--quiet"], Solver()) == 0
    assert capsys.readouterr().err == ""


def test_interrupt_says_how_to_go_on_and_the_same_command_does(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, Solver(3, KeyboardInterrupt())) == 130
    message = capsys.readouterr().err
    assert f"3 of 8 are stored in {tmp_path / 'run'}; run the same command again" in message
    second = Solver()
    assert main(command, second) == 0
    assert "resuming: 3 of 8 are done" in capsys.readouterr().err
    assert len(second.calls[0][2]) == 3
    assert len(list(read_records(tmp_path / "run"))) == 8


def test_a_finished_run_loads_no_model(command: list[str]) -> None:
    assert main(command, Solver()) == 0
    again = Solver()
    assert main([*command, "--batch-size=2"], again) == 0  # a runtime option may change
    assert again.calls == []


def test_an_error_in_the_middle_keeps_what_is_stored(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Solver(2, WcseError("prompt of problem 'x' has 9000 tokens,\nthe context is 2048"))
    message = refused(command, capsys, failing)
    assert message == "prompt of problem 'x' has 9000 tokens, the context is 2048"
    assert len(list(read_records(tmp_path / "run"))) == 2


def test_a_changed_recipe_problem_or_model_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, Solver(3, KeyboardInterrupt())) == 130
    before = (tmp_path / "run" / "journal.tsv").read_bytes()
    message = refused([*command, "--n=16", "--temperature=0.5"], capsys)
    assert "n was 8, now 16; temperature was 0.8, now 0.5; give the same options to resume it" in message
    (tmp_path / "policy" / "weights").write_bytes(b"2")
    assert "the content of policy changed" in refused(command, capsys)
    (tmp_path / "policy" / "weights").write_bytes(b"1")
    problems = tmp_path / "p.jsonl"
    problems.write_text(problems.read_text().replace("apples", "pears"))
    assert "the content of problems changed" in refused(command, capsys)
    problems.write_text(problems.read_text().replace("pears", "apples"))
    assert 'dtype was "float32", now "bfloat16"' in refused([*command, "--device=cuda"], capsys)
    assert (tmp_path / "run" / "journal.tsv").read_bytes() == before


def test_without_out_the_recipe_names_the_directory(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [part for part in command if not part.startswith("--out")]
    first = Solver()
    assert main(argv, first) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == first.calls[0][0].digest[:12]
    assert main([*argv, "--seed=2"], Solver()) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "--tempreature=1",
            "unknown argument '--tempreature' (did you mean '--temperature'?); see wcse solve --help",
        ),
        ("--temp=1", "unknown argument '--temp'"),
        ("--n=many", "argument --n: invalid int value: 'many'"),
        ("--n=0", "n=0: Input should be greater than or equal to 1"),
        ("--n=6", "n=6 is not divisible by beam_width=4; use n=4 or 8"),
        ("--temperature=nan", "temperature=nan: Input should be a finite number"),
        ("--strategy=beem_search", "strategy='beem_search' is unknown (did you mean 'beam_search'?)"),
        ("--strategy=,", "strategies=(): Tuple should have at least 1 item"),
        ("--agg-strategy=median", "agg_strategy='median' is unknown; use one of last, min, prod, mean"),
        ("--problems=nowhere.jsonl", "problems 'nowhere.jsonl': no such file"),
        ("--policy=./nowhere", "model './nowhere': no such"),
        ("--out=/proc/nowhere", "'/proc/nowhere': cannot be written"),
        ("--limit=0", "limit=0: Input should be greater than or equal to 1"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    command: list[str], tmp_path: Path, change: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused([*command, change], capsys)
    assert not (tmp_path / "run").exists()


def test_missing_options_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["solve"], capsys) == "--policy, --problems, --strategy missing; see wcse solve --help"
    assert refused(["solve", "--polcy=x"], capsys).startswith(
        "unknown argument '--polcy' (did you mean '--policy'?)"
    )
    assert "invalid choice: 'slove'" in refused(["slove"], capsys)
    assert cli.main([]) == 2
    assert "usage: wcse" in capsys.readouterr().out


def test_a_prm_that_is_needed_is_asked_for(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [part for part in command if not part.startswith("--prm")]
    assert "strategy best_of_n needs a verifier; set prm" in refused(argv, capsys)


def test_report_rebuilds_the_outputs(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, Solver()) == 0
    first = capsys.readouterr().out
    written = {name: (tmp_path / "run" / name).read_bytes() for name in ("report.html", "summary.json")}
    for name in ("report.html", "summary.json", "nodes.parquet", "solutions.parquet"):
        (tmp_path / "run" / name).unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == first
    assert {name: (tmp_path / "run" / name).read_bytes() for name in written} == written
    assert "no journal.tsv in it" in refused(["report", str(tmp_path)], capsys)


def test_demo_runs_all_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(solve_command, "DEMO", solve_command.DEMO | {"policy": str(tmp_path)})
    (tmp_path / "weights").write_bytes(b"1")
    solver = Solver()
    out = tmp_path / "out"
    assert main(["demo", "--limit=2", "--n=8", f"--out={out}"], solver) == 0
    recipe = solver.calls[0][0]
    assert recipe.strategies == sample_runs.ALL and recipe.n == 8 and recipe.prm == solve_command.DEMO["prm"]


def test_demo_recipe_is_valid() -> None:
    assert Recipe.parse(solve_command.DEMO).n == 16


def test_help_agrees_with_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["solve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    options = {name.replace("-", "_"): settings for name, settings in solve_command.SOLVE_OPTIONS}
    fields = {settings.get("dest", name) for name, settings in options.items()} - {"quiet", "profile"}
    assert fields == set(Recipe.model_fields)
    for name, default in re.findall(r"--([a-z-]+) [A-Z]+ (?:(?! --).)*?\(default ([\d.]+)\)", text):
        assert float(default) == Recipe.model_fields[name.replace("-", "_")].default, name


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wcse.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


def test_help_and_version_import_nothing_heavy() -> None:
    for argument in ("--help", "--version"):
        done = run_cli(argument, PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported & {"torch", "transformers", "numpy", "pyarrow", "pydantic", "reasoning_gym"}
        assert ("solve" if argument == "--help" else "wcse 0.") in done.stdout


def test_errors_in_a_real_process_have_no_traceback(tmp_path: Path) -> None:
    done = run_cli("report", str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("wcse: error: ") and done.stderr.count("\n") == 1
