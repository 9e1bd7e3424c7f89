"""What is known of a number format: its limits, its special values, how it overflows.

Everything is read from ``jnp.finfo`` and from ml_dtypes' own casts; nothing here starts a JAX
backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.errors import PrecirError

Overflow = Literal["inf", "nan", "saturate"]

# Short name of every floating-point dtype that JAX has. "e4m3" alone means float8_e4m3fn, the
# format of NVIDIA's tensor cores and the one people mean; the IEEE-like one says so.
_SHORT: Final = {
    "float64": "f64",
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float8_e4m3": "e4m3_ieee",
    "float8_e3m4": "e3m4",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e4m3b11fnuz": "e4m3b11fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
    "float8_e8m0fnu": "e8m0fnu",
    "float6_e2m3fn": "e2m3fn",
    "float6_e3m2fn": "e3m2fn",
    "float4_e2m1fn": "e2m1fn",
}

# XLA:CPU computes these with subnormals read and written as zero (measured on jax 0.10.2 and
# 0.12.0); float16 and the smaller formats are computed through float32, where theirs are normal;
# in the 6-bit formats it computes nothing.
_FLUSHED: Final = frozenset({"float64", "float32", "bfloat16"})


class UnknownFormat(PrecirError, ValueError):
    """A name or dtype that is not a floating-point format of JAX."""


@dataclass(frozen=True)
class Format:
    """One floating-point format. All limits are magnitudes, exact as Python floats."""

    name: str
    """JAX's name of the dtype, as ``"float8_e4m3fn"``."""
    dtype: np.dtype[np.generic]
    short: str
    """Name in reports and dumps, as ``"e4m3"``; unique."""
    bits: int
    exponent_bits: int
    mantissa_bits: int
    """Stored bits of the significand, the leading one not counted."""
    max: float
    """Largest finite value."""
    smallest_normal: float
    smallest_subnormal: float
    """Smallest positive value; ``smallest_normal`` where the format has no subnormals."""
    epsilon: float
    """Distance from 1 to the next value."""
    overflow: Overflow
    """What an infinity becomes when cast to the format."""
    has_inf: bool
    has_nan: bool
    has_zero: bool
    has_sign: bool
    flushes_subnormals: bool
    """Whether XLA:CPU reads and writes subnormals of this format as zero."""

    @property
    def largest_scaled(self) -> float:
        """The largest that scaled data is made to reach: ``max``, and 1 in bfloat16 and float32,
        which have room to both sides.
        """
        return 1.0 if self.name in ("bfloat16", "float32") else self.max

    def __repr__(self) -> str:
        return f"Format({self.name})"

    def __str__(self) -> str:
        return self.short


def _describe(name: str, short: str) -> Format:
    dtype = np.dtype(jnp.dtype(name))
    finfo: Any = jnp.finfo
    info = finfo(dtype)
    with np.errstate(all="ignore"):
        probes = np.array([np.inf, np.nan, 0.0, -1.0]).astype(dtype).astype(np.float64)
    inf, nan, zero, minus_one = probes
    overflow: Overflow = "inf" if np.isinf(inf) else "nan" if np.isnan(inf) else "saturate"
    return Format(
        name=name,
        dtype=dtype,
        short=short,
        bits=int(info.bits),
        exponent_bits=int(info.nexp),
        mantissa_bits=int(info.nmant),
        max=float(info.max),
        smallest_normal=float(info.smallest_normal),
        smallest_subnormal=float(info.smallest_subnormal),
        epsilon=float(info.eps),
        overflow=overflow,
        has_inf=overflow == "inf",
        has_nan=bool(np.isnan(nan)),
        has_zero=bool(zero == 0),
        has_sign=bool(minus_one == -1),
        flushes_subnormals=name in _FLUSHED,
    )


FORMATS: Final[dict[str, Format]] = {name: _describe(name, s) for name, s in _SHORT.items()}
"""Every format, by JAX's name of its dtype."""

F64: Final = FORMATS["float64"]
F32: Final = FORMATS["float32"]
BF16: Final = FORMATS["bfloat16"]
F16: Final = FORMATS["float16"]
E4M3: Final = FORMATS["float8_e4m3fn"]
E5M2: Final = FORMATS["float8_e5m2"]
E4M3_IEEE: Final = FORMATS["float8_e4m3"]
E3M4: Final = FORMATS["float8_e3m4"]
E4M3FNUZ: Final = FORMATS["float8_e4m3fnuz"]
E4M3B11FNUZ: Final = FORMATS["float8_e4m3b11fnuz"]
E5M2FNUZ: Final = FORMATS["float8_e5m2fnuz"]
E8M0FNU: Final = FORMATS["float8_e8m0fnu"]
E2M3FN: Final = FORMATS["float6_e2m3fn"]
E3M2FN: Final = FORMATS["float6_e3m2fn"]
E2M1FN: Final = FORMATS["float4_e2m1fn"]

_BY_NAME: Final = {
    **FORMATS,
    **{format.short: format for format in FORMATS.values()},
    "e4m3fn": E4M3,
}


def format_of(x: DTypeLike | Format) -> Format:
    """The format named by a string ("float8_e4m3fn", "e4m3", "bf16"), a dtype or a Format.

    Raises ``UnknownFormat`` (a ``ValueError``), which lists the known names, for anything else.
    """
    if isinstance(x, Format):
        return x
    if isinstance(x, str) and x in _BY_NAME:
        return _BY_NAME[x]
    try:
        name = np.dtype(x).name
    except TypeError:
        name = ""
    if name not in FORMATS or x is None:
        known = ", ".join(f"{f.name} ({f.short})" for f in FORMATS.values())
        raise UnknownFormat(f"{x!r} is not a floating-point format", fix=f"one of {known}")
    return FORMATS[name]


def power_of_two(amax: float, format: DTypeLike | Format) -> float:
    """The scale 2^ceil(log2(amax / format.max)) of a tensor whose largest magnitude is ``amax``.

    1 where float32 holds ``amax`` as zero, a subnormal, an infinity or NaN; from 2^-126 to 2^126,
    so that the scale and its reciprocal are normal in float32. For bfloat16 the largest is 1.
    """
    format = format_of(format)
    with np.errstate(over="ignore"):
        held = float(np.float32(amax))
    if not F32.smallest_normal <= held <= F32.max:
        return 1.0
    mantissa, exponent = math.frexp(held)
    most, its_exponent = math.frexp(format.largest_scaled)
    power = exponent - its_exponent + (mantissa > most)
    return 2.0 ** min(max(power, -126), 126)


def is_power_of_two(x: float) -> bool:
    return math.isfinite(x) and math.frexp(x)[0] == 0.5
