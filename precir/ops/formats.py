"""How formats and scales are written in emitted code."""

from __future__ import annotations

import math
from typing import Final

from precir.formats import is_power_of_two
from precir.ir import Literal, Node
from precir.ops.writing import Hole, Writer, dtype_source

_NAMES: Final = {"float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2", "float8_e8m0fnu": "E8M0FNU"}


def format_source(dtype: str, w: Writer) -> str:
    """`E4M3`, imported from the kernels; `jnp.bfloat16` of what has no such name."""
    name = _NAMES.get(dtype)
    return dtype_source(dtype, w) if name is None else w.use("precir.kernels", name)


def scale_source(node: Node, index: int) -> str | Hole:
    """A scale among the operands of a node: `2.0**-5` if it is a number."""
    operand = node.inputs[index]
    value = operand.value if isinstance(operand, Literal) else None
    if isinstance(value, float) and is_power_of_two(value):
        return f"2.0**{math.frexp(value)[1] - 1}"
    return Hole(index, bare=True)
