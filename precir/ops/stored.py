"""How tensors in storage, data under scales, go through ops that move numbers or look them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from precir.ir import Literal, Node, Operand, Type
from precir.ops.rows import row_type
from precir.scaled import full_block, reshaped_block, scale_shape

Block = tuple[int, ...]

_CASTS: Final = frozenset({"convert_element_type", "cast", "copy"})
_SHAPED: Final = frozenset({"reshape", "squeeze", "expand_dims"})
_PLACE: Final = Type((), "int32")


@dataclass(frozen=True)
class Step:
    """A node of a stored tensor: an op that `ScaledArray` has, its parameters, its other operands,
    and the type of what it makes.
    """

    op: str
    params: dict[str, Any]
    operands: tuple[Operand, ...]
    type: Type


def moved(node: Node, type_: Type) -> tuple[Step, ...] | None:
    """What `node` does to its first operand, done to one that is stored as `type_`; no step where
    it only casts, and None where data and scales cannot go through it together.
    """
    if node.op in _CASTS:
        return () if _holds(node.outputs[0].type.dtype, type_.dtype) else None
    shape = node.outputs[0].type.shape
    if node.op == "transpose" and len(node.inputs) == 1:
        return (_transposed(type_, tuple(int(a) for a in node.params["permutation"])),)
    if _is_shaped(node):
        step = _reshaped(type_, shape)
        return None if step is None else (step,)
    at, row = _row_of(node), row_type(type_)
    if at is None or row is None:
        return None
    taken = Step("row", {}, (at,), row)
    step = _reshaped(row, shape)
    return None if step is None else (taken, step)


def block_before(node: Node, block: Block) -> Block | None:
    """The block of the first operand that `node` moves into `block`; None if there is none."""
    before, after = node.inputs[0].type.shape, node.outputs[0].type.shape
    if node.op in _CASTS:
        return block
    if not block:
        return (1, *before[1:]) if _row_of(node) is not None else ()
    full = full_block(block, len(after))
    if node.op == "transpose":
        permutation = [int(a) for a in node.params["permutation"]]
        return tuple(full[permutation.index(axis)] for axis in range(len(before)))
    if _is_shaped(node):
        return reshaped_block(after, before, full)
    return (1, *full[1:]) if _row_of(node) is not None else None


def is_move(node: Node) -> bool:
    """Whether a stored tensor of some block can go through."""
    if node.op in _CASTS:
        return node.outputs[0].type.dtype in ("float32", "bfloat16", "float16")
    plain = node.op == "transpose" and len(node.inputs) == 1
    return plain or _is_shaped(node) or _row_of(node) is not None


def is_row(node: Node) -> bool:
    """Whether a node takes one row of a stack: one layer's."""
    return _row_of(node) is not None


def is_lookup(node: Node) -> bool:
    """Whether a gather takes whole rows (or any whole parts) by indices, as of an embedding: what
    can be done to data and to scales in blocks alike.
    """
    if node.op != "gather" or len(node.inputs) != 2:
        return False
    p, shape = node.params, node.inputs[0].type.shape
    numbers: Any = p["dimension_numbers"]
    if numbers.operand_batching_dims or node.inputs[1].type.rank < 2:
        return False
    fill = p.get("fill_value")
    if fill is not None and fill == fill and fill != 0:  # a number that the format may not hold
        return False
    return all(
        size == 1 if axis in numbers.start_index_map else size == shape[axis]
        for axis, size in enumerate(p["slice_sizes"])
    )


def _holds(dtype: str, stored: str) -> bool:
    """Whether a cast to `dtype` changes nothing of what is stored: a power of two does not matter
    where exponents are as many as float32's.
    """
    return dtype == "float32" or (dtype == "bfloat16" and stored != "float16")


def _is_shaped(node: Node) -> bool:
    plain = all(node.params.get(k) is None for k in ("sharding", "dimensions"))
    return node.op in _SHAPED and len(node.inputs) == 1 and (plain or node.op != "reshape")


def _transposed(type_: Type, permutation: Sequence[int]) -> Step:
    shape = tuple(type_.shape[a] for a in permutation)
    full = full_block(type_.block, len(shape))
    block = tuple(full[a] for a in permutation) if type_.block else ()
    made = Type(shape, type_.dtype, scale=scale_shape(shape, block), block=block)
    return Step("transpose", {"permutation": tuple(permutation)}, (), made)


def _reshaped(type_: Type, shape: tuple[int, ...]) -> Step | None:
    block = reshaped_block(type_.shape, shape, type_.block)
    if block is None or type_.scale != scale_shape(type_.shape, type_.block):
        return None
    made = Type(shape, type_.dtype, scale=scale_shape(shape, block), block=block)
    return Step("reshape", {"new_sizes": shape, "dimensions": None, "sharding": None}, (), made)


def _row_of(node: Node) -> Operand | None:
    """The place of the one row that a slice takes of a stack."""
    shape = node.inputs[0].type.shape if node.inputs else ()
    taking = _TAKING.get(node.op)
    return taking(node, shape) if taking is not None and len(shape) > 1 else None


def _static_row(node: Node, shape: tuple[int, ...]) -> Operand | None:
    p = node.params
    starts, limits = tuple(p["start_indices"]), tuple(p["limit_indices"])
    strides = p["strides"] or (1,) * len(shape)
    rest = all((a, b) == (0, n) for a, b, n in zip(starts[1:], limits[1:], shape[1:], strict=True))
    if not rest or limits[0] - starts[0] != 1 or any(s != 1 for s in strides):
        return None
    return Literal(int(starts[0]), _PLACE)


def _dynamic_row(node: Node, shape: tuple[int, ...]) -> Operand | None:
    at, *rest = node.inputs[1:]
    zeros = all(isinstance(o, Literal) and o.value == 0 for o in rest)
    whole = tuple(node.params["slice_sizes"]) == (1, *shape[1:])
    if not zeros or not whole or len(node.inputs) != 1 + len(shape):
        return None
    return at if at.type.dtype == "int32" else None


_TAKING: Final[dict[str, Callable[[Node, tuple[int, ...]], Operand | None]]] = {
    "slice": _static_row,
    "dynamic_slice": _dynamic_row,
}
