"""observe on a GPU: the Triton kernel against the reference, counts exactly, sums to rounding."""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.kernels import observe
from precir.kernels.launch import SHARED_MEMORY
from precir.kernels.observe import _on_cuda, _reference, observe_each
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import numbers

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")


def check(x, histogram):
    with interpreted():
        (actual,) = _on_cuda(x, histogram=histogram)
    (expected,) = jax.jit(partial(_reference, histogram=histogram))(x)
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    whole = [i for i in range(actual.shape[-1]) if i not in (2, 3)]
    np.testing.assert_array_equal(actual[..., whole], expected[..., whole])
    sums = (np.ascontiguousarray(s[..., 2:4]).view(np.float32) for s in (actual, expected))
    np.testing.assert_allclose(*sums, rtol=1e-5, atol=1e-4)


@ON_LINUX
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1,), "bfloat16"), ((5001,), "float32"), ((3, 70), "float16")], ids=str
)
def test_in_the_interpreter(shape, dtype):
    x = numbers(shape, dtype)
    check(x, True)
    check(jnp.asarray(np.where(np.isfinite(x), x, 0)), shape == (1,))


@ON_LINUX
def test_zeros_and_every_bfloat16():
    check(jnp.zeros(1), True)
    check(jnp.asarray(np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)), True)


def test_it_is_vmapped_and_has_no_derivative():
    x = numbers((4, 6))
    np.testing.assert_array_equal(jax.vmap(observe)(x), observe_each(x))
    xs = numbers((2, 4, 6))
    np.testing.assert_array_equal(jax.vmap(observe_each)(xs)[1], observe_each(xs[1]))
    empty = jax.vmap(observe)(jnp.zeros((3, 0)))
    assert empty.shape == (3, 266)

    def loss(x):
        return (x * x).sum() + 0 * observe(x)[0].astype(jnp.float32)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.arange(3.0)), 2 * np.arange(3.0))


@ON_LINUX
@pytest.mark.parametrize("histogram", [True, False])
def test_for_hopper(histogram):
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    _, (kernel,) = lower_for_cuda(partial(observe, histogram=histogram), x)
    assert kernel.shared <= SHARED_MEMORY
    assert kernel.resources()["spilled"] == 0
    assert "ld.global.v4.b32" in kernel.ptx


@ON_LINUX
def test_no_kernel_for_nothing():
    assert not lower_for_cuda(observe, jnp.zeros(0))[1]
