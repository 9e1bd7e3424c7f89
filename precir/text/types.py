"""How a type is written: `f32[4,8]`, `bf16[]~` if weak, `f8e4m3fn[8,16]*scale[]`, and
`f8e4m3fn[8,256]*scale[8,2]/[1,128]` with a scale for each block.
"""

from __future__ import annotations

import re
from typing import Any, Final

import jax
import numpy as np
from jax import numpy as jnp

from precir.ir import Type

_WIDTHS: Final = {"int": (2, 4, 8, 16, 32, 64), "uint": (2, 4, 8, 16, 32, 64)}

SHORT: Final[dict[str, str]] = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "complex64": "c64",
    "complex128": "c128",
    "bool": "bool",
    "float0": "float0",
    "float8_e4m3fn": "f8e4m3fn",
    "float8_e5m2": "f8e5m2",
    "float8_e4m3": "f8e4m3",
    "float8_e3m4": "f8e3m4",
    "float8_e4m3fnuz": "f8e4m3fnuz",
    "float8_e5m2fnuz": "f8e5m2fnuz",
    "float8_e4m3b11fnuz": "f8e4m3b11fnuz",
    "float8_e8m0fnu": "f8e8m0fnu",
    "float4_e2m1fn": "f4e2m1fn",
    **{f"{kind}{w}": f"{kind[0]}{w}" for kind, widths in _WIDTHS.items() for w in widths},
}
"""What a dtype is called in a text, by JAX's name."""

LONG: Final = {short: name for name, short in SHORT.items()}

NAME: Final = re.compile(r"[^\W\d]\w*")
WORD: Final = r"[^\W\d][\w./<>\-]*"
# Names that stand for themselves: key<fry>, int4 of a JAX to come.
_PLAIN: Final = re.compile(WORD)
_TYPE: Final = re.compile(
    rf"({WORD})(?:\[([\d,]*)\])?(~?)(?:\*scale\[([\d,]*)\](?:/\[([\d,]*)\])?)?"
)


def numpy_dtype(short: str) -> np.dtype[Any] | None:
    """The dtype behind a short name, None if this JAX has none of that name."""
    name = LONG.get(short)
    if name == "float0":
        return np.dtype(jax.dtypes.float0)
    if name is None or not (name == "bool" or hasattr(jnp, name)):
        return None
    return np.dtype(name)


SCALARS: Final[dict[type, str]] = {
    dtype.type: short
    for short in LONG
    if (dtype := numpy_dtype(short)) is not None and short != "float0"
}
"""NumPy's scalar types, and what they are called."""


def spell_type(type_: Type) -> str | None:
    """The text of a type; None for one that has no such short form."""
    short = SHORT.get(type_.dtype, type_.dtype)
    if short in LONG:
        if LONG[short] != type_.dtype:
            return None
    elif not _PLAIN.fullmatch(short):
        return None
    shape, scaled = _dimensions(type_.shape), ""
    if type_.scale is not None:
        scale, block = _dimensions(type_.scale), _dimensions(type_.block)
        if scale is None or block is None:
            return None
        scaled = f"*scale{scale}/{block}" if type_.block else f"*scale{scale}"
    elif type_.block != ():
        return None
    if shape is None or type(type_.weak) is not bool:
        return None
    return f"{short}{shape}{'~' * type_.weak}{scaled}"


def spell_scalar_type(type_: Type) -> str | None:
    """As `spell_type`, without brackets for a scalar: `f32`."""
    text = spell_type(type_)
    return text.replace("[]", "", 1) if text is not None and type_.shape == () else text


def parse_type(text: str) -> Type | None:
    found = _TYPE.fullmatch(text)
    if found is None:
        return None
    dtype, shape, weak, scale, block = found.groups()
    sizes, blocks = _sizes(shape or ""), _sizes(block or "")
    scales = None if scale is None else _sizes(scale)
    if sizes is None or blocks is None or (scale is not None and scales is None):
        return None
    if block == "":  # a block of no sizes is not written
        return None
    return Type(sizes, LONG.get(dtype, dtype), bool(weak), scales, blocks)


def _dimensions(shape: tuple[int, ...]) -> str | None:
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        return None
    return f"[{','.join(map(str, shape))}]"


def _sizes(text: str) -> tuple[int, ...] | None:
    if not text:
        return ()
    parts = text.split(",")
    return tuple(map(int, parts)) if all(0 < len(p) < 20 for p in parts) else None
