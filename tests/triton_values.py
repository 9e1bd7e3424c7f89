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
