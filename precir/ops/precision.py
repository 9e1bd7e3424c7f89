"""precir's own ops: casts, quantisation and products of quantised operands."""

from __future__ import annotations

import math

from precir.formats import is_power_of_two
from precir.ir import Literal, Node, Operand
from precir.ops.base import Keeps, Op
from precir.ops.facts import folds, functions, pointwise
from precir.ops.writing import ATOM, Hole, Template, Writer, dtype_source, source

OWN = Keeps.OWN
_FORMAT_NAMES = {"float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2", "float8_e8m0fnu": "E8M0FNU"}


def _format(dtype: str, w: Writer) -> str:
    name = _FORMAT_NAMES.get(dtype)
    return dtype_source(dtype, w) if name is None else w.use("precir.kernels", name)


def _cast(node: Node, w: Writer) -> Template:
    return Template((Hole(0, ATOM), f".astype({dtype_source(node.params['dtype'], w)})"))


def _quantize(node: Node, w: Writer) -> Template:
    quantize = w.use("precir.kernels", "quantize")
    p = node.params
    if p.get("scaling") == "given":
        pieces: tuple[str | Hole, ...] = (", scale=", _scale(node.inputs[1]))
    else:
        written = {
            "scaling": (p.get("scaling", "current"), "current"),
            "block": (p.get("block", ()), ()),
        }
        pieces = tuple(
            f", {k}={source(v, w)}" for k, (v, default) in written.items() if v != default
        )
    if "scale_format" in p:
        pieces = (*pieces, f", scale_format={_format(p['scale_format'], w)}")
    return Template((f"{quantize}(", Hole(0), f", {_format(p['dtype'], w)}", *pieces, ")"))


def _scale(operand: Operand) -> str | Hole:
    """A scale: `2.0**-5` if it is a number."""
    value = operand.value if isinstance(operand, Literal) else None
    if isinstance(value, float) and is_power_of_two(value):
        return f"2.0**{math.frexp(value)[1] - 1}"
    return Hole(1, bare=True)


def _dequantize(node: Node, w: Writer) -> Template:
    return Template((Hole(0, ATOM), ".unscale()"))


def _scaled_dot(node: Node, w: Writer) -> Template:
    scaled_dot = w.use("precir.kernels", "scaled_dot")
    dims, out = source(node.params["dimension_numbers"], w), dtype_source(node.params["dtype"], w)
    shift = node.params.get("shift", 0)
    option = f", shift={shift}" if shift else ""
    return Template((f"{scaled_dot}(", Hole(0), ", ", Hole(1), f", {dims}, out={out}{option})"))


def _element(node: Node, w: Writer) -> Template:
    return Template((Hole(0, ATOM), f"[{node.params['index']}]"))


def _finite_amax(node: Node, w: Writer) -> Template:
    return Template((f"{w.use('precir.kernels', 'finite_amax')}(", Hole(0, array=True), ")"))


def _recent_amax(node: Node, w: Writer) -> Template:
    return Template((f"{w.use('precir.kernels', 'recent_amax')}(", Hole(0), ")"))


def _delayed_scale(node: Node, w: Writer) -> Template:
    function, format_ = w.use("precir.kernels", "delayed_scale"), _format(node.params["dtype"], w)
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


def _amax(node: Node, w: Writer) -> Template:
    return Template((f"{w.use('precir.kernels', 'amax')}(", Hole(0, array=True), ")"))


def _merge_stats(node: Node, w: Writer) -> Template:
    merge = w.use("precir.kernels", "merge_stats")
    return Template((f"{merge}(", Hole(0), ", ", Hole(1), ")"))


OPS: tuple[Op, ...] = (
    Op("cast", OWN, pointwise.convert, _cast),
    Op("quantize", OWN, folds.quantize, _quantize),
    Op("dequantize", OWN, folds.dequantize, _dequantize),
    Op("scaled_dot", OWN, folds.scaled_dot, _scaled_dot),
    Op("observe", OWN, functions.anything, _observe),
    Op("amax", OWN, functions.anything, _amax),
    Op("element", OWN, functions.anything, _element),
    Op("finite_amax", OWN, functions.anything, _finite_amax),
    Op("delayed_scale", OWN, functions.anything, _delayed_scale),
    Op("recent_amax", OWN, functions.anything, _recent_amax),
    Op("record_amax", OWN, functions.anything, _record_amax),
    Op("merge_stats", OWN, functions.anything, _merge_stats),
)
