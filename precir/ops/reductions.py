"""Ops that fold an axis: sums, extrema, cumulative ops, windows, sorts."""

from __future__ import annotations

from typing import Any

from precir.ir import Node
from precir.ops.base import Keeps, Op, Write, bind, call
from precir.ops.facts import folds, functions, moving, pointwise
from precir.ops.facts.context import Rule
from precir.ops.scales import laws, products
from precir.ops.scales.scaled import Law
from precir.ops.writing import REQUIRED, Hole, Template, Writer, source

WIDE, FOLLOW, OWN, MOVE = Keeps.WIDE, Keeps.FOLLOW, Keeps.OWN, Keeps.MOVE


def _reduce(method: str, keeps: Keeps, name: str, fact: Rule, scale: Law) -> Op:
    exact = call(f"lax.{name}", keywords={"axes": REQUIRED, "out_sharding": None})

    def write(node: Node, w: Writer) -> Template:
        if node.params.get("out_sharding") is not None:
            return exact(node, w)
        kind, axes = node.inputs[0].type, node.params["axes"]
        if kind.dtype != "float32" or kind.weak or not isinstance(axes, tuple) or not axes:
            return exact(node, w)
        if 0 in kind.shape:  # jnp refuses the extrema of nothing
            return exact(node, w)
        if set(axes) == set(range(node.inputs[0].type.rank)):
            return Template((f"jnp.{method}(", Hole(0), ")"))
        axis = source(axes[0] if len(axes) == 1 else axes, w)
        return Template((f"jnp.{method}(", Hole(0), f", axis={axis})"))

    return Op(name, keeps, fact, scale, write)


def _logical(name: str) -> Op:
    written = call(f"lax.{name}", keywords={"axes": REQUIRED, "out_sharding": None})
    return Op(name, OWN, functions.anything, laws.unscaled, written)


def _arg(name: str) -> Op:
    def write(node: Node, w: Writer) -> Template:
        axes = node.params["axes"]
        if len(axes) != 1:
            return bind(node, w)
        dtype = source(node.params["index_dtype"], w)
        return Template((f"lax.{name}(", Hole(0), f", {axes[0]}, {dtype})"))

    return Op(name, FOLLOW, folds.argument, laws.reads, write)


def _cumulative(name: str, keeps: Keeps, fact: Rule, scale: Law) -> Op:
    written = call(f"lax.{name}", keywords={"axis": REQUIRED, "reverse": False})
    return Op(name, keeps, fact, scale, written)


def _computation(node: Node, w: Writer, count: int) -> str:
    """A reducer of `count` operands: called with the accumulators, then the values."""
    groups = (count, count) if count > 1 else ()
    return w.function(node.regions[0], groups, (count,) if count > 1 else ())


def _general_reduce(node: Node, w: Writer) -> Template:
    count = len(node.inputs) // 2
    function = _computation(node, w, count)
    pieces: list[str | Hole] = ["lax.reduce("]
    for half in range(2):
        pieces.append("(" if count > 1 else "")
        for i in range(count):
            pieces += [", "] * (i > 0) + [Hole(half * count + i)]
        pieces.append("), " if count > 1 else ", ")
    pieces.append(f"{function}, {source(node.params['dimensions'], w)})")
    return Template(tuple(pieces), targets="{}" if count == 1 else None)


def _reduce_window(node: Node, w: Writer) -> Template:
    count = len(node.inputs) // 2
    if count != 1 or node.params.get("consts"):
        return bind(node, w)
    p = {k: source(v, w) for k, v in node.params.items() if k not in ("jaxpr", "consts")}
    rest = (
        f", {_computation(node, w, 1)}, {p['window_dimensions']}, {p['window_strides']}, "
        f"{p['padding']}, "
        f"base_dilation={p['base_dilation']}, window_dilation={p['window_dilation']})"
    )
    return Template(("lax.reduce_window(", Hole(0), ", ", Hole(1), rest))


def _sort(node: Node, w: Writer) -> Template:
    if len(node.inputs) == 1:
        return _sort_one(node, w)
    return _sort_many(node, w)


_sort_keywords: dict[str, Any] = {"dimension": -1, "is_stable": True, "num_keys": 1}
_sort_one: Write = call("lax.sort", keywords=_sort_keywords)
_sort_many: Write = call("lax.sort", keywords=_sort_keywords, packed=True)


def _top_k(node: Node, w: Writer) -> Template:
    k, axis = node.params["k"], node.params.get("axis", -1)
    if set(node.params) - {"k", "axis", "operand"}:
        return bind(node, w)
    rank = node.inputs[0].type.rank
    last = axis in (-1, rank - 1)
    return Template(("lax.top_k(", Hole(0), f", {k})" if last else f", {k}, axis={axis})"))


OPS: tuple[Op, ...] = (
    _reduce("sum", WIDE, "reduce_sum", folds.reduce_sum, products.reduce_sum),
    _reduce("prod", WIDE, "reduce_prod", folds.reduce_prod, products.reduce_prod),
    _reduce("max", FOLLOW, "reduce_max", folds.reduce_extremum(largest=True), laws.through),
    _reduce("min", FOLLOW, "reduce_min", folds.reduce_extremum(largest=False), laws.through),
    _logical("reduce_and"),
    _logical("reduce_or"),
    _logical("reduce_xor"),
    _arg("argmax"),
    _arg("argmin"),
    Op("reduce", OWN, functions.anything, laws.unscaled, _general_reduce),
    _cumulative("cumsum", WIDE, folds.cumsum, products.cumsum),
    _cumulative("cumprod", WIDE, folds.cumprod, laws.unscaled),
    _cumulative("cumlogsumexp", WIDE, folds.cumlogsumexp, laws.unscaled),
    _cumulative("cummax", FOLLOW, pointwise.same_as_operand, laws.through),
    _cumulative("cummin", FOLLOW, pointwise.same_as_operand, laws.through),
    Op("sort", FOLLOW, moving.sort, laws.each, _sort),
    Op("top_k", FOLLOW, moving.top_k, laws.top, _top_k),
    Op("reduce_window", OWN, functions.anything, laws.unscaled, _reduce_window),
)
