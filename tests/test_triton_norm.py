"""norm_quantize and its gradients: by their definition in flax, and the Triton kernels against the
references, to the last bits of a sum and a root.
"""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.errors import DerivativeError
from precir.formats import F32
from precir.kernels import (
    E4M3,
    E5M2,
    E8M0FNU,
    norm_gradients,
    norm_quantize,
    norm_scale,
    quantize,
)
from precir.kernels.launch import SHARED_MEMORY
from precir.kernels.norm_quantize import (
    _gradients_on_cuda,
    _gradients_reference,
    _on_cuda,
    _reference,
)
from precir.kernels.quantize import QuantizeError
from precir.kernels.writing import Writing
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_near, assert_same

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
KINDS = pytest.mark.parametrize("kind", ["layer", "rms"])
BF16 = np.dtype(jnp.bfloat16)


def usual(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape) * 3 + 1
    return jnp.asarray(x, jnp.float32)


def odd(shape, dtype="bfloat16", seed=0):
    """Rows of many sizes: some with an outlier, of zeros, of one number, subnormal, or with
    something infinite or NaN.
    """
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) + 0.5) * 2.0 ** rng.integers(-8, 8, (*shape[:-1], 1))
    if shape[-2] > 8:
        x[..., 1, 0], x[..., 2, :], x[..., 3, :], x[..., 4, :] = 1e4, 0, 2.0**-6, 1e-40
        x[..., 5, -1], x[..., 6, 0], x[..., 7, 0] = np.nan, np.inf, -np.inf
    return jnp.asarray(x).astype(dtype)


def plainly(x, weight=None, bias=None, *, kind, eps=1e-5):
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


# --- what they are


@KINDS
def test_it_is_quantize_of_the_norm(kind):
    x, weight, bias = usual((3, 5, 96)), usual(96, 1), usual(96, 2)
    for options in ({}, {"weight": weight}, {"weight": weight, "bias": bias}):
        y = plainly(x, kind=kind, **options)
        found = norm_quantize(x, E4M3, kind=kind, block=(1, 32), **options)
        expected = quantize(y, E4M3, block=(1, 32))
        quantized = found.written.quantized
        np.testing.assert_array_equal(quantized.scale, expected.scale)
        assert_near((quantized.data,), (expected.data,), apart=2e-3)
    assert found.rstd.shape == (3, 5)
    assert (found.mean is None) == (kind == "rms")


@KINDS
def test_gradients_are_those_of_jax(kind):
    x, weight, bias, g = usual((4, 7, 60)), usual(60, 1), usual(60, 2), usual((4, 7, 60), 3)
    _, pull = jax.vjp(lambda *args: plainly(*args, kind=kind), x, weight, bias)
    _, mean, rstd = norm_quantize(x, E4M3, kind=kind, scale=1.0)
    found = norm_gradients(x, g, mean, rstd, kind=kind, weight=weight)
    assert_near(found, pull(g), rtol=1e-4)
    alone = norm_gradients(x, g, mean, rstd, kind=kind, dtype=jnp.bfloat16)
    (expected,) = jax.vjp(lambda x: plainly(x, kind=kind), x)[1](g)
    assert_near((alone.x,), (expected.astype(jnp.bfloat16),))
    more = norm_gradients(x, g, mean, rstd, kind=kind, weight=weight, add=2 * x)
    assert_near((more.x - 2 * x, *more[1:]), found, rtol=1e-4)


@KINDS
def test_a_proved_scale_holds_for_the_worst_row(kind):
    n = 300
    x = jnp.zeros((2, n)).at[0, 7].set(1e8).at[1, 5].set(-1e-3)
    weight, bias = usual(n, 1), usual(n, 2)
    found = norm_quantize(
        x, E4M3, kind=kind, weight=weight, bias=bias, scale="proved", amax=True, eps=0
    ).written
    assert found.amax <= found.quantized.scale * 448
    unit = norm_quantize(x, E5M2, kind=kind, scale="proved", amax=True, eps=0).written
    assert n**0.5 * 0.99 < unit.amax <= n**0.5 * 1.0001
    assert unit.quantized.scale == norm_scale(n, E5M2) == 2.0**-11


def test_everything_at_once():
    x = usual((2, 20, 40)).astype(jnp.bfloat16)
    options = {"transposed": True, "amax": True, "plain": jnp.bfloat16}
    given = norm_quantize(x, E4M3, scale="proved", **options).written
    assert given.quantized.shape == given.plain.shape == (2, 20, 40)
    assert given.transposed.shape == (40, 40)
    assert_same((given.quantized.data.reshape(40, 40),), (given.transposed.data.T,))
    np.testing.assert_allclose(given.amax, np.abs(given.plain).max(), rtol=2**-8)
    blocks = norm_quantize(x, E5M2, kind="rms", block=(1, 16), **options).written
    assert blocks.quantized.scale.shape == (2, 20, 3)
    assert blocks.transposed.scale.shape == (40, 3)


def test_examples_have_scales_of_their_own():
    x, weight, g = usual((3, 4, 8)), usual((3, 8), 1), usual((4, 8), 2)

    def f(x, weight):
        found = norm_quantize(x, E4M3, weight=weight, block=(1, 4), transposed=True, amax=True)
        return found, norm_gradients(x, g, *found[1:], weight=weight, add=g)

    for each in (weight, weight[1]):
        both = jax.vmap(f, (0, 0 if each.ndim > 1 else None))(x, each)
        one = f(x[1], weight[1])
        assert_near([a[1] for a in jax.tree.leaves(both)], jax.tree.leaves(one))


def test_errors():
    x = usual((4, 6))
    for call, message in (
        (lambda: norm_quantize(x, E4M3), "not known before it is read"),
        (lambda: norm_quantize(x, E4M3, scale="last"), 'or "proved"'),
        (lambda: norm_quantize(x, E4M3, scale=1.0, kind="batch"), "a norm is"),
        (lambda: norm_quantize(x, E4M3, scale=1.0, weight=x), "the weight of 6 columns"),
        (lambda: norm_quantize(x, jnp.float16, scale=1.0), "writes E4M3 or E5M2"),
        (lambda: norm_gradients(x, x[1:], None, x[:, 0]), "its gradient"),
        (lambda: norm_gradients(x, x, None, x[:, 0]), "has a mean"),
        (lambda: norm_gradients(x, x, None, x[:, 0], kind="rms", add=x[1:]), "what is added"),
    ):
        with pytest.raises(QuantizeError, match=message):
            call()
    with pytest.raises(DerivativeError):
        jax.grad(lambda x: norm_quantize(x, E4M3, scale=1.0).written.quantized.unscale().sum())(x)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (1,)], ids=str)
def test_small(shape):
    x = jnp.ones(shape)
    written, mean, rstd = norm_quantize(x, E4M3, block=(32,), amax=True)
    assert written.quantized.shape == shape
    found = norm_gradients(x, x, mean, rstd)
    assert (found.x.shape, found.weight.shape) == (shape, shape[-1:])


# --- the kernels


def check(writing, x, weight, bias, kind):
    params = {"kind": kind, "eps": 1e-5, "writing": writing}
    given = jnp.full(x.shape[:1], 0.0625, jnp.float32)
    with interpreted():
        actual = _on_cuda(given, x, weight, bias, **params)
    assert any(isinstance(a, np.ndarray) for a in actual)
    assert_near(actual, jax.jit(partial(_reference, **params))(given, x, weight, bias))


WRITINGS = [
    Writing(E4M3.dtype),
    Writing(E4M3.dtype, flip=True, plain=BF16, amax=True),
    Writing(E4M3.dtype, 128, plain=BF16),
    Writing(E5M2.dtype, 32, E8M0FNU.dtype, flip=True, amax=True),
    Writing(E4M3.dtype, 150, amax=True),
    Writing(None, plain=F32.dtype),
]


@ON_LINUX
@KINDS
@pytest.mark.parametrize("writing", WRITINGS, ids=range(len(WRITINGS)))
def test_in_the_interpreter(writing, kind):
    rows = [usual((2, 150), seed=s) for s in (1, 2)]
    check(writing, odd((2, 40, 150)), *rows, kind)


@ON_LINUX
def test_one_element_in_the_interpreter():
    for writing in WRITINGS[:2]:
        check(writing, odd((1, 3, 1), "float32"), jnp.ones((1, 1)), jnp.zeros((0, 1)), "rms")


@ON_LINUX
@KINDS
def test_long_rows_in_the_interpreter(kind):
    x, row = odd((1, 9, 20000)), usual((1, 20000), 1)
    check(Writing(E4M3.dtype, 128, amax=True), x, row, row, kind)
    check(Writing(E4M3.dtype), x[:, :1], row[:0], row, kind)


@ON_LINUX
@KINDS
@pytest.mark.parametrize("shape", [(2, 40, 150), (1, 1, 1), (1, 900, 33)], ids=str)
def test_gradients_in_the_interpreter(kind, shape):
    x, g = usual(shape), usual(shape, 1).astype(BF16)
    weight = usual((shape[0], shape[2]), 2)
    given, nothing = jnp.ones(shape[0]), weight[:0]
    params = {"kind": kind, "eps": 1.0, "writing": Writing(None)}
    mean, rstd = _reference(given, x, nothing, nothing, **params)
    for out, w, *besides in ((BF16, weight, x), (F32.dtype, nothing)):
        with interpreted():
            actual = _gradients_on_cuda(x, g, mean, rstd, w, *besides, kind=kind, dtype=out)
        reference = jax.jit(partial(_gradients_reference, kind=kind, dtype=out))
        assert_near(actual, reference(x, g, mean, rstd, w, *besides))


@ON_LINUX
@pytest.mark.parametrize(
    "options",
    [
        {"scale": "proved", "amax": True},
        {"block": (1, 128), "kind": "rms"},
        {"block": (1, 4096)},
        {"scale": 0.5, "transposed": True},
        {"block": (1, 128), "transposed": True},
    ],
    ids=str,
)
def test_for_hopper(options):
    x = jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16)
    row = jax.ShapeDtypeStruct((4096,), jnp.float32)

    def f(x, weight, bias):
        return norm_quantize(x, E4M3, weight=weight, bias=bias, **options)

    _, (kernel,) = lower_for_cuda(f, x, row, row)
    used = kernel.resources()
    print(kernel.name, used, kernel.shared)
    assert kernel.shared <= SHARED_MEMORY
    assert used["spilled"] == 0, used
    assert "cvt.rn.satfinite.e4m3x2.f32" in kernel.ptx


@ON_LINUX
@pytest.mark.parametrize("columns", [128, 4096, 8192])
def test_gradients_for_hopper(columns):
    x = jax.ShapeDtypeStruct((8192, columns), jnp.bfloat16)
    each, row = (jax.ShapeDtypeStruct((n,), jnp.float32) for n in (8192, columns))

    def f(x, mean, rstd, weight):
        return norm_gradients(x, x, mean, rstd, weight=weight, add=x)

    _, (kernel,) = lower_for_cuda(f, x, each, each, row)
    used = kernel.resources()
    print(kernel.name, used, kernel.shared)
    assert kernel.shared <= SHARED_MEMORY
    assert used["spilled"] == 0, used
