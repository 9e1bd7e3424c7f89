"""Laws of what multiplies and sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from precir.ir import Literal, Node
from precir.ops.scales.laws import unscaled
from precir.ops.scales.scaled import ONE, Builder, Law, Scale, Scaled


def _times(*scales: Scale | None) -> Scale | None:
    """What has any scale (zeros, infinities) gives what has any scale."""
    if any(s is None for s in scales):
        return next((s for s in scales if s is not None), None)
    total = ONE
    for s in scales:
        assert s is not None
        total = total * s
    return total


def _blind(xs: Sequence[Scaled]) -> int:
    return max(x.blind for x in xs)


def mul(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """(a * s)(b * t) = ab * st; of the true values where many powers have come together, of which
    each carries the error of the same guess.
    """
    x, y = xs
    scale, size = _times(x.scale, y.scale), x.size + y.size
    if scale is not None and scale.far:
        return unscaled(node, xs, b)
    kind = node.outputs[0].type
    for one, other in ((x, y), (y, x)):  # a power of two is all scale
        unit = isinstance(one.data, Literal) and one.data.value == 1.0
        if unit and other.type.shape == kind.shape and other.type.dtype == kind.dtype:
            return [Scaled(other.data, scale, size, other.blind)]
    made = b.emit(node, [x.data, y.data])
    return [Scaled(made.outputs[0], scale, size, _blind(xs))]


def div(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """(a * s) / (b * t) = a/b * s/t."""
    x, y = xs
    scale = _times(x.scale, None if y.scale is None else y.scale**-1)
    if x.scale is None:
        scale = None  # zeros and infinities, whatever they are divided by
    if scale is not None and scale.far:
        return unscaled(node, xs, b)
    kind = node.outputs[0].type
    if isinstance(y.data, Literal) and y.data.value == 1.0 and x.type == kind:
        return [Scaled(x.data, scale, x.size - y.size, x.blind)]
    made = b.emit(node, [x.data, y.data])
    return [Scaled(made.outputs[0], scale, x.size - y.size, _blind(xs))]


def power(n: Callable[[Node], int]) -> Law:
    """(d * s)^n = d^n * s^n."""

    def law(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
        (x,), times = xs, n(node)
        narrow = x.type.dtype not in ("float32", "float64")
        if x.scale is None or times == 0 or (x.scale**times).far or (narrow and abs(times) > 2):
            return unscaled(node, xs, b)
        made = b.emit(node, [x.data])
        return [Scaled(made.outputs[0], x.scale**times, times * x.size, x.blind)]

    return law


square = power(lambda node: 2)
integer_pow = power(lambda node: int(node.params["y"]))


def _growth(terms: float, positive: bool) -> float:
    """What summing adds to the size: terms of one sign add up, others cancel."""
    return float(math.log2(max(terms, 1)) * (1.0 if positive else 0.5))


def _positive(b: Builder, *operands: int) -> bool:
    """Whether operands are known to have one sign each."""
    facts = [b.fact(i) for i in operands]
    return all(f is not None and (f.lo >= 0 or f.hi <= 0) for f in facts)


def bilinear(terms: Callable[[Node], float]) -> Law:
    """Matrix products and convolutions: sums of `terms(node)` products."""

    def law(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
        x, y, *rest = xs
        scale = _times(x.scale, y.scale)
        if scale is not None and scale.far:  # many products by the same weights
            scale = _times(*(s and b.named(s) for s in (x.scale, y.scale)))
        made = b.emit(node, [x.data, y.data, *(b.plain(r) for r in rest)])
        size = x.size + y.size + _growth(terms(node), _positive(b, 0, 1))
        return [Scaled(made.outputs[0], scale, size, _blind(xs[:2]) + 1)]

    return law


def _contracted(node: Node) -> float:
    (axes, _), _ = node.params["dimension_numbers"]
    return float(math.prod(node.inputs[0].type.shape[a] for a in axes))


def _fan_in(node: Node) -> float:
    shape = node.inputs[1].type.shape
    out = shape[node.params["dimension_numbers"].rhs_spec[0]]
    return float(math.prod(shape) / max(out, 1))


dot_general = bilinear(_contracted)
convolution = bilinear(_fan_in)


def _summed(terms: Callable[[Node], float]) -> Law:
    def law(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
        made = b.emit(node, [xs[0].data, *(b.plain(x) for x in xs[1:])])
        size = xs[0].size + _growth(terms(node), _positive(b, 0))
        return [Scaled(v, xs[0].scale, size, xs[0].blind) for v in made.outputs]

    return law


def _reduced(node: Node) -> float:
    return float(math.prod(node.inputs[0].type.shape[a] for a in node.params["axes"]))


reduce_sum = _summed(_reduced)
cumsum = _summed(lambda node: node.inputs[0].type.shape[node.params["axis"]] / 2)
window_sum = _summed(lambda node: math.prod(node.params["window_dimensions"]))


def reduce_prod(node: Node, xs: Sequence[Scaled], b: Builder) -> list[Scaled]:
    """Of more than a few elements the scale's power would leave float32: of the true values."""
    return list(power(lambda n: int(_reduced(n)))(node, xs, b))
