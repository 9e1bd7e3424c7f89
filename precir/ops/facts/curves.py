"""What single functions make of a fact, within a relative error."""

from __future__ import annotations

import math
from collections.abc import Callable

from precir.domains.fact import ANYTHING, Fact, interval, tidy
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY
from precir.ops.facts.algebra import div_facts
from precir.ops.facts.margins import evaluate, widen

ONE = Fact(1.0, 1.0, 1.0, 0, True)


TINY_64 = 5e-324


def of_exp(base: Callable[[float], float]) -> Callable[[Fact, float], Fact]:
    def of(a: Fact, relative: float) -> Fact:
        flags = a.flags & (NAN | PINF)
        if a.flags & NINF:
            flags |= PZERO
        if a.lo > a.hi:
            zero = bool(flags & PZERO)
            return Fact(0.0, 0.0, INFINITY, flags, True) if zero else a._replace(flags=flags)
        lo, hi = evaluate(base, a.lo), evaluate(base, a.hi)
        # the error in the exponent grows with it: XLA's range reduction
        lo, high = lo * (1 - relative), hi * (1 + relative)
        high = min(high, 1.0) if a.hi <= 0 else high
        high = max(high, TINY_64)
        tiny = lo or TINY_64
        if flags & PZERO:
            lo = 0.0
        return Fact(lo, high, tiny, flags)

    return of


def of_exp2(x: float) -> float:
    return math.pow(2.0, x)


def of_log(base: Callable[[float], float]) -> Callable[[Fact, float], Fact]:
    def of(a: Fact, relative: float) -> Fact:
        flags = a.flags & (NAN | PINF)
        if a.lo < 0 or a.flags & NINF:
            flags |= NAN
        if a.flags & ZERO:
            flags |= NINF
        if a.hi <= 0:
            return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
        lo, hi = (
            base(max(a.lo, min(a.tiny, a.hi), TINY_64)),
            base(a.hi) if a.hi < INFINITY else INFINITY,
        )
        low, high = widen(lo, hi, relative)
        low, high = (max(low, 0.0) if lo >= 0 else low), (min(high, 0.0) if hi <= 0 else high)
        return interval(low, high, flags)

    return of


def of_log1p(a: Fact, relative: float) -> Fact:
    flags = a.flags & (NAN | PINF | ZERO)
    if a.lo < -1 or a.flags & NINF:
        flags |= NAN
    if a.lo <= -1 <= a.hi:
        flags |= NINF
    if a.hi <= -1:
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True)
    # the number next to -1 that any format up to float64 holds
    lo = math.log1p(max(a.lo, -1 + 2.0**-53))
    hi = math.log1p(a.hi) if a.hi < INFINITY else INFINITY
    lo, hi = widen(lo, hi, relative)
    tiny = a.tiny * (0.5 if a.lo >= -0.5 else 0.25)
    if a.hi > 1:
        tiny = min(tiny, math.log1p(max(a.tiny, 1.0)) * 0.99)
    return tidy(Fact(lo, hi, tiny if a.tiny < INFINITY else INFINITY, flags))


def of_sqrt(a: Fact, relative: float) -> Fact:
    flags = a.flags & (NAN | PINF | ZERO)
    if a.lo < 0 or a.flags & NINF:
        flags |= NAN
    if a.hi < 0 or a.lo > a.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True)
    lo, hi = math.sqrt(max(a.lo, 0.0)), math.sqrt(a.hi) if a.hi < INFINITY else INFINITY
    lo, hi = widen(lo, hi, relative)
    tiny = a.tiny if a.tiny == INFINITY else math.sqrt(a.tiny) * (1 - relative)
    return tidy(Fact(lo, hi, tiny, flags))


def of_rsqrt(a: Fact, relative: float) -> Fact:
    root = of_sqrt(a, 0.0)
    f = div_facts(ONE, root)
    lo, hi = widen(f.lo, f.hi, relative)
    return f._replace(lo=lo, hi=hi, tiny=f.tiny * (1 - relative), whole=False)


def of_swinging(inf_is: int) -> Callable[[Fact, float], Fact]:
    def of(a: Fact, relative: float) -> Fact:
        flags = a.flags & NAN | (inf_is if a.flags & INF else 0)
        if a.lo > a.hi:
            return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
        return interval(-1.0, 1.0, flags)

    return of


def of_sin(a: Fact, relative: float) -> Fact:
    f = of_swinging(NAN)(a, relative)
    if a.lo <= a.hi and a.magnitude <= 1.5:
        lo, hi = widen(math.sin(a.lo), math.sin(a.hi), relative)
        return tidy(
            Fact(
                lo,
                hi,
                a.tiny * 0.6 if a.tiny < INFINITY else INFINITY,
                f.flags & SPECIAL | a.flags & ZERO,
            )
        )
    return f


def of_cos(a: Fact, relative: float) -> Fact:
    f = of_swinging(NAN)(a, relative)
    if a.lo <= a.hi and a.magnitude <= 3.0:
        ends = (math.cos(a.lo), math.cos(a.hi))
        lo, hi = min(ends), 1.0 if a.lo <= 0 <= a.hi else max(ends)
        lo, hi = widen(lo, hi, relative)
        return interval(lo - relative, min(hi + relative, 1.0), f.flags & SPECIAL)
    return f


def of_tan(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN | (NAN if a.flags & INF else 0)
    if a.lo <= a.hi and a.magnitude <= 1.5:
        lo, hi = widen(math.tan(a.lo), math.tan(a.hi), relative * 4)
        return tidy(
            Fact(lo, hi, a.tiny * 0.99 if a.tiny < INFINITY else INFINITY, flags | a.flags & ZERO)
        )
    return Fact(-INFINITY, INFINITY, 0.0, flags | ZERO | INF)


def of_past_one(function: Callable[[float], float], falls: bool) -> Callable[[Fact, float], Fact]:
    """Asin and acos: NaN past one."""

    def of(a: Fact, relative: float) -> Fact:
        flags = a.flags & NAN | (NAN if a.flags & INF or a.lo < -1 or a.hi > 1 else 0)
        if a.lo > a.hi or a.lo > 1 or a.hi < -1:
            return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
        ends = [function(max(a.lo, -1.0)), function(min(a.hi, 1.0))]
        lo, hi = widen(min(ends), max(ends), relative)
        f = interval(lo - relative * falls, hi, flags)
        return f._replace(lo=max(f.lo, 0.0), flags=f.flags & ~NZERO) if falls else f

    return of


def of_cosh(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN | (PINF if a.flags & INF else 0)
    if a.lo > a.hi:
        return a._replace(flags=flags)
    ends = [evaluate(math.cosh, a.lo), evaluate(math.cosh, a.hi)]
    lo, hi = 1.0 if a.lo <= 0 <= a.hi else min(ends), max(ends)
    lo, hi = widen(lo, hi, relative * 4)
    return interval(max(lo, 1 - relative * 4), hi, flags)


def of_acosh(a: Fact, relative: float) -> Fact:
    flags = a.flags & (NAN | PINF) | (NAN if a.lo < 1 or a.flags & NINF else 0)
    if a.hi < 1 or a.lo > a.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
    lo = math.acosh(max(a.lo, 1.0))
    hi = math.acosh(a.hi) if a.hi < INFINITY else INFINITY
    lo, hi = widen(lo, hi, relative * 4)
    return interval(lo - relative, hi + relative, flags)


def of_atanh(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN | (NAN if a.lo < -1 or a.hi > 1 or a.flags & INF else 0)
    if a.hi >= 1:
        flags |= PINF
    if a.lo <= -1:
        flags |= NINF
    if a.lo > a.hi or a.lo >= 1 or a.hi <= -1:
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True)
    near = 1 - 2.0**-53
    lo, hi = math.atanh(max(a.lo, -near)), math.atanh(min(a.hi, near))
    lo, hi = widen(lo, hi, relative * 4)
    tiny = a.tiny * (1 - relative * 4) if a.tiny < INFINITY else INFINITY
    return tidy(Fact(lo, hi, tiny, flags | a.flags & ZERO))


def of_erf_inv(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN | (NAN if a.lo < -1 or a.hi > 1 or a.flags & INF else 0)
    if a.hi >= 1:
        flags |= PINF
    if a.lo <= -1:
        flags |= NINF
    hi = _erf_inv_bound(a.hi) if a.lo <= a.hi else -INFINITY
    lo = -_erf_inv_bound(-a.lo) if a.lo <= a.hi else INFINITY
    return tidy(
        Fact(lo, hi, a.tiny * 0.8 if a.tiny < INFINITY else INFINITY, flags | a.flags & ZERO)
    )


def _erf_inv_bound(x: float) -> float:
    """Not below erf_inv(x): erfc(t) <= exp(-t**2), so t = sqrt(-log(1 - x)) is past it."""
    if x <= 0:
        return 0.0
    return math.sqrt(-math.log(max(1 - x, 2.0**-54))) * 1.001 + 1e-6


def of_lgamma(a: Fact, relative: float) -> Fact:
    if 3 <= a.lo <= a.hi and a.hi < INFINITY and a.finite:
        lo, hi = widen(math.lgamma(a.lo), evaluate(math.lgamma, a.hi), relative * 8)
        return interval(lo, hi)
    flags = a.flags & NAN | ZERO | (PINF if a.flags & INF or a.flags & ZERO or a.lo <= 0 else 0)
    if a.lo < 0:
        flags |= NAN | PINF | NINF
    lo = -0.125 if a.lo >= 0 else -INFINITY
    return Fact(lo, INFINITY, 0.0, flags)


def of_digamma(a: Fact, relative: float) -> Fact:
    if 2 <= a.lo <= a.hi and a.hi < INFINITY and a.finite:  # log(x) - 1/x < digamma(x) < log(x)
        return interval(math.log(a.lo) - 1 / a.lo - 1e-3, math.log(a.hi) + 1e-3)
    return ANYTHING


def of_even_decay(most: float) -> Callable[[Fact, float], Fact]:
    """Scaled Bessel functions: bounded, and zero at infinity."""

    def of(a: Fact, relative: float) -> Fact:
        return interval(
            -most if most < 1 else 0.0,
            most + relative,
            a.flags & NAN | (NAN if a.flags & INF else 0),
        )

    return of


def _erfc(x: float) -> float:
    return -math.erfc(x)


def of_falling_erfc(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN
    ends = [0.0] * bool(a.flags & PINF) + [2.0] * bool(a.flags & NINF)
    if a.lo <= a.hi:
        ends += [math.erfc(a.lo), math.erfc(a.hi)]
    if not ends:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
    lo, hi = widen(min(ends), min(max(ends), 2.0), relative * 64)
    hi = max(min(hi, 2.0), TINY_64)
    if lo < 1e-37:
        return tidy(Fact(0.0, hi, TINY_64, flags | PZERO))
    return tidy(interval(lo, hi, flags))


def of_logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x) if x > -745 else 0.0


def of_cbrt(x: float) -> float:
    return math.copysign(abs(x) ** (1 / 3), x)
