"""The Triton kernels of quantize against its reference, bit for bit, in the interpreter; and what
they compile to for Hopper.
"""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from precir.formats import F32
from precir.kernels import E4M3, E5M2, E8M0FNU, observe
from precir.kernels.launch import SHARED_MEMORY, target
from precir.kernels.quantize import (
    _given_on_cuda,
    _on_cuda,
    quantize,
    quantize_given_reference,
    quantize_p_reference,
)
from precir.kernels.quantize_cuda import quantized
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_same, numbers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

FORMATS = pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def check(x, format, block=(), batch_ndim=0, scales=F32):
    params = {"dtype": format.dtype, "batch_ndim": batch_ndim}
    params |= {"block": block, "scales": scales.dtype}
    with interpreted():
        assert quantized(x, **params) is not None
        actual = _on_cuda(x, **params)
    assert_same(actual, jax.jit(partial(quantize_p_reference, **params))(x))


given_reference = jax.jit(quantize_given_reference, static_argnames="dtype")


@FORMATS
@DTYPES
def test_one_scale(format, dtype):
    for n in (1, 8192, 20001):
        check(numbers((n,), dtype), format)


@FORMATS
def test_one_scale_for_each_example(format):
    check(numbers((5, 33)), format, batch_ndim=1)
    check(numbers((2, 3, 20000), "bfloat16"), format, batch_ndim=2)


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        *(((4, 256), (1, 128)), ((5, 200), (1, 128)), ((2, 3, 96), (1, 32)), ((40,), (7,))),
        *(((6, 50), (1, 50)), ((3, 40), (2, 40)), ((2, 300), (1, 300)), ((5, 24), (1, 1000))),
        *(((2, 17000), (1, 17000)), ((1, 1), (1, 128)), ((4, 6, 8), (1, 6, 8))),
        *(((140, 150), (128, 128)), ((2, 40, 70), (32, 32)), ((9, 10), (3, 5)), ((70, 5), (64, 1))),
        *(((130, 70), (128, 1)), ((3, 130, 2), (1, 128, 1)), ((128, 128), (128, 128))),
    ],
    ids=str,
)
def test_blocks(shape, block):
    check(numbers(shape, "bfloat16"), E5M2 if len(shape) > 2 else E4M3, block)


@DTYPES
def test_blocks_of_other_dtypes(dtype):
    for block in ((1, 128), (64, 64), (64, 1)):
        check(numbers((70, 140), dtype), E4M3, block)


@settings(max_examples=8)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 70)),
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 70)),
    st.sampled_from([E4M3, E5M2]),
)
def test_any_block(shape, block, format):
    x = numbers(shape, "bfloat16")
    params = {"dtype": format.dtype, "batch_ndim": 0, "block": block, "scales": F32.dtype}
    with interpreted():
        actual = _on_cuda(x, **params)
    assert_same(actual, jax.jit(partial(quantize_p_reference, **params))(x))


@FORMATS
def test_mx(format):
    check(numbers((8, 96), "bfloat16"), format, (1, 32), scales=E8M0FNU)
    check(numbers((40, 48), "bfloat16"), format, (32, 32), scales=E8M0FNU)
    check(numbers((9,)), format, scales=E8M0FNU)


def test_every_bfloat16():
    every = jnp.asarray(np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16))
    for format in (E4M3, E5M2):
        check(every, format)
        check(every.reshape(-1, 64), format, (1, 64))


@FORMATS
@DTYPES
def test_given_scale(format, dtype):
    x = numbers((3, 17), dtype)
    for scale in map(jnp.float32, [1.0, 2.0**-126, 2.0**-5, 2.0**126]):
        with interpreted():
            actual = _given_on_cuda(x, scale, dtype=format.dtype)
        assert_same(actual, given_reference(x, scale, dtype=format.dtype))


def test_given_scale_for_each_example():
    x, scale = numbers((3, 2, 9000)), jnp.asarray([1, 2.0**-9, 2.0**7], jnp.float32)
    with interpreted():
        actual = _given_on_cuda(x, scale, dtype=E4M3.dtype)
    assert_same(actual, given_reference(x, scale, dtype=E4M3.dtype))


@pytest.mark.parametrize(
    ("shape", "dtype", "format", "block"),
    [
        ((0, 4), "float32", E4M3, ()),
        ((4,), "float32", F32, ()),
        ((4, 4, 4), "float32", E4M3, (2, 2, 2)),
        ((512, 512), "float32", E4M3, (256, 256)),
    ],
    ids=str,
)
def test_what_no_kernel_serves_is_the_reference(shape, dtype, format, block):
    x = jnp.ones(shape, dtype)
    text, kernels = lower_for_cuda(lambda x: quantize(x, format, block=block), x)
    assert not kernels
    assert "triton_kernel_call" not in text


def test_machines_without_fp8_take_the_reference():
    assert not lower_for_cuda(lambda x: quantize(x, E4M3), jnp.ones(4), capability=80)[1]


def test_modules_for_several_platforms_take_the_reference():
    with target(90):
        traced = jax.jit(lambda x: quantize(x, E4M3).data).trace(jnp.ones(8))
        text = traced.lower(lowering_platforms=("cpu", "cuda")).as_text()
    assert "triton_kernel_call" not in text


def test_what_shard_map_divides_takes_a_kernel_and_what_xla_does_waits_for_it():
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, P("i")))
    assert not lower_for_cuda(partial(quantize, format=E4M3), x)[1]

    def rows(x):
        return quantize(x, E4M3, block=(1, 128)).data, observe(x)[None]

    each = jax.shard_map(rows, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    text, kernels = lower_for_cuda(each, x)
    assert {k.name for k in kernels} == {"quantize_groups", "statistics"}
    assert "tensor<8x128xf8E4M3FN>" in text


@pytest.mark.parametrize(
    ("shape", "block", "count"),
    [
        ((4096, 4096), (), 2),
        ((4096, 4096), (1, 128), 1),
        ((4096, 4096), (1, 4096), 1),
        ((4096, 4096), (128, 128), 1),
        ((4096, 4096), (128, 1), 1),
        ((1000, 1001), (1, 128), 1),
        ((2, 40000), (1, 40000), 2),
        ((70000, 70016), (), 2),  # more elements than int32 counts
        ((70000, 70016), (128, 128), 1),
    ],
    ids=str,
)
def test_for_hopper(shape, block, count):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    _, kernels = lower_for_cuda(partial(quantize, format=E4M3, block=block), x)
    assert len(kernels) == count
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY
        used = kernel.resources()
        assert used["spilled"] == 0, (kernel.name, used)
        if kernel.name != "amax_parts":
            assert "cvt.rn.satfinite.e4m3x2.f32" in kernel.ptx


def test_given_for_hopper():
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    _, (kernel,) = lower_for_cuda(lambda x: quantize(x, E5M2, scale=0.5).data, x)
    assert "cvt.rn.satfinite.e5m2x2.f32" in kernel.ptx
    assert "ld.global.v4.b32" in kernel.ptx
    assert kernel.resources()["spilled"] == 0
