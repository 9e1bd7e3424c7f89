"""precir's own ops: casts, quantisation and products of quantised operands."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precir.domains.fact import Fact
from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, Write
from precir.ops.facts import arithmetic, folds, functions, moving, pointwise
from precir.ops.facts.context import Answer, Context
from precir.ops.formats import format_source, scale_source
from precir.ops.scales import laws
from precir.ops.writing import ATOM, PRODUCT, Hole, Template, Writer, dtype_source, source

OWN = Keeps.OWN


def _cast(node: Node, w: Writer) -> Template:
    return Template((Hole(0, ATOM), f".astype({dtype_source(node.params['dtype'], w)})"))


def _quantize(node: Node, w: Writer) -> Template:
    quantize = w.use("precir.kernels", "quantize")
    p = node.params
    if p.get("scaling") == "given":
        pieces: tuple[str | Hole, ...] = (", scale=", scale_source(node, 1))
    else:
        written = {
            "scaling": (p.get("scaling", "current"), "current"),
            "block": (p.get("block", ()), ()),
        }
        pieces = tuple(
            f", {k}={source(v, w)}" for k, (v, default) in written.items() if v != default
        )
    if "scale_format" in p:
        pieces = (*pieces, f", scale_format={format_source(p['scale_format'], w)}")
    if p.get("fused"):
        pieces = (*pieces, ", fused=True")
    return Template((f"{quantize}(", Hole(0), f", {format_source(p['dtype'], w)}", *pieces, ")"))


def _dequantize(node: Node, w: Writer) -> Template:
    return Template((Hole(0, ATOM), ".unscale()"))


def _element(node: Node, w: Writer) -> Template:
    return Template((Hole(0, ATOM), f"[{node.params['index']}]"))


def _finite_amax(node: Node, w: Writer) -> Template:
    return Template((f"{w.use('precir.kernels', 'finite_amax')}(", Hole(0, array=True), ")"))


def _recent_amax(node: Node, w: Writer) -> Template:
    return Template((f"{w.use('precir.kernels', 'recent_amax')}(", Hole(0), ")"))


def _delayed_scale(node: Node, w: Writer) -> Template:
    function, format_ = (
        w.use("precir.kernels", "delayed_scale"),
        format_source(node.params["dtype"], w),
    )
    return Template((f"{function}(", Hole(0), ", ", Hole(1), f", {format_})"))


def _record_amax(node: Node, w: Writer) -> Template:
    pieces: list[str | Hole] = [f"{w.use('precir.kernels', 'record_amax')}(", Hole(0)]
    for i in range(1, len(node.inputs)):
        pieces += [", ", Hole(i)]
    return Template((*pieces, ")"))


def _observe(node: Node, w: Writer) -> Template:
    observe = w.use("precir.kernels", "observe")
    option = "" if node.params["histogram"] else ", histogram=False"
    return Template((f"{observe}(", Hole(0, array=True), f"{option})"))


def _tap(node: Node, w: Writer) -> Template:
    tap = w.use("precir.kernels", "tap")
    return Template(
        (f"{tap}(", Hole(0, array=True), ", ", Hole(1), f", {source(node.params['roundings'], w)})")
    )


def _amax(node: Node, w: Writer) -> Template:
    return Template((f"{w.use('precir.kernels', 'amax')}(", Hole(0, array=True), ")"))


def _merge_stats(node: Node, w: Writer) -> Template:
    merge = w.use("precir.kernels", "merge_stats")
    return Template((f"{merge}(", Hole(0), ", ", Hole(1), ")"))


def _power(value: float) -> str:
    """A power of two as a person writes it."""
    exponent = math.frexp(value)[1] - 1
    return f"2.0**{exponent}" if value == 2.0**exponent else repr(value)


def _factor(node: Node) -> str | Hole:
    factor = node.inputs[1]
    return _power(float(factor.value.real)) if isinstance(factor, Literal) else Hole(1, PRODUCT + 1)


def _multiplied(node: Node, w: Writer) -> Template:
    """`x * 2.0**-3`, through float32 where 16 bits might not hold the factor."""
    operand, dtype = node.inputs[0].type.dtype, node.params["dtype"]
    if operand == dtype and dtype in ("float32", "float64") and node.inputs[0].type.rank:
        return Template((Hole(0, PRODUCT), " * ", _factor(node)), PRODUCT)
    rescale = w.use("precir.kernels", "rescale")
    return Template((f"{rescale}(", Hole(0), ", ", _factor(node), f", {dtype_source(dtype, w)})"))


def _scale_product(node: Node, w: Writer) -> Template:
    pieces: list[str | Hole] = [f"{w.use('precir.kernels', 'bounded')}("]
    times = [(i, p) for i, p in enumerate(node.params["powers"]) if p > 0]
    over = [(i, -p) for i, p in enumerate(node.params["powers"]) if p < 0]
    exponent = node.params["exponent"]
    if exponent or not times:
        pieces += [f"2.0**{exponent}" if exponent else "1.0", " * " if times else ""]
    for n, (i, p) in enumerate(times):
        pieces += [" * " * (n > 0), Hole(i, ATOM), f"**{p}" if p > 1 else ""]
    for i, p in over:
        pieces += [" / ", Hole(i, ATOM), f"**{p}" if p > 1 else ""]
    return Template((*(p for p in pieces if p != ""), ")"))


def _scale_max(node: Node, w: Writer) -> Template:
    del w
    return Template(("jnp.maximum(", Hole(0), ", ", Hole(1), ")"))


def _scale_root(node: Node, w: Writer) -> Template:
    root = w.use("precir.kernels", "scale_root")
    return Template((f"{root}(", Hole(0, array=True), f", {node.params['n']})"))


def _rms_scale(node: Node, w: Writer) -> Template:
    del node
    return Template((f"{w.use('precir.kernels', 'rms_scale')}(", Hole(0, array=True), ")"))


def _amax_scale(node: Node, w: Writer) -> Template:
    del node
    return Template((f"{w.use('precir.kernels', 'amax_scale')}(", Hole(0, array=True), ")"))


def _scale_of(node: Node, w: Writer) -> Template:
    """Within the bounds of scales, whatever the user made: zero times infinity is no number."""
    del node
    return Template((f"{w.use('precir.kernels', 'bounded')}(", Hole(0, ATOM), ".scale)"))


def _row(node: Node, w: Writer) -> Template:
    del node
    return Template((f"{w.use('precir.kernels', 'row')}(", Hole(0), ", ", Hole(1, bare=True), ")"))


def _layer(node: Node, w: Writer) -> Template:
    del node
    return Template((f"{w.use('precir.kernels', 'Layer')}(", Hole(0), ", ", Hole(1), ")"))


def _put_row(node: Node, w: Writer) -> Template:
    del node
    put = w.use("precir.kernels", "put_row")
    return Template((f"{put}(", Hole(0), ", ", Hole(1), ", ", Hole(2, bare=True), ")"))


def _all_finite(node: Node, w: Writer) -> Template:
    pieces: list[str | Hole] = [f"{w.use('precir.kernels', 'all_finite')}("]
    for i in range(len(node.inputs)):
        pieces += [", "] * (i > 0) + [Hole(i, array=True)]
    return Template((*pieces, ")"))


def _next_loss_scale(node: Node, w: Writer) -> Template:
    del node
    update = w.use("precir.kernels", "next_loss_scale")
    return Template((f"{update}(", Hole(0), ", ", Hole(1), ", ", Hole(2), ")"))


def _attribute(name: str) -> Write:
    def write(node: Node, w: Writer) -> Template:
        del node, w
        return Template((Hole(0, ATOM), f".{name}"))

    return write


def _a_scale(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    """A power of two between 2^-126 and 2^126."""
    del node, facts, ctx
    return Fact(2.0**-126, 2.0**126, 2.0**-126, 0)


OPS: tuple[Op, ...] = (
    Op("cast", OWN, pointwise.convert, laws.converted, _cast),
    Op("quantize", OWN, folds.quantize, laws.unscaled, _quantize),
    Op("observe", OWN, functions.anything, laws.unscaled, _observe),
    Op("tap", OWN, pointwise.same_as_operand, laws.unscaled, _tap),
    Op("amax", OWN, functions.anything, laws.unscaled, _amax),
    Op("rescale", Keeps.RESCALE, arithmetic.mul, laws.unscaled, _multiplied),
    Op("unscale", OWN, arithmetic.mul, laws.unscaled, _multiplied),
    Op("scale_product", OWN, _a_scale, laws.unscaled, _scale_product),
    Op("scale_max", OWN, _a_scale, laws.unscaled, _scale_max),
    Op("scale_root", OWN, _a_scale, laws.unscaled, _scale_root),
    Op("rms_scale", OWN, _a_scale, laws.unscaled, _rms_scale),
    Op("all_finite", OWN, functions.anything, laws.unscaled, _all_finite),
    Op("next_loss_scale", OWN, functions.anything, laws.unscaled, _next_loss_scale),
    Op("data_of", OWN, functions.anything, laws.unscaled, _attribute("data")),
    Op("scale_of", OWN, _a_scale, laws.unscaled, _scale_of),
    Op("amax_scale", OWN, _a_scale, laws.unscaled, _amax_scale),
    Op("merge_stats", OWN, functions.anything, laws.unscaled, _merge_stats),
    Op("dequantize", OWN, folds.dequantize, laws.unscaled, _dequantize),
    Op("element", OWN, functions.anything, laws.unscaled, _element),
    Op("row", OWN, pointwise.same_as_operand, laws.unscaled, _row),
    Op("layer", OWN, pointwise.same_as_operand, laws.unscaled, _layer),
    Op("put_row", OWN, moving.dynamic_update_slice, laws.unscaled, _put_row),
    Op("finite_amax", OWN, functions.anything, laws.unscaled, _finite_amax),
    Op("delayed_scale", OWN, functions.anything, laws.unscaled, _delayed_scale),
    Op("recent_amax", OWN, functions.anything, laws.unscaled, _recent_amax),
    Op("record_amax", OWN, functions.anything, laws.unscaled, _record_amax),
)
