"""What the tests of Triton kernels stand on: the interpreter and the cross-lowering."""

import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import numpy as jnp

from precir.kernels import E4M3, E5M2, quantize
from precir.kernels.launch import fp8_gpu, launch, result, target
from precir.kernels.powers import power_of_two_carry
from tests import interpreter
from tests.crosslower import lower_for_cuda
from tests.cuda import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

FORMATS = pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)


def constants(format, n):
    return {
        "N": n,
        "BLOCK": 1 << (n - 1).bit_length(),
        "CARRY": power_of_two_carry(format),
    }


def special(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    edges = np.array([448, 464, 449, 57344, 61440], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([every.astype(np.float32), edges]).astype(dtype)


@FORMATS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantize_in_the_interpreter(format, dtype):
    from tests.raw_kernels import amax_scale_cast

    x = special(jnp.dtype(dtype))
    out = interpreter.unwritten(x.shape, format.dtype)
    scale = interpreter.unwritten((1,), np.float32)
    _, out, scale = interpreter.launch(
        amax_scale_cast, (1,), x, out, scale, **constants(format, x.size)
    )
    expected = quantize(jnp.asarray(x), format)
    assert scale[0] == expected.scale
    nan = np.isnan(np.asarray(expected.data, np.float32))
    np.testing.assert_array_equal(np.isnan(out.astype(np.float32)), nan)
    np.testing.assert_array_equal(
        out.view(np.uint8)[~nan], np.asarray(expected.data).view(np.uint8)[~nan]
    )


def test_product_in_the_interpreter():
    from tests.raw_kernels import product

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(32, 32)).astype(E4M3.dtype) for _ in range(2))
    out = interpreter.launch(product, (1,), x, y, interpreter.unwritten((32, 32), np.float32), N=32)
    wide = x.astype(np.float32), y.astype(np.float32).T
    np.testing.assert_allclose(out[2], wide[0] @ wide[1], rtol=1e-6, atol=1e-5)


def test_the_interpreter_sees_what_is_written_past_the_end():
    from tests.raw_kernels import too_far

    x = np.arange(8, dtype=np.float32)
    with pytest.raises(RuntimeError, match="past the end of an array"):
        interpreter.launch(too_far, (1,), x, interpreter.unwritten((8,), np.float32), N=8)


@FORMATS
def test_quantize_for_hopper(format):
    from tests.raw_kernels import amax_scale_cast

    def f(x):
        out = [result(x.shape, format.dtype), result((1,), np.float32)]
        return launch(amax_scale_cast, [x], out, (1,), **constants(format, x.size))

    text, (kernel,) = lower_for_cuda(f, jax.ShapeDtypeStruct((4096,), jnp.bfloat16))
    assert "triton_kernel_call" in text
    name = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}[format.name]
    assert f"cvt.rn.satfinite.{name}x2.f32" in kernel.ptx
    assert kernel.shared < 1024
    assert kernel.resources()["spilled"] == 0


def test_kernels_are_for_gpus_with_fp8():
    with target(90):
        assert fp8_gpu()
    with target(80):
        assert not fp8_gpu()


def test_importing_precir_imports_no_triton():
    code = "import sys, precir, precir.kernels; print({'triton', 'jax_triton'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
