"""Gathers and scatters."""

from __future__ import annotations

from precir.ir import Node
from precir.ops.base import Keeps, Op, bind, call
from precir.ops.writing import DROPPED, REQUIRED, Template, Writer

_SCATTER = {
    "update_jaxpr": DROPPED,
    "update_consts": (),
    "indices_are_sorted": False,
    "unique_indices": False,
    "mode": REQUIRED,
}


def _scatter(name: str, function: str, keeps: Keeps = Keeps.FOLLOW) -> Op:
    plain = call(function, positional=("dimension_numbers",), keywords=_SCATTER)

    def write(node: Node, w: Writer) -> Template:
        applies = name == "scatter" and node.params["update_jaxpr"] is not None
        return bind(node, w) if applies else plain(node, w)

    return Op(name, keeps, write)


OPS: tuple[Op, ...] = (
    Op(
        "gather",
        Keeps.MOVE,
        call(
            "lax.gather",
            positional=("dimension_numbers", "slice_sizes"),
            keywords={
                "unique_indices": False,
                "indices_are_sorted": False,
                "mode": REQUIRED,
                "fill_value": None,
            },
        ),
    ),
    _scatter("scatter", "lax.scatter"),
    _scatter("scatter-add", "lax.scatter_add", Keeps.WIDE),
    _scatter("scatter-sub", "lax.scatter_sub", Keeps.WIDE),
    _scatter("scatter-mul", "lax.scatter_mul"),
    _scatter("scatter-min", "lax.scatter_min"),
    _scatter("scatter-max", "lax.scatter_max"),
)
