"""Measures, judges and filters: golden numbers, brute force, and the checks of written arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcse.synth.filters import Contamination, Filters, identity
from wcse.synth.judges import by_labels, by_steps, by_verifier, read_labels
from wcse.synth.measures import Measures, between, diversity_at_k, paired_interval, rogan_gladen
from wcse.synth.recipe import FilterSpec
from wcse.synth.record import ProblemSamples, Sample
from wcse.synth.steps import Reasoning, check_steps, check_worked, equations, label_steps, numbers
from wcse.types import Problem, WcseError

APPLES = Problem(
    "p", "Ann has 12 bags with 45 apples and eats three.", "537", {"solution": "12*45=540\n540-3=537"}
)
RIGHT = (
    "12 * 45 = 12 * 40 + 12 * 5 = 480 + 60 = 540.\n\n",
    "540 - 3 = 537 apples.\n\n",
    "The answer is \\boxed{537}.",
)


def sample(
    text: str | tuple[str, ...] = RIGHT,
    index: int = 0,
    *,
    answer: str | None = "537",
    correct: bool | None = True,
    sampler: str = "wc",
    complete: bool = True,
    scores: tuple[float | None, ...] = (),
    score: float | None = None,
) -> Sample:
    steps = (text,) if isinstance(text, str) else text
    return Sample(("p", sampler, 0, index), steps, scores, answer, 0, correct, score, complete, 10)


# --- arithmetic in text


def test_equations_are_found_and_checked() -> None:
    found = equations("Cost: $1,200 / 4 = 300, 300 * 0.5 = 150 dollars. So 2 + 2 = 5.")
    assert [e.result for e in found] == [300, 150, 5]
    assert [e.holds for e in found] == [True, True, False]
    (chain,) = equations("12 * 45 = 12 * 40 + 12 * 5 = 480 + 60 = 541.")
    assert chain.holds is False and chain.sides[0] == "12 * 45"
    assert equations("no numbers = here, x = 3") == []
    assert equations("3 × 4 = 12 (see above)")[0].holds is True
    assert equations("7 / 0 = 3")[0].holds is None
    assert numbers("two bags of 1,000.5 and a dozen") == {Fraction(2), Fraction(2001, 2), Fraction(12)}


def test_a_right_solution_stands_and_each_fault_falls() -> None:
    def verdict(*steps: str, answer: str = "537") -> Reasoning:
        return check_steps(APPLES, "\n\n".join(steps), answer)

    assert verdict(*RIGHT) is Reasoning.RIGHT
    assert verdict("12 * 45 = 541.", "541 - 4 = 537.") is Reasoning.WRONG  # a false equation
    assert verdict("17 * 31 = 527.", "527 + 10 = 537.") is Reasoning.WRONG  # numbers from nowhere
    assert verdict("12 * 45 = 540.") is Reasoning.WRONG  # does not arrive at the answer
    assert verdict("I just know it.") is Reasoning.UNKNOWN
    assert check_worked(APPLES, "".join(RIGHT)) is Reasoning.RIGHT
    assert check_worked(APPLES, "540 - 3 = 537") is Reasoning.WRONG  # a result of the worked one is missing
    assert check_worked(APPLES, "12 * 45 - 3 = 537") is Reasoning.WRONG  # another way
    assert check_worked(Problem("q", "?", "1"), "1 = 1") is Reasoning.UNKNOWN


def test_step_labels_are_false_from_the_first_fault_on() -> None:
    assert label_steps(APPLES, RIGHT) == [True, True, True]
    assert label_steps(APPLES, ("12 * 45 = 530.", "530 - 3 = 527.", "Done.")) == [False, False, False]
    assert label_steps(APPLES, ("12 * 45 = 540.", "540 - 4 = 535.", "Done.")) == [True, False, False]
    assert label_steps(APPLES, ("Well.", "Done.")) is None


def test_the_generators_own_solutions_stand() -> None:
    pytest.importorskip("reasoning_gym")
    from random import Random

    from wcse.zoo.arithmetic import Unwritable
    from wcse.zoo.corpus import gsm_example, templates, training_templates

    for seed, template in enumerate(training_templates()[:40]):
        try:
            example = gsm_example(template, seed)
        except Unwritable:
            continue
        item = templates()[template](Random(seed), 1.0)
        problem = Problem("x", example.question, example.answer, {"solution": item["metadata"]["answer_cot"]})
        assert check_steps(problem, example.solution, example.answer) is Reasoning.RIGHT, example.solution


# --- measures


def test_diversity_golden() -> None:
    assert diversity_at_k(6, [3, 1], 2) == pytest.approx(17 / 15)
    assert math.isnan(diversity_at_k(2, [1], 3))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(1, 7))
def test_diversity_is_the_mean_over_subsets(kinds: list[int], k: int) -> None:
    """Kind 0 is wrong; each other number is a right solution."""
    if k > len(kinds):
        return
    subsets = list(combinations(kinds, k))
    expected = sum(len({kind for kind in subset if kind}) for subset in subsets) / len(subsets)
    counts = [kinds.count(kind) for kind in set(kinds) - {0}]
    assert diversity_at_k(len(kinds), counts, k) == pytest.approx(expected)


def test_a_fractional_sample_count_is_a_lottery_between_two() -> None:
    assert between(lambda k: float(k * k), 2.25) == pytest.approx(0.75 * 4 + 0.25 * 9)
    assert between(lambda k: float(k * k), 3) == 9
    assert between(lambda k: 0.4, 0.5) == pytest.approx(0.2)


def test_rogan_gladen_golden() -> None:
    corrected = rogan_gladen(0.18, 500, 0.8, 20, 0.9, 80)
    assert corrected.rate == pytest.approx(0.1143, abs=1e-4) and corrected.error == pytest.approx(
        0.051, abs=1e-3
    )
    assert rogan_gladen(0.02, 500, 0.8, 20, 0.9, 80).rate == 0
    with pytest.raises(WcseError, match="their sum must exceed 1"):
        rogan_gladen(0.18, 500, 0.5, 20, 0.5, 80)
    with pytest.raises(WcseError, match="all must be at least 1"):
        rogan_gladen(0.18, 500, 0.8, 0, 0.9, 80)


def test_false_positives_count_right_answers_only_and_are_corrected() -> None:
    wrong_way = ("12 * 45 = 541.\n\n", "541 - 4 = 537.")
    samples = [sample(index=0), sample(wrong_way, 1), sample(wrong_way, 2, answer="1", correct=False)]
    people = by_labels({("p", "wc", 0, 0): Reasoning.RIGHT, ("p", "wc", 0, 1): Reasoning.WRONG})
    measures = Measures(["wc"], {"steps": by_steps, "prm": by_verifier(0.5)}, people)
    measures.add(ProblemSamples(APPLES, {"wc": samples}))
    numbers = measures.to_json([1, 3])["samplers"]["wc"]
    steps = numbers["false_positives"]["steps"]
    assert (steps["judged"], steps["rate"], steps["problems"]) == (2, 0.5, 1)
    assert (steps["sensitivity"], steps["specificity"], steps["corrected"]) == (1.0, 1.0, 0.5)
    assert numbers["false_positives"]["prm"] == {"judged": 0, "unknown": 2, "rate": None}
    assert numbers["coverage"] == [pytest.approx(2 / 3), 1.0]
    assert numbers["diversity"] == [pytest.approx(2 / 3), 2.0]


def test_samplers_are_compared_on_the_same_problems_at_matched_counts() -> None:
    measures = Measures(["se", "wc"], {})
    for index in range(4):
        problem = Problem(f"p{index}", "?", "1")
        se = [sample(str(i), i, sampler="se", correct=i < index) for i in range(2)]
        wc = [sample(str(i), i, correct=i < index) for i in range(6)]
        measures.add(ProblemSamples(problem, {"se": se, "wc": wc}))
    measures.add(ProblemSamples(Problem("failed", "?", "1"), {"se": se}))
    measures.add(ProblemSamples(Problem("no gold", "?"), {"se": se, "wc": wc}))
    result = measures.to_json([1, 2])
    assert (result["problems"], result["incomplete_problems"], result["ungraded_problems"]) == (4, 1, 1)
    first, second = result["matched"]
    assert (first["reference_k"], first["k"], second["k"]) == (1, 3, 6)
    assert second["coverage"] == second["reference_coverage"] == 0.75
    assert [pair["k"] for pair in result["equal_samples"]] == [1, 2]
    assert result["equal_samples"][0]["coverage"] == pytest.approx((0 + 1 + 2 + 3) / 6 / 4)


def test_paired_interval_holds_the_difference_and_is_reproducible() -> None:
    a, b = [1.0, 0.0, 1.0, 1.0] * 10, [0.0, 0.0, 1.0, 0.0] * 10
    low, high = paired_interval(a, b, seed=3)
    assert low < 0.5 < high and (low, high) == paired_interval(a, b, seed=3)


# --- labels


def test_labels_are_read_and_bad_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("problem,sampler,block,index,label\np,wc,0,1,Wrong\n")
    assert read_labels(path) == {("p", "wc", 0, 1): Reasoning.WRONG}
    for content, message in (
        ("problem,label\n", "no column sampler, block, index"),
        (
            "problem,sampler,block,index,label\np,wc,0,1,worng\n",
            "line 2: label 'worng' .did you mean 'wrong'",
        ),
        (
            "problem,sampler,block,index,label\np,wc,x,1,wrong\n",
            "line 2: block and index must be whole numbers",
        ),
    ):
        path.write_text(content)
        with pytest.raises(WcseError, match=message):
            read_labels(path)
    with pytest.raises(WcseError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


# --- filters


def kept(
    samples: list[Sample], problem: Problem = APPLES, **options: object
) -> tuple[list[int], dict[str, int]]:
    filters = Filters(FilterSpec.parse(options))
    indices = [s.key[3] for s in filters.keep(problem, samples)]
    return indices, {reason: n for (_, reason), n in filters.dropped.items()}


def test_each_filter_drops_for_its_reason() -> None:
    cut = sample("12 * 45 =", 1, answer=None, correct=False, complete=False)
    wrong = sample("It is 5.", 2, answer="5", correct=False)
    again = sample(tuple(step.upper() for step in RIGHT), 3)
    assert kept([sample(), cut, wrong, again]) == ([0], {"unfinished": 1, "wrong_answer": 1, "duplicate": 1})
    assert kept([sample(), wrong, again], answer="none", dedupe="none") == ([0, 2, 3], {})
    swapped = sample((RIGHT[1], RIGHT[0], RIGHT[2]), 4)
    assert kept([sample(), swapped])[0] == [0, 4] and kept([sample(), swapped], dedupe="steps")[0] == [0]
    assert kept([sample(), swapped], max_per_problem=1) == ([0], {"over_the_limit": 1})
    scored = [sample(index=0, score=0.9), sample("b", 1, score=0.2), sample("c", 2)]
    assert kept(scored, min_score=0.5) == ([0], {"low_score": 2})
    votes = [sample("a", 0), sample("b", 1, answer="537.0"), sample("c", 2, answer="9", correct=False), cut]
    assert kept(votes, answer="none", agreement=0.5) == ([0, 1], {"low_agreement": 1, "unfinished": 1})


def test_contamination_by_ngrams() -> None:
    words = " ".join(f"w{i}" for i in range(20))
    seen = Contamination(13, [Problem("e", words), Problem("short", "What is 2 + 2?")])
    assert seen.hits("x " + " ".join(f"W{i}" for i in range(13)) + " y") and not seen.hits(
        " ".join(words.split()[:12])
    )
    assert seen.hits("what is 2 + 2") and not seen.hits("what is 2 + 3") and not seen.hits("")
    assert not Contamination(13).hits(words)
    filters = Filters(FilterSpec.parse({"ngram": 5}), [APPLES])
    assert filters.keep(APPLES, [sample()]) == [] and filters.dropped["wc", "contaminated"] == 1


def test_identity_ignores_case_and_space() -> None:
    assert identity(sample("A  b\n"), "text") == identity(sample("a b"), "text")
    assert identity(sample("A  b\n"), "steps") == frozenset({"a b"})
