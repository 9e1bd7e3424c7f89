"""A vector that is spread over the rows of what it is added to: a bias, however it is spelled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from precir.ir import Node, Operand, Type, Value
from precir.passes.smooth import FLOATS

_CASTS: Final = ("convert_element_type", "cast")
_AXES_KEPT: Final = ("reshape", "expand_dims", "squeeze")
_Axes = tuple[int | None, ...]  # of the result, for each axis of a value; None where it is one


@dataclass(frozen=True)
class Row:
    """`source` in the shape of the row, through the `casts`."""

    source: Value
    shape: tuple[int, ...]
    casts: tuple[Node, ...]

    def nodes(self, source: Operand, place: Node) -> list[Node]:
        """Those that make the row of what stands for its source; none where that is the row."""
        made: list[Node] = []
        if source.type.shape != self.shape:
            params = {"new_sizes": self.shape, "dimensions": None, "sharding": None}
            kind = Type(self.shape, source.type.dtype)
            made.append(place.like(op="reshape", inputs=[source], types=[kind], params=params))
        for cast in self.casts:
            kind = Type(self.shape, cast.outputs[0].type.dtype)
            made.append(cast.like(inputs=[made[-1].outputs[0] if made else source], types=[kind]))
        return made


def find_row(value: Value, shape: tuple[int, ...], row: tuple[int, ...]) -> Row | None:
    """What `value`, added to a tensor of `shape`, is spread from over all axes but the last ones,
    those of `row`; None where it changes along the others too, or does not along all of the last.

    One row is spread over nothing.
    """
    ahead = len(shape) - len(row)
    if value.type.rank != len(shape) or math.prod(shape[:ahead]) < 2 or not row:
        return None
    wanted = [ahead + i for i, n in enumerate(row) if n != 1]
    axes: _Axes = tuple(None if n == 1 else i for i, n in enumerate(value.type.shape))
    found, casts = None, list[Node]()
    while True:
        if [a for a in axes if a is not None] == wanted and value.type.dtype in FLOATS:
            found = Row(value, row, tuple(reversed(casts)))
            if value.type.shape == row:
                return found
        node = value.node
        above = _above(node, axes) if node is not None else None
        if node is None or above is None:
            return found
        if node.op in _CASTS:
            casts.append(node)
        value, axes = above


def _above(node: Node, axes: _Axes) -> tuple[Value, _Axes] | None:
    """What a node spreads, converts or reshapes, and the axes of the result that its own are."""
    source = node.inputs[0] if len(node.inputs) == 1 else None
    if not isinstance(source, Value) or source.type.scale is not None:
        return None
    shape = source.type.shape
    if node.op in _CASTS:
        kinds = source.type.dtype, node.outputs[0].type.dtype
        return (source, axes) if all(k in FLOATS for k in kinds) else None
    if node.op == "broadcast_in_dim":
        places = node.params["broadcast_dimensions"]
        return source, tuple(
            None if n == 1 else axes[p] for n, p in zip(shape, places, strict=True)
        )
    turns = node.op == "reshape" and node.params.get("dimensions") is not None
    if node.op not in _AXES_KEPT or turns:
        return None
    longer = [a for a in axes if a is not None]
    if [n for n in shape if n != 1] != [n for n in node.outputs[0].type.shape if n != 1]:
        return None
    rest = iter(longer)
    return source, tuple(None if n == 1 else next(rest) for n in shape)
