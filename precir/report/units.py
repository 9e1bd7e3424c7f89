"""How formats, shapes and bytes are counted and written in a report."""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np

from precir.formats import FORMATS
from precir.ir import Type
from precir.text.types import SHORT

_SCALE_BYTES: Final = 4  # a scale is float32
_KEY_BITS: Final = {"fry": 64, "rbg": 128, "urbg": 128}  # what one random key takes


def format_name(dtype: str) -> str:
    """`E4M3`, `bf16`, `f32`, `i32`: a dtype as reports write it, 8 bits and fewer in capitals."""
    known = FORMATS.get(dtype)
    if known is None:
        return SHORT.get(dtype, dtype)
    return known.short.upper() if known.bits <= 8 else known.short


def shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def type_bytes(type_: Type) -> int:
    """Bytes that a value takes; the data and the scale of a quantised one."""
    data = math.ceil(math.prod(type_.shape) * _bits(type_.dtype) / 8)
    return data if type_.scale is None else data + _SCALE_BYTES * math.prod(type_.scale)


def _bits(dtype: str) -> int:
    if dtype in FORMATS:
        return FORMATS[dtype].bits
    if dtype == "float0":
        return 0
    small = re.fullmatch(r"u?int(\d+)", dtype)
    if small:
        return int(small[1])
    key = re.fullmatch(r"key<(\w+)>", dtype)
    if key:
        return _KEY_BITS.get(key[1], 64)
    try:
        return 8 * np.dtype(dtype).itemsize
    except TypeError:
        return 0


def bytes_text(count: int) -> str:
    """`14.2 MB`, in powers of ten."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def percent_text(part: float, whole: float) -> str:
    """A share; 0% and 100% are said only of nothing and of everything."""
    if not whole:
        return "0%"
    share = 100 * part / whole
    if 99.95 <= share < 100:
        return "99.9%"
    if 0 < share < 0.05:
        return "0.1%"
    return f"{share:.0f}%" if share in (0, 100) else f"{share:.1f}%"
