"""Few-shot examples: the sets that come with wcse are right, both kinds of prompt, what is refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import tiny_models

from wcse.answers import Verdict, extract_answer, is_correct
from wcse.prompts import render_problem, stop_strings
from wcse.recipe import Recipe
from wcse.shots import load_shots, shot_sets, shots_path
from wcse.synth.steps import equations
from wcse.types import WcseError


def test_the_sets_solve_their_problems() -> None:
    assert shot_sets() == ("competition", "grade_school")
    for name in shot_sets():
        rows = [json.loads(line) for line in shots_path(name).read_text().splitlines()]
        assert load_shots(name) == tuple((row["problem"], row["solution"]) for row in rows) and len(rows) >= 4
        for row in rows:
            answer = extract_answer(row["solution"])
            assert answer is not None and is_correct(answer, row["answer"]) is Verdict.EQUAL
            assert len(row["solution"].split("\n\n")) >= 3
    for _, solution in load_shots("grade_school"):
        found = equations(solution)
        assert found and all(equation.holds for equation in found)
        answer = extract_answer(solution)
        assert answer is not None and found[-1].result == Fraction(answer)


def test_turns_where_there_is_a_template_and_blocks_of_text_where_there_is_none() -> None:
    plain = tiny_models.wrap(tiny_models.byte_level())
    shots = (("1 + 1?", "It is \\boxed{2}."),)
    plain.chat_template = None
    text = plain.decode(render_problem(plain, "2 + 2?", "Be brief.", shots))
    assert text.endswith(
        "Be brief.\n\nProblem: 1 + 1?\n\nSolution: It is \\boxed{2}.\n\nProblem: 2 + 2?\n\nSolution:"
    )
    assert stop_strings(plain, shots) == ("Problem:",) and stop_strings(plain, ()) == ()
    plain.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    text = plain.decode(render_problem(plain, "2 + 2?", None, shots))
    assert text.endswith("[user]1 + 1?[assistant]It is \\boxed{2}.[user]2 + 2?")
    assert stop_strings(plain, shots) == ()


def test_what_is_refused(tmp_path: Path) -> None:
    given = {"policy": "m", "problems": "p"}
    with pytest.raises(WcseError, match="few_shot_k=2 without few_shot"):
        Recipe.parse(given | {"few_shot_k": 2})
    with pytest.raises(WcseError, match="did you mean 'grade_school'"):
        Recipe.parse(given | {"few_shot": "grade_shool"}).shots  # noqa: B018
    assert len(Recipe.parse(given | {"few_shot": "grade_school", "few_shot_k": 3}).shots) == 3
    path = tmp_path / "shots.jsonl"
    for content, message in (
        ("\n", "no examples in it"),
        ('{"problem": "a", "solution": "b"}\n{oops\n', "line 2: not valid JSON"),
        ('{"problem": "a", "solution": 3}\n', "line 1: needs problem and solution"),
        ("[1]\n", "line 1: needs problem and solution"),
    ):
        path.write_text(content)
        load_shots.cache_clear()
        with pytest.raises(WcseError, match=message):
            load_shots(str(path))
