"""What is known of every element of a tensor: a reduced product of interval and kinds.

A `Fact` is of numbers, not of a format; `project` rounds one into a format, as every op does with
its result.
"""

from __future__ import annotations

import enum
import math
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from precir.domains.kinds import (
    INF,
    NAN,
    NINF,
    NZERO,
    PINF,
    PZERO,
    SPECIAL,
    ZERO,
    Kinds,
    negated,
)
from precir.domains.rounding import INFINITY, Grid, grid_of, round_down, round_up
from precir.formats import FORMATS


class Basis(enum.IntEnum):
    """What a fact rests on. The weakest of several is the largest."""

    PROVED = 0
    ASSUMED = 1
    """On ranges given by the user."""
    OBSERVED = 2
    """On values seen: those of an example batch or of parameters."""
    UNKNOWN = 3
    """On inputs of which nothing is known."""


PROVED, UNKNOWN = int(Basis.PROVED), int(Basis.UNKNOWN)


class Fact(NamedTuple):
    """What is known of each element.

    Attributes:
      lo, hi: every finite element lies in [lo, hi]; lo > hi if none is finite.
      tiny: no nonzero finite element is smaller in magnitude; inf if none is nonzero.
      flags: which of ±zero, ±inf and NaN may occur (`precir.domains.kinds`).
      whole: every finite element is an integer.
      basis: the weakest `Basis` it rests on.
    """

    lo: float
    hi: float
    tiny: float = 0.0
    flags: int = ZERO
    whole: bool = False
    basis: int = PROVED

    @property
    def empty(self) -> bool:
        """Whether no element is finite."""
        return self.lo > self.hi

    @property
    def magnitude(self) -> float:
        """The largest magnitude of a finite element."""
        return max(-self.lo, self.hi, 0.0)

    @property
    def point(self) -> bool:
        """Whether all elements are one known finite number."""
        return self.lo == self.hi and not self.flags & SPECIAL

    @property
    def finite(self) -> bool:
        return not self.flags & SPECIAL

    def kinds(self, dtype: str) -> Kinds:
        """The kinds of numbers of `dtype` that may occur."""
        kinds = self.flags
        grid = FORMATS.get(dtype)
        normal = grid.smallest_normal if grid else 1.0
        if self.hi > 0:
            kinds |= Kinds.POS_NORMAL * (self.hi >= normal)
            kinds |= Kinds.POS_SUBNORMAL * (self.tiny < normal and max(self.lo, 0) < normal)
        if self.lo < 0:
            kinds |= Kinds.NEG_NORMAL * (self.lo <= -normal)
            kinds |= Kinds.NEG_SUBNORMAL * (self.tiny < normal and min(self.hi, 0) > -normal)
        return Kinds(kinds)

    def __str__(self) -> str:
        if self.empty:
            body = "nothing finite"
        elif self.lo == self.hi:
            body = f"{self.lo:.4g}"
        else:
            body = f"[{self.lo:.4g}, {self.hi:.4g}]"
        special = [
            name
            for flag, name in ((PINF, "inf"), (NINF, "-inf"), (NAN, "nan"))
            if self.flags & flag
        ]
        return " or ".join([body, *special]) if not self.empty else " or ".join(special) or "never"


NOTHING: Final = Fact(INFINITY, -INFINITY, INFINITY, 0, True)
"""The fact of a tensor without elements; the identity of `join`."""
ANYTHING: Final = Fact(-INFINITY, INFINITY, 0.0, ZERO | SPECIAL, False)
BOOLEAN: Final = Fact(0.0, 1.0, 1.0, PZERO, True)


def interval(lo: float, hi: float, flags: int = 0, tiny: float = 0.0, whole: bool = False) -> Fact:
    """Finite numbers in [lo, hi], zeros of either sign among them where it holds zero."""
    if lo <= 0 <= hi:
        flags |= ZERO
        tiny = INFINITY if lo == hi else tiny
    else:
        tiny = max(tiny, lo, -hi)
    return Fact(lo, hi, tiny, flags, whole)


def of_number(value: float) -> Fact:
    """Of one number."""
    if value != value:
        return NOTHING._replace(flags=NAN)
    if value in (INFINITY, -INFINITY):
        return NOTHING._replace(flags=PINF if value > 0 else NINF)
    whole = value == math.floor(value)
    if value == 0:
        return Fact(0.0, 0.0, INFINITY, NZERO if math.copysign(1, value) < 0 else PZERO, True)
    return Fact(value, value, abs(value), 0, whole)


def of_array(array: Any, basis: int = PROVED) -> Fact:
    """Of the elements of an array: floats, integers, booleans or complex numbers (both parts)."""
    array = np.asarray(array)
    if array.dtype.kind == "c":
        return join(of_array(array.real, basis), of_array(array.imag, basis))
    if array.size == 0:
        return NOTHING._replace(basis=basis)
    if array.dtype.kind == "b":
        lo, hi = float(array.min()), float(array.max())
        return Fact(lo, hi, 1.0 if hi else INFINITY, 0 if lo else PZERO, True, basis)
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64)
    flags = 0
    finite = np.isfinite(wide)
    if not finite.all():
        flags |= NAN * bool(np.isnan(wide).any())
        flags |= PINF * bool((wide == INFINITY).any()) | NINF * bool((wide == -INFINITY).any())
        wide = wide[finite]
    if not wide.size:
        return NOTHING._replace(flags=flags, basis=basis)
    zeros = wide == 0
    if zeros.any():
        signs = np.signbit(wide[zeros])
        flags |= NZERO * bool(signs.any()) | PZERO * bool((~signs).any())
    lo, hi = float(wide.min()), float(wide.max())
    exact = array.dtype.kind not in "iu" or max(-lo, hi) < 2**53
    if not exact:  # 64-bit integers
        lo, hi = math.nextafter(lo, -INFINITY), math.nextafter(hi, INFINITY)
    nonzero = np.abs(wide[~zeros])
    tiny = float(nonzero.min()) if nonzero.size else INFINITY
    whole = array.dtype.kind in "iu" or bool((wide == np.floor(wide)).all())
    return Fact(lo, hi, tiny, flags, whole, basis)


def join(a: Fact, b: Fact) -> Fact:
    """The least fact that holds of the elements of both."""
    return Fact(
        a.lo if a.lo < b.lo else b.lo,
        a.hi if a.hi > b.hi else b.hi,
        a.tiny if a.tiny < b.tiny else b.tiny,
        a.flags | b.flags,
        a.whole and b.whole,
        a.basis if a.basis > b.basis else b.basis,
    )


def meet(a: Fact, b: Fact) -> Fact:
    """What holds of an element of which both hold."""
    lo, hi = max(a.lo, b.lo), min(a.hi, b.hi)
    return tidy(
        Fact(
            lo,
            hi,
            max(a.tiny, b.tiny),
            a.flags & b.flags,
            a.whole or b.whole,
            max(a.basis, b.basis),
        )
    )


def tidy(f: Fact) -> Fact:
    """The same, its parts in agreement: the reduction of the product."""
    lo, hi, tiny, flags, whole, basis = f
    if lo > hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True, basis)
    if lo > 0 or hi < 0:
        flags &= ~ZERO
        tiny = max(tiny, lo, -hi)
    elif not flags & ZERO:
        if lo == 0:
            lo = min(tiny, hi)
        if hi == 0:
            hi = max(-tiny, lo)
        if lo == hi == 0:
            return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True, basis)
    if whole:
        tiny = max(tiny, 1.0)
    if lo == hi == 0:
        tiny = INFINITY
    return Fact(lo, hi, tiny, flags, whole, basis)


def negate(f: Fact) -> Fact:
    return Fact(-f.hi, -f.lo, f.tiny, negated(f.flags), f.whole, f.basis)


def contains(f: Fact, array: Any) -> bool:
    """Whether every element of an array is as the fact says."""
    g = of_array(array)
    inside = g.lo > g.hi or (f.lo <= g.lo and g.hi <= f.hi)
    return inside and not g.flags & ~f.flags and f.tiny <= g.tiny and (g.whole or not f.whole)


# -- formats -----------------------------------------------------------------------------------


class Integers(NamedTuple):
    """The numbers of an integer dtype."""

    min: float
    max: float


@cache
def numbers_of(dtype: str) -> Grid | Integers | None:
    """The numbers a dtype holds (of a complex one, each part); None for keys and the like."""
    if dtype in FORMATS:
        return grid_of(dtype)
    if dtype == "bool":
        return Integers(0.0, 1.0)
    if dtype.startswith("complex"):
        return grid_of("float64" if dtype == "complex128" else "float32")
    if dtype.startswith(("int", "uint")):
        bits = int(dtype.lstrip("uint"))
        if dtype.startswith("u"):
            return Integers(0.0, float(2**bits - 1))
        return Integers(-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1))
    return None


@cache
def top(dtype: str) -> Fact:
    """All that a dtype holds."""
    numbers = numbers_of(dtype)
    if numbers is None:
        return ANYTHING
    if isinstance(numbers, Integers):
        flags = PZERO
        return Fact(numbers.min, numbers.max, 1.0, flags, True)
    flags = (INF if numbers.overflow == "inf" else 0) | (NAN if numbers.nan else 0)
    flags |= ZERO if numbers.zero else 0
    lo = -numbers.max if numbers.signed else numbers.smallest
    return Fact(lo, numbers.max, numbers.smallest, flags, False)


def project(f: Fact, dtype: str) -> Fact:
    """Round a fact into a dtype: outwards, with its overflow, underflow and special values.

    Flushing of subnormals to zero and gradual underflow are both covered. Integers that leave
    their dtype wrap, so that nothing is known of them any more.
    """
    numbers = numbers_of(dtype)
    if numbers is None:
        return ANYTHING
    if isinstance(numbers, Integers):
        return _to_integers(f, numbers, dtype)
    lo, hi, tiny, flags, whole, basis = f
    if lo <= hi:
        limit = numbers.max
        if hi > limit or lo < -limit:
            over, at = numbers.overflow, numbers.overflow_at
            if hi >= at:
                flags |= PINF if over == "inf" else NAN if over == "nan" else 0
            if lo <= -at:
                flags |= NINF if over == "inf" else NAN if over == "nan" else 0
            saturates = over == "saturate"
            if (lo >= at and not saturates) or (hi <= -at and not saturates):
                lo, hi = INFINITY, -INFINITY
            else:
                lo, hi = min(max(lo, -limit), limit), max(min(hi, limit), -limit)
                if saturates:
                    tiny = min(tiny, limit) if tiny < INFINITY else tiny
                    whole = whole and limit == math.floor(limit)
        if lo <= hi and not numbers.exact:
            lo, hi = round_down(lo, numbers), round_up(hi, numbers)
    if lo <= hi:
        if tiny < numbers.smallest_normal and (lo != 0 or hi != 0):
            smallest = numbers.smallest
            if tiny <= smallest / 2 or (numbers.flushes and tiny < numbers.smallest_normal):
                flags |= (PZERO if hi > 0 else 0) | (NZERO if lo < 0 else 0)
                if flags & ZERO:
                    lo, hi = (0.0 if lo > 0 else lo), (0.0 if hi < 0 else hi)
            if tiny < smallest:
                tiny = smallest
            elif not numbers.exact:
                tiny = round_down(tiny, numbers)
        elif tiny != INFINITY and not numbers.exact:
            tiny = round_down(tiny, numbers)
    else:
        tiny, whole = INFINITY, True
        flags &= ~ZERO
    if flags & INF and numbers.overflow != "inf":
        if numbers.overflow == "nan":
            flags = flags & ~INF | NAN
        else:
            hi = numbers.max if flags & PINF else hi
            lo = -numbers.max if flags & NINF else lo
            if lo > hi:
                lo, hi = (lo, -numbers.max) if flags & NINF else (numbers.max, hi)
            tiny, whole = min(tiny, numbers.max), whole and numbers.max == math.floor(numbers.max)
            flags &= ~INF
    if not (numbers.signed and numbers.zero and numbers.nan) or dtype.endswith("fnuz"):
        return _odd_format(Fact(lo, hi, tiny, flags, whole, basis), numbers, dtype)
    return Fact(lo, hi, tiny, flags, whole, basis)


def _odd_format(f: Fact, numbers: Grid, dtype: str) -> Fact:
    """Formats without negative zero, zero, sign or NaN."""
    lo, hi, tiny, flags, whole, basis = f
    if not numbers.signed:  # e8m0fnu: zero and negatives become NaN
        if flags & ZERO or lo <= 0:
            flags = flags & ~ZERO | NAN
        lo, hi = max(lo, numbers.smallest), (max(hi, numbers.smallest) if hi > 0 else hi)
        if lo > hi:
            lo, hi = INFINITY, -INFINITY
    elif not numbers.nan:
        if flags & NAN:  # ml_dtypes: NaN becomes -0
            flags = flags & ~NAN | NZERO | PZERO
            lo, hi = min(lo, 0.0), max(hi, 0.0)
    elif flags & NZERO:
        flags = flags & ~NZERO | PZERO
    if dtype == "float8_e5m2fnuz" and lo <= hi:
        # XLA:CPU, in fused loops, makes a power of two of what it rounds into the least binade
        least = numbers.smallest_normal
        hi = 2 * least if least <= hi < 2 * least else hi
        lo = -2 * least if least <= -lo < 2 * least else lo
    return Fact(lo, hi, tiny, flags, whole, basis)


def _to_integers(f: Fact, numbers: Integers, dtype: str) -> Fact:
    lo, hi, basis = f.lo, f.hi, f.basis
    if lo > hi:
        return top(dtype)._replace(basis=basis) if f.flags else NOTHING
    if lo < numbers.min or hi > numbers.max or f.flags & SPECIAL:
        return top(dtype)._replace(basis=basis)
    lo, hi = float(math.ceil(lo)), float(math.floor(hi))
    zero = PZERO if lo <= 0 <= hi else 0
    return Fact(lo, hi, max(1.0, lo, -hi), zero, True, basis)
