"""The limits of every format, against the casts of ml_dtypes and of XLA."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.formats import (
    BF16,
    E2M1FN,
    E4M3,
    E5M2,
    E8M0FNU,
    F16,
    F32,
    F64,
    FORMATS,
    Format,
    UnknownFormat,
    format_of,
)

ALL = pytest.mark.parametrize("format", FORMATS.values(), ids=str)


def cast(value: float, format: Format) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(value).astype(format.dtype))


def test_known_limits() -> None:
    assert (E4M3.max, E4M3.smallest_normal, E4M3.smallest_subnormal) == (448, 2**-6, 2**-9)
    assert (E5M2.max, E5M2.smallest_normal, E5M2.smallest_subnormal) == (57344, 2**-14, 2**-16)
    assert (E4M3.bits, E4M3.exponent_bits, E4M3.mantissa_bits, E4M3.epsilon) == (8, 4, 3, 1 / 8)
    assert (F16.max, BF16.epsilon, F32.mantissa_bits, E2M1FN.max) == (65504, 2**-7, 23, 6)
    assert (E4M3.overflow, E5M2.overflow, E2M1FN.overflow) == ("nan", "inf", "saturate")
    assert not E8M0FNU.has_zero
    assert not E8M0FNU.has_sign
    assert not E2M1FN.has_nan


@ALL
def test_limits_are_representable(format: Format) -> None:
    limits = (format.max, format.smallest_normal, format.smallest_subnormal, 1 + format.epsilon)
    for limit in limits:
        assert cast(limit, format) == limit
    assert cast(1 + format.epsilon / 4, format) == 1
    assert (format == E8M0FNU) or cast(format.smallest_subnormal / 4, format) == 0


@ALL
def test_overflow_is_what_a_cast_does(format: Format) -> None:
    for value in (np.inf, format.max * 4 if format.bits < 32 else np.inf):
        result = cast(value, format)
        expected = {"inf": np.inf, "nan": np.nan, "saturate": format.max}[format.overflow]
        np.testing.assert_equal(result, expected)
    assert np.isnan(cast(np.nan, format)) == format.has_nan


# float64 needs 64-bit mode, e8m0 has no subnormals, and in 6 bits XLA:CPU computes nothing.
COMPUTABLE = [f for f in FORMATS.values() if f not in (F64, E8M0FNU) and f.bits != 6]


@pytest.mark.parametrize("format", COMPUTABLE, ids=str)
def test_subnormals_are_flushed_as_said(format: Format) -> None:
    tiny = jnp.asarray(np.asarray(format.smallest_subnormal).astype(format.dtype))
    doubled = jax.jit(lambda x: x + x)(tiny)
    assert (float(doubled) == 0) == format.flushes_subnormals


def test_names() -> None:
    for x in ("e4m3", "e4m3fn", "float8_e4m3fn", jnp.float8_e4m3fn, E4M3.dtype, E4M3):
        assert format_of(x) is E4M3
    for x in ("bf16", "bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)):
        assert format_of(x) is BF16
    assert format_of(np.float32) is F32
    assert len({f.short for f in FORMATS.values()}) == len(FORMATS)
    assert (str(E5M2), repr(E5M2)) == ("e5m2", "Format(float8_e5m2)")


@pytest.mark.parametrize("x", ["fp8", "int32", np.int8, bool, None, object, 3], ids=repr)
def test_unknown(x: object) -> None:
    with pytest.raises(UnknownFormat, match="float8_e5m2 \\(e5m2\\)"):
        format_of(x)
    assert issubclass(UnknownFormat, ValueError)


def test_every_float_of_jax_is_here() -> None:
    floats = {n for n in dir(jnp) if isinstance(getattr(jnp, n), type(jnp.float32))}
    floats = {n for n in floats if jnp.issubdtype(getattr(jnp, n), jnp.floating)}
    assert {jnp.dtype(getattr(jnp, name)).name for name in floats} == set(FORMATS)


def test_import_starts_no_backend() -> None:
    code = (
        "import precir.kernels, precir.formats, precir.scaled\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
