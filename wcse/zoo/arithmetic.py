"""Arithmetic written out for a small model: every step is one operation, every result is stated.

``reduce_expression`` turns ``"0.2 * 150 + 7"`` into the lines a pupil would write: one binary operation
each, decimals and fractions moved to whole numbers first, long products split into partial products.
"""

from __future__ import annotations

import ast
from fractions import Fraction

Number = int | Fraction


class Unwritable(ValueError):
    """The expression holds something that the written form does not cover."""


def show(value: Number) -> str:
    """A number as digits; at most four decimals, or it is not written at all."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10_000
    if scaled.denominator != 1:
        raise Unwritable(f"{value} has no short decimal form")
    return f"{float(value):.4f}".rstrip("0")


def _significant(n: int) -> int:
    return len(str(abs(n)).rstrip("0"))


def _split(n: int) -> tuple[int, int]:
    """``457 -> (400, 57)``: the leading digit with its zeros, and the rest."""
    unit = 10 ** (len(str(abs(n))) - 1)
    return n // unit * unit, n % unit


def _is_short(value: Fraction) -> bool:
    return (value * 10_000).denominator == 1


def multiply(a: int, b: int) -> list[str]:
    """``a * b`` of whole numbers; split where more than a two-digit by one-digit product is needed."""
    product = a * b
    small, large = sorted((abs(a), abs(b)), key=_significant)
    if small == 0 or (_significant(large) <= 2 and _significant(small) <= 1):
        return [f"{a} * {b} = {product}"]
    if _significant(small) == 1:
        high, low = _split(large)
        terms, parts = f"{high} * {small} + {low} * {small}", (high * small, low * small)
    else:
        high, low = _split(small)
        terms, parts = f"{large} * {high} + {large} * {low}", (large * high, large * low)
    sign = "-" if product < 0 else ""
    bracketed = f"-({terms})" if sign else terms
    partial = f"-({parts[0]} + {parts[1]})" if sign else f"{parts[0]} + {parts[1]}"
    return [f"{a} * {b} = {bracketed} = {partial} = {product}"]


def _scale(value: Number) -> int:
    """The power of ten that makes ``value`` whole."""
    for k in range(5):
        if (Fraction(value) * 10**k).denominator == 1:
            return 10**k
    raise Unwritable(f"{value} has no short decimal form")


def _times_ratio(a: Number, top: int, bottom: int) -> list[str]:
    """``a * top / bottom`` in whole numbers."""
    lines = [] if top == 1 else times(a, top)
    if bottom != 1:
        lines += divide(Fraction(a) * top, bottom)
    return lines or [f"{show(a)} * 1 = {show(a)}"]


def times(a: Number, b: Number) -> list[str]:
    """Lines for ``a * b``."""
    a, b = Fraction(a), Fraction(b)
    if a.denominator == b.denominator == 1:
        return multiply(int(a), int(b))
    if b.denominator == 1:
        a, b = b, a
    if b.denominator <= 4:
        return _times_ratio(a, b.numerator, b.denominator)
    bottom = _scale(b) if b > 1 or _scale(b) != 10 else 100
    return _times_ratio(a, int(b * bottom), bottom)


def divide(a: Number, b: Number) -> list[str]:
    """Lines for ``a / b``; decimals in the divisor are scaled away first."""
    if b == 0:
        raise Unwritable("division by zero")
    quotient = Fraction(a) / Fraction(b)
    if Fraction(b).denominator == 1:
        return [f"{show(a)} / {show(b)} = {show(quotient)}"]
    scale = _scale(b)
    top, bottom = show(Fraction(a) * scale), show(Fraction(b) * scale)
    return [f"{show(a)} / {show(b)} = {top} / {bottom} = {show(quotient)}"]


def add(a: Number, b: Number, *, minus: bool = False) -> list[str]:
    """Lines for ``a + b``, or ``a - b``; a negative second term turns the sign round."""
    total = Fraction(a) - Fraction(b) if minus else Fraction(a) + Fraction(b)
    sign = "-" if minus != (b < 0) else "+"
    return [f"{show(a)} {sign} {show(abs(Fraction(b)))} = {show(total)}"]


def _without_unit_factor(node: ast.expr) -> ast.expr:
    """``x`` for ``x * 1``, so that ``x * 1 / 2`` is one division."""
    match node:
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=1)):
            return left
    return node


class _Writer:
    """Walks an expression and collects its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def value(self, node: ast.expr) -> Number:
        """The value of ``node``; its operations are appended to ``lines``."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            value = Fraction(str(node.value))
            return value if _is_short(value) else value.limit_denominator(12)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.BinOp):
            return self._binary(node)
        raise Unwritable(ast.dump(node))

    def _ratio(self, node: ast.expr) -> tuple[int, int] | None:
        """``(p, q)`` when ``node`` is a literal fraction that is not a whole number."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            top, bottom = node.left, node.right
            if isinstance(top, ast.Constant) and isinstance(bottom, ast.Constant):
                p, q = Fraction(str(top.value)), Fraction(str(bottom.value))
                if q and p.denominator == q.denominator == 1 and (p / q).denominator != 1:
                    return int(p), int(q)
        return None

    def _binary(self, node: ast.BinOp) -> Number:
        if isinstance(node.op, ast.Mult):
            for ratio, other in ((self._ratio(node.left), node.right), (self._ratio(node.right), node.left)):
                if ratio:
                    base = self.value(other)
                    self.lines += _times_ratio(base, *ratio)
                    return base * Fraction(*ratio)
        left = _without_unit_factor(node.left) if isinstance(node.op, ast.Div) else node.left
        a, b = self.value(left), self.value(node.right)
        if isinstance(node.op, ast.Add):
            self.lines += add(a, b)
            return a + b
        if isinstance(node.op, ast.Sub):
            self.lines += add(a, b, minus=True)
            return a - b
        if isinstance(node.op, ast.Mult):
            self.lines += times(a, b)
            return a * b
        if isinstance(node.op, ast.Div):
            self.lines += divide(a, b)
            return Fraction(a) / Fraction(b)
        raise Unwritable(ast.dump(node.op))


def reduce_expression(text: str) -> tuple[Number, list[str]]:
    """The exact value of an arithmetic expression and the lines that lead to it, one operation each."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise Unwritable(text) from error
    writer = _Writer()
    value = writer.value(tree.body)
    return value, writer.lines
