"""Gathers and scatters."""

from __future__ import annotations

from precir.ir import Node
from precir.ops.base import Keeps, Op, bind, call
from precir.ops.facts import moving
from precir.ops.facts.context import Rule
from precir.ops.scales import laws
from precir.ops.writing import (
    ATOM,
    DROPPED,
    REQUIRED,
    Hole,
    Template,
    Writer,
    arguments,
    dtype_source,
    source,
)  # fmt: skip

_SCATTER = {
    "update_jaxpr": DROPPED,
    "update_consts": (),
    "indices_are_sorted": False,
    "unique_indices": False,
    "mode": REQUIRED,
}


def _scatter(name: str, function: str, fact: Rule, keeps: Keeps = Keeps.FOLLOW) -> Op:
    plain = call(function, positional=("dimension_numbers",), keywords=_SCATTER)

    def write(node: Node, w: Writer) -> Template:
        applies = name == "scatter" and node.params["update_jaxpr"] is not None
        return bind(node, w) if applies else plain(node, w)

    law = laws.unscaled if name == "scatter-mul" else laws.scatter
    return Op(name, keeps, fact, law, write)


_GATHER = {"mode": REQUIRED, "fill_value": None}
_gather_plain = call(
    "lax.gather",
    positional=("dimension_numbers", "slice_sizes"),
    keywords={"unique_indices": False, "indices_are_sorted": False, **_GATHER},
)


def _gather(node: Node, w: Writer) -> Template:
    """Of a table in storage, what was found comes out plain."""
    if node.inputs[0].type.scale is None:
        return _gather_plain(node, w)
    positional = ("dimension_numbers", "slice_sizes")
    hints = {"unique_indices": DROPPED, "indices_are_sorted": DROPPED}
    options = arguments(node, {**dict.fromkeys(positional, DROPPED), **hints, **_GATHER}, w)
    assert options is not None
    rest = [*(source(node.params[p], w) for p in positional), *options]
    if node.outputs[0].type.dtype != "float32":
        rest.append(f"out={dtype_source(node.outputs[0].type.dtype, w)}")
    lookup = w.use("precir.kernels", "lookup")
    return Template((f"{lookup}(", Hole(0), ", ", Hole(1), f", {', '.join(rest)})"), ATOM)


OPS: tuple[Op, ...] = (
    Op("gather", Keeps.MOVE, moving.gather, laws.gather, _gather),
    _scatter("scatter", "lax.scatter", moving.scatter),
    _scatter("scatter-add", "lax.scatter_add", moving.scatter_add, Keeps.WIDE),
    _scatter("scatter-sub", "lax.scatter_sub", moving.scatter_sub, Keeps.WIDE),
    _scatter("scatter-mul", "lax.scatter_mul", moving.scatter_mul),
    _scatter("scatter-min", "lax.scatter_min", moving.scatter_min),
    _scatter("scatter-max", "lax.scatter_max", moving.scatter_max),
)
