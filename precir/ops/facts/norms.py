"""Where spreads begin: variances and what they are the variance of, sums of shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from precir.domains.fact import Fact, numbers_of
from precir.domains.rounding import INFINITY, Grid
from precir.ir import Node, Value
from precir.ops.facts.context import Context
from precir.ops.facts.normalised import at_least, divided
from precir.ops.facts.relations import recomputed
from precir.ops.facts.spreads import Spread, growth, unit
from precir.ops.facts.views import View, constant, reduction, view


class Norm(NamedTuple):
    """A value whose mean (or sum of) squares a base is, and how large it is beside the base."""

    value: Value
    spread: Spread
    eps: float


def norm_of(under: Value, f: Fact, ctx: Context) -> Norm | None:
    """The value that `under` is not below a mean or sum of squares of."""
    shown = view(under)
    for whole, eps in _beside_constant(under):
        for part in at_least(whole, ctx):
            count = 1.0
            mean = divided(part, ctx)
            if mean is not None:
                part, count = mean
            found = _squares(part, count, shown, f, eps if part is not under else 0.0)
            if found is not None:
                return found
    return None


def _beside_constant(under: Value) -> Iterator[tuple[Value, float]]:
    """`under`, or what a positive constant was added to for it, and that constant."""
    node = under.node
    if node is not None and node.op == "add" and unit(under.type.dtype) < 1e-4:
        for x, c in (node.inputs, node.inputs[::-1]):
            eps = constant(c)
            if eps is None or eps <= 0 or not isinstance(x, Value):
                continue
            if x.type.shape == under.type.shape:
                yield x, eps
    yield under, 0.0


def _squares(part: Value, count: float, base: View, f: Fact, eps: float) -> Norm | None:
    found = reduction(part, "reduce_sum")
    if found is None or len(part.type.shape) != len(base.dims) or count <= 0:
        return None
    made = found.of.node
    if made is None or not _is_square(made) or not isinstance(made.inputs[0], Value):
        return None
    x = made.inputs[0]
    shape = found.of.type.shape
    if x.type.shape != shape:
        return None
    summed = math.prod(shape[a] for a in found.axes)
    operand = found.node.inputs[0].type.shape
    if summed != math.prod(operand[a] for a in found.node.params["axes"]):
        return None
    along = {d: b for d, b in zip(found.dims, base.dims, strict=True) if d is not None}
    dims = tuple(along.get(i) if i not in found.axes else None for i in range(len(shape)))
    if any(d is None and shape[i] != 1 and i not in found.axes for i, d in enumerate(dims)):
        return None
    if len({d for d in dims if d is not None}) != sum(n != 1 for n in base.root.type.shape):
        return None
    dtype = found.node.outputs[0].type.dtype
    grid = numbers_of(dtype)
    error = growth(summed, dtype) if unit(dtype) < 1e-4 else 1.3
    if error == INFINITY or not isinstance(grid, Grid):
        return None
    # squares that underflow are not in the sum
    lost = 1 + summed * grid.smallest_normal / (count * f.lo)
    length = math.sqrt(count * lost) * error
    wide = unit(dtype) < 1e-4 and grid.smallest_normal < 1e-30
    inner = 0.5 if wide and eps and f.lo >= eps * 0.99 else 0.0
    spread = Spread(base.root, dims, inner, 0.5 - inner, length, length * math.sqrt(summed))
    return Norm(x, spread, eps if inner else 0.0)


def _is_square(node: Node) -> bool:
    return (
        node.op == "square"
        or (node.op == "integer_pow" and node.params["y"] == 2)
        or (node.op == "mul" and node.inputs[0] is node.inputs[1])
    )


def shares(node: Node, a: Fact, f: Fact, ctx: Context) -> tuple[Spread, Spread] | None:
    """Of a sum of numbers that are not negative: the sum's own spread, and that of its terms."""
    x, s = node.inputs[0], node.outputs[0]
    if not isinstance(x, Value) or a.lo < 0 or not f.lo > 0:
        return None
    axes = set(node.params["axes"])
    shape, dtype = x.type.shape, s.type.dtype
    summed = math.prod(shape[i] for i in axes)
    slack = growth(summed, dtype) if unit(dtype) < 1e-4 else 1.3
    exponential = view(x).root.node
    if exponential is not None and exponential.op in ("exp", "exp2"):
        argument = exponential.inputs[0]
        if isinstance(argument, Value) and argument.node is not None:
            off = max(
                (
                    recomputed(o, ctx.of(o), ctx)
                    for o in argument.node.inputs
                    if isinstance(o, Value)
                ),
                default=0.0,
            )
            slack *= math.exp(off) if off < 3 else INFINITY
    if slack == INFINITY:
        return None
    order = {a: i for i, a in enumerate(a for a in range(len(shape)) if a not in axes)}
    dims = tuple(order.get(i) if shape[i] != 1 else None for i in range(len(shape)))
    own = tuple(i if n != 1 else None for i, n in enumerate(s.type.shape))
    terms = Spread(s, dims, 0.0, 1.0, slack, slack)
    return Spread(s, own, 0.0, 1.0, 1.0, 1.0, exact=True), terms
