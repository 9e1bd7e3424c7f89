"""What element-wise ops compute, on float64 arrays: to find out what function a program spells.

Real arithmetic, with no rounding into the dtypes of the program; booleans stay booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from scipy import special

Array = np.ndarray[Any, Any]
Compute = Callable[..., Any]

ELEMENTWISE: Final[dict[str, Compute]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "square": np.square,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "pow": np.power,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "logistic": special.expit,
    "erf": special.erf,
    "erfc": special.erfc,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "is_finite": np.isfinite,
    "copy": np.asarray,
    "reshard": np.asarray,
    "stop_gradient": np.asarray,
}
"""Of operands that numpy broadcasts."""


def _integer_pow(x: Array, y: int) -> Any:
    return np.power(x, float(y)) if y < 0 else np.power(x, y)


def evaluate(op: str, params: Mapping[str, Any], operands: Sequence[Array]) -> Array | None:
    """The result of an element-wise op, its operands of one rank or scalars; None of any other."""
    with np.errstate(all="ignore"):
        if op == "integer_pow":
            return np.asarray(_integer_pow(operands[0], params["y"]))
        if op == "one_minus_square":
            return np.asarray(1 - np.square(operands[0]))
        if op == "select_n" and len(operands) == 3:
            return np.asarray(np.where(operands[0], operands[2], operands[1]))
        if op == "clamp":
            return np.asarray(np.clip(operands[1], operands[0], operands[2]))
        compute = ELEMENTWISE.get(op)
        if compute is None:
            return None
        if any(o.dtype.kind not in "fb" for o in operands):
            return None
        return np.asarray(compute(*operands))


# Numbers that formulas of networks have, which a program in 16 bits holds rounded.
_KNOWN: Final = (
    (2 / np.pi) ** 0.5,  # gelu by tanh
    0.044715,
    3 * 0.044715,
    0.5**0.5,  # gelu by erf
    np.pi**-0.5,
    2 * np.pi**-0.5,
    (2 * np.pi) ** -0.5,
    1.702,
)


def unrounded(value: float, dtype: str) -> float:
    """What number a constant of a program stands for: the one of a known formula that is `value`
    in `dtype`, or `value` itself.
    """
    kind = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}.get(dtype)
    if kind is None or not np.isfinite(value) or value == 0:
        return value
    for known in _KNOWN:
        if abs(abs(value) - known) <= kind * known:
            return float(np.copysign(known, value))
    return value
