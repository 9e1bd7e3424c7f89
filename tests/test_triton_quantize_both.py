"""quantize_both and what measures on the way: by their definition on a CPU, and the Triton kernels
against the references, bit for bit.
"""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.errors import DerivativeError
from precir.formats import F32
from precir.kernels import E4M3, E5M2, E8M0FNU, finite_amax, quantize
from precir.kernels.both_given import (
    _amax_on_cuda,
    _amax_reference,
    _both_given_on_cuda,
    _both_given_reference,
)
from precir.kernels.launch import SHARED_MEMORY
from precir.kernels.quantize import QuantizeError
from precir.kernels.quantize_both import (
    _both_on_cuda,
    _both_reference,
    quantize_and_amax,
    quantize_both,
    quantize_both_and_amax,
)
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_same, numbers

FORMATS = pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
BLOCKS = [(), (1, 32), (32, 32), (1, 128), (128, 128), (3, 5)]


# --- what they are


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_both_is_quantize_of_each(block):
    x = numbers((140, 70))
    one, other = quantize_both(x, E4M3, block=block)
    for actual, operand in ((one, x), (other, x.T)):
        expected = quantize(operand, E4M3, block=block)
        assert actual.block == expected.block
        assert_same((actual.data, actual.scale), (expected.data, expected.scale))


def test_both_under_a_given_scale():
    x = numbers((14, 7))
    one, other, amax = quantize_both_and_amax(x, E5M2, scale=0.25)
    assert_same((one.data, other.data), (quantize(x, E5M2, scale=0.25).data, one.data.T))
    assert one.scale == other.scale == 0.25
    assert amax == finite_amax(x)
    assert_same(jax.tree.leaves(quantize_both(x, E5M2, scale=0.25)), jax.tree.leaves((one, other)))
    alone, its = quantize_and_amax(x, E5M2, scale=0.25)
    assert_same((alone.data, its), (one.data, amax))


def test_examples_have_scales_of_their_own():
    x = numbers((3, 5, 8))
    both = jax.vmap(partial(quantize_both, format=E4M3))(x)
    each = [quantize_both(m, E4M3) for m in x]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert_same(jax.tree.leaves(both), jax.tree.leaves(stacked))
    given = jax.vmap(lambda m, s: quantize_both_and_amax(m, E4M3, scale=s), (0, None))(x, 2.0)
    assert_same((given[2],), (jax.vmap(finite_amax)(x),))


def test_errors():
    with pytest.raises(QuantizeError, match="not a tensor of shape"):
        quantize_both(jnp.ones(4), E4M3)
    with pytest.raises(QuantizeError, match="reach over axes that are one"):
        quantize_both(jnp.ones((2, 4, 4)), E4M3, block=(1, 2, 2))
    with pytest.raises(QuantizeError, match="one float32 scalar"):
        quantize_both(jnp.ones((2, 3)), E4M3, block=(1, 2), scale=1.0)
    with pytest.raises(DerivativeError):
        jax.grad(lambda x: quantize_both(x, E4M3)[0].unscale().sum())(jnp.ones((2, 3)))


@pytest.mark.parametrize("block", [(), (1, 1, 16), (1, 1, 64)], ids=str)
def test_more_axes_are_one_matrix(block):
    x = numbers((3, 32, 64), "bfloat16")
    lying, turned = quantize_both(x, E4M3, block=block)
    matrix = x.reshape(96, 64)
    assert_same(jax.tree.leaves(lying), jax.tree.leaves(quantize(x, E4M3, block=block)))
    its = quantize(matrix.T, E4M3, block=block[1:])
    assert_same(jax.tree.leaves(turned), jax.tree.leaves(its))


# --- the kernels


def check(x, format, block=(), scales=F32):
    params = {"dtype": format.dtype, "block": block, "scales": scales.dtype}
    with interpreted():
        actual = _both_on_cuda(x, **params)
    assert all(isinstance(a, (np.ndarray, jax.Array)) for a in actual)
    assert_same(actual, jax.jit(partial(_both_reference, **params))(x))


@ON_LINUX
@FORMATS
@pytest.mark.parametrize("shape", [(1, 1), (130, 70), (2, 3, 40)], ids=str)
def test_both_in_the_interpreter(format, shape):
    x = numbers(shape, "bfloat16")
    for block in BLOCKS[:4]:
        check(x, format, block)


@ON_LINUX
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_both_of_other_dtypes(dtype):
    check(numbers((150, 40), dtype), E4M3)
    check(numbers((150, 140), dtype), E5M2, (128, 128))


@ON_LINUX
def test_both_mx():
    check(numbers((40, 70), "bfloat16"), E4M3, (1, 32), E8M0FNU)
    check(numbers((40, 70), "bfloat16"), E4M3, (32, 32), E8M0FNU)


@ON_LINUX
@FORMATS
def test_given_in_the_interpreter(format):
    x, scale = numbers((3, 130, 70)), jnp.asarray([1, 2.0**-9, 2.0**7], jnp.float32)
    for amax in (True, False):
        params = {"dtype": format.dtype, "amax": amax}
        with interpreted():
            actual = _both_given_on_cuda(x, scale, **params)
        assert_same(actual, jax.jit(partial(_both_given_reference, **params))(x, scale))
    with interpreted():
        actual = _amax_on_cuda(x, scale, dtype=format.dtype)
    assert_same(actual, jax.jit(partial(_amax_reference, dtype=format.dtype))(x, scale))


@ON_LINUX
@pytest.mark.parametrize("block", BLOCKS[:5], ids=str)
def test_both_for_hopper(block):
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    _, kernels = lower_for_cuda(partial(quantize_both, format=E4M3, block=block), x)
    assert len(kernels) == 2 - bool(block)
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY
        assert kernel.resources()["spilled"] == 0, kernel.resources()
        assert "propagateNan = all" not in kernel.ttir
        assert not {"arith.maximumf", "arith.minimumf", "tt.clampf"} & set(kernel.ttir.split())
        if kernel.name != "amax_parts":
            assert "cvt.rn.satfinite.e4m3x2.f32" in kernel.ptx
            assert "st.global.v" in kernel.ptx  # vectors, transposed too
            assert "st.global.b8" not in kernel.ptx


@ON_LINUX
def test_given_for_hopper():
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    _, kernels = lower_for_cuda(lambda x: quantize_both_and_amax(x, E5M2, scale=1.0), x)
    _, more = lower_for_cuda(lambda x: quantize_and_amax(x, E5M2, scale=1.0), x)
    assert [k.name for k in kernels + more] == ["both_given_amax", "quantize_given_amax"]
    for kernel in kernels + more:
        assert "cvt.rn.satfinite.e5m2x2.f32" in kernel.ptx
        assert kernel.resources()["spilled"] == 0


@ON_LINUX
def test_no_kernel_for_nothing_or_odd_blocks():
    for shape, block in (((0, 4), ()), ((8, 8), (3, 5))):
        f = partial(quantize_both, format=E4M3, block=block)
        assert not lower_for_cuda(f, jnp.ones(shape))[1]
