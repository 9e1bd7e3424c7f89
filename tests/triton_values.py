"""What the tests of Triton kernels feed them, and how they compare."""

import numpy as np
from jax import numpy as jnp

SPECIAL = [
    *(0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 2.0**-126, -(2.0**-126)),
    *(448, 449, 464, 480, -57344, 61440, 65504, 2.0**-9, 1.5 * 2.0**-10, 2.0**-10, 2.0**-16),
]


def numbers(shape, dtype="float32", seed=0):
    """Of many sizes, some special: so that blocks of few hold nothing finite, or only zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-20, 12, shape)
    x = np.where(rng.random(shape) < 0.1, rng.choice(SPECIAL, shape), x)
    if len(shape) and shape[0] > 3:
        x[0], x[1], x[2] = 0, np.nan, 1e-41
    with np.errstate(over="ignore"):
        return jnp.asarray(x.astype(jnp.dtype(dtype)))


def assert_same(actual, expected):
    """The same bits, but for those of NaN."""
    assert len(actual) == len(expected)
    for a, e in zip(map(np.asarray, actual), map(np.asarray, expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        nan = np.isnan(e.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(a.astype(np.float32)), nan)
        bits = f"u{a.dtype.itemsize}"
        np.testing.assert_array_equal(a.view(bits)[~nan], e.view(bits)[~nan])


def assert_near(actual, expected, *, rtol=1e-5, atol=1e-6, apart=1e-3):
    """The same but for the last bits of an exponential, an error function or a root: of 8-bit data
    at most one in ``1 / apart`` is one code off; float32 agrees to ``rtol`` of itself and ``atol``
    of the largest, and 16-bit floats to a unit in the last place.
    """
    assert len(actual) == len(expected)
    for a, e in zip(map(np.asarray, actual), map(np.asarray, expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        wide = [x.astype(np.float32) for x in (a, e)]
        np.testing.assert_array_equal(*map(np.isnan, wide))
        usual = ~np.isnan(wide[1])
        if e.dtype.itemsize == 1 and e.dtype != np.uint8:
            codes = [_in_order(x[usual]) for x in (a, e)]
            off = np.abs(codes[0] - codes[1])
            assert off.max(initial=0) <= 1
            assert np.count_nonzero(off) <= max(1, apart * e.size)
        else:
            finite = usual & np.isfinite(wide[1])
            np.testing.assert_array_equal(wide[0][usual & ~finite], wide[1][usual & ~finite])
            last = 2.0**-7 if e.dtype.itemsize == 2 else 0
            most = np.max(np.abs(wide[1][finite]), initial=0)
            np.testing.assert_allclose(
                wide[0][finite], wide[1][finite], rtol=rtol + last, atol=atol * most
            )


def _in_order(x):
    """8-bit floats as integers in the order of the numbers, both zeros being one."""
    bits = x.view(np.uint8).astype(np.int32)
    return np.where(bits < 128, bits, 128 - bits)
