"""Arithmetic in LaTeX or plain notation, read into an exact value by recursive descent.

Knows numbers, letters, the four operations, powers, fractions, roots and mixed numbers. Functions, towers of
powers and everything that can be read in two ways (1/2x, sqrt12, 2 3) raise Unreadable.
"""

from __future__ import annotations

import re
from fractions import Fraction

from wcse.answers.algebra import Exact, Unreadable

MAX_DEPTH = 30

_TOKEN = re.compile(
    r"\s*(?:(?P<mixed>\d+\s+\d+\s*/\s*\d+(?![\d.]))"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?(?!\s*_))"
    r"|(?P<command>\\(?:frac|sqrt|pi|alpha|beta|gamma|delta|theta|lambda|mu|omega|phi|varphi|sigma|rho)(?![a-zA-Z]))"
    r"|(?P<word>sqrt|pi)(?![a-zA-Z])"
    r"|(?P<symbol>[a-zA-Z](?:_(?:\w|\{\w+\}))?)"
    r"|(?P<mark>[-+*/^(){}\[\]]))"
)
_PRODUCT_LETTERS = frozenset("xyzabc")
_RUN = re.compile(r"(?<!\\)(?<![a-zA-Z])[a-zA-Z]{2,}")


class Expression:
    """Recursive descent over one arithmetic expression; every method reads one rule of the grammar."""

    def __init__(self, text: str, depth: int = 0) -> None:
        self._tokens = _tokenize(text)
        self._next = 0
        self._depth = depth

    def value(self) -> Exact:
        """The value of the whole text.

        Raises:
            Unreadable: anything unknown, ambiguous or too large.
        """
        value = self._sum()
        if self._next < len(self._tokens):
            raise Unreadable("trailing text")
        return value

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise Unreadable(f"expected {expected or 'more'}")
        self._next += 1
        return token

    def _sum(self) -> Exact:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> Exact:
        value, divided = self._signed(), False
        while True:
            token = self._peek()
            if token == "*":
                self._take()
                value = value * self._signed()
            elif token == "/":
                self._take()
                value, divided = value / self._signed(), True
            elif token and token not in "+-)}]^":
                if divided or token[0].isdigit() or token[0] == ".":  # 1/2x and 2 3 can be read in two ways
                    raise Unreadable("ambiguous product")
                value = value * self._power()
            else:
                return value

    def _signed(self) -> Exact:
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._take() == "-"
        return -self._power() if negative else self._power()

    def _power(self) -> Exact:
        base = self._atom()
        if self._peek() != "^":
            return base
        self._take()
        negative = self._peek() == "-"
        if negative:
            self._take()
        exponent = self._atom()
        if self._peek() == "^":
            raise Unreadable("tower of powers")
        return base.power(-exponent if negative else exponent)

    def _atom(self) -> Exact:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return self._number(token)
        if token in ("(", "{"):
            return self._inside(")" if token == "(" else "}")
        if token == r"\frac":
            return self._fraction()
        if token in (r"\sqrt", "sqrt"):
            return self._root()
        if token == "i":
            return Exact.of(-1).root(2)
        if token[0].isalpha() or token[0] == "\\":
            return Exact.symbol(token.removeprefix("\\"))
        raise Unreadable(f"unexpected {token}")

    def _number(self, token: str) -> Exact:
        if " " in token:
            whole, part = token.split(maxsplit=1)
            return _rational(whole) + _rational(part.replace(" ", ""))
        start = self._next
        if token.isdigit() and self._peek() == r"\frac":  # a mixed number if both parts are whole numbers
            self._take()
            fraction = self._fraction()
            if set("".join(self._tokens[start + 1 : self._next])) <= set("0123456789{}"):
                return _rational(token) + fraction
            if self._peek() == "^":  # the power would belong to the fraction alone
                raise Unreadable("power of a fraction")
            return _rational(token) * fraction
        return _rational(token)

    def _fraction(self) -> Exact:
        r"""The two arguments of \frac; \frac12 is 1/2."""
        token = self._peek()
        if token.isdigit() and len(token) == 2:
            self._tokens[self._next : self._next + 1] = list(token)
        return self._argument() / self._argument()

    def _root(self) -> Exact:
        degree = 2
        if self._peek() == "[":
            self._take()
            index = self._take()
            if not index.isdigit() or len(index) > 3:
                raise Unreadable("degree of a root")
            degree = int(index)
            self._take("]")
        return self._argument().root(degree)

    def _argument(self) -> Exact:
        """A group, or what LaTeX takes without braces: one digit or one symbol. More digits are unclear."""
        token = self._peek()
        if len(token) > 1 and (token[0].isdigit() or token[0] == "."):
            raise Unreadable("argument without braces")
        return self._atom()

    def _inside(self, closing: str) -> Exact:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nesting")
        value = self._sum()
        self._take(closing)
        self._depth -= 1
        return value


def _rational(text: str) -> Exact:
    """A decimal, fraction or scientific number as written; its exponent is bounded before it is computed."""
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and len(exponent) > 3:
        raise Unreadable("exponent")
    try:
        return Exact.of(Fraction(mantissa) * Fraction(10) ** int(exponent or 0))
    except ZeroDivisionError:
        raise Unreadable("division by zero") from None


def _tokenize(text: str) -> list[str]:
    for run in _RUN.findall(text):
        if run not in ("sqrt", "pi") and not set(run) <= _PRODUCT_LETTERS:
            raise Unreadable("a word")
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable("unknown notation")
        tokens.append(match[0].strip())
        at = match.end()
    return tokens
