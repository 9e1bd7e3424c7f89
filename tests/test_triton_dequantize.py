"""dequantize and stochastic rounding: by their definition on a CPU, and their Triton kernels
against the references, bit for bit.
"""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.formats import F32
from precir.kernels import E4M3, E5M2, E8M0FNU, ScaledArray, quantize, stochastic
from precir.kernels.dequantize import _on_cuda, _reference, dequantize
from precir.kernels.launch import SHARED_MEMORY
from precir.kernels.quantize import QuantizeError
from precir.kernels.stochastic import quantize_stochastic
from precir.scaled import scale_shape
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_same, numbers

FORMATS = pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
BLOCKS = [(), (1, 128), (32, 32), (7, 1)]
KEY = jax.random.key(0)
CASES = pytest.mark.parametrize(
    ("format", "block"), list(zip([E4M3, E5M2, E5M2, E4M3], BLOCKS, strict=True)), ids=str
)


# --- dequantize


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_dequantize_is_unscale(block):
    @jax.jit
    def both(xs):
        quantized = jax.vmap(partial(quantize, format=E5M2, block=block))(xs)
        one = jax.tree.map(lambda leaf: leaf[1], quantized)
        each = jax.vmap(partial(dequantize, dtype="bfloat16"))(quantized)
        return each[1], dequantize(one, "bfloat16"), one.unscale("bfloat16")

    each, alone, expected = both(numbers((3, 8, 40)))
    assert_same((each, alone), (expected, expected))


@ON_LINUX
@CASES
def test_dequantize_in_the_interpreter(format, block):
    every = jnp.asarray(np.arange(256, dtype=np.uint8).view(format.dtype))
    data = jnp.resize(every, (19, 260))
    count = scale_shape(data.shape, block)
    powers = np.random.default_rng(0).integers(-126, 127, count)
    scale = jnp.asarray(2.0**powers, jnp.float32)
    for dtype, scales in (("bfloat16", F32), ("float16", E8M0FNU), ("float32", E8M0FNU)):
        params = {"dtype": np.dtype(dtype), "block": block}
        operands = data, scale.astype(scales.dtype)
        with interpreted():
            actual = _on_cuda(*operands, **params)
        expected = jax.jit(partial(_reference, **params))(*operands)
        assert_same(actual, expected)


@ON_LINUX
@pytest.mark.parametrize("block", [(), (1, 128), (128, 128)], ids=str)
def test_dequantize_for_hopper(block):
    q = jax.eval_shape(partial(quantize, format=E4M3, block=block), jnp.ones((256, 512)))
    _, (kernel,) = lower_for_cuda(partial(dequantize, dtype="bfloat16"), q)
    assert kernel.shared <= SHARED_MEMORY
    assert kernel.resources()["spilled"] == 0
    assert "ld.global.v" in kernel.ptx


# --- stochastic rounding


@FORMATS
def test_the_mean_is_the_number(format):
    # Sixteenths of the way between neighbours: normals, subnormals, and what the format holds.
    low = np.array([1.0, -2.0, format.smallest_normal, format.smallest_subnormal, 0.0])
    step = np.array([format.epsilon, -2 * format.epsilon, *[format.smallest_subnormal] * 3])
    step[2] = format.smallest_normal * format.epsilon
    x = jnp.asarray(low + step * np.arange(16)[:, None] / 16, jnp.float32)
    keys = jax.random.split(KEY, 4096)
    draw = jax.jit(jax.vmap(lambda key: quantize_stochastic(x, format, key, scale=1.0).unscale()))
    drawn = draw(keys)
    moved = (np.asarray(drawn, np.float64).mean(0) - low) / step
    np.testing.assert_allclose(moved, np.arange(16)[:, None] / 16 * np.ones(5), atol=0.04)
    assert np.all(np.isin((np.asarray(drawn, np.float64) - low) / step, [0, 1]))


@CASES
def test_stochastic_has_the_scales_and_special_values_of_quantize(format, block):
    @jax.jit
    def draw(x):
        nearest = quantize(x, format, block=block)
        held = nearest.unscale()
        return (
            nearest,
            quantize_stochastic(x, format, KEY, block=block),
            quantize(held, format, block=block),
            quantize_stochastic(held, format, KEY, block=block),
        )

    nearest, drawn, held, again = draw(numbers((20, 70)))
    assert_same((drawn.scale, again.data), (nearest.scale, held.data))
    one, other = (np.asarray(q.data, np.float32) for q in (nearest, drawn))
    special = ~np.isfinite(one)
    np.testing.assert_array_equal(one[special], other[special])
    assert np.any(one[~special] != other[~special])


def test_stochastic_saturates_and_refuses():
    x = jnp.asarray([1e9, -1e9, jnp.inf, jnp.nan])
    q = quantize_stochastic(x, E4M3, KEY, scale=1.0)
    np.testing.assert_array_equal(q.unscale(), [448, -448, np.nan, np.nan])
    with pytest.raises(QuantizeError, match="E4M3 or E5M2"):
        quantize_stochastic(x, "bf16", KEY)
    with pytest.raises(QuantizeError, match="one float32 scalar"):
        quantize_stochastic(x, E4M3, KEY, block=(2,), scale=1.0)


@ON_LINUX
@CASES
def test_stochastic_in_the_interpreter(format, block):
    x = numbers((19, 260), "float32" if block else "bfloat16")
    scale = jax.jit(partial(quantize, format=format, block=block))(x).scale
    random = np.random.default_rng(0).integers(0, 2**16, x.shape, np.uint16)
    params = {"dtype": format.dtype, "block": block}
    with interpreted():
        actual = stochastic._on_cuda(x, scale, jnp.asarray(random), **params)
    expected = jax.jit(partial(stochastic._reference, **params))(x, scale, random)
    assert_same(actual, expected)


@ON_LINUX
def test_stochastic_for_hopper():
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
    _, (kernel,) = lower_for_cuda(lambda x: quantize_stochastic(x, E4M3, KEY), x)
    assert kernel.resources()["spilled"] == 0
    assert "cvt.rn.satfinite.e4m3x2.f32" in kernel.ptx


@ON_LINUX
def test_no_kernel_for_other_dtypes():
    q = ScaledArray(jnp.ones(4, jnp.bfloat16), jnp.float32(1))
    assert not lower_for_cuda(dequantize, q)[1]
