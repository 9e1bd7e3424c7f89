"""Sums, products, quotients and powers of facts."""

from __future__ import annotations

import math

from precir.domains.fact import (
    ANYTHING,
    Fact,
    join,
    negate,
    numbers_of,
    tidy,
)
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY, Grid
from precir.ops.facts.margins import widen


def smallest(dtype: str) -> float:
    """The least positive number of a dtype; 1 for integers."""
    numbers = numbers_of(dtype)
    return numbers.smallest if isinstance(numbers, Grid) else 1.0


def epsilon(dtype: str) -> float:
    """Distance from 1 to the next number of a dtype; 0 for integers."""
    numbers = numbers_of(dtype)
    return numbers.epsilon if isinstance(numbers, Grid) else 0.0


def smallest_normal(dtype: str) -> float:
    """The least positive number of a dtype that is not subnormal; 1 for integers."""
    numbers = numbers_of(dtype)
    return numbers.smallest_normal if isinstance(numbers, Grid) else 1.0


def is_float(dtype: str) -> bool:
    return isinstance(numbers_of(dtype), Grid) and not dtype.startswith("complex")


def is_complex(dtype: str) -> bool:
    return dtype.startswith("complex")


def add_facts(a: Fact, b: Fact, least: float) -> Fact:
    """Of a + b; `least` is the smallest nonzero sum that the dtype holds."""
    fa, fb = a.flags, b.flags
    flags = (fa | fb) & SPECIAL
    if (fa & PINF and fb & NINF) or (fa & NINF and fb & PINF):
        flags |= NAN
    basis = a.basis if a.basis > b.basis else b.basis
    if a.lo > a.hi or b.lo > b.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True, basis)
    lo, hi = a.lo + b.lo, a.hi + b.hi
    whole = a.whole and b.whole
    if lo > 0 or hi < 0:
        tiny = max(lo, -hi)
    else:
        flags |= PZERO | fa & fb & NZERO
        if a.lo == a.hi == 0:
            tiny = b.tiny
        elif b.lo == b.hi == 0:
            tiny = a.tiny
        elif (a.lo >= 0 and b.lo >= 0) or (a.hi <= 0 and b.hi <= 0):
            # one sign: no sum is smaller than its smallest term
            tiny = a.tiny if a.tiny < b.tiny else b.tiny
            if not (fa & ZERO and fb & ZERO):
                lo, hi = (tiny, hi) if a.lo >= 0 else (lo, -tiny)
                flags &= ~ZERO
        else:
            tiny = 1.0 if whole else least
    return Fact(lo, hi, tiny, flags, whole, basis)


def _signs(f: Fact) -> tuple[bool, bool]:
    """Whether elements beside zero and NaN may be negative, and positive."""
    return f.lo < 0 or bool(f.flags & NINF), f.hi > 0 or bool(f.flags & PINF)


def _corner(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def mul_facts(a: Fact, b: Fact) -> Fact:
    fa, fb = a.flags, b.flags
    flags = (fa | fb) & NAN
    if (fa | fb) & INF:
        if (fa & INF and fb & ZERO) or (fb & INF and fa & ZERO):
            flags |= NAN
        (an, ap), (bn, bp) = _signs(a), _signs(b)
        an_inf, ap_inf, bn_inf, bp_inf = fa & NINF, fa & PINF, fb & NINF, fb & PINF
        if (ap_inf and bp) or (bp_inf and ap) or (an_inf and bn) or (bn_inf and an):
            flags |= PINF
        if (ap_inf and bn) or (bp_inf and an) or (an_inf and bp) or (bn_inf and ap):
            flags |= NINF
    basis = a.basis if a.basis > b.basis else b.basis
    if a.lo > a.hi or b.lo > b.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True, basis)
    al, ah, bl, bh = a.lo, a.hi, b.lo, b.hi
    if al >= 0 and bl >= 0:
        lo, hi = _corner(al, bl), _corner(ah, bh)
    else:
        corners = (_corner(al, bl), _corner(al, bh), _corner(ah, bl), _corner(ah, bh))
        lo, hi = min(corners), max(corners)
    if (fa | fb) & ZERO:
        positive = (al >= 0 and bl >= 0 and not (fa | fb) & (NZERO | NINF)) or (
            ah <= 0 and bh <= 0 and not (fa | fb) & (PZERO | PINF)
        )
        flags |= PZERO if positive else ZERO
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    if a.tiny == INFINITY or b.tiny == INFINITY:
        tiny = INFINITY
        lo = hi = 0.0
    else:
        tiny = a.tiny * b.tiny
    return Fact(lo, hi, tiny, flags, a.whole and b.whole, basis)


def square_facts(a: Fact) -> Fact:
    flags = a.flags & NAN | (PINF if a.flags & INF else 0) | (PZERO if a.flags & ZERO else 0)
    if a.lo > a.hi:
        return a._replace(flags=flags)
    lo = 0.0 if a.lo <= 0 <= a.hi else min(a.lo * a.lo, a.hi * a.hi)
    hi = max(a.lo * a.lo, a.hi * a.hi)
    tiny = a.tiny if a.tiny == INFINITY else a.tiny * a.tiny
    if not flags & ZERO:
        lo = max(lo, min(tiny, hi))
    return Fact(lo, hi, tiny, flags, a.whole, a.basis)


def complex_product(a: Fact, b: Fact) -> Fact:
    one = mul_facts(a, b)
    both = join(add_facts(one, one, 0.0), add_facts(one, negate(one), 0.0))
    if (a.flags | b.flags) & SPECIAL or math.isinf(both.magnitude):
        return ANYTHING._replace(basis=both.basis)
    lo, hi = widen(both.lo, both.hi, 2.0**-20)
    return Fact(lo, hi, 0.0, both.flags | ZERO, False, both.basis)


def reciprocal_parts(b: Fact) -> tuple[float, float]:
    """The largest and the smallest magnitude of a nonzero finite element."""
    most = b.magnitude
    least = max(b.tiny, b.lo, -b.hi) if most else INFINITY
    return most, least


def div_facts(a: Fact, b: Fact) -> Fact:
    """Of a / b in floating point, where a nonzero number over a zero is an infinity."""
    fa, fb = a.flags, b.flags
    flags = (fa | fb) & NAN
    (an, ap), (bn, _) = _signs(a), _signs(b)
    if (fa & ZERO and fb & ZERO) or (fa & INF and fb & INF):
        flags |= NAN
    nonzero = an or ap
    if fb & ZERO and nonzero:
        if (ap and fb & PZERO) or (an and fb & NZERO):
            flags |= PINF
        if (ap and fb & NZERO) or (an and fb & PZERO):
            flags |= NINF
    if fa & INF and b.lo <= b.hi:
        if (fa & PINF and (b.hi > 0 or fb & PZERO)) or (fa & NINF and (b.lo < 0 or fb & NZERO)):
            flags |= PINF
        if (fa & PINF and (b.lo < 0 or fb & NZERO)) or (fa & NINF and (b.hi > 0 or fb & PZERO)):
            flags |= NINF
    zero_over = (fa & ZERO or fb & INF) and a.lo <= a.hi
    basis = a.basis if a.basis > b.basis else b.basis
    most, least = reciprocal_parts(b)
    lo, hi, tiny = INFINITY, -INFINITY, INFINITY
    if a.lo <= a.hi and most and nonzero:
        ends: list[float] = []
        if b.hi > 0:
            small, large = max(least, b.lo), b.hi
            ends += [_over(a.lo, small), _over(a.lo, large), _over(a.hi, small), _over(a.hi, large)]
        if b.lo < 0:
            small, large = max(least, -b.hi), -b.lo
            ends += [
                -_over(a.lo, small), -_over(a.lo, large), -_over(a.hi, small), -_over(a.hi, large),
            ]  # fmt: skip
        lo, hi = min(ends), max(ends)
        tiny = _over(a.tiny, most)
    if zero_over:
        positive = a.lo >= 0 and not fa & NZERO and not bn and not fb & NZERO
        flags |= PZERO if positive else ZERO
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    return tidy(Fact(lo, hi, tiny, flags, False, basis))


def _over(x: float, y: float) -> float:
    if x == 0 or y == INFINITY:
        return 0.0
    if y == 0:
        return math.copysign(INFINITY, x)
    return x / y


def power_facts(a: Fact, n: int, relative: float) -> Fact:
    """Of a**n for an integer n."""
    if n == 0:
        return Fact(1.0, 1.0, 1.0, 0, True, a.basis)
    if n < 0:
        return div_facts(Fact(1.0, 1.0, 1.0, 0, True), power_facts(a, -n, relative))
    flags = a.flags & NAN | (a.flags & PINF)
    even = n % 2 == 0
    if a.flags & NINF:
        flags |= PINF if even else NINF
    flags |= (PZERO if a.flags & ZERO else 0) if even else a.flags & ZERO
    if a.lo > a.hi:
        return a._replace(flags=flags)
    low, high = _power(a.lo, n), _power(a.hi, n)
    if even:
        lo, hi = (0.0 if a.lo <= 0 <= a.hi else min(low, high)), max(low, high)
    else:
        lo, hi = low, high
    tiny = _power(a.tiny, n)
    lo, hi = widen(lo, hi, relative * n) if n > 2 else (lo, hi)
    return tidy(Fact(lo, hi, tiny * (1 - relative * n), flags, a.whole, a.basis))


def _power(x: float, n: int) -> float:
    try:
        return x**n
    except OverflowError:
        return INFINITY if x > 0 or n % 2 == 0 else -INFINITY
