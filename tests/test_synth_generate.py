"""``wcse synth`` with the embedded model: real samples, poison problems, plans, and what the command refuses."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from wcse import cli
from wcse.data.record import SolveRecord
from wcse.shots import load_shots
from wcse.synth import generate
from wcse.synth.generate import LocalExecutor, sizes_of
from wcse.synth.outputs import read_synth
from wcse.synth.recipe import SynthRecipe
from wcse.synth.record import SynthRecord, Unit
from wcse.types import Problem, WcseError

ROWS = [
    {"id": "sum", "problem": "Calculate 17 + 25.", "answer": "42"},
    {"id": "product", "problem": "Calculate 6 * 7.", "answer": "42"},
    {"id": "difference", "problem": "Calculate 90 - 17.", "answer": "73"},
]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def main(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.main(["synth", *map(str, arguments)])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def recipe(**options: Any) -> SynthRecipe:
    sampler = {"model": "tiny-wc", "max_tokens": 48}
    return SynthRecipe.parse({"problems": "p", "samplers": {"wc": sampler}, "n": 2, "threads": 1} | options)


def run(recipe: SynthRecipe, todo: list[Problem], n: int = 2) -> dict[str, SynthRecord]:
    records: list[SynthRecord] = []
    with LocalExecutor(recipe) as executor:
        executor.run([(Unit("wc", 0, p.id, n), p) for p in todo], records.append)
    return {record.problem.id: record for record in records}


def test_the_command_makes_a_data_set_resumes_it_and_derives_it_again(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [
        f"--problems={problems}",
        "--wc=tiny-wc",
        "--se=tiny-wc",
        "--match=samples",
        "--n=3",
        f"--out={out}",
    ]
    arguments += ["--wc-max-tokens=48", "--se-max-tokens=48", "--se-temperature=0.5", "--threads=1"]
    code, text, log = main(capsys, *arguments)
    assert code == 0 and "match held: wc is +0.00%" in text and "3 problems, se and wc; writing to" in log
    first = json.loads((out / "manifest.json").read_text())
    assert {record.unit.n for record in read_synth(out)} == {3}
    code, _, log = main(capsys, *arguments, "--filter-answer=none", "--export=sft,kto")
    assert code == 0 and "resuming 6 units" in log
    assert json.loads((out / "manifest.json").read_text())["recipe"] == first["recipe"]
    code, _, log = main(capsys, *arguments, "--seed=1")
    assert code == 2 and "seed was 42, now 1" in log
    code, _, log = main(capsys, *arguments, "--device=cuda")  # whose auto is another dtype
    assert code == 2 and 'samplers.wc.dtype was "float32", now "bfloat16"' in log


def test_all_samples_of_a_problem_share_one_reading_of_the_prompt() -> None:
    (record,) = run(recipe(), [Problem("a", "Calculate 17 + 25.", "42")], n=16).values()
    assert record.solved is not None
    ledger, prompt = record.solved.ledger, record.solved.prompt_tokens
    assert ledger.policy_computed <= prompt + ledger.policy_sampled
    assert ledger.policy_reused >= 14 * prompt


def test_an_executor_that_is_closed_leaves_nothing_frozen() -> None:
    before = gc.get_freeze_count()
    with LocalExecutor(recipe()) as executor:
        executor.run([(Unit("wc", 0, "a", 1), Problem("a", "Calculate 1 + 1.", "2"))], lambda _: None)
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() <= before


def test_few_shot_examples_come_first_and_are_no_problems() -> None:
    sampler = {"model": "tiny-wc", "max_tokens": 48, "few_shot": "grade_school", "few_shot_k": 2}
    asked, _ = load_shots("grade_school", 1)[0]
    todo = [Problem("a", "Calculate 17 + 25.", "42"), Problem("shown", asked, "19")]
    shown = run(recipe(samplers={"wc": sampler}), todo)
    plain = run(recipe(), todo[:1])
    first, alone = shown["a"].solved, plain["a"].solved
    assert first is not None and alone is not None and first.prompt_tokens > alone.prompt_tokens + 100
    failure = shown["shown"].failure
    assert failure is not None and "one of the few-shot examples of grade_school" in failure.message


def test_poison_problems_are_failures_and_the_others_are_solved() -> None:
    todo = [
        Problem("good", "Calculate 17 + 25.", "42"),
        Problem("surrogate", "\ud800 Calculate 1 + 1. \udfff", "2"),
        Problem("huge", "apples " * 3000, "2"),
        Problem("fine", "Calculate 2 + 2.", "4"),
    ]
    found = run(recipe(), todo)
    kinds = {name: record.failure and record.failure.kind for name, record in found.items()}
    assert kinds == {"good": None, "surrogate": "prompt", "huge": "context", "fine": None}
    huge = found["huge"].failure
    assert huge is not None and "the context 1024" in huge.message


def test_what_one_problem_provokes_is_narrowed_down_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [Problem(f"p{i}", f"Calculate {i} + 1.", str(i + 1)) for i in range(7)]
    real = generate.solve

    def fragile(recipe: Any, problems: Any, on_record: Any, models: Any) -> None:
        if any(problem.id == "p4" for problem in problems):
            raise RuntimeError("NaN in the logits")
        real(recipe, problems, on_record, models=models)

    monkeypatch.setattr(generate, "solve", fragile)
    found = run(recipe(), todo, n=1)
    failures = {name: record.failure for name, record in found.items() if record.failure}
    assert set(found) == {p.id for p in todo} and set(failures) == {"p4"}
    assert failures["p4"].kind == "refused" and "NaN in the logits" in failures["p4"].message


def test_a_fault_of_the_run_itself_is_no_failure_of_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [Problem(f"p{i}", "Calculate 1 + 1.", "2") for i in range(20)]

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("everything is broken")

    monkeypatch.setattr(generate, "solve", broken)
    with pytest.raises(RuntimeError, match="everything is broken"):
        run(recipe(), todo, n=1)


def test_an_error_of_the_journal_reaches_the_caller() -> None:
    def full(_: SynthRecord) -> None:
        raise WcseError("no space left")

    with pytest.raises(WcseError, match="no space left"):
        LocalExecutor(recipe()).run([(Unit("wc", 0, "a", 1), Problem("a", "Calculate 1 + 1.", "2"))], full)


def test_blocks_and_samplers_draw_different_samples_and_the_same_ones_again() -> None:
    def texts(block: int, seed: int = 42) -> list[str]:
        records: list[SynthRecord] = []
        todo = Problem("a", "Calculate 17 + 25 - 3.", "39")
        LocalExecutor(recipe(seed=seed)).run([(Unit("wc", block, "a", 4), todo)], records.append)
        solved = records[0].solved
        assert isinstance(solved, SolveRecord)
        return ["".join(step.text for step in solved.steps(s.path)) for s in solved.solutions]

    assert texts(0) == texts(0) != texts(1) and texts(0) != texts(0, seed=1)


def test_a_plan_is_printed_and_nothing_is_written(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text, _ = main(
        capsys, f"--problems={problems}", "--wc=tiny-wc", "--se=tiny-wc", "--n=9", "--plan", "--threads=1"
    )
    assert code == 0 and "| se | tiny-wc | 9.00 | 27 |" in text and "GiB" in text and "time" in text
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl"}


def test_bad_rows_are_named_counted_and_left_out(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems.write_text(problems.read_text() + '{"problem": "no answer"}\n{broken\n[1]\n')
    out = tmp_path / "run"
    arguments = [f"--problems={problems}", "--wc=tiny-wc", "--wc-max-tokens=16", "--n=1", f"--out={out}"]
    code, text, log = main(capsys, *arguments, "--threads=1")
    assert code == 0 and "3 errors" in text
    for line in ("line 4: no answer column", "line 5: not valid JSON", "line 6: a row must be an object"):
        assert line in log
    assert sum(json.loads(row)["kind"] == "bad_row" for row in (out / "errors.jsonl").open()) == 3


def test_mistakes_are_one_line(tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    given = {"problems": problems, "wc": "tiny-wc"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"problems": empty}, "no problems in it"),
        ({"match": "flop"}, "unknown match 'flop'"),
        ({"wc": "tiny-vc"}, "no embedded model 'tiny-vc'"),
        ({"wc-prm": "shared", "wc-strategy": "dvts", "n": 3}, "n=3 is not a multiple of beam_width=4"),
        ({"se": "tiny-wc", "match": "money"}, "sampler wc has no price"),
        ({"recipe": tmp_path / "none.yaml"}, "cannot be read"),
        ({"wc-price": "1,2,3"}, "price"),
    ]
    for options, message in cases:
        code, _, log = main(capsys, *(f"--{name}={value}" for name, value in (given | options).items()))
        last = log.splitlines()[-1]
        assert code == 2 and last.startswith("wcse: error: ") and message in last, last


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("samplers: [wc]", "samplers=['wc']: must hold options"),
        ("samplers: {wc: tiny-wc}", "samplers.wc='tiny-wc': must hold options"),
        ("filters: gold", "filters='gold': must hold options"),
        ("samplers: {wc: {dtype: float8}}", "samplers.wc.dtype='float8'"),
    ],
)
def test_a_recipe_file_with_a_value_where_options_belong(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    code, _, log = main(capsys, f"--recipe={path}", f"--problems={problems}", "--wc=tiny-wc")
    assert code == 2 and message in log.splitlines()[-1]


def test_a_reference_that_is_cheaper_is_refused(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    samplers = "{wc: {model: tiny-wc, parameters: 9}, se: {model: tiny-wc, parameters: 2}}"
    path.write_text(f"problems: {problems}\nsamplers: {samplers}\n")
    code, _, log = main(capsys, f"--recipe={path}")
    assert code == 2 and "reference=se: it is cheaper than wc" in log
    sizes = sizes_of(
        recipe(samplers={"wc": {"model": "tiny-wc", "prm": "tiny-wc-prm", "strategy": "best_of_n"}})
    )
    assert sizes["wc"].policy > 2_000_000 and sizes["wc"].verifier > 2_000_000
