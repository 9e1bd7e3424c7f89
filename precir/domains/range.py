"""An interval that encloses numbers, with arithmetic that rounds outwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jax.typing import DTypeLike

from precir.domains.fact import Fact, interval, project
from precir.domains.rounding import INFINITY, above, below
from precir.errors import PrecirError
from precir.formats import Format, format_of

SMALLEST = 5e-324


class RangeError(PrecirError, ValueError):
    """Bounds that are no interval."""


@dataclass(frozen=True)
class Range:
    """Every finite number of a tensor lies in [lo, hi], in the tensor's own units.

    Bounds may be infinite: ``Range(0, inf)`` is any number that is not negative; infinities
    themselves, and NaN, are not in it. Arithmetic encloses the exact result: bounds that float64
    cannot hold are rounded outwards (IEEE 1788 interval arithmetic, set-based, no decorations).

    Raises:
      RangeError: lo is above hi, or a bound is NaN or no number.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        try:
            lo, hi = float(self.lo), float(self.hi)
        except (TypeError, ValueError) as error:
            raise RangeError(f"{self.lo!r} and {self.hi!r} are not bounds") from error
        if math.isnan(lo) or math.isnan(hi) or lo > hi or lo == INFINITY or hi == -INFINITY:
            raise RangeError(
                f"[{lo}, {hi}] is not an interval", fix="precir.Range(lo, hi) with lo <= hi"
            )
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    def __contains__(self, x: object) -> bool:
        """Whether a number, or every finite element of an array, lies in the range."""
        numbers = np.asarray(x, dtype=np.float64)
        finite = numbers[np.isfinite(numbers)]
        return bool(((finite >= self.lo) & (finite <= self.hi)).all())

    def encloses(self, other: Range) -> bool:
        return self.lo <= other.lo and other.hi <= self.hi

    def join(self, other: Range) -> Range:
        """The least range that holds both."""
        return Range(min(self.lo, other.lo), max(self.hi, other.hi))

    def meet(self, other: Range) -> Range | None:
        """What lies in both; None if nothing does."""
        lo, hi = max(self.lo, other.lo), min(self.hi, other.hi)
        return Range(lo, hi) if lo <= hi else None

    def round_to(self, format: DTypeLike | Format) -> Range | None:
        """The finite numbers that its numbers may round to in a format; None if none is finite."""
        fact = project(self.fact(), format_of(format).name)
        return None if fact.empty else Range(fact.lo, fact.hi)

    def fact(self) -> Fact:
        """Numbers in this range, none of them inf or NaN."""
        return interval(self.lo, self.hi)

    def __neg__(self) -> Range:
        return Range(-self.hi, -self.lo)

    def __abs__(self) -> Range:
        if self.lo <= 0 <= self.hi:
            return Range(0.0, max(-self.lo, self.hi))
        return self if self.lo > 0 else -self

    def __add__(self, other: Range | float) -> Range:
        other = _range(other)
        return Range(_down(self.lo, other.lo), _up(self.hi, other.hi))

    def __sub__(self, other: Range | float) -> Range:
        return self + -_range(other)

    def __mul__(self, other: Range | float) -> Range:
        other = _range(other)
        return _corners(self, other, lambda x, y: 0.0 if x == 0 or y == 0 else x * y)

    def __truediv__(self, other: Range | float) -> Range:
        """Quotients by the nonzero numbers of `other`; unbounded if they come near zero."""
        other = _range(other)
        if other.lo == other.hi == 0:
            raise ZeroDivisionError(f"{self} / {other}")
        if other.lo < 0 < other.hi or (self.lo < 0 < self.hi and 0 in (other.lo, other.hi)):
            return Range(-INFINITY, INFINITY)
        if other.lo == 0:
            ends = (0.0 if self.lo >= 0 else -INFINITY, INFINITY if self.hi > 0 else 0.0)
            near = (
                [0.0 if other.hi == INFINITY else below(self.lo / other.hi)] if self.lo > 0 else []
            )
            far = (
                [0.0 if other.hi == INFINITY else above(self.hi / other.hi)] if self.hi < 0 else []
            )
            return Range(near[0] if near else ends[0], far[0] if far else ends[1])
        if other.hi == 0:
            return -(self / -other)
        return _corners(self, other, _quotient)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Range:
        return _range(other) - self

    def __rtruediv__(self, other: float) -> Range:
        return _range(other) / self

    def __repr__(self) -> str:
        return f"Range({self.lo:g}, {self.hi:g})"


def _range(x: Range | float) -> Range:
    return x if isinstance(x, Range) else Range(x, x)


def _down(x: float, y: float) -> float:
    total = x + y
    return total if _exact(x, y, total) else below(total)


def _up(x: float, y: float) -> float:
    total = x + y
    return total if _exact(x, y, total) else above(total)


def _exact(x: float, y: float, total: float) -> bool:
    """Whether float64 held x + y exactly (Knuth's two-sum)."""
    if math.isinf(total):
        return math.isinf(x) or math.isinf(y)
    z = total - x
    return (x - (total - z)) + (y - z) == 0


def _quotient(x: float, y: float) -> float:
    return 0.0 if x == 0 or math.isinf(y) else x / y


def _corners(a: Range, b: Range, op: Callable[[float, float], float]) -> Range:
    values: list[float] = []
    for x in (a.lo, a.hi):
        for y in (b.lo, b.hi):
            value = op(x, y)
            if value == 0 and x and y and x - x == y - y == 0:  # underflow of float64
                value = math.copysign(SMALLEST, x) * math.copysign(1.0, y)
            values.append(value)
    lo, hi = min(values), max(values)
    return Range(lo if lo == 0 else below(lo), hi if hi == 0 else above(hi))
