"""ScaledArray as a value, as a pytree, and under JAX's transformations."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import numpy as jnp

from precir.scaled import ScaledArray, ScaleError

RNG = np.random.default_rng(0)


def scaled(*shape: int, scale: float = 0.25) -> ScaledArray:
    data = RNG.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    return ScaledArray(jnp.asarray(data), jnp.float32(scale))


def value(x: ScaledArray) -> np.ndarray:
    return np.asarray(x.data).astype(np.float64) * np.asarray(x.scale, np.float64)


def test_value() -> None:
    x = scaled(3, 4)
    assert (x.shape, x.ndim, x.size, x.dtype) == ((3, 4), 2, 12, jnp.float8_e4m3fn)
    assert x.unscale().dtype == jnp.float32
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        assert x.astype(dtype).dtype == dtype
        np.testing.assert_array_equal(np.asarray(x.astype(dtype), np.float64), value(x))


def test_movement_moves_the_value() -> None:
    x = scaled(2, 3, 4)
    plain = value(x)
    for moved, expected in (
        (x.reshape(6, 4), plain.reshape(6, 4)),
        (x.reshape((4, -1)), plain.reshape(4, -1)),
        (x.transpose(1, 0, 2), plain.transpose(1, 0, 2)),
        (x.transpose((2, 0, 1)), plain.transpose(2, 0, 1)),
        (x.T, plain.T),
        (x.swapaxes(0, 2), plain.swapaxes(0, 2)),
    ):
        np.testing.assert_array_equal(value(moved), expected)


def test_a_scale_per_example_belongs_to_the_leading_axes() -> None:
    x = ScaledArray(scaled(3, 2, 2).data, jnp.asarray([1.0, 2.0, 4.0]))
    each = [ScaledArray(x.data[i], x.scale[i]).unscale() for i in range(3)]
    np.testing.assert_array_equal(x.unscale(), each)
    np.testing.assert_array_equal(jax.vmap(ScaledArray.unscale)(x), each)
    for method in (lambda x: x.reshape(-1), lambda x: x.T, lambda x: x.swapaxes(0, 1)):
        with pytest.raises(ScaleError, match="one scale for the whole tensor"):
            method(x)
    turned = jax.vmap(lambda x: x.T)(x)
    np.testing.assert_array_equal(turned.unscale(), np.swapaxes(x.unscale(), 1, 2))


def test_pytree() -> None:
    x = scaled(2, 2)
    leaves, tree = jax.tree.flatten(x)
    assert leaves[0] is x.data
    assert leaves[1] is x.scale
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(x)]
    assert paths == [".data", ".scale"]
    rebuilt = jax.tree.unflatten(tree, [object(), None])
    assert "object" in repr(rebuilt)
    np.testing.assert_array_equal(jax.jit(lambda x: x.T)(x).unscale(), x.unscale().T)
    stacked = ScaledArray(jnp.stack([x.data] * 3), jnp.stack([x.scale] * 3))
    _, summed = jax.lax.scan(lambda carry, x: (carry, x.unscale().sum()), 0, stacked)
    assert summed.shape == (3,)


def test_repr() -> None:
    assert repr(scaled(2, 3)) == "ScaledArray(float8_e4m3fn[2,3], scale=0.25)"
    seen = []
    jax.jit(lambda x: seen.append(repr(x)))(scaled(2, 3))
    assert seen == ["ScaledArray(float8_e4m3fn[2,3], scale=float32[])"]
