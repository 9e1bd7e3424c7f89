"""What intervals cannot hold: how an operand is related to the other.

Each function takes the fact that interval arithmetic gives and returns a better one where the
graph shows a relation: x - max(x), x / sum(x), x * rsqrt(mean(x*x) + eps), and their like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from precir.domains.fact import Fact, interval, meet, tidy
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY
from precir.formats import FORMATS
from precir.ir import Node, Operand, Value
from precir.ops.facts.algebra import smallest_normal
from precir.ops.facts.context import Context
from precir.ops.facts.normalised import at_least, clipped, normalised, unit
from precir.ops.facts.views import Reduction, alike, beside, constant, reduction, view

# XLA may compute a product that feeds a subtraction in one step, unrounded, and again elsewhere
# rounded: an element may pass the maximum of what it is by this, relative to its magnitude.
CONTRACTED = 2.0**-22
LOOKED_AT = 32  # values, before the worst is assumed
EXACT = frozenset([
    "select_n", "max", "min", "clamp", "neg", "abs", "sign", "stop_gradient", "copy",
    "optimization_barrier", "reduce_max", "reduce_min", "broadcast_in_dim", "reshape", "squeeze",
    "expand_dims", "transpose", "rev", "slice", "dynamic_slice", "gather", "concatenate", "pad",
    "iota", "constant", "split", "sort", "random_bits",
])  # fmt: skip
"""Ops whose results are some operand's numbers: computed twice, they are the same."""


def recomputed(x: Value, f: Fact, ctx: Context) -> float:
    """How far two computations of one value may be apart."""
    pending: list[Operand] = [x]
    most = 0.0  # of what is not some operand's number
    for _ in range(LOOKED_AT):
        if not pending:
            return min(most, f.magnitude) * CONTRACTED
        value = pending.pop()
        if not isinstance(value, Value) or value.type.dtype not in FORMATS:
            continue
        if value.node is None:
            if not ctx.is_argument(value):
                break
        elif value.node.op in EXACT:
            pending += value.node.inputs
        elif constant(value) is None:
            found = ctx.of(value)
            most = max(most, found.magnitude if found.lo <= found.hi else 0.0)
    return f.magnitude * CONTRACTED


def shows_same(x: Value, y: Value) -> bool:
    """Whether both are the same numbers in the same places."""
    if x is y:
        return True
    one, other = view(x), view(y)
    return one.dims == other.dims and alike(one.root, other.root)


# -- differences -------------------------------------------------------------------------------


def difference(node: Node, f: Fact, a: Fact, b: Fact, ctx: Context) -> Fact:
    x, y = node.inputs
    if not isinstance(x, Value) or not isinstance(y, Value):
        return _one_minus(x, y, f)
    if shows_same(x, y):
        flags = NAN if a.flags & SPECIAL else 0
        off = recomputed(x, a, ctx)
        lo = -off if off else 0.0
        return f._replace(
            lo=lo,
            hi=off,
            flags=flags | PZERO | (NZERO if off else 0),
            tiny=0.0 if off else INFINITY,
        )
    for op, sign in (("reduce_max", 1), ("reduce_min", -1)):
        guard, found = _guarded_extremum(y, op)
        if found is None or not beside(x, found):
            continue
        if guard and a.flags & (NAN | PINF | (NINF if sign < 0 else 0)):
            continue
        off = recomputed(x, a, ctx)
        if sign > 0:
            return tidy(
                f._replace(hi=min(f.hi, off), flags=f.flags & ~PINF | (ZERO if f.hi >= 0 else 0))
            )
        return tidy(
            f._replace(lo=max(f.lo, -off), flags=f.flags & ~NINF | (ZERO if f.lo <= 0 else 0))
        )
    if (
        y.node is not None
        and y.node.op == "floor"
        and y.node.inputs[0] is x
        and not a.flags & SPECIAL
    ):
        return meet(f, interval(0.0, 1.0))
    return f


def factored(node: Node, f: Fact, facts: Sequence[Fact], of: Callable[[Operand], Fact]) -> Fact:
    """X + x * t as x * (1 + t): the gradient of tanh, whose t may be -1 where x is large."""
    for i, times in enumerate(node.inputs):
        x, a = node.inputs[1 - i], facts[1 - i]
        made = times.node if isinstance(times, Value) else None
        if made is None or made.op != "mul" or x not in made.inputs or a.flags & SPECIAL:
            continue
        if node.op == "sub" and i == 0:
            continue
        t = of(made.inputs[made.inputs[0] is x])
        if t.flags & SPECIAL or t.magnitude > 2 or a.lo > a.hi or x.type.shape != times.type.shape:
            continue
        dtype = node.outputs[0].type.dtype
        least, most = (1 - t.hi, 1 - t.lo) if node.op == "sub" else (1 + t.lo, 1 + t.hi)
        error = a.magnitude * 1.5 * unit(dtype) + 4 * smallest_normal(dtype)
        size = a.magnitude * max(abs(least), abs(most)) + error
        if size < f.magnitude:
            f = tidy(f._replace(lo=max(f.lo, -size), hi=min(f.hi, size)))
    return f


def _one_minus(x: Operand, y: Operand, f: Fact) -> Fact:
    return f


def _guarded_extremum(y: Value, op: str) -> tuple[bool, Reduction | None]:
    """max(x), or where(isfinite(max(x)), max(x), 0) as logsumexp has it."""
    found = reduction(y, op)
    if found is not None:
        return False, found
    shown = view(y)
    node = shown.root.node
    if node is None or node.op != "select_n" or len(node.inputs) != 3:
        return False, None
    which, other, chosen = node.inputs
    if not isinstance(chosen, Value) or not isinstance(which, Value) or constant(other) != 0:
        return False, None
    test = view(which).root.node
    if test is None or test.op != "is_finite":
        return False, None
    inner = reduction(chosen, op)
    if inner is None:
        return False, None
    dims = tuple(None if d is None else inner.dims[d] for d in shown.dims)
    return True, inner._replace(dims=dims)


# -- sums --------------------------------------------------------------------------------------


def total(node: Node, f: Fact, ctx: Context) -> Fact:
    """A sum of exp(x - max(x)) has a term that is one."""
    x = node.inputs[0]
    if not isinstance(x, Value):
        return f
    exponential = view(x).root.node
    if exponential is None or exponential.op not in ("exp", "exp2"):
        return f
    shifted = exponential.inputs[0]
    if not isinstance(shifted, Value):
        return f
    shifted_root = view(shifted).root
    minus = shifted_root.node
    if minus is None or minus.op != "sub" or not all(isinstance(o, Value) for o in minus.inputs):
        return f
    left, right = minus.inputs
    assert isinstance(left, Value)
    assert isinstance(right, Value)
    guard, found = _guarded_extremum(right, "reduce_max")
    if found is None or not beside(left, found):
        return f
    most = ctx.of(found.node.outputs[0])
    if guard and most.flags & SPECIAL:
        return f
    # all that the maximum was taken over must be in the sum
    summed = {view(x).dims[a] for a in node.params["axes"]}
    shown = view(left)
    covered = {shown.dims[d] for d in summed if d is not None and d < len(shown.dims)}
    if not found.axes <= covered:
        return f
    off = recomputed(left, ctx.of(left), ctx)
    one = math.exp(-min(off, 700.0)) * (
        1 - 2.0**-7 if unit(node.outputs[0].type.dtype) > 1e-4 else 1 - 2.0**-18
    )
    if f.flags & ZERO or f.lo < one:
        return tidy(f._replace(lo=max(f.lo, min(one, f.hi)), flags=f.flags & ~ZERO))
    return f


# -- quotients ---------------------------------------------------------------------------------


def quotient(node: Node, f: Fact, a: Fact, b: Fact, ctx: Context) -> Fact:
    x, y = node.inputs
    if not isinstance(x, Value) or not isinstance(y, Value):
        return f
    if shows_same(x, y):
        flags = f.flags & NAN
        return f._replace(lo=1.0 - 1e-6, hi=1.0 + 1e-6, tiny=1 - 1e-6, flags=flags)
    dtype = node.outputs[0].type.dtype
    for part in at_least(y, ctx):
        share = reduction(part, "reduce_sum")
        if share is not None and a.lo >= 0 and beside(x, share):
            # a sum of numbers that are not negative is not below any of them
            flags = f.flags if a.flags & PINF else f.flags & ~INF
            return tidy(
                f._replace(lo=max(f.lo, 0.0), hi=min(f.hi, 1.0 + _apart(x, a)), flags=flags)
            )
        most = reduction(part, "reduce_max")
        if most is not None and _magnitudes_beside(x, most):
            flags = f.flags if a.flags & INF else f.flags & ~INF
            off = 1.0 + _apart(x, a)
            return tidy(f._replace(lo=max(f.lo, -off), hi=min(f.hi, off), flags=flags))
        root = part.node
        if root is not None and root.op == "sqrt" and isinstance(root.inputs[0], Value):
            bound = normalised(x, root.inputs[0], a, ctx)
            if bound is not None:
                return clipped(f, bound * (1 + 8 * unit(dtype)))
        if root is not None and root.op == "abs" and root.inputs[0] is x:
            return tidy(f._replace(lo=max(f.lo, -1.0), hi=min(f.hi, 1.0)))
        if part is not y and shows_same(part, x) and a.lo >= 0:
            return tidy(f._replace(lo=max(f.lo, 0.0), hi=min(f.hi, 1.0)))
    return f


def _apart(x: Value, a: Fact) -> float:
    return 0.0


def _magnitudes_beside(x: Value, most: Reduction) -> bool:
    """Whether a maximum was taken of |x|."""
    made = most.of.node
    if made is None or made.op != "abs" or not isinstance(made.inputs[0], Value):
        return False
    inner = view(made.inputs[0])
    if inner.dims != tuple(range(len(inner.dims))):
        return False
    return beside(x, most._replace(of=inner.root))


# -- products ----------------------------------------------------------------------------------


def mixture(node: Node, f: Fact, a: Fact, b: Fact, ctx: Context) -> Fact:
    """A product with a matrix whose rows are shares of one: within what is mixed."""
    ((left, right), _) = node.params["dimension_numbers"]
    for x, axes, mixed in ((node.inputs[0], left, b), (node.inputs[1], right, a)):
        if not isinstance(x, Value) or mixed.flags & SPECIAL or mixed.lo > mixed.hi:
            continue
        shown = view(x, narrowing=True)
        made = shown.root.node
        if made is None or made.op != "div" or not all(isinstance(o, Value) for o in made.inputs):
            continue
        top_, bottom = made.inputs
        assert isinstance(top_, Value)
        assert isinstance(bottom, Value)
        share = reduction(bottom, "reduce_sum")
        if share is None or ctx.of(top_).lo < 0 or not beside(top_, share):
            continue
        along = {shown.dims[i] for i in axes}
        over = {i for i, d in enumerate(view(top_).dims) if d in share.axes}
        if not along <= over:
            continue
        count = math.prod(x.type.shape[i] for i in axes)
        growth = 1 + count * 2.0**-22 + (2.0**-6 if unit(x.type.dtype) > 1e-4 else 2.0**-16)
        lo, hi = min(mixed.lo, 0.0) * growth, max(mixed.hi, 0.0) * growth
        if f.lo <= f.hi:
            return tidy(f._replace(lo=max(f.lo, lo), hi=min(f.hi, hi), flags=f.flags & ~INF | ZERO))
    return f
