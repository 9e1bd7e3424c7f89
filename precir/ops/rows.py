"""How an op on stacks is done one row at a time: a row is what a loop over axis 0 sees of a stack.

Layers in a loop keep their parameters stacked along axis 0. An op that keeps the rows apart can
move into the loop (`by_rows`); a reduction over the rows can be summed up there (`fold_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from precir.ir import Literal, Node, Type
from precir.ops import elementwise

ROW, WHOLE, ONLY = "row", "whole", "only"


@dataclass(frozen=True)
class Rows:
    """What makes one row of a node's results, under the node's own name.

    Attributes:
      takes: of each operand, whether its row is taken (ROW), or all of it, for it has no axis for
        the rows (WHOLE) or one of size 1 that goes (ONLY).
      params: the parameters of the op on rows.
    """

    takes: tuple[str, ...]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Fold:
    """A reduction over axis 0, row by row: `combine(so far, the row's part)`.

    Attributes:
      params: of the reduction of one row; None if the row is its part as it is.
      combine: the op that adds a part.
      initial: before the first row, one number for all elements.
    """

    params: Mapping[str, Any] | None
    combine: str
    initial: Literal


def row_type(type_: Type) -> Type | None:
    """The type of one row of a stack; None of what has no rows, or one scale for several."""
    shape, scale, block = type_.shape, type_.scale, type_.block
    if not shape or (scale is not None and scale[:1] != shape[:1]):
        return None
    inner = None if scale is None else scale[1:]
    return Type(
        shape[1:], type_.dtype, type_.weak, inner, block[-len(shape[1:]) :] if shape[1:] else ()
    )


def by_rows(node: Node) -> Rows | None:
    """How a node is done by rows; None if it cannot be."""
    plain = not node.regions and not node.effects and len(node.outputs) == 1
    if plain and node.op in _STORAGE:
        return _stored(node)
    rule = _ROWS.get(node.op)
    if (
        rule is None
        or not plain
        or not all(_is_array(o.type) for o in (*node.inputs, *node.outputs))
    ):
        return None
    return rule(node) if node.outputs[0].type.shape else None


def fold_of(node: Node) -> Fold | None:
    """How a reduction over axis 0, and perhaps others, is done by rows; None if it cannot be."""
    if node.op in _TESTS:
        return Fold(node.params, "and", Literal(True, Type((), "bool")))
    known = _FOLDS.get(node.op)
    operand = node.inputs[0].type if node.inputs else None
    if known is None or operand is None or not _is_array(operand):
        return None
    axes = tuple(int(a) for a in node.params["axes"])
    if 0 not in axes or node.params.get("out_sharding") is not None:
        return None
    combine, initial = known
    rest = tuple(a - 1 for a in axes if a)
    params = {**node.params, "axes": rest} if rest else None
    dtype = node.outputs[0].type.dtype
    if (dtype == "bool") != (combine in ("and", "or")):
        return None
    return Fold(params, combine, Literal(initial(dtype), Type((), dtype)))


def why_whole(node: Node) -> str:
    """What to say of a node that takes stacks otherwise than by rows."""
    if node.op == "quantize":
        return "takes one scale of all layers"
    if node.regions:
        return "takes them whole into a sub-program"
    return "reads them whole, not row by row"


def _is_array(type_: Type) -> bool:
    return type_.scale is None and not type_.dtype.startswith("key")


def _stored(node: Node) -> Rows | None:
    """Into storage and out of it, with scales for each row or for parts of it."""
    wide, narrow = node.inputs[0].type, node.outputs[0].type
    if len(node.inputs) != 1 or row_type(wide) is None or row_type(narrow) is None:
        return None
    if node.op == "dequantize":
        return Rows((ROW,), node.params)
    inner = row_type(narrow)
    return Rows((ROW,), {**node.params, "block": inner.block if inner is not None else ()})


def _elementwise(node: Node) -> Rows | None:
    shape = node.outputs[0].type.shape
    shapes = [o.type.shape for o in node.inputs]
    if any(s and len(s) != len(shape) for s in shapes) or _sharded(node):
        return None
    return Rows(tuple(_taken(s, shape[0]) for s in shapes), node.params)


def _taken(shape: tuple[int, ...], length: int) -> str:
    """How an operand is taken whose axes are those of the result, or that has none."""
    return WHOLE if not shape else ROW if shape[0] == length else ONLY


def _sharded(node: Node) -> bool:
    return any(node.params.get(k) is not None for k in ("sharding", "out_sharding"))


def _broadcast(node: Node) -> Rows | None:
    if len(node.inputs) != 1 or _sharded(node):
        return None
    shape = node.params["shape"]
    axes = [int(a) for a in node.params["broadcast_dimensions"]]
    takes = _taken(node.inputs[0].type.shape, shape[0]) if 0 in axes else WHOLE
    rest = tuple(a - 1 for a in axes if a)
    if axes[: len(axes) - len(rest)] != [0] * (0 in axes):
        return None
    params = {"shape": tuple(shape[1:]), "broadcast_dimensions": rest}
    return Rows((takes,), {**node.params, **params})


def _reduction(node: Node) -> Rows | None:
    axes = tuple(int(a) for a in node.params["axes"])
    if 0 in axes or _sharded(node):
        return None
    return Rows((ROW,), {**node.params, "axes": tuple(a - 1 for a in axes)})


def _along(node: Node) -> Rows | None:
    """A cumulative op along one axis."""
    axis = int(node.params["axis"])
    return Rows((ROW,), {**node.params, "axis": axis - 1}) if axis > 0 else None


def _reshape(node: Node) -> Rows | None:
    sizes, given = node.params["new_sizes"], node.inputs[0].type.shape
    if node.params.get("dimensions") is not None or _sharded(node) or not given:
        return None
    if sizes[0] != given[0] or len(node.inputs) != 1:
        return None
    return Rows((ROW,), {**node.params, "new_sizes": tuple(sizes[1:])})


def _transpose(node: Node) -> Rows | None:
    axes = tuple(int(a) for a in node.params["permutation"])
    if axes[0] != 0:
        return None
    return Rows((ROW,), {**node.params, "permutation": tuple(a - 1 for a in axes[1:])})


def _squeeze(node: Node) -> Rows | None:
    axes = tuple(int(a) for a in node.params["dimensions"])
    if 0 in axes:
        return None
    return Rows((ROW,), {**node.params, "dimensions": tuple(a - 1 for a in axes)})


def _slice(node: Node) -> Rows | None:
    starts, limits = node.params["start_indices"], node.params["limit_indices"]
    strides = node.params["strides"]
    whole = (starts[0], limits[0]) == (0, node.inputs[0].type.shape[0])
    if not whole or (strides is not None and strides[0] != 1):
        return None
    params = {
        "start_indices": tuple(starts[1:]),
        "limit_indices": tuple(limits[1:]),
        "strides": None if strides is None else tuple(strides[1:]),
    }
    return Rows((ROW,), {**node.params, **params})


def _concatenate(node: Node) -> Rows | None:
    axis = int(node.params["dimension"])
    if not axis:
        return None
    return Rows((ROW,) * len(node.inputs), {**node.params, "dimension": axis - 1})


def _product(node: Node) -> Rows | None:
    """A product of every row with every row: axis 0 is the first batch axis of both."""
    (left, right), (batch, its_batch) = node.params["dimension_numbers"]
    both = bool(batch) and batch[0] == 0 and its_batch[0] == 0
    if not both or _sharded(node):
        return None

    def shifted(axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(a) - 1 for a in axes)

    numbers = (shifted(left), shifted(right)), (shifted(batch[1:]), shifted(its_batch[1:]))
    return Rows((ROW, ROW), {**node.params, "dimension_numbers": numbers})


def _constraint(node: Node) -> Rows | None:
    """Where the rows themselves are not spread over devices."""
    sharding = node.params.get("sharding")
    if set(node.params) != {"sharding"} or not isinstance(sharding, NamedSharding):
        return None
    if tuple(sharding.spec[:1]) not in ((), (None,)):
        return None
    spec: Any = PartitionSpec
    inner = NamedSharding(sharding.mesh, spec(*sharding.spec[1:]))
    return Rows((ROW,), {"sharding": inner})


_ROWS: Final[dict[str, Callable[[Node], Rows | None]]] = {
    **{op.name: _elementwise for op in elementwise.OPS},
    **dict.fromkeys(("cast", "rescale", "unscale"), _elementwise),
    **dict.fromkeys(("reduce_sum", "reduce_prod", "reduce_max", "reduce_min"), _reduction),
    **dict.fromkeys(("reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"), _reduction),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "concatenate": _concatenate,
    "dot_general": _product,
    "sharding_constraint": _constraint,
}


def _lowest(dtype: str) -> float | int:
    return int(np.iinfo(dtype).min) if dtype in _WHOLE else -float("inf")


def _highest(dtype: str) -> float | int:
    return int(np.iinfo(dtype).max) if dtype in _WHOLE else float("inf")


def _zero(dtype: str) -> float | int:
    return 0 if dtype in _WHOLE else 0.0


_WHOLE: Final = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_FOLDS: Final[dict[str, tuple[str, Callable[[str], bool | int | float]]]] = {
    "reduce_sum": ("add", _zero),
    "reduce_max": ("max", _lowest),
    "reduce_min": ("min", _highest),
    "reduce_and": ("and", lambda _: True),
    "reduce_or": ("or", lambda _: False),
}
_STORAGE: Final = ("quantize", "dequantize")
_TESTS: Final = ("all_finite",)  # of all elements of any number of operands
