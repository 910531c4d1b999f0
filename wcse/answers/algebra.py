"""Exact arithmetic for comparing answers: quotients of polynomials with rational and square-root coefficients.

A value is ``num / den``; each is a sum of ``c * sqrt(r) * x^a * y^b ...`` with a rational c, a square-free
integer r (r = -1 is the imaginary unit) and symbols raised to positive powers. Square roots of different
square-free integers are independent over the rationals, so a sum is zero exactly when it has no terms, and
equality is decided without any approximation. pi and e are symbols like any other. Work is bounded: what would
grow beyond the limits below raises :class:`Unreadable` before it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, isqrt

MAX_TERMS = 50
MAX_BITS = 2048
MAX_POWER = 100
MAX_POWER_OF_SUM = 20
MAX_RADICAND = 10**12


class Unreadable(ValueError):
    """Not within what this module decides with certainty; the caller gives up on the text, not on the run."""


Monomial = tuple[int, tuple[tuple[str, int], ...]]
"""(square-free radicand, ((symbol, power), ...) in the order of the symbols)."""

Sum = Mapping[Monomial, Fraction]

ONE: Sum = {(1, ()): Fraction(1)}


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """An exact value. ``==`` is mathematical equality."""

    num: Sum
    den: Sum

    @staticmethod
    def of(value: Fraction | int) -> Exact:
        """A rational number."""
        return Exact(_clean({(1, ()): Fraction(value)}), ONE)

    @staticmethod
    def symbol(name: str) -> Exact:
        """A variable or a constant without further meaning."""
        return Exact({(1, ((name, 1),)): Fraction(1)}, ONE)

    @property
    def rational(self) -> Fraction | None:
        """The value as a fraction, None if roots or symbols remain."""
        if not self.num:
            return Fraction(0)
        if self.num.keys() <= ONE.keys() and self.den.keys() <= ONE.keys():
            return self.num[1, ()] / self.den[1, ()]
        return None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exact):
            return NotImplemented
        if self.den == other.den:
            return self.num == other.num
        return _multiply(self.num, other.den) == _multiply(other.num, self.den)

    __hash__ = None  # type: ignore[assignment]  # equal values have many forms

    def __neg__(self) -> Exact:
        return Exact({term: -c for term, c in self.num.items()}, self.den)

    def __add__(self, other: Exact) -> Exact:
        if self.den == other.den:
            return Exact(_add(self.num, other.num), self.den)
        num = _add(_multiply(self.num, other.den), _multiply(other.num, self.den))
        return _quotient(num, _multiply(self.den, other.den))

    def __sub__(self, other: Exact) -> Exact:
        return self + -other

    def __mul__(self, other: Exact) -> Exact:
        return _quotient(_multiply(self.num, other.num), _multiply(self.den, other.den))

    def __truediv__(self, other: Exact) -> Exact:
        if not other.num:
            raise Unreadable("division by zero")
        return _quotient(_multiply(self.num, other.den), _multiply(self.den, other.num))

    def power(self, exponent: Exact) -> Exact:
        """Whole powers of anything; fractional powers of rationals where the result is a value of this kind."""
        wanted = exponent.rational
        limit = MAX_POWER if len(self.num) + len(self.den) <= 2 else MAX_POWER_OF_SUM
        if wanted is None or abs(wanted) > limit:
            raise Unreadable("exponent")
        if wanted.denominator != 1:
            return self.root(wanted.denominator).power(Exact.of(wanted.numerator))
        if wanted < 0:
            return (Exact.of(1) / self).power(-exponent)
        if wanted == 0 and not self.num:
            raise Unreadable("0^0")
        result = Exact.of(1)
        for _ in range(int(wanted)):
            result = result * self
        return result

    def root(self, degree: int) -> Exact:
        """The principal root of a rational: any square root; others only where they are rational."""
        value = self.rational
        if value is None or not 1 <= degree <= MAX_POWER:
            raise Unreadable("root")
        if degree == 2:
            factor, radicand = _square_free(value.numerator * value.denominator)
            return Exact(_clean({(radicand, ()): Fraction(factor, value.denominator)}), ONE)
        if value < 0:
            raise Unreadable("root of a negative number")
        return Exact.of(
            Fraction(_whole_root(value.numerator, degree), _whole_root(value.denominator, degree))
        )


def _clean(terms: dict[Monomial, Fraction]) -> Sum:
    """Without zero terms, and within the limits."""
    terms = {term: c for term, c in terms.items() if c}
    if len(terms) > MAX_TERMS or any(_bits(c) > MAX_BITS for c in terms.values()):
        raise Unreadable("too large")
    return terms


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _add(a: Sum, b: Sum) -> Sum:
    total = dict(a)
    for term, c in b.items():
        total[term] = total.get(term, Fraction(0)) + c
    return _clean(total)


def _multiply(a: Sum, b: Sum) -> Sum:
    total: dict[Monomial, Fraction] = {}
    for (left, left_powers), c in a.items():
        for (right, right_powers), d in b.items():
            factor, radicand = _multiply_roots(left, right)
            powers = dict(left_powers)
            for name, power in right_powers:
                powers[name] = powers.get(name, 0) + power
            term = (radicand, tuple(sorted(powers.items())))
            total[term] = total.get(term, Fraction(0)) + c * d * factor
    return _clean(total)


def _multiply_roots(left: int, right: int) -> tuple[int, int]:
    """sqrt(left) * sqrt(right) = factor * sqrt(radicand), all square-free, sqrt(-1)^2 = -1."""
    common = gcd(left, right)
    radicand = (abs(left) // common) * (abs(right) // common)
    negative = (left < 0) + (right < 0)
    return (-common if negative == 2 else common), (-radicand if negative == 1 else radicand)


def _quotient(num: Sum, den: Sum) -> Exact:
    """A rational denominator is divided out, so that sums do not grow."""
    if den.keys() == ONE.keys():
        c = den[1, ()]
        return Exact({term: value / c for term, value in num.items()}, ONE)
    return Exact(num, den)


def _square_free(n: int) -> tuple[int, int]:
    """n = factor^2 * radicand with a square-free radicand of n's sign (1 for n = 0)."""
    if n == 0:
        return 0, 1
    rest, factor, radicand, prime = abs(n), 1, 1, 2
    if isqrt(rest) ** 2 == rest:
        return isqrt(rest), n // rest
    if rest > MAX_RADICAND:
        raise Unreadable("radicand")
    # Beyond its cube root, what is left has at most two prime factors: it is a square or square-free.
    while prime**3 <= rest:
        while rest % (prime * prime) == 0:
            rest //= prime * prime
            factor *= prime
        if rest % prime == 0:
            rest //= prime
            radicand *= prime
        prime += 1
    if isqrt(rest) ** 2 == rest:
        factor, rest = factor * isqrt(rest), 1
    return factor, radicand * rest * (1 if n > 0 else -1)


def _whole_root(n: int, degree: int) -> int:
    """The degree-th root of n >= 0 where it is whole."""
    low, high = 0, 1 << (n.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= n else (low, middle - 1)
    if low**degree != n:
        raise Unreadable("irrational root")
    return low
