"""Extraction, exact comparison, classes (T10, T24, T25) and the pool's limits on hostile text (T26)."""

import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse.answers import (
    MathPool,
    Verdict,
    answer_classes,
    compare,
    extract_answer,
    is_correct,
    pool,
    pool_child,
)
from wcse.answers.algebra import Exact, Unreadable
from wcse.answers.classes import MAX_JUDGED
from wcse.answers.expression import Expression
from wcse.types import WcseError

EQUAL, DIFFERENT, UNDECIDED = Verdict

# --- extraction


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{1}", r"\{1"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7$", "7"),
        ("work\n#### 1,234", "1,234"),
        ("The answer is 5.", "5"),
        ("The final answer is $\\frac12$. I hope it is correct.", "$\\frac12$"),
        ("**Answer:** 3.5\n\nThanks!", "3.5"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("answer = x + 1", "x + 1"),
        (r"The answer is 3, or rather \boxed{4}", "4"),
        ("Step 2: we have 7 apples", None),
        ("The answer is", None),
        (r"\boxed{}", None),
        ("My answers are 5 and 6", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract_answer(text) == answer


# --- comparison: what is certain

SAME = r"""
5 | 5.0 | $5$ | \(5\) | +5 | 5. | {5} | (5) | \boxed{5} | \mathbf{5}
5 | 5\text{ cm} | 5 cm | 5 \text{ cm}^2 | 5 apples | $5 | \$5.00 | 5 dollars | 5^\circ | 5° | \text{5 cm} | x=5 | x = 5
-4 | −4 | -4.0 | -\frac{8}{2}
10\% | 10 | 10 percent
1000 | 1,000 | 1{,}000 | 1\,000 | 1,\!000 | 10^3 | 1e3 | 1.0\times 10^{3}
0.5 | .5 | 1/2 | \frac12 | \frac{1}{2} | \dfrac{1}{2} | \frac{2}{4} | 2^{-1}
3/2 | 1\frac{1}{2} | 1\frac12 | 1 1/2 | 1.5
2\sqrt{3} | \sqrt{12} | 2\sqrt3 | \frac{6}{\sqrt{3}} | 2 \cdot sqrt(3) | 12^{1/2}
\sqrt[3]{8} | 2 | 4^{\frac{1}{2}} | |
2\pi | 2pi | \pi \cdot 2 | π*2
(x+1)^2 | x^2+2x+1 | 1 + x(x+2) | f(x)=(x+1)(x+1)
\frac{1}{x+1} | \frac{x-1}{x^2-1}
3+2i | 2i+3 | 3 + 2\sqrt{-1}
\{1,2\} | 1,2 | 2, 1 | 1 and 2 | 1 \text{ or } 2 | x=1, x=2 | x = 1 \text{ or } x = 2 | {2,1} | \left\{ 2, 1 \right\}
3 \pm 2i | 3+2i, 3-2i | \{3-2i,3+2i\}
(3,\frac{\pi}{2}) | \left( 3, \frac{\pi}{2} \right) | (x,y) = (3, \pi/2)
[1,2,3] | (1,2,3)
(-\infty, 3] | \left(-\infty,3\right] | x \in (-\infty,3]
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
A | (A) | \text{A} | \text{(A)} | a | \textbf{(A)}
Evelyn | \text{Evelyn} | evelyn
\emptyset | \{\} | \varnothing
x_1 | x_{1}
1,000, 2,000 | 2000, 1000
""".strip().splitlines()


@pytest.mark.parametrize("line", SAME)
def test_same(line):
    forms = [form.strip() for form in line.split(" | ") if form.strip(" |")]
    for a, b in permutations(forms, 2):
        assert compare(a, b) is EQUAL, (a, b)
    assert answer_classes(forms) == [0] * len(forms)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (".333", r"\frac13"),
        (r"\pi", "3.14"),
        ("[1,2)", "(1,2]"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", r"\{1,2\}"),
        ("(1,2)", "(1,2,3)"),
        ("5", "-5"),
        ("1 1/2", "11/2"),
        ("x+1", "x-1"),
        ("p-q", "q-p"),
        ("1,2", "1,3"),
        ("5", "5, 6"),
        ("A", "B"),
        ("Evelyn", "Carla"),
        (r"\infty", r"-\infty"),
        (r"\sqrt{2}", "1.414"),
        ("2i", "2"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        ("9" * 390, "9" * 389 + "8"),
    ],
)
def test_different(a, b):
    assert compare(a, b) is compare(b, a) is DIFFERENT


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"10\%", "0.1"),  # may have been meant
        ("(1,2)", "1,2"),
        ("100,200", r"\{100,200\}"),
        ("(1,000)", "1000"),
        ("x=5", "y=5"),
        (r"\{1\}", "1"),
        ("six", "6"),
        ("yes", "no"),  # short words may be products
        ("1/2x", r"\frac{x}{2}"),
        ("1011_2", "11"),
        ("2 3", "6"),
        ("1/0", "1"),
        ("0^0", "1"),
        (r"\sin 30^\circ", r"\sin 30"),
        (r"\frac123", "4"),
        ("x=1, y=2", "1, 2"),
        ("", "1"),
        ("9^9^9^9", "9"),
        ("9^{9^{9^{9}}}", "9"),
        ("10^8!", "1"),
        ("2^{100000}", "1"),
        ("((9^{99})^{99})^{99}", "1"),
        ("1e999999999", "1"),
        ("(" * 190 + "1" + ")" * 190, "1"),
        (r"1\frac{" * 40 + "1" + "}" * 40, "1"),
        (r"\frac" * 79 + "1", "1"),
        (r"\sqrt{" * 30 + "2" + "}" * 30, "1"),
        ("9" * 5000, "1"),
        ("().__class__.__base__.__subclasses__()", "1"),
        (r"\sqrt{" + "9" * 60 + "7}", "1"),
    ],
)
def test_not_certain(a, b):
    assert compare(a, b) is compare(b, a) is UNDECIDED


@pytest.mark.parametrize(
    "text", ["9^9^9^9", "((((", r"\frac", "1/0", "__import__('os')", "答え", "\ud800", ",", "{}"]
)
def test_equal_texts_are_equal_whatever_they_say(text):
    assert compare(text, text) is EQUAL


def test_is_correct():
    assert is_correct("0.5", r"\frac{1}{2}") is EQUAL
    assert is_correct("2", "3") is DIFFERENT
    assert is_correct(None, "3") is is_correct(" ", "3") is DIFFERENT
    assert is_correct(r"\log_2 8", "3") is UNDECIDED


def test_classes():
    assert answer_classes(["1", "2", None, "1.0", "", " ", "2/2", "3"]) == [0, 1, None, 0, None, None, 0, 2]
    assert answer_classes([]) == []
    # Undecided texts are in classes of their own, but equal texts are equal.
    assert answer_classes([r"\log_2 8", "3", r"\log_{2} 8", r"\log_2  8"]) == [0, 1, 2, 0]


def test_classes_are_closed_transitively():
    class Chain:
        def judge(self, a, b):
            return EQUAL if abs(ord(a[-1]) - ord(b[-1])) == 1 else UNDECIDED

    links = [r"\log a", r"\log c", r"\log b", r"\log e"]
    assert answer_classes(links, Chain()) == [0, 0, 0, 1]


class Counting:
    """Calls texts of equal length equal, and counts the questions."""

    def __init__(self):
        self.asked = []

    def judge(self, a, b):
        self.asked.append((a, b))
        return EQUAL if len(a) == len(b) else DIFFERENT


def test_the_judge_sees_one_member_of_a_class_and_popular_classes_first():
    judge = Counting()
    assert answer_classes(["3", "3.0", "6/2", r"\log x", r"\log  x", "9", "9", "9", "9"], judge) == [
        *[0, 0, 0],
        *[1, 1],
        *[2, 2, 2, 2],
    ]
    assert judge.asked == [("9", r"\log x"), ("3", r"\log x")]


def test_questions_to_the_judge_are_bounded():
    judge = Counting()
    answer_classes([r"\log " + "x" * i for i in range(1, 60)], judge)
    assert len(judge.asked) == MAX_JUDGED


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["1", "1.0", r"1\%", "0.01", r"\log 1", r"\log ab", r"\sin a", "1,2", "(1,2)", ""])
    ),
    st.randoms(),
)
def test_classes_do_not_depend_on_the_order(answers, shuffle):
    def groups(texts):
        classes = answer_classes(texts, Counting())
        return {
            frozenset(t for t, c in zip(texts, classes, strict=True) if c == number)
            for number in set(classes)
        }

    mixed = list(answers)
    shuffle.shuffle(mixed)
    assert groups(answers) == groups(mixed)


PIECES = [
    *"0123456789xia.,-+*/^(){}[]=%$ ",
    r"\frac",
    r"\sqrt",
    r"\pi",
    r"\{",
    r"\}",
    r"\pm",
    r"\text{cm}",
    " and ",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS)
def test_compare_is_total_and_symmetric(a, b):
    assert compare(a, a) is EQUAL
    assert compare(a, b) is compare(b, a)


@st.composite
def arithmetic(draw, depth=3):
    """A pair: an expression in LaTeX, and its value, None where that divides by zero."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 30))
        return str(number), Fraction(number)
    left, a = draw(arithmetic(depth=depth - 1))
    right, b = draw(arithmetic(depth=depth - 1))
    operator = draw(st.sampled_from(["+", "-", r"\cdot", r"\frac", "^"]))
    if a is None or b is None or (operator == r"\frac" and b == 0) or (operator == "^" and a == 0):
        return left, a
    if operator == r"\frac":
        return rf"\frac{{{left}}}{{{right}}}", a / b
    if operator == "^":
        return rf"\left({left}\right)^{{2}}", a**2
    value = {"+": a + b, "-": a - b, r"\cdot": a * b}[operator]
    return rf"({left}) {operator} ({right})", value


@settings(max_examples=200, deadline=None)
@given(arithmetic(), st.integers(-2, 2))
def test_arithmetic_agrees_with_fractions(pair, offset):
    text, value = pair
    other = value + offset
    assert compare(text, f"{other.numerator}/{other.denominator}") is (DIFFERENT if offset else EQUAL)


@settings(max_examples=100, deadline=None)
@given(st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_square_roots(a, b):
    roots = Exact.of(a).root(2) * Exact.of(b).root(2)
    assert roots * roots == Exact.of(a * b)
    assert Exact.of(a * a).root(2) == Exact.of(abs(a))
    assert (Exact.of(a).root(2) == Exact.of(b).root(2)) == (a == b)


def test_hostile_arithmetic_is_refused_before_it_is_computed():
    for text in ("9^{99}^{99}", "(x+y+z+1)^{20}", "(1+x)^{99}", "2^{x}", "x^{1/2}", "(-8)^{1/3}"):
        with pytest.raises(Unreadable):
            Expression(text).value()


# --- the pool's machinery, on children that play a part


PART = """
import json, signal, sys
print("ready", flush=True)
for line in sys.stdin:
    text = json.loads(line)[0]
    if "hang" in text:
        signal.pause()
    if "die" in text:
        sys.exit(1)
    print(json.dumps(True), flush=True)
"""


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Children that answer yes, and hang or die when told."""
    script = tmp_path / "part.py"
    script.write_text(PART)
    monkeypatch.setattr(pool, "_CHILD", script)
    monkeypatch.setattr(pool, "find_spec", lambda name: object())
    return script


def test_a_child_that_hangs_or_dies_is_replaced(part):
    with MathPool(time_limit=5) as judges:
        assert judges.judge("a", "b") is EQUAL
        assert judges.judge("die", "b") is UNDECIDED
        assert judges.judge("a", "b") is EQUAL
    with MathPool(time_limit=0.2) as judges:
        assert judges.judge("a", "hang") is UNDECIDED
        assert judges.judge("a", "hang") is UNDECIDED  # remembered: the next one costs nothing


def test_a_hard_text_is_asked_once(part):
    with MathPool(time_limit=5) as judges:
        child = judges._children[0]
        asked = []
        ask = child.ask
        judges._children[0].ask = lambda texts: asked.append(texts) or ask(texts)
        verdicts = [judges.judge("die", str(i)) for i in range(5)]
        assert verdicts == [UNDECIDED] * 5
        assert asked == [("die",)]


def test_children_end_with_the_pool(part):
    judges = MathPool(time_limit=5)
    assert judges.judge("a", "b") is EQUAL
    process = judges._children[0]._process
    judges.close()
    assert process.poll() is not None
    assert judges.judge("a", "c") is UNDECIDED
    judges.close()
    forgotten = MathPool(time_limit=5)
    assert forgotten.judge("a", "b") is EQUAL
    process = forgotten._children[0]._process
    del forgotten
    assert process.poll() is not None


def test_threads_share_the_children(part):
    with MathPool(workers=2, time_limit=5) as judges, ThreadPoolExecutor(8) as threads:
        verdicts = threads.map(lambda i: judges.judge(f"die {i}" if i % 8 == 7 else f"a{i}", "b"), range(32))
        assert list(verdicts) == ([EQUAL] * 7 + [UNDECIDED]) * 4


def test_a_missing_judge_is_said_once(part, monkeypatch):
    def complaints(judges):
        with judges, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [judges.judge(text, "b") for text in "aac"] == [UNDECIDED] * 3
        return [str(warning.message) for warning in caught]

    part.write_text("raise SystemExit(3)")
    (said,) = complaints(MathPool())
    assert "ended before it was ready" in said
    monkeypatch.setattr(pool, "find_spec", lambda name: None)
    (said,) = complaints(MathPool())
    assert said.endswith("math-verify is not installed; install wcse[math]")


def test_long_texts_are_not_sent(part):
    part.unlink()
    assert MathPool().judge("1" * 1001, "1") is UNDECIDED


@pytest.mark.parametrize("argument", ["workers", "time_limit", "memory_limit"])
def test_pool_refuses(argument):
    with pytest.raises(WcseError, match=f"{argument}=0"):
        MathPool(**{argument: 0})


def child_code(code):
    command = f"import sys; sys.path.insert(0, {pool_child.__file__.rpartition('/')[0]!r}); import pool_child; {code}"
    return subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="POSIX limits")
def test_a_child_limits_itself(tmp_path):
    """Memory, files, and time: also when its parent is gone and nobody will kill it."""
    done = child_code("pool_child.limit_resources(1 << 28); bytearray(1 << 29)")
    assert "MemoryError" in done.stderr
    done = child_code(
        f"pool_child.limit_resources(1 << 30); print('x', file=open({str(tmp_path / 'x')!r}, 'w'), flush=True)"
    )
    assert "File too large" in done.stderr and not (tmp_path / "x").read_text()
    done = child_code("pool_child.set_alarm(0.05)\nwhile True: pass")
    assert done.returncode == -signal.SIGALRM


# --- math-verify itself


@pytest.fixture(scope="module")
def judges():
    pytest.importorskip("math_verify")
    with MathPool(time_limit=30) as judges:
        yield judges


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (r"\sin(\frac{\pi}{6})", r"\frac12", EQUAL),
        (r"\log_2 8", "3", EQUAL),
        ("5!", "120", EQUAL),
        (r"x > 3", r"(3, \infty)", EQUAL),
        (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)", EQUAL),
        (r"10\%", "0.1", EQUAL),
        (r"\log_2 8", "4", DIFFERENT),
        (r"\cos x", r"\sin x", DIFFERENT),
        ("().__class__.__base__.__subclasses__()", "1", UNDECIDED),
        (r"\frac{", "1", UNDECIDED),
        ("\ud800", "1", UNDECIDED),
    ],
)
def test_math_verify(judges, a, b, verdict):
    assert compare(a, b, judges) is compare(b, a, judges) is verdict


def test_classes_with_math_verify(judges):
    answers = ["3", r"\log_2 8", "4", r"\log_2 16", None, r"\log_2{8}", "3.0"]
    assert answer_classes(answers, judges) == [0, 0, 1, 1, None, 0, 0]


def test_text_is_never_evaluated(judges, tmp_path):
    canary = tmp_path / "canary"
    for call in (f"open('{canary}','w')", f"__import__('pathlib').Path('{canary}').touch()"):
        for text in (call, f"${call}$", rf"\text{{{call}}}", rf"\boxed{{{call}}}"):
            assert compare(text, "1", judges) is not EQUAL
    assert not canary.exists()


def test_hostile_text_is_killed_and_the_pool_goes_on():
    pytest.importorskip("math_verify")
    with MathPool(time_limit=2) as judges:
        for text in ("9^{9^{9^{9}}}", r"(10^8)!"):
            assert compare(text, "1", judges) is UNDECIDED
            assert compare(text, "2", judges) is UNDECIDED
        assert judges.judge("5!", "120") is EQUAL
