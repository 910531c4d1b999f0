r"""Reads the text of an answer into a value: LaTeX and plain notation, as models and datasets write it.

What it reads it reads with certainty; anything else is None and stays undecided here. Conventions, as in the
MATH graders: units, degree and currency signs are dropped; ``10\%`` keeps a mark and counts as 10;
``1\frac12`` is a mixed number; ``x = 5`` stands for 5; ``1,000`` is a number outside of brackets;
``1, 2``, ``1 and 2`` and ``\pm 2`` are lists without order. Nothing is evaluated but the arithmetic of
wcse.answers.algebra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from wcse.answers.algebra import Exact, Unreadable
from wcse.answers.expression import MAX_DEPTH, Expression

MAX_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number or expression. ``label`` is the x of ``x = 5``."""

    value: Exact
    percent: bool = False
    label: str = ""
    letter: str = ""
    """The letter when the text is one letter: an option of a multiple choice, or a variable."""


@dataclass(frozen=True, slots=True)
class Words:
    """Plain text, in lower case. ``sure`` is False for short words that may be products of letters."""

    text: str
    sure: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Several values. ``brackets``: two of "()[]", "{}" for a set, "" for a bare list, "rows" for a matrix."""

    brackets: str
    items: tuple[Reading, ...]


Reading = Scalar | Words | Group


@dataclass(frozen=True, slots=True)
class Answer:
    """What a text says."""

    text: str
    plain: str
    """The text without spacing and typography: if two of these are equal, so are the answers."""
    reading: Reading | None
    """The value; None if it is not certain."""
    ambiguous: bool
    """A comma in it may group thousands or separate numbers."""


def read_answer(text: str) -> Answer:
    """Reads an answer's text; never raises."""
    if _NUMBER.fullmatch(text) and len(text) <= MAX_LENGTH:  # most answers: no need to look further
        return Answer(text, text, Scalar(Exact.of(Fraction(text))), ambiguous=False)
    cleaned = _clean(text)
    try:
        reading = _read(_group_thousands(cleaned), 0) if len(text) <= MAX_LENGTH else None
    except Unreadable:
        reading = None
    plain = _SPACES.sub("", _retype(text, _TYPOGRAPHY))
    return Answer(text, plain, reading, ambiguous=bool(_BARE_THOUSANDS.search(cleaned)))


# --- cleaning: what every notation loses

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_SPACES = re.compile(r"(?<!\w)\s+|\s+(?![\s\w])")  # 1 1/2 is not 11/2


def _rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), new) for pattern, new in rules]


_TYPOGRAPHY = _rules(
    (r"\$|\\\(|\\\)|(?<!\\)\\\[|\\\]", " "),  # maths mode
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
    (r"(?<!\\)\\[,;:!> ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    ("[−–]", "-"),
)
_THOUSANDS_SPACES = _rules(  # 1{,}000  1\,000  1,\!000
    (r"(?<=\d)(?:\{,\}|,?\\[,!;: ])\s*(?=\d{3}(?!\d))", ""),
)
_NOTATION = _rules(
    (r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·⋅∗]", "*"),
    (r"\\div(?![a-zA-Z])|÷", "/"),
    (
        r"(?:\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°)"
        r"(?:\s*(?:\\(?:text|mathrm)\s*\{\s*[CF]\s*\}|[CF](?![a-zA-Z])))?",
        " ",
    ),
    (r"\\pounds(?![a-zA-Z])|[€£]", " "),
    (r"\\%", "%"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"π", r"\\pi "),
    (r"∞", r"\\infty "),
    (r"\\(?:mathbf|boldsymbol|boxed|fbox)\s*(?=\{)", ""),
    (r"\*\*", "^"),
    (r"_\{(\w)\}", r"_\1"),
    (r"\\(?:emptyset|varnothing)(?![a-zA-Z])|∅", r"\\{\\}"),
    (r"±", r"\\pm "),
)
_BARE_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")


def _retype(text: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        text = pattern.sub(new, text)
    return text


def _clean(text: str) -> str:
    text = _retype(text.replace(r"\$", " "), _THOUSANDS_SPACES + _TYPOGRAPHY + _NOTATION)
    return text.strip().rstrip(".,;").strip()


def _group_thousands(text: str) -> str:
    """1,000 -> 1000, outside of brackets only: (1,000) is a pair."""
    depth, pieces, start = 0, [], 0
    for match in re.finditer(rf"[(\[{{]|[)\]}}]|{_BARE_THOUSANDS.pattern}", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            pieces += [text[start : match.start()], match[0].replace(",", "")]
            start = match.end()
    return "".join([*pieces, text[start:]])


# --- structure: lists, brackets, words

_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mbox|rm)\s*\{([^{}]*)\}"
_JOIN = re.compile(r"\s*(?:,|;)\s*(?:(?:and|or)\s)?|\s+(?:and|or)\s+|\\text\s*\{,?\s*(?:and|or)\s*\}")
_LABEL = re.compile(
    r"([a-zA-Z](?:_\{?\w+\}?)?(?:\s*\(\s*[a-zA-Z]\s*\))?|\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\))"
    r"\s*(?:=|\\in(?![a-zA-Z]))\s*(?=\S)"
)
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_UNIT_WORD = r"(?:[a-zA-Z]{3,}|cm|mm|km|kg|mg|ml|mL|ft|in|lb|oz|hr|m|g|s|L)"
_UNIT = re.compile(
    rf"(?<=[\d}})%])(?:\s*{_TEXT}(?:\s*\^\s*(?:\d|\{{\d\}}))?|"
    rf"(?:\s+|(?<=\d)(?=[kcm]m\b|kg\b)){_UNIT_WORD}(?:\s*\^\s*\{{?\d\}}?)?(?:[\s/]+{_UNIT_WORD}(?:\^\{{?\d\}}?)?)*)\s*$"
)
_FUNCTION = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|exp|mod|gcd|lcm|max|min|det|base|infinity)\b", re.IGNORECASE
)
_WORDS = re.compile(r"[a-zA-Z]{2,}(?:(?: +|-|')[a-zA-Z]{2,})*")
_OPEN, _CLOSE = ("(", "[", r"\{", "{"), (")", "]", r"\}", "}")
_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")


def _read(text: str, depth: int) -> Reading:
    """A list, or one of its members."""
    parts = [member for part in _split(text, _JOIN) for member in _plus_minus(part)]
    if len(parts) == 1:
        return _read_one(parts[0], depth)
    return _bare([_read_one(part, depth) for part in parts])


def _bare(items: list[Reading]) -> Group:
    """A list without brackets. x=1, x=2 are two values of x; x=1, y=2 is more than this module reads."""
    if len({item.label for item in items if isinstance(item, Scalar)} - {""}) > 1:
        raise Unreadable("several labels")
    return Group("", tuple(items))


def _read_one(text: str, depth: int) -> Reading:
    if depth > MAX_DEPTH:
        raise Unreadable("nesting")
    text = text.strip()
    label = _LABEL.match(text)
    if label:
        text = text[label.end() :]
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row.split("&") for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        return Group(
            "rows", tuple(Group("()", tuple(_read(cell, depth + 1) for cell in row)) for row in rows)
        )
    group = _read_brackets(text, depth)
    if group is not None:
        return group
    words = None if label else _read_words(text)
    return words or _read_scalar(text, re.sub(r"\s", "", label[1]) if label else "", depth)


def _read_brackets(text: str, depth: int) -> Reading | None:
    """A tuple, interval or set if the whole text is in brackets; round ones around one value mean nothing."""
    opening = next((mark for mark in _OPEN if text.startswith(mark)), None)
    if opening is None or not _closes_at_end(text):
        return None
    closing = next(mark for mark in _CLOSE if text.endswith(mark))
    inner = text[len(opening) : -len(closing)]
    brackets = opening[-1] + closing[-1]
    if not inner.strip():
        if brackets != "{}":
            raise Unreadable("empty brackets")
        return Group("{}", ())
    parts = _split(inner, re.compile("[,;]"))
    if len(parts) == 1 and (brackets == "()" or opening == "{"):
        return _read_one(inner, depth + 1)
    if brackets == "{}":
        parts = [member for part in parts for member in _plus_minus(part)]
    elif "{" in brackets or "}" in brackets or len(parts) == 1:
        raise Unreadable("brackets")
    return Group(brackets, tuple(_read_one(part, depth + 1) for part in parts))


def _closes_at_end(text: str) -> bool:
    """The bracket at the start closes at the end; brackets of any kind may pair: [1, 2)."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] in _OPEN else -1
        if depth == 0:
            return match.end() == len(text)
    return False


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Pieces between separators outside of all brackets. Empty pieces are an error."""
    depth, start, pieces = 0, 0, []
    for match in re.finditer(rf"(?P<bracket>{_BRACKET.pattern}|\\begin|\\end)|(?:{separator.pattern})", text):
        if match["bracket"]:
            depth += 1 if match[0] in (*_OPEN, r"\begin") else -1
        elif depth == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    pieces.append(text[start:])
    if not all(piece.strip() for piece in pieces):
        raise Unreadable("empty item")
    return pieces


def _plus_minus(text: str) -> list[str]:
    r"""a \pm b -> a + b, a - b."""
    if not re.search(r"\\[pm][pm](?![a-zA-Z])", text):
        return [text]
    signs = (("+", "-"), ("-", "+"))
    return [re.sub(r"\\mp(?![a-zA-Z])", mp, re.sub(r"\\pm(?![a-zA-Z])", pm, text)) for pm, mp in signs]


def _read_words(text: str) -> Words | None:
    r"""Text that is words and nothing else, in \text{} or not; a single letter is left to be a symbol."""
    wrapped = re.fullmatch(_TEXT, text)
    bare = (wrapped[1] if wrapped else text).strip()
    if not _WORDS.fullmatch(bare) or bare == "pi":
        return None
    return Words(" ".join(bare.lower().split()), sure=bool(wrapped) or len(bare) > 3)


def _read_scalar(text: str, label: str, depth: int) -> Scalar:
    if re.fullmatch(r"[+-]?\s*\\infty", text):
        infinity = Exact.symbol(r"\infty")
        return Scalar(-infinity if text.startswith("-") else infinity, label=label)
    percent = bool(re.search(r"%\s*$|\bpercent\s*$", text))
    text = re.sub(r"%\s*$|\bpercent\s*$", "", text).strip()
    text = re.sub(rf"^{_TEXT}$", r"\1", text)  # \text{A}, \text{5 cm}
    text = re.sub(r"^\((.)\)$", r"\1", text.strip())  # (A) inside \text{}
    unit = _UNIT.search(text)
    if unit and not _FUNCTION.search(unit[0]):
        text = text[: unit.start()]
    value = Expression(text, depth).value()
    return Scalar(value, percent, label, text if len(text) == 1 and text.isalpha() else "")
