"""Functions of one number: where they are defined, how they grow, what they do to infinities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from precir.domains.fact import ANYTHING, Fact, interval, tidy, top
from precir.domains.kinds import NAN, NINF, NZERO, PINF, ZERO
from precir.domains.rounding import INFINITY
from precir.ir import Node
from precir.ops.facts import curves
from precir.ops.facts.algebra import epsilon, is_complex, is_float, smallest_normal
from precir.ops.facts.context import Answer, Context, Rule
from precir.ops.facts.margins import evaluate, slack, widen


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


SETTLED = 2.0**-24
"""How far a saturated activation may be from its limit."""


def rising(
    function: Callable[[float], float],
    low: float,
    high: float,
    *,
    odd: bool = False,
    bottom: float | None = None,
    ceiling: float | None = None,
    settled: float | None = None,
) -> Rule:
    """A rising function on the whole line.

    Args:
      function: on floats.
      low, high: its values at -inf and inf.
      odd: whether f(0) = 0, signs kept, and |f(x)| is about |x| or larger near zero.
      bottom, ceiling: limits that rounding does not pass.
      settled: past what it is at its limits, but for `SETTLED`.
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
        if settled is not None and a.lo <= a.hi:
            if a.lo > settled and not a.flags & NINF:
                lo = max(lo, high - SETTLED)
            if a.hi < -settled and not a.flags & PINF:
                hi = min(hi, low + SETTLED)
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


exp = rule(curves.of_exp(math.exp))
# JAX 0.12 multiplies an exponent of up to 128 by log(2) in the operand's own dtype
exp2 = rule(curves.of_exp(curves.of_exp2), steps=48)
log = rewritten(rule(curves.of_log(math.log)))
log2 = rule(curves.of_log(math.log2), steps=2)
log1p = rule(curves.of_log1p)
expm1 = rising(math.expm1, -1.0, INFINITY, odd=True, bottom=-1.0)
sqrt = rewritten(rule(curves.of_sqrt))
rsqrt = rule(curves.of_rsqrt)
cbrt = rising(curves.of_cbrt, -INFINITY, INFINITY, odd=True)
tanh = rising(math.tanh, -1.0, 1.0, odd=True, bottom=-1.0, ceiling=1.0, settled=20.0)
logistic = rising(curves.of_logistic, 0.0, 1.0, bottom=0.0, ceiling=1.0, settled=20.0)
erf = rising(math.erf, -1.0, 1.0, odd=True, bottom=-1.0, ceiling=1.0, settled=20.0)
erfc = rule(curves.of_falling_erfc)
sin = rule(curves.of_sin)
cos = rule(curves.of_cos)
tan = rule(curves.of_tan)
asin = rule(curves.of_past_one(math.asin, falls=False))
acos = rule(curves.of_past_one(math.acos, falls=True))
atan = rising(math.atan, -math.pi / 2, math.pi / 2, odd=True)
sinh = rising(math.sinh, -INFINITY, INFINITY, odd=True)
asinh = rising(math.asinh, -INFINITY, INFINITY, odd=True)
cosh = rule(curves.of_cosh)
acosh = rule(curves.of_acosh, steps=4)
atanh = rule(curves.of_atanh)
erf_inv = rule(curves.of_erf_inv)
lgamma = rule(curves.of_lgamma)
digamma = rule(curves.of_digamma)
bessel_i0e = rule(curves.of_even_decay(1.0))
bessel_i1e = rule(curves.of_even_decay(0.22))


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


def polynomial(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """JAX 0.12: of x and its coefficients, in whichever order they are."""
    x, *coefficients = facts
    basis = max(f.basis for f in facts)
    if not all(f.finite and not f.empty for f in facts) or is_complex(node.outputs[0].type.dtype):
        return ANYTHING._replace(basis=basis)
    most = max(1.0, x.magnitude)
    try:
        bound = sum(c.magnitude for c in coefficients) * most ** (len(coefficients) - 1)
    except OverflowError:
        return ANYTHING._replace(basis=basis)
    bound *= 1 + len(coefficients) * 2 * epsilon(node.outputs[0].type.dtype)
    return interval(-bound, bound)._replace(basis=basis)
