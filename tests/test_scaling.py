"""precir.scale and precir.unscale over trees, and where those travel."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import lax
from jax import numpy as jnp

import precir
from precir.kernels.quantize import QuantizeError

RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize("format", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
ERROR = {"float16": 2**-11, "bfloat16": 2**-8, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}


def is_scaled(x: Any) -> bool:
    return isinstance(x, precir.ScaledArray)


def state() -> dict[str, Any]:
    return {
        "w": jnp.asarray(RNG.normal(size=(8, 16)), jnp.float32),
        "m": [jnp.asarray(RNG.normal(size=(8, 16)) * 1e-20, jnp.float32), jnp.float32(3e20)],
        "half": jnp.asarray(RNG.normal(size=5), jnp.bfloat16),
        "host": RNG.normal(size=3),
        "step": jnp.int32(7),
        "mask": jnp.asarray([True, False]),
        "key": jax.random.key(0),
        "rate": 0.1,
        "nothing": None,
        "empty": jnp.zeros((0, 3)),
        "eight": jnp.ones(3, jnp.float8_e4m3fn),
    }


FLOATS = {"w", "m", "half", "host", "empty"}


@FORMATS
def test_floats_are_scaled_and_nothing_else(format: str) -> None:
    tree = state()
    scaled = precir.scale(tree, format)
    for name, was in tree.items():
        now = scaled[name]
        if name not in FLOATS:
            assert now is was
            continue
        for a, q in zip(jax.tree.leaves(was), jax.tree.leaves(now, is_leaf=is_scaled), strict=True):
            assert is_scaled(q)
            assert q.dtype == format
            assert q.shape == np.shape(a)
            value = q.unscale()
            off = np.abs(np.asarray(value, np.float64) - np.asarray(a, np.float64))
            least = float(q.scale) * precir.formats.format_of(format).smallest_subnormal
            assert np.all(off <= ERROR[format] * np.abs(np.asarray(a, np.float64)) + least)
    again = precir.scale(scaled, "float16")
    assert again["w"] is scaled["w"]
    back = precir.unscale(scaled)
    assert back["w"].dtype == back["half"].dtype == jnp.float32
    assert back["key"] is tree["key"]
    assert back["rate"] == 0.1
    twice = precir.unscale(precir.scale(back, format))
    np.testing.assert_array_equal(twice["w"], back["w"])


def test_other_formats_are_refused() -> None:
    with pytest.raises(QuantizeError, match="not float64"):
        precir.scale(state(), "float64")


def test_under_transformations() -> None:
    tree = {"w": RNG.normal(size=(3, 4, 5)).astype(np.float32), "n": np.arange(3)}
    scaled = jax.jit(lambda t: precir.scale(t, "float16"))(tree)
    assert scaled["w"].scale.shape == ()
    each = jax.vmap(lambda t: precir.scale(t, "float16"))(tree)
    assert each["w"].scale.shape == (3,)
    np.testing.assert_allclose(precir.unscale(each)["w"], tree["w"], rtol=2**-11)

    def step(carry: Any, _: Any) -> Any:
        wide = precir.unscale(carry)
        return precir.scale(jax.tree.map(lambda x: x * 0.5, wide), "float16"), wide["w"].sum()

    start = precir.scale({"w": tree["w"]}, "float16")
    last, sums = jax.jit(lambda s: lax.scan(step, s, None, length=8))(start)
    np.testing.assert_array_equal(last["w"].data, start["w"].data)  # halving is the scale's
    assert float(last["w"].scale) == float(start["w"].scale) / 2**8
    np.testing.assert_allclose(sums[0] / 2**7, sums[7], rtol=1e-5)
    _, values = lax.scan(lambda c, t: (c, precir.unscale(t)["w"]), 0, each)
    np.testing.assert_array_equal(values, precir.unscale(each)["w"])


def test_a_checkpoint_brings_it_back(tmp_path: Path) -> None:
    """orbax-checkpoint takes a ScaledArray as the pytree that it is."""
    tree = {k: v for k, v in state().items() if k in ("w", "m", "half", "step")}
    for format in ERROR:
        scaled = precir.scale(tree, format)
        where = tmp_path / format
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(where, scaled)
            checkpointer.wait_until_finished()
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, scaled)
            restored = checkpointer.restore(where, abstract)
        assert jax.tree.structure(restored) == jax.tree.structure(scaled)
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(scaled), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
