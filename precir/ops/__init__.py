"""What precir knows of each op: one entry per primitive, in one plain table."""

from __future__ import annotations

from itertools import chain

from precir.ops import (
    adam,
    contraction,
    control,
    elementwise,
    fused,
    indexing,
    movement,
    norm_gradients,
    precision,
    products,
    random_,
    reductions,
    special,
)  # fmt: skip
from precir.ops.base import Keeps, Op

__all__ = ["OPS", "Keeps", "Op", "op_named"]

_FAMILIES = (
    elementwise, movement, contraction, reductions, indexing, control, random_, special, precision,
    products, fused, norm_gradients, adam,
)  # fmt: skip
OPS: dict[str, Op] = {}
for _op in chain.from_iterable(family.OPS for family in _FAMILIES):
    if _op.name in OPS:
        raise AssertionError(f"two entries for {_op.name}")
    OPS[_op.name] = _op


def op_named(name: str) -> Op:
    """The entry of a primitive; one precir has no rules for keeps its own precision."""
    return OPS.get(name) or special.unknown(name)
