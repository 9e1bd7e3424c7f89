"""The Triton kernel of scaled_dot: its numbers in Triton's interpreter, its code for Hopper."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.errors import DerivativeError
from precir.formats import BF16, E8M0FNU, F16, F32, Format
from precir.kernels import E4M3, E5M2, ScaledArray, quantize, scaled_dot
from precir.kernels import scaled_dot_cuda as cuda
from precir.kernels.choice import prefer
from precir.kernels.launch import SHARED_MEMORY
from precir.kernels.quantize import quantize_reference
from precir.kernels.scaled_dot import ScaledDotError, _prepared, scaled_dot_reference
from precir.kernels.tiling import Tiling, tiled
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

MATMUL = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
PAIRS = pytest.mark.parametrize("pair", [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3)], ids=str)
SMALL = Tiling(32, 32, 64, 4, 2, group=2)
SPILLED = 64  # bytes of a thread's 1020 in registers, where nothing is a multiple of the tiles


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decibels(actual: Any, expected: np.ndarray) -> float:
    error = np.asarray(actual, np.float64) - expected
    return 10 * math.log10(np.mean(expected**2) / np.mean(error**2))


@contextmanager
def only_triton(tiling: Tiling | None = SMALL) -> Iterator[None]:
    """Inside, the rule on CUDA launches Triton or fails."""
    refuse = mock.Mock(side_effect=AssertionError("by XLA"))
    with mock.patch.object(cuda, "by_xla", refuse), prefer("triton"), tiled(tiling):
        yield


def by_triton(a: Any, b: Any, dims: Any, **options: Any) -> Any:
    """scaled_dot as its rule on CUDA has it, the kernel in the interpreter."""
    names = ("out", "shift", "bias", "activation", "out_scale", "amax")
    defaults = (np.float32, 0, None, None, None, False)
    values = [options.get(name, default) for name, default in zip(names, defaults, strict=True)]
    operands, params = _prepared(a, b, dims, *values)
    with interpreted(), only_triton():
        results = cuda.on_cuda(*operands, **params)
    with interpreted(), only_triton(SMALL._replace(tma=True, store=True)):
        again = cuda.on_cuda(*operands, **params)
    for one, other in zip(results, again, strict=True):
        np.testing.assert_array_equal(bits(one), bits(other))
    first = results[0]
    if options.get("out_scale") is not None:
        first = ScaledArray(first, jnp.asarray(options["out_scale"], np.float32))
    return (first, results[1]) if options.get("amax") else first


def bits(x: Any) -> np.ndarray:
    return np.atleast_1d(x).view(np.uint8)


def wide(a: ScaledArray, b: ScaledArray, dims: Any) -> tuple[np.ndarray, np.ndarray]:
    """The exact product of what is quantised, in float64, and that of the magnitudes."""
    ((a_contract, b_contract), (a_batch, b_batch)) = dims
    x, y = value(a), value(b)
    left, right = list(range(x.ndim)), list(range(x.ndim, x.ndim + y.ndim))
    for i, k in zip((*a_contract, *a_batch), (*b_contract, *b_batch), strict=True):
        right[k] = left[i]
    free = [i for i in left if i not in (*a_contract, *a_batch)]
    out = [*a_batch, *free, *(i for i in right if i >= x.ndim)]
    with np.errstate(invalid="ignore"):
        return tuple(np.einsum(f(x), left, f(y), right, out) for f in (np.asarray, np.abs))


def value(q: ScaledArray) -> np.ndarray:
    scale, data = np.asarray(q.scale, np.float64), np.asarray(q.data, np.float64)
    if q.block:
        for axis, size in enumerate((1,) * (data.ndim - len(q.block)) + q.block):
            each = np.arange(data.shape[axis]) // size
            scale = np.take(scale, each, axis)
    return data * scale


def assert_product(actual: Any, expected: np.ndarray, magnitude: np.ndarray) -> None:
    """To 1e-5 of the product of magnitudes in float32; else within a unit in the last place."""
    assert actual.shape == expected.shape
    unit = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}[actual.dtype.name]
    error = np.abs(np.asarray(actual, np.float64) - expected)
    bound = 1e-5 * magnitude + unit * np.abs(expected)
    assert np.all(error <= bound), np.max(error / bound)


# --- the numbers

GRAINS: dict[str, tuple[int, ...]] = {
    "tensor": (),
    "row": (1, 288),
    "1x128": (1, 128),
    "128x128": (128, 128),
    "mx": (1, 32),
}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *[("tensor", "tensor"), ("row", "row"), ("row", "tensor"), ("tensor", "row")],
        *[("1x128", "128x128"), ("1x128", "1x128"), ("128x128", "1x128"), ("1x128", "tensor")],
        *[("row", "1x128"), ("mx", "mx"), ("mx", "row"), ("1x128", "mx")],
    ],
)
def test_products_of_every_grain(left: str, right: str) -> None:
    powers = 2.0 ** np.random.default_rng(7).uniform(-12, 12, (37, 288))
    a, b = normal(33, 288) * powers[:33], normal(37, 288, seed=1) * powers
    x, y = (
        quantize(
            v.astype(np.float32),
            E4M3,
            block=GRAINS[grain],
            scale_format=E8M0FNU if grain == "mx" else F32,
        )
        for v, grain in ((a, left), (b, right))
    )
    assert_product(by_triton(x, y, NT), *wide(x, y, NT))


@PAIRS
@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16"])
def test_products_of_every_format(pair: tuple[Format, Format], out: str) -> None:
    a, b = quantize(normal(40, 70), pair[0]), quantize(normal(70, 33, seed=1) * 1e3, pair[1])
    actual = by_triton(a, b, MATMUL, out=out)
    assert actual.dtype == out
    assert_product(actual, *wide(a, b, MATMUL))


@pytest.mark.parametrize("axes", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("grain", ["tensor", "128"])
def test_products_of_every_layout(axes: tuple[int, int], grain: str) -> None:
    """Whichever axis of an operand is summed over, and whether it is turned in the kernel or before
    it (which an operand is that is read more than once).
    """
    dims = (((axes[0],), (axes[1],)), ((), ()))
    for m, n in ((48, 32), (40, 33), (130, 32), (48, 130)):
        x, y = normal(m, 160), normal(n, 160, seed=1)
        a = quantize(x, E4M3, block=(1, 128) if grain == "128" else ())
        b = quantize(y, E4M3, block=(128, 128) if grain == "128" else ())
        a, b = (q if axis else q.T for q, axis in ((a, axes[0]), (b, axes[1])))
        assert_product(by_triton(a, b, dims, out=jnp.bfloat16), *wide(a, b, dims))


@pytest.mark.parametrize(
    ("left", "right", "dims"),
    [
        ((2, 8, 16), (16, 4), (((2,), (0,)), ((), ()))),
        ((2, 8, 5), (2, 8, 3), (((0, 1), (0, 1)), ((), ()))),
        ((2, 8, 5), (8, 3, 2), (((0, 1), (2, 0)), ((), ()))),
        ((2, 8, 3, 5), (2, 7, 3, 5), (((3,), (3,)), ((0, 2), (0, 2)))),
        ((3, 2, 8, 5), (2, 3, 5, 7), (((3,), (2,)), ((1, 0), (0, 1)))),
        ((5,), (5,), (((0,), (0,)), ((), ()))),
        ((3,), (4,), (((), ()), ((), ()))),
        *[((m, k), (k, n), MATMUL) for m, n, k in ((1, 1, 1), (1, 33, 129), (65, 1, 64))],
        ((32, 64), (64, 32), MATMUL),
        ((31, 63), (63, 97), MATMUL),
    ],
    ids=str,
)
@pytest.mark.parametrize("grain", ["tensor", "row"])
def test_products_of_every_shape(left: Any, right: Any, dims: Any, grain: str) -> None:
    """Scales for all, and one for each element along the axes that are not summed over."""
    a, b = (
        quantize(
            normal(*shape, seed=seed),
            E4M3,
            block=() if grain == "tensor" else spans(shape, contracted),
        )
        for shape, contracted, seed in ((left, dims[0][0], 0), (right, dims[0][1], 1))
    )
    assert_product(by_triton(a, b, dims), *wide(a, b, dims))


def spans(shape: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if axis in whole else 1 for axis, n in enumerate(shape))


def test_blocks_over_several_axes() -> None:
    """Blocks along the last of the axes that are merged, and such as no one size describes."""
    dims = (((2, 3), (1, 2)), ((0,), (0,)))
    x, y = normal(2, 5, 3, 64) * 100.0 ** normal(2, 5, 3, 64, seed=3), normal(2, 3, 64, 6, seed=1)
    for block, other in (
        ((1, 1, 1, 32), (1, 1, 32, 1)),
        ((1, 2, 1, 64), (1, 3, 64, 2)),
        ((2, 5, 1, 64), (1, 1, 64, 6)),
    ):
        a = quantize(x.astype(np.float32), E4M3, block=block)
        b = quantize(y, E5M2, block=other)
        assert_product(by_triton(a, b, dims), *wide(a, b, dims))
    rows = (((2,), (1,)), ((), ()))
    a, b = quantize(normal(5, 7, 32), E4M3, block=(2, 3, 32)), quantize(normal(9, 32), E4M3)
    assert_product(by_triton(a, b, rows), *wide(a, b, rows))


@pytest.mark.parametrize("block", [(1, 9, 9, 99), (9, 1, 9, 99), (2, 3, 9, 99), (3, 9, 1, 99)])
def test_scales_that_some_of_a_batch_share(block: tuple[int, ...]) -> None:
    dims = (((3,), (2,)), ((0, 1), (0, 1)))
    powers = 4.0 ** np.arange(20).reshape(4, 5, 1, 1)
    a = quantize((normal(4, 5, 8, 17) * powers).astype(np.float32), E4M3, block=block)
    b = quantize(normal(4, 5, 17, 9, seed=1), E4M3, block=(1, 2, 99, 1))
    assert_product(by_triton(a, b, dims), *wide(a, b, dims))


@pytest.mark.parametrize("shift", [-126, 0, 7])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1e30, 1e-30), (1e-37, 8e37), (1e-20, 1e-12)])
def test_products_of_every_size(a: float, b: float, shift: int) -> None:
    x, y = quantize(normal(8, 64) * np.float32(a), E4M3), quantize(normal(64, 8) * b, E4M3)
    expected, magnitude = (2.0**shift * v for v in wide(x, y, MATMUL))
    normal_range = (magnitude < 2.0**127) & (np.abs(expected) > 2.0**-126)
    actual = np.asarray(by_triton(x, y, MATMUL, shift=shift), np.float64)
    assert np.all((np.abs(actual - expected) <= 1e-5 * magnitude)[normal_range])


@pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)
def test_special_values(format: Format) -> None:
    """NaN and infinities reach their rows and columns alone; zeros and subnormals are numbers."""
    x, y = normal(40, 70), normal(70, 33, seed=1)
    x[1, 2], x[3, 0], x[36, 69], y[5, 32] = np.inf, np.nan, -np.inf, np.nan
    x[5], x[6] = 0, 1e-40
    x[7, :8], y[:, 4] = 2.0**-9 * np.arange(8), 1e-3  # subnormals of FP8
    for scale in (None, 1.0):
        a = quantize(x, format, scale=scale)
        b = quantize(y, E4M3, scale=scale)
        expected, magnitude = wide(a, b, MATMUL)
        actual = np.asarray(by_triton(a, b, MATMUL))
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        np.testing.assert_array_equal(actual[np.isinf(expected)], expected[np.isinf(expected)])
        error = np.abs(actual[finite] - expected[finite])
        assert np.all(error <= 1e-5 * magnitude[finite])
        assert finite.sum() == 37 * 32


def test_nothing_to_multiply() -> None:
    """With K = 0 the product is zeros, and what follows it is done to them."""
    bias = normal(3, seed=2)
    for m, n, k in ((0, 3, 4), (4, 3, 0), (4, 0, 8)):
        a, b = quantize(normal(m, k), E4M3), quantize(normal(k, n), E4M3)
        operands, params = _prepared(a, b, MATMUL, np.float32, 0, bias[:n], "silu", None, True)
        with interpreted(), prefer("triton"):
            result, amax = cuda.on_cuda(*operands, **params)
        expected = np.broadcast_to(np.asarray(jax.nn.silu(bias[:n])), (m, n))
        np.testing.assert_array_equal(result, expected)
        assert amax == np.max(np.abs(expected), initial=0)


@PAIRS
@pytest.mark.parametrize("grain", ["tensor", "1x128"])
def test_signal_to_noise(pair: tuple[Format, Format], grain: str) -> None:
    """Against what the numbers were before they were rounded: 28 dB, 24 with E5M2."""
    x, w = normal(48, 256), normal(256, 48, seed=1)
    x[:, 7] *= 10  # an outlier
    block = () if grain == "tensor" else (1, 128)
    a, b = quantize(x, pair[0], block=block), quantize(w, pair[1], block=block[::-1])
    floor = 24 if E5M2 in pair else 28
    for out in (jnp.float32, jnp.bfloat16):
        actual = by_triton(a, b, MATMUL, out=out)
        assert decibels(actual, x.astype(np.float64) @ w.astype(np.float64)) >= floor


# --- what follows the product


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("out", [jnp.float32, jnp.bfloat16])
def test_bias_and_activation(activation: str | None, out: Any) -> None:
    a, b = quantize(normal(40, 70), E4M3), quantize(normal(70, 33, seed=1) / 4, E4M3)
    bias = normal(33, seed=2).astype(jnp.bfloat16)
    options = {"bias": bias, "activation": activation, "amax": True}
    actual, amax = by_triton(a, b, MATMUL, out=out, **options)
    expected, largest = scaled_dot_reference(a, b, MATMUL, **options)
    _, magnitude = wide(a, b, MATMUL)
    assert_product(actual, np.asarray(expected, np.float64), magnitude + 1)
    np.testing.assert_allclose(amax, largest, rtol=1e-5)
    np.testing.assert_array_equal(largest, np.max(np.abs(expected)))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations_of_every_size(activation: str) -> None:
    """To 1e-5 of themselves where a difference of near numbers would lose them, and at the ends."""
    x = np.concatenate([np.linspace(-9, 9, 1001), [0.0, 1e30, 3e38, np.inf, np.nan]])
    x = x.astype(np.float32)
    one = quantize(np.zeros((1, 1), np.float32), E4M3)
    zeros = quantize(np.zeros((1, len(x)), np.float32), E4M3)
    actual = by_triton(one, zeros, MATMUL, bias=x, activation=activation)[0]
    with jax.enable_x64(True), np.errstate(over="ignore"):
        v = jnp.asarray(x, jnp.float64)
        u = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
        expected = {
            "relu": lambda: jax.nn.relu(v),
            "gelu": lambda: jax.nn.gelu(v, approximate=False),
            "gelu_tanh": lambda: v * jax.nn.sigmoid(2 * u),
            "silu": lambda: jax.nn.silu(v),
        }[activation]()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_eight_bits_out(format: Format, activation: str | None) -> None:
    """Bit for bit what rounding the result would give: of small integers, any sum is exact."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-8, 9, s).astype(np.float32) for s in ((40, 70), (70, 33)))
    bias = rng.integers(-400, 400, 33).astype(np.float32)
    bias[:4] = np.inf, -np.inf, np.nan, 0.5
    a, b = quantize(x, E4M3, scale=1.0), quantize(y, E4M3, scale=1.0)
    for scale in (2.0**-8, 0.5, 4.0):
        options = {"bias": bias, "activation": activation, "amax": True}
        actual, amax = by_triton(a, b, MATMUL, out=format.dtype, out_scale=scale, **options)
        plain, largest = scaled_dot_reference(a, b, MATMUL, **options)
        expected = quantize_reference(plain, format, scale=scale)
        kernel, cpu = (np.asarray(q.data) for q in (actual, expected))
        nan = np.isnan(cpu.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(kernel.astype(np.float32)), nan)
        np.testing.assert_array_equal(kernel.view(np.uint8)[~nan], cpu.view(np.uint8)[~nan])
        assert actual.scale == scale
        assert amax == largest == np.max(np.abs(plain), where=np.isfinite(plain), initial=0)


def test_a_largest_for_each_of_a_batch() -> None:
    dims = (((2,), (1,)), ((0,), (0,)))
    a, b = quantize(normal(3, 40, 33), E4M3), quantize(normal(3, 33, 35, seed=1), E4M3)

    def one(x: ScaledArray, y: ScaledArray) -> Any:
        return scaled_dot(x, y, MATMUL, amax=True)

    jaxpr = jax.make_jaxpr(jax.vmap(one, in_axes=(ScaledArray(0, None), ScaledArray(0, None))))(
        a, b
    )
    (equation,) = (e for e in jaxpr.eqns if e.primitive.name == "precir_scaled_dot")
    with interpreted(), only_triton():
        operands = (a.data, jnp.broadcast_to(a.scale, 3), b.data, jnp.broadcast_to(b.scale, 3))
        product, amax = cuda.on_cuda(*operands, **equation.params)
    expected, magnitude = wide(a, b, dims)
    assert_product(product, expected, magnitude)
    np.testing.assert_allclose(amax, np.max(np.abs(expected), (1, 2)), rtol=1e-5)


def test_a_bias_for_all_of_several_weights() -> None:
    """What `jax.vmap` over b alone asks for: b has one free axis more than the bias."""
    a, b, bias = quantize(normal(40, 33), E4M3), normal(3, 33, 20, seed=1), normal(20, seed=2)
    each = [quantize(x, E4M3) for x in b]

    def one(y: ScaledArray) -> Any:
        return scaled_dot(a, y, MATMUL, bias=bias)

    stack = jax.tree.map(lambda *x: jnp.stack(x), *each)
    (equation,) = (
        e for e in jax.make_jaxpr(jax.vmap(one))(stack).eqns
        if e.primitive.name == "precir_scaled_dot"
    )  # fmt: skip
    with interpreted(), only_triton():
        extra = jnp.asarray(bias).reshape(1, 1, 20)
        operands = (a.data, a.scale, stack.data, stack.scale, extra)
        (found,) = cuda.on_cuda(*operands, **equation.params)
    for i, y in enumerate(each):
        expected, magnitude = wide(a, y, MATMUL)
        assert_product(found[:, i], expected + bias, magnitude + 1)


@pytest.mark.parametrize(
    ("axes", "bias_axis"),
    [((0, None), None), ((None, 0), 1), ((0, 0), 0), ((2, 1), None), ((None, None), 0)],
    ids=str,
)
@pytest.mark.parametrize("narrow", [False, True])
def test_vmap_is_a_loop(axes: Any, bias_axis: int | None, narrow: bool) -> None:
    x, y, bias = normal(8, 16), normal(16, 4, seed=1), normal(4, seed=2)
    args = [
        v if axis is None else np.stack([v * 3.0**i for i in range(3)], axis).astype(np.float32)
        for v, axis in zip((x, y, bias), (*axes, bias_axis), strict=True)
    ]
    scales = jnp.asarray([0.25, 1.0, 8.0])

    def f(x: Any, y: Any, bias: Any, scale: Any) -> Any:
        a, b = quantize(x, E4M3), quantize(y, E5M2)
        options = {"out": E4M3.dtype, "out_scale": scale} if narrow else {}
        result, amax = scaled_dot(a, b, MATMUL, bias=bias, activation="gelu", amax=True, **options)
        return (result.unscale() if narrow else result), amax

    results, amax = jax.vmap(f, in_axes=(*axes, bias_axis, 0))(*args, scales)
    for i in range(3):
        each = [
            v if axis is None else np.take(v, i, axis)
            for v, axis in zip(args, (*axes, bias_axis), strict=True)
        ]
        one, largest = f(*each, scales[i])
        np.testing.assert_allclose(results[i], one, rtol=0.13 if narrow else 1e-5, atol=1e-4)
        np.testing.assert_allclose(amax[i], largest, rtol=1e-5)


def test_no_option_gives_a_derivative() -> None:
    a, b = quantize(normal(4, 4), E4M3), quantize(normal(4, 3), E4M3)
    with pytest.raises(DerivativeError, match="custom_vjp"):
        jax.grad(lambda bias: scaled_dot(a, b, MATMUL, bias=bias, activation="gelu").sum())(
            jnp.ones(3)
        )


def test_what_the_options_refuse() -> None:
    a, b = quantize(normal(4, 4), E4M3), quantize(normal(4, 3), E4M3)
    for options, message in (
        ({"activation": "tanh"}, "relu, gelu"),
        ({"bias": jnp.ones(4)}, r"free axes of b, here \(3,\)"),
        ({"bias": jnp.ones(3, jnp.int32)}, "floating dtype"),
        ({"out_scale": 1.0}, "not float32"),
        ({"out_scale": 1.0, "out": jnp.bfloat16}, "not bfloat16"),
    ):
        with pytest.raises(ScaledDotError, match=message):
            scaled_dot(a, b, MATMUL, **options)


# --- the code


def types(m: int, n: int, k: int, pair: tuple[Format, Format]) -> list[Any]:
    shapes = ((m, k), (n, k))
    return [jax.ShapeDtypeStruct(s, f.dtype) for s, f in zip(shapes, pair, strict=True)]


def compiled(
    pair: Any,
    blocks: Any,
    shape: tuple[int, int, int],
    tiling: Tiling | None = None,
    **options: Any,
) -> Any:
    """The kernel of a product of ``shape`` (M, N, K), for Hopper."""
    from precir.scaled import scale_shape

    data = types(*shape, pair)
    scales = [
        jax.ShapeDtypeStruct(scale_shape(x.shape, block), np.float32)
        for x, block in zip(data, blocks, strict=True)
    ]

    def f(x: Any, s: Any, y: Any, t: Any) -> Any:
        a, b = ScaledArray(x, s, blocks[0]), ScaledArray(y, t, blocks[1])
        return scaled_dot(a, b, NT, **options)

    with only_triton(tiling):
        _, (kernel,) = lower_for_cuda(f, data[0], scales[0], data[1], scales[1])
    return kernel


def loop(ptx: str) -> str:
    """What is done between one step of products and the next."""
    after = ptx[ptx.index("wgmma.wait_group") :]
    return after[: after.index("bra")]


CODE = {
    "tensor": (((), ()), {"out": BF16.dtype}),
    "1x128,128x128": (((1, 128), (128, 128)), {"out": BF16.dtype}),
    "1x128,1x128": (((1, 128), (1, 128)), {"out": F16.dtype, "activation": "silu"}),
    "mx": (((1, 32), (1, 32)), {"out": F32.dtype}),
    "row": (
        ((1, 1024), (1, 1024)),
        {"out": E4M3.dtype, "out_scale": 1.0, "activation": "gelu", "amax": True, "bias": True},
    ),
    "ragged": (
        ((1, 128), (1, 128)),
        {"out": E4M3.dtype, "out_scale": 1.0, "activation": "gelu", "amax": True, "bias": True},
    ),
}


@pytest.mark.parametrize(
    ("pair", "form"),
    [*[((E4M3, E4M3), f) for f in CODE], ((E4M3, E5M2), "tensor"), ((E5M2, E4M3), "1x128,1x128")],
    ids=str,
)
def test_hopper_multiplies_in_eight_bits(pair: Any, form: str) -> None:
    blocks, options = CODE[form]
    shape = (1000, 1001, 1000) if form == "ragged" else (512, 512, 1024)
    if "bias" in options:
        options = {**options, "bias": np.ones(shape[1], np.float32)}
    kernel = compiled(pair, blocks, shape, **options)
    names = ".".join({E4M3: "e4m3", E5M2: "e5m2"}[f] for f in pair)
    assert f"wgmma.mma_async.sync.aligned.m64n128k32.f32.{names}" in kernel.ptx
    assert "cp.async.cg.shared.global" in kernel.ptx  # 16 bytes at a time, ahead of the products
    scaled_inside = any(block and block[1] < 1024 for block in blocks)
    assert ("fma.rn.f32" in loop(kernel.ptx)) == scaled_inside
    assert ("add.rn.f32" in loop(kernel.ptx)) != scaled_inside  # the sum of sums is in float32
    assert kernel.shared <= SHARED_MEMORY
    assert kernel.resources()["spilled"] <= (SPILLED if form == "ragged" else 0)
