"""Functions of one number: where they are defined, how they grow, what they do to infinities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from precir.domains.fact import ANYTHING, Fact, interval, tidy, top
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY
from precir.ir import Node
from precir.ops.facts.arithmetic import (
    div_facts,
    epsilon,
    is_complex,
    is_float,
    smallest_normal,
)
from precir.ops.facts.context import Answer, Context, Rule
from precir.ops.facts.margins import evaluate, slack, widen

ONE = Fact(1.0, 1.0, 1.0, 0, True)
TINY_64 = 5e-324


def rule(of: Callable[[Fact, float], Fact], steps: int = 0) -> Rule:
    """A rule of one floating-point operand, from what it makes of a fact and a relative error.

    `steps` is how often XLA rounds into the operand's own dtype before the last operation.
    """

    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        dtype = node.outputs[0].type.dtype
        if is_complex(dtype) or is_complex(node.inputs[0].type.dtype):
            return ANYTHING._replace(basis=facts[0].basis)
        if not is_float(dtype):
            return top(dtype)
        relative = slack(dtype) + steps * epsilon(dtype)
        return of(facts[0], relative)._replace(basis=facts[0].basis)

    return infer


def rewritten(plain: Rule) -> Rule:
    """A rule of an operation that XLA's simplifier may drop with the one before it."""

    def infer(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
        from precir.ops.facts.rewrites import either

        f = plain(node, facts, ctx)
        assert isinstance(f, Fact)
        return either(node, f, ctx)[0]

    return infer


def rising(
    function: Callable[[float], float],
    low: float,
    high: float,
    *,
    odd: bool = False,
    bottom: float | None = None,
    ceiling: float | None = None,
) -> Rule:
    """A rising function on the whole line.

    Args:
      function: on floats.
      low, high: its values at -inf and inf.
      odd: whether f(0) = 0, signs kept, and |f(x)| is about |x| or larger near zero.
      bottom, ceiling: limits that rounding does not pass.
    """

    def of(a: Fact, relative: float) -> Fact:
        flags, limits = a.flags & NAN, []
        for flag, limit in ((NINF, low), (PINF, high)):
            if a.flags & flag:
                if math.isinf(limit):
                    flags |= PINF if limit > 0 else NINF
                else:
                    limits.append(limit)
        ends = list(limits)
        if a.lo <= a.hi:
            ends += [_value(function, a.lo), _value(function, a.hi)]
        if not ends:
            return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
        lo, hi = widen(min(ends), max(ends), relative)
        if bottom is not None:
            lo = max(lo, bottom)
        if ceiling is not None:
            hi = min(hi, ceiling)
        if not odd:
            f = interval(lo, hi, flags)
            if lo >= 0:
                f = f._replace(flags=f.flags & ~NZERO)
            return f
        flags |= a.flags & ZERO
        least = [abs(x) for x in limits]  # |f| rises on either side of zero
        if a.tiny < INFINITY:
            least += [a.tiny] + [abs(_value(function, x)) for x in (a.tiny, -a.tiny)]
        tiny = min(least, default=INFINITY) * (1 - relative)
        return tidy(Fact(lo, hi, tiny, flags))

    return rule(of)


def _value(function: Callable[[float], float], x: float) -> float:
    """`function(x)`, an infinity of x's sign where Python says that it overflows."""
    return math.copysign(INFINITY, x) if math.isinf(y := evaluate(function, x)) else y


def _exp(base: Callable[[float], float]) -> Callable[[Fact, float], Fact]:
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
        tiny = lo or TINY_64
        if flags & PZERO:
            lo = 0.0
        return Fact(lo, high, tiny, flags)

    return of


def _exp2(x: float) -> float:
    return math.pow(2.0, x)


def _log(base: Callable[[float], float]) -> Callable[[Fact, float], Fact]:
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


def _log1p(a: Fact, relative: float) -> Fact:
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


def _sqrt(a: Fact, relative: float) -> Fact:
    flags = a.flags & (NAN | PINF | ZERO)
    if a.lo < 0 or a.flags & NINF:
        flags |= NAN
    if a.hi < 0 or a.lo > a.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True)
    lo, hi = math.sqrt(max(a.lo, 0.0)), math.sqrt(a.hi) if a.hi < INFINITY else INFINITY
    lo, hi = widen(lo, hi, relative)
    tiny = a.tiny if a.tiny == INFINITY else math.sqrt(a.tiny) * (1 - relative)
    return tidy(Fact(lo, hi, tiny, flags))


def _rsqrt(a: Fact, relative: float) -> Fact:
    root = _sqrt(a, 0.0)
    f = div_facts(ONE, root)
    lo, hi = widen(f.lo, f.hi, relative)
    return f._replace(lo=lo, hi=hi, tiny=f.tiny * (1 - relative), whole=False)


def _swinging(inf_is: int) -> Callable[[Fact, float], Fact]:
    def of(a: Fact, relative: float) -> Fact:
        flags = a.flags & NAN | (inf_is if a.flags & INF else 0)
        if a.lo > a.hi:
            return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
        return interval(-1.0, 1.0, flags)

    return of


def _sin(a: Fact, relative: float) -> Fact:
    f = _swinging(NAN)(a, relative)
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


def _cos(a: Fact, relative: float) -> Fact:
    f = _swinging(NAN)(a, relative)
    if a.lo <= a.hi and a.magnitude <= 3.0:
        ends = (math.cos(a.lo), math.cos(a.hi))
        lo, hi = min(ends), 1.0 if a.lo <= 0 <= a.hi else max(ends)
        lo, hi = widen(lo, hi, relative)
        return interval(lo - relative, min(hi + relative, 1.0), f.flags & SPECIAL)
    return f


def _tan(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN | (NAN if a.flags & INF else 0)
    if a.lo <= a.hi and a.magnitude <= 1.5:
        lo, hi = widen(math.tan(a.lo), math.tan(a.hi), relative * 4)
        return tidy(
            Fact(lo, hi, a.tiny * 0.99 if a.tiny < INFINITY else INFINITY, flags | a.flags & ZERO)
        )
    return Fact(-INFINITY, INFINITY, 0.0, flags | ZERO | INF)


def _past_one(function: Callable[[float], float], falls: bool) -> Callable[[Fact, float], Fact]:
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


def _cosh(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN | (PINF if a.flags & INF else 0)
    if a.lo > a.hi:
        return a._replace(flags=flags)
    ends = [evaluate(math.cosh, a.lo), evaluate(math.cosh, a.hi)]
    lo, hi = 1.0 if a.lo <= 0 <= a.hi else min(ends), max(ends)
    lo, hi = widen(lo, hi, relative * 4)
    return interval(max(lo, 1 - relative * 4), hi, flags)


def _acosh(a: Fact, relative: float) -> Fact:
    flags = a.flags & (NAN | PINF) | (NAN if a.lo < 1 or a.flags & NINF else 0)
    if a.hi < 1 or a.lo > a.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
    lo = math.acosh(max(a.lo, 1.0))
    hi = math.acosh(a.hi) if a.hi < INFINITY else INFINITY
    lo, hi = widen(lo, hi, relative * 4)
    return interval(lo - relative, hi + relative, flags)


def _atanh(a: Fact, relative: float) -> Fact:
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


def _erf_inv(a: Fact, relative: float) -> Fact:
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


def _lgamma(a: Fact, relative: float) -> Fact:
    if a.lo >= 3 and a.hi < INFINITY and a.finite:
        lo, hi = widen(math.lgamma(a.lo), evaluate(math.lgamma, a.hi), relative * 8)
        return interval(lo, hi)
    flags = a.flags & NAN | ZERO | (PINF if a.flags & INF or a.flags & ZERO or a.lo <= 0 else 0)
    if a.lo < 0:
        flags |= NAN | PINF | NINF
    lo = -0.125 if a.lo >= 0 else -INFINITY
    return Fact(lo, INFINITY, 0.0, flags)


def _digamma(a: Fact, relative: float) -> Fact:
    if a.lo >= 2 and a.hi < INFINITY and a.finite:  # log(x) - 1/x < digamma(x) < log(x)
        return interval(math.log(a.lo) - 1 / a.lo - 1e-3, math.log(a.hi) + 1e-3)
    return ANYTHING


def _even_decay(most: float) -> Callable[[Fact, float], Fact]:
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


def _falling_erfc(a: Fact, relative: float) -> Fact:
    flags = a.flags & NAN
    if a.lo > a.hi and not a.flags & INF:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True)
    lo = 0.0 if a.flags & PINF or a.lo > a.hi else math.erfc(a.hi) * (1 - relative * 64)
    hi = 2.0 if a.flags & NINF or a.lo > a.hi else min(math.erfc(a.lo) * (1 + relative * 64), 2.0)
    f = interval(max(lo, 0.0), hi, flags, tiny=0.0)
    return f._replace(flags=f.flags & ~NZERO | PZERO, lo=0.0) if lo < 1e-37 else f


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x) if x > -745 else 0.0


def _cbrt(x: float) -> float:
    return math.copysign(abs(x) ** (1 / 3), x)


exp = rule(_exp(math.exp))
exp2 = rule(_exp(_exp2))
log = rewritten(rule(_log(math.log)))
log2 = rule(_log(math.log2))
log1p = rule(_log1p)
expm1 = rising(math.expm1, -1.0, INFINITY, odd=True, bottom=-1.0)
sqrt = rewritten(rule(_sqrt))
rsqrt = rule(_rsqrt)
cbrt = rising(_cbrt, -INFINITY, INFINITY, odd=True)
tanh = rising(math.tanh, -1.0, 1.0, odd=True, bottom=-1.0, ceiling=1.0)
logistic = rising(_logistic, 0.0, 1.0, bottom=0.0, ceiling=1.0)
erf = rising(math.erf, -1.0, 1.0, odd=True, bottom=-1.0, ceiling=1.0)
erfc = rule(_falling_erfc)
sin = rule(_sin)
cos = rule(_cos)
tan = rule(_tan)
asin = rule(_past_one(math.asin, falls=False))
acos = rule(_past_one(math.acos, falls=True))
atan = rising(math.atan, -math.pi / 2, math.pi / 2, odd=True)
sinh = rising(math.sinh, -INFINITY, INFINITY, odd=True)
asinh = rising(math.asinh, -INFINITY, INFINITY, odd=True)
cosh = rule(_cosh)
acosh = rule(_acosh, steps=4)
atanh = rule(_atanh)
erf_inv = rule(_erf_inv)
lgamma = rule(_lgamma)
digamma = rule(_digamma)
bessel_i0e = rule(_even_decay(1.0))
bessel_i1e = rule(_even_decay(0.22))


def atan2(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, b = facts
    if is_complex(node.outputs[0].type.dtype):
        return ANYTHING
    flags = (a.flags | b.flags) & NAN
    normal = smallest_normal(node.outputs[0].type.dtype)
    if a.tiny < normal and b.tiny < normal:
        flags |= NAN  # XLA:CPU divides subnormals, which it reads as zero
    return interval(-3.1416, 3.1416, flags)._replace(basis=max(a.basis, b.basis))


def unit_or_nan(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """Regularised incomplete gamma and beta functions: in [0, 1], NaN outside their domain."""
    f = interval(-1e-5, 1.0 + 1e-5, NAN)
    return f._replace(basis=max(x.basis for x in facts))


def anything(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """Nothing is known but the dtype."""
    basis = max((f.basis for f in facts), default=0)
    return [top(v.type.dtype)._replace(basis=basis) for v in node.outputs]
