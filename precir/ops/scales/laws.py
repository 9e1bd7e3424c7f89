"""Laws of one operand, of operands that must agree, and of what has none."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precir.ir import Node, Operand, Value
from precir.ops.scales.scaled import ONE, Builder, Law, Scale, Scaled, is_float


def unscaled(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """No law: computed of the true values."""
    made = b.emit(node, [b.plain(x) for x in xs])
    return [Scaled(v, ONE if is_float(v.type.dtype) else None) for v in made.outputs]


def exponential(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Computed of the true value; of what is never positive, as in a softmax, mostly small."""
    (made,) = unscaled(node, xs, b)
    fact = b.fact(0)
    below = fact is not None and fact.hi <= 0
    return [Scaled(made.data, made.scale, -2.5 if below else 0.0)]


def through(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """op(d * s) = op(d) * s, of the first operand; any other is an index, a mask or the like."""
    made = b.emit(node, [xs[0].data, *(b.plain(x) for x in xs[1:])])
    return [_of(v, xs[0]) for v in made.outputs]


def _spread_out(x: Scaled, count: int, among: int) -> float:
    """The size of what lies among zeros: its mean square is that many times smaller."""
    return x.size + 0.5 * math.log2(max(count, 1) / max(among, count, 1))


def pad(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Aligned; among zeros it is as much smaller as there are more of them."""
    (made,) = aligned(0, 1)(node, xs, b)
    if xs[1].scale is None and made.scale is not None:
        size = _spread_out(xs[0], math.prod(xs[0].type.shape), math.prod(made.type.shape))
        return [Scaled(made.data, made.scale, size, made.blind)]
    return [made]


def _of(value: Value, x: Scaled) -> Scaled:
    if not is_float(value.type.dtype):
        return Scaled(value, None)
    return Scaled(value, x.scale, x.size, x.blind, x.raw)


def each(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Every result has the scale of the operand at its place; a positive scale changes no order."""
    made = b.emit(node, [x.data for x in xs])
    return [_of(v, x) for v, x in zip(made.outputs, xs, strict=True)]


def reads(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """op(d * s) = op(d): signs, positions of extrema, which elements are finite."""
    made = b.emit(node, [x.data for x in xs])
    return [Scaled(v, ONE if is_float(v.type.dtype) else None) for v in made.outputs]


def top(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Values with the operand's scale, and where they were."""
    made = b.emit(node, [x.data for x in xs])
    return [_of(made.outputs[0], xs[0]), *(Scaled(v, None) for v in made.outputs[1:])]


def aligned(*which: int, grows: bool = False) -> Law:
    """Operands under one scale, that of the largest, which the results have too.

    `which` are those operands, all of them if none is named; the others are indices, masks and
    the like. `grows` if the results are sums.
    """

    def law(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
        chosen = [x for i, x in enumerate(xs) if not which or i in which]
        scale = b.common(chosen)
        made = b.emit(node, _under(xs, which, scale, b))
        size, blind = total_size(chosen, scale, grows), max(x.blind for x in chosen)
        return [
            Scaled(v, scale, size, blind) if is_float(v.type.dtype) else Scaled(v, None)
            for v in made.outputs
        ]

    return law


def select(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """The chosen ones aligned; a mask of numbers that are no floats is left as it is."""
    return list(aligned(*range(1, len(xs)))(node, xs, b))


def compared(*which: int) -> Law:
    """Results that depend on nothing but the ratio of the operands."""

    def law(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
        chosen = [x for i, x in enumerate(xs) if not which or i in which]
        made = b.emit(node, _under(xs, which, b.common(chosen), b))
        return [Scaled(v, ONE if is_float(v.type.dtype) else None) for v in made.outputs]

    return law


def _under(
    xs: Sequence[Scaled], which: tuple[int, ...], scale: Scale | None, b: Builder
) -> list[Operand]:
    return [b.under(x, scale) if not which or i in which else b.plain(x) for i, x in enumerate(xs)]


def total_size(xs: Sequence[Scaled], scale: Scale | None, grows: bool) -> float:
    """The size of what operands brought under one scale give: their sum, if they add up."""
    sizes = [_size_under(x, scale) for x in xs if x.scale is not None]
    if not sizes:
        return 0.0
    if not grows:
        return max(sizes)
    largest = max(sizes)
    together = sum(math.exp2(2 * max(s - largest, -20.0)) for s in sizes)
    return largest + 0.5 * math.log2(together)


def _size_under(x: Scaled, scale: Scale | None) -> float:
    """What is known of the data once `x` is under another scale: of one that is only known while
    the program runs, that it was chosen to fit.
    """
    if x.scale is None or scale is None or x.scale.powers != scale.powers:
        return max(-1.0, min(1.0, x.size))
    return x.size + x.scale.exponent - scale.exponent


def converted(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Between floating-point formats the data is converted; to integers, the true value is."""
    source, result = node.inputs[0].type.dtype, node.outputs[0].type.dtype
    if is_float(source) and (is_float(result) or result == "bool"):
        return through(node, xs, b)
    return unscaled(node, xs, b)


def root(n: int, inverse: bool = False) -> Law:
    """(d * s^n)^(1/n) = d^(1/n) * s."""

    def law(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
        if xs[0].scale is None:
            return unscaled(node, xs, b)
        data, scale, size = b.root(xs[0], n)
        made = b.emit(node, [data])
        sign = -1 if inverse else 1
        return [Scaled(made.outputs[0], scale**sign, sign * size / n, xs[0].blind)]

    return law


def gather(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """What is read out of bounds is a number of its own, unless it is zero or NaN."""
    fill = node.params.get("fill_value")
    fits = fill is None or fill == 0 or fill != fill
    return (through if fits else unscaled)(node, xs, b)


def scatter(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Operand and updates aligned; another function than replacing has no law."""
    if node.op == "scatter" and node.params["update_jaxpr"] is not None:
        return unscaled(node, xs, b)
    (made,) = aligned(0, 2, grows="add" in node.op)(node, xs, b)
    if xs[0].scale is None and made.scale is not None:
        size = _spread_out(xs[2], math.prod(xs[2].type.shape), math.prod(made.type.shape))
        return [Scaled(made.data, made.scale, size, made.blind)]
    return [made]


def beside(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """The scale of the first operand; the second is only compared with itself."""
    made = b.emit(node, [x.data for x in xs])
    return [_of(v, xs[0]) for v in made.outputs]
