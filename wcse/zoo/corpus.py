"""Problems and their solutions, step by step, for the embedded models.

Problems come from reasoning-gym (``gsm_symbolic``, ``chain_sum``, ``basic_arithmetic``); their worked
solutions are rewritten into short uniform paragraphs, one step each, joined by a blank line. Pure arithmetic
drills in the same form teach a small model to copy and to calculate.

Seeds: training draws problem ``i`` from ``Random(i)`` with ``i < EVAL_SEED``; everything at or above
``EVAL_SEED`` is never trained on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from random import Random
from typing import Any

from .arithmetic import Unwritable, reduce_expression, show

SEPARATOR = "\n\n"
EVAL_SEED = 10_000_000
SUFFIX = " Give the result as your final answer. Do not include units."

#: gsm_symbolic templates that no training problem uses: for out-of-domain tests.
HELD_OUT_TEMPLATES = (6, 20, 31, 43, 57, 62, 69, 91)

#: gsm_symbolic templates whose worked solution is no plain chain of calculations: not trained on either.
UNWRITABLE_TEMPLATES = (53, 60, 66, 83)

#: reasoning-gym settings that training covers, over the defaults of each task.
TASK_CONFIGS: dict[str, dict[str, Any]] = {
    "gsm_symbolic": {},
    "chain_sum": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
}


@dataclass(frozen=True)
class Example:
    """A problem with its written solution."""

    task: str
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def solution(self) -> str:
        """The steps as one text."""
        return SEPARATOR.join(self.steps)


@cache
def templates() -> dict[int, Any]:
    """The gsm_symbolic problem generators that reasoning-gym uses, by number."""
    import reasoning_gym
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    generators = reasoning_gym.create_dataset("gsm_symbolic", size=1, seed=0).generators
    return {index: generators[index] for index in tasks_ok}


@cache
def training_templates() -> tuple[int, ...]:
    """All templates that are not held out."""
    return tuple(index for index in templates() if index not in HELD_OUT_TEMPLATES + UNWRITABLE_TEMPLATES)


def final_step(answer: str) -> str:
    """The last paragraph of every solution."""
    return f"The answer is \\boxed{{{show(Fraction(answer))}}}."


# --- gsm_symbolic: from a worked solution to steps ---------------------------------------------------

_NUMBER = r"\d+(?:\.\d+)?"
_UNIT_WORDS = r"(?:\s++[A-Za-z][A-Za-z'\"-]*+\.?){0,9}"
_LITERAL = rf"\(?\s*-?{_NUMBER}\s*%?{_UNIT_WORDS}\s*\)?"
_EQUATION = re.compile(rf"({_LITERAL}(?:\s*[-+*/]\s*{_LITERAL})+)\s*=\s*(-?{_NUMBER})(\s*%?)")
_MAX_LEAD, _MAX_TAIL = 5, 3
_CONNECTIVES = {"so", "or", "and", "then", "therefore", "thus", "hence", "that", "which", "means"}
_LOOSE_ENDS = {
    *("a", "an", "and", "at", "be", "can", "for", "from", "he", "her", "his", "in", "left", "more", "of"),
    *("on", "or", "per", "she", "so", "than", "that", "the", "they", "this", "to", "was", "were", "who"),
    *("will", "with"),
}


def _plain(line: str) -> str:
    """One line of a worked solution with its typography removed."""
    line = re.sub(r"(?<=\d),(?=\d{3})", "", line)
    line = re.sub(r"[$£€•]|^\s*(?:\d+\.|-)\s+", "", line)
    line = re.sub(r"(?<=[\d\w)%])\s*(?:×|(?<=\s)x(?=\s))\s*(?=\d)", " * ", line)
    line = line.replace("÷", "/").replace("half * ", "1/2 * ").replace("100% - ", "100 - ")
    line = re.sub(r"(?<=\d)\(", " * (", line)
    return re.sub(r"/\s*[A-Za-z]+(?:\s(?=[-+*=]))?", " ", line)


def _expression(lhs: str, percent_result: bool) -> str:
    """The left side of an equation without its units."""
    if not percent_result:
        lhs = re.sub(rf"({_NUMBER})\s*%", lambda m: show(Fraction(m[1]) / 100), lhs)
    return re.sub(r"[^\d.+*/() -]|(?<!\d)\.(?!\d)", "", lhs)


def _lead(text: str) -> str:
    """The clause just before an equation, if it is short and holds no number."""
    text = text.rstrip()
    clause = re.split(r"[.,;:=]", text.removesuffix(":"))[-1]
    words = clause.split()
    while words and words[0].lower() in _CONNECTIVES:
        words.pop(0)
    if len(words) > _MAX_LEAD or any(c.isdigit() for c in clause):
        return ""
    lead = " ".join(words)
    return lead[:1].upper() + lead[1:] + (":" if lead and text.endswith(":") else "")


def _tail(text: str) -> str:
    """The unit just after an equation: a few words, never ending on a preposition."""
    words = re.split(r"[.,;:=]", text)[0].split()
    digits = [i for i, w in enumerate(words) if any(c.isdigit() for c in w)]
    words = words[: min([_MAX_TAIL, *digits])]
    while words and words[-1].lower() in _LOOSE_ENDS:
        words.pop()
    return " ".join(words)


def _step(match: re.Match[str], line: str, start: int) -> tuple[str, Fraction]:
    """The paragraph of one equation and its value."""
    value, lines = reduce_expression(_expression(match[1], "%" in match[3]))
    if abs(float(value) - float(match[2])) > 1e-6:
        raise Unwritable(match[0])
    parts = (_lead(line[start : match.start()]), ", ".join(lines), _tail(line[match.end() :]))
    return " ".join(part for part in parts if part) + ".", Fraction(value)


def worked_steps(solution: str) -> list[str]:
    """The calculation steps of a reasoning-gym worked solution; ``Unwritable`` if they do not add up."""
    body, _, gold = solution.partition("####")
    steps, value = [], None
    for raw in body.splitlines():
        line, start = _plain(raw), 0
        for match in _EQUATION.finditer(line):
            step, value = _step(match, line, start)
            steps.append(step)
            start = match.end()
    if value is None or value != Fraction(gold.strip()):
        raise Unwritable("the last step does not give the answer")
    return steps


def gsm_example(template: int, seed: int) -> Example:
    """Problem ``seed`` of one gsm_symbolic template."""
    item = templates()[template](Random(seed), 1.0)
    steps = worked_steps(item["metadata"]["answer_cot"])
    answer = item["answer"]
    return Example("gsm_symbolic", item["question"] + SUFFIX, (*steps, final_step(answer)), answer)


# --- arithmetic tasks --------------------------------------------------------------------------------


def expression_steps(expression: str) -> tuple[list[str], str]:
    """The steps and the answer of a pure arithmetic problem."""
    value, lines = reduce_expression(expression)
    return [f"{line}." for line in lines], show(value)


def arithmetic_example(task: str, seed: int) -> Example:
    """Problem ``seed`` of ``chain_sum`` or ``basic_arithmetic`` under ``TASK_CONFIGS``."""
    import reasoning_gym

    item = reasoning_gym.create_dataset(task, size=1, seed=seed, **TASK_CONFIGS[task])[0]
    steps, answer = expression_steps(item["metadata"]["expression"])
    if Fraction(answer) != Fraction(item["answer"]):
        raise Unwritable(item["question"])
    return Example(task, item["question"], (*steps, final_step(answer)), answer)


# --- drills ------------------------------------------------------------------------------------------


def _size(rng: Random, digits: int) -> int:
    """A whole number of up to ``digits`` digits, each length equally likely; sometimes a round one."""
    n = rng.randint(1, 10 ** rng.randint(1, digits) - 1)
    return n * 10 ** rng.choice((0, 0, 0, 0, 1, 2)) if rng.random() < 0.15 else n


def _drill(rng: Random) -> str:
    """One operation as it occurs in solutions."""
    kind = rng.random()
    digits = rng.choice((2, 3, 3, 3, 4))
    if kind < 0.35:
        return f"{_size(rng, digits)} + {_size(rng, digits)}"
    if kind < 0.65:
        a, b = sorted((_size(rng, digits), _size(rng, digits)), reverse=rng.random() < 0.9)
        return f"{a} - {b}"
    if kind < 0.8:
        return f"{_size(rng, 3)} * {_size(rng, 2)}"
    if kind < 0.84:
        return f"{rng.randint(2, 99) * 10 ** rng.randint(0, 4)} * {rng.randint(1, 20)}"
    if kind < 0.96:
        b, q = _size(rng, rng.choice((1, 1, 2, 2, 3))), _size(rng, 2)
        return f"{b * q} / {b}"
    return f"{_size(rng, 5) * 10} / {rng.choice((10, 100))}"


def drill_example(rng: Random) -> Example:
    """A list of a few operations to be copied and worked out one by one."""
    items = [_drill(rng) for _ in range(rng.randint(1, 7))]
    steps = [step for item in items for step in expression_steps(item)[0]]
    answer = expression_steps(items[-1])[1]
    return Example("drill", "Work out: " + "; ".join(items), (*steps, final_step(answer)), answer)


# --- mixtures ----------------------------------------------------------------------------------------


def training_example(rng: Random, weights: dict[str, float]) -> Example:
    """One training problem; ``weights`` are the shares of the tasks and of ``"drill"``."""
    while True:
        task = rng.choices(list(weights), list(weights.values()))[0]
        seed = rng.randrange(EVAL_SEED)
        try:
            if task == "drill":
                return drill_example(rng)
            if task == "gsm_symbolic":
                return gsm_example(rng.choice(training_templates()), seed)
            return arithmetic_example(task, seed)
        except Unwritable:
            continue


def evaluation_problems(task: str, count: int, seed: int = EVAL_SEED) -> list[tuple[str, str]]:
    """Fresh raw problems as ``(question, answer)``, exactly as reasoning-gym gives them."""
    import reasoning_gym

    if seed < EVAL_SEED:
        raise ValueError(f"evaluation seeds start at {EVAL_SEED}: lower ones are training data")
    data = reasoning_gym.create_dataset(task, size=count, seed=seed, **TASK_CONFIGS[task])
    return [(item["question"], item["answer"]) for item in data]


def template_problems(indices: tuple[int, ...], count: int, seed: int = EVAL_SEED) -> list[tuple[str, str]]:
    """Fresh gsm_symbolic problems of the given templates in turn, as ``(question, answer)``."""
    items = [templates()[indices[i % len(indices)]](Random(seed + i), 1.0) for i in range(count)]
    return [(item["question"] + SUFFIX, item["answer"]) for item in items]
