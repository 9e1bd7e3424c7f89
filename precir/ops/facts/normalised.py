"""Vectors divided by their own length: x * rsqrt(mean(x*x) + eps), x / sqrt(sum(x*x))."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

from precir.domains.fact import Fact, numbers_of, tidy
from precir.domains.kinds import SPECIAL, ZERO
from precir.domains.rounding import Grid
from precir.ir import Node, Operand, Value
from precir.ops.facts.context import Context
from precir.ops.facts.views import Reduction, beside, constant, reduction, view


def unit(dtype: str) -> float:
    """Relative rounding error of one operation."""
    numbers = numbers_of(dtype)
    return numbers.epsilon if isinstance(numbers, Grid) else 0.0


def clipped(f: Fact, bound: float) -> Fact:
    return tidy(f._replace(lo=max(f.lo, -bound), hi=min(f.hi, bound)))


def at_least(y: Value, ctx: Context, depth: int = 4) -> Iterator[Value]:
    """Values that y is not below, element by element: parts of sums and maxima."""
    yield y
    node = y.node
    if node is None or depth == 0:
        return
    if node.op in ("add", "max"):
        for part, other in (node.inputs, node.inputs[::-1]):
            if isinstance(part, Value) and (node.op == "max" or ctx.of(other).lo >= 0):
                yield from at_least(part, ctx, depth - 1)
    elif node.op == "sub":
        part, other = node.inputs
        if isinstance(part, Value) and part.type.shape == y.type.shape and ctx.of(other).hi <= 0:
            yield from at_least(part, ctx, depth - 1)
    elif node.op == "select_n":
        which = ctx.of(node.inputs[0])
        chosen = node.inputs[1 + int(which.lo)] if which.point else None
        if isinstance(chosen, Value) and chosen.type.shape == y.type.shape:
            yield from at_least(chosen, ctx, depth - 1)
    elif node.op in (
        "broadcast_in_dim",
        "convert_element_type",
        "reshape",
        "sqrt",
        "stop_gradient",
    ):
        inner = node.inputs[0]
        if node.op == "broadcast_in_dim" and isinstance(inner, Value):
            for part in at_least(inner, ctx, depth - 1):
                if part is not inner and part.type.shape == inner.type.shape:
                    shown = _same_broadcast(node, part)
                    if shown is not None:
                        yield shown


def _same_broadcast(node: Node, part: Value) -> Value | None:
    """The broadcast of a part, as if the program had it."""
    made = Node(
        node.op, (part,), [node.outputs[0].type], node.params, source=node.source, scope=node.scope
    )
    return made.outputs[0]


def normalised(x: Value, under: Value, a: Fact, ctx: Context) -> float | None:
    """A bound of |x| / sqrt(under), where `under` is not below a mean or sum of x's squares."""
    for part in at_least(under, ctx):
        count = 1.0
        mean = divided(part, ctx)
        if mean is not None:
            part, count = mean
        found = reduction(part, "reduce_sum")
        if found is not None and _squares_beside(x, found):
            dtype = found.node.outputs[0].type.dtype
            slack = 1 + found_count(found) * unit(dtype) if unit(dtype) < 1e-4 else 1.3
            lowest = ctx.of(under)
            if not (lowest.lo > 0 or not lowest.flags & ZERO) and a.tiny * a.tiny < 1e-37:
                slack = max(slack, 1.3)
            return math.sqrt(count) * slack
        fast = _fast_variance(x, under, part, a, ctx)
        if fast is not None:
            return fast
    return None


def found_count(found: Reduction) -> int:
    return math.prod(found.of.type.shape[i] for i in found.axes)


def divided(part: Value, ctx: Context) -> tuple[Value, float] | None:
    """S and n of s / n or s * (1 / n)."""
    node = view(part, narrowing=True).root.node
    if node is None or node.op not in ("div", "mul"):
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        number = constant(other)
        if number is None and ctx.of(other).point:
            number = ctx.of(other).lo
        if number and isinstance(value, Value) and (node.op == "mul" or value is node.inputs[0]):
            shown = _reshown(part, node, value)
            return shown, (number if node.op == "div" else 1 / number)
    return None


def _reshown(part: Value, node: Node, value: Value) -> Value:
    """`value` as `part` shows `node`'s result: with the same broadcasts on top."""
    chain: list[Node] = []
    walked: Value = part
    while walked.node is not None and walked.node is not node:
        chain.append(walked.node)
        inner = walked.node.inputs[0]
        if not isinstance(inner, Value):
            return value
        walked = inner
    for wrapper in reversed(chain):
        made = Node(wrapper.op, (value,), [wrapper.outputs[0].type], wrapper.params)
        value = made.outputs[0]
    return value


def _squares_beside(x: Value, found: Reduction) -> bool:
    """Whether a sum was taken of x's own squares (or of |x|'s)."""
    made = found.of.node
    if made is None:
        return False
    squared = (
        made.op == "square"
        or (made.op == "integer_pow" and made.params["y"] == 2)
        or (made.op == "mul" and made.inputs[0] is made.inputs[1])
    )
    if not squared or not isinstance(made.inputs[0], Value):
        return False
    inner = view(made.inputs[0])
    if inner.root.node is not None and inner.root.node.op == "abs":
        deeper = inner.root.node.inputs[0]
        if isinstance(deeper, Value):
            through = view(deeper)
            inner = through._replace(
                dims=tuple(None if d is None else through.dims[d] for d in inner.dims)
            )
    if any(d is None for d in inner.dims):
        return False
    translated = tuple(None if d is None else inner.dims[d] for d in found.dims)
    axes = frozenset(d for a in found.axes if (d := inner.dims[a]) is not None)
    return beside(x, Reduction(found.node, inner.root, translated, axes))


def _fast_variance(x: Value, under: Value, part: Value, a: Fact, ctx: Context) -> float | None:
    """flax: x - mean(x) over sqrt(max(0, mean(x*x) - mean(x)**2) + eps)."""
    shown = view(x).root
    minus = shown.node
    if minus is None or minus.op != "sub" or not isinstance(minus.inputs[0], Value):
        return None
    variance = view(part, narrowing=True).root.node
    if variance is None or variance.op != "sub" or not isinstance(variance.inputs[0], Value):
        return None
    mean = divided(variance.inputs[0], ctx)
    if mean is None:
        return None
    found = reduction(_reshown(part, variance, mean[0]), "reduce_sum")
    if found is None or not _squares_beside(minus.inputs[0], found):
        return None
    count, eps = mean[1], ctx.of(under).lo
    if eps <= 0:
        return None
    reach = ctx.of(minus.inputs[0]).magnitude
    error = (found_count(found) + 8) * unit(found.node.outputs[0].type.dtype)
    bound = math.sqrt(count) * math.sqrt(1 + error * reach * reach / eps)
    return bound + error * reach / math.sqrt(eps)


def product(node: Node, f: Fact, a: Fact, b: Fact, ctx: Context) -> Fact:
    """X * rsqrt(mean(x*x) + eps), a gain multiplied in or not; x * (1 / sum(x))."""
    for x, y, fx in ((node.inputs[0], node.inputs[1], a), (node.inputs[1], node.inputs[0], b)):
        if not isinstance(x, Value) or not isinstance(y, Value):
            continue
        for inverse, gain in _factors(y, ctx):
            made = view(inverse, narrowing=True).root.node
            if made is None or not made.inputs or not isinstance(made.inputs[0], Value):
                continue
            if made.op == "rsqrt":
                under = _reshown(inverse, made, made.inputs[0])
                bound = normalised(x, under, fx, cast(Context, _Shown(ctx, under, made.inputs[0])))
                if bound is not None:
                    dtype = node.outputs[0].type.dtype
                    return clipped(f, bound * gain * (1 + 16 * unit(dtype)))
    return f


class _Shown:
    """A context that also knows a value made up for a broadcast."""

    def __init__(self, ctx: Context, shown: Value, value: Value) -> None:
        self._ctx, self._shown, self._value = ctx, shown, value

    def of(self, operand: Operand) -> Fact:
        return self._ctx.of(self._value if operand is self._shown else operand)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _factors(y: Value, ctx: Context) -> Iterator[tuple[Value, float]]:
    """The factors of a product, each with the magnitude of the rest."""
    yield y, 1.0
    node = y.node
    if node is None:
        return
    if node.op == "mul":
        for one, other in (node.inputs, node.inputs[::-1]):
            if isinstance(one, Value):
                rest = ctx.of(other)
                if not rest.flags & SPECIAL:
                    yield one, rest.magnitude
