"""quantize and scaled_dot against numpy and ml_dtypes, and under JAX's transformations."""

import math
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from precir.errors import DerivativeError
from precir.formats import F16, Format, UnknownFormat
from precir.kernels import E4M3, E5M2, ScaledArray, quantize, scaled_dot
from precir.kernels.quantize import QuantizeError, power_of_two_scale, quantize_reference
from precir.kernels.scaled_dot import ScaledDotError, scaled_dot_reference
from precir.kernels.scaled_dot_cuda import _scaled
from precir.kernels.scaled_dot_cuda import by_xla as _on_cuda
from tests.crosslower import lower_for_cuda

FORMATS = pytest.mark.parametrize("format", [E4M3, E5M2], ids=str)
MATMUL = (((1,), (0,)), ((), ()))
_SPECIAL = (
    "0 -0.0 1 -1 448 449 464 465 480 57344 61439 61440 65536 0x1p-6 0x1p-9 0x1p-10 0x1.8p-10 "
    "0x1p-14 0x1p-16 0x1p-17 1e-30 -1e-30 1e30 0x1p-126 -1.5e-38 3.4e38 1e-40 inf -inf nan"
)
SPECIAL = np.array(
    [float.fromhex(s) if "x" in s else float(s) for s in _SPECIAL.split()], np.float32
)


def quantized(x: np.ndarray, format: Format) -> tuple[np.ndarray, float]:
    """quantize, in numpy, from its definition."""
    wide = x.astype(np.float32)
    wide = np.where(np.abs(wide) < 2.0**-126, np.copysign(np.float32(0), wide), wide)
    amax = float(np.max(np.abs(wide), where=np.isfinite(wide), initial=0))
    scale = 1.0
    if amax > 0:
        scale = 2.0 ** math.ceil(math.log2(amax / format.max))
        scale *= 2.0 if amax / scale > format.max else 1.0
        scale = max(scale, 2.0**-126)
    with np.errstate(invalid="ignore", over="ignore"):
        return (wide.astype(np.float64) / scale).astype(np.float32).astype(format.dtype), scale


def assert_quantized(actual: ScaledArray, x: np.ndarray, format: Format) -> None:
    data, scale = quantized(x, format)
    assert actual.scale.dtype == jnp.float32
    assert float(actual.scale) == scale
    assert_same_bits(np.asarray(actual.data), data)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(actual.astype(np.float32)), nan)
    np.testing.assert_array_equal(actual.view(np.uint8)[~nan], expected.view(np.uint8)[~nan])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- formats and scales


def test_golden_scales() -> None:
    amax = [1, 10, 32, 448, 449, 10000, 0, np.inf, np.nan, 1e-40, 2**-126, -1]
    golden = [2**-8, 2**-5, 2**-3, 1, 2, 2**5, 1, 1, 1, 1, 2**-126, 1]
    assert power_of_two_scale(jnp.asarray(amax, jnp.float32), E4M3).tolist() == golden
    assert power_of_two_scale(jnp.asarray([1.0, 57344]), E5M2).tolist() == [2**-15, 1]
    assert power_of_two_scale(jnp.asarray([1.0, 65504, 65505]), F16).tolist() == [2**-15, 1, 2]


@FORMATS
def test_scale_is_the_smallest_without_overflow(format: Format) -> None:
    bits = np.random.default_rng(0).integers(1 << 23, 0x7F800000, 100_000, np.int32)
    edges = np.float32(format.max) * 2.0 ** np.arange(-120, 110).astype(np.float32)
    edges = np.concatenate([np.nextafter(edges, np.float32(d)) for d in (0, 1, np.inf)])
    amax = np.concatenate([bits.view(np.float32), edges, edges.astype(np.float32)])
    amax = amax[(amax >= 2.0**-126) & np.isfinite(amax)].astype(np.float32)
    scale = np.asarray(power_of_two_scale(jnp.asarray(amax), format))
    assert np.all(np.frexp(scale)[0] == 0.5)
    assert np.all((scale >= 2.0**-126) & (1 / scale >= 2.0**-126))
    ratio = amax.astype(np.float64) / scale
    assert np.all(ratio <= format.max)
    assert np.all((ratio > format.max / 2) | (scale == 2.0**-126))


# --- quantize


@FORMATS
@given(st.lists(st.floats(width=32) | st.sampled_from(SPECIAL.tolist()), max_size=16))
def test_quantize_any_values(format: Format, values: list[float]) -> None:
    x = np.zeros(16, np.float32)
    x[: len(values)] = values
    assert_quantized(quantize(jnp.asarray(x), format), x, format)


@FORMATS
@pytest.mark.parametrize("size", [0, 1e-38, 1e-30, 1e-12, 1, 448, 1e4, 1e30, 8e37])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_quantize_sizes(format: Format, size: float, dtype: str) -> None:
    with jax.enable_x64(True), np.errstate(over="ignore"):
        x = (normal(16, 24).astype(np.float64) * size).astype(jnp.dtype(dtype))
        assert_quantized(quantize(jnp.asarray(x), format), x, format)


@FORMATS
def test_quantize_every_bfloat16(format: Format) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)
    assert_quantized(quantize(jnp.asarray(every), format), every, format)
    for exponent in range(-126, 127, 9):  # tensors of every size, under a scale of their own
        with np.errstate(invalid="ignore"):
            x = np.where(np.abs(every) <= 2.0**exponent, every, 0).astype(jnp.bfloat16)
        assert_quantized(quantize(jnp.asarray(x), format), x, format)


@FORMATS
def test_special_values_keep_to_themselves(format: Format) -> None:
    x = np.array([1, np.inf, -np.inf, np.nan, -2], np.float32)
    q = quantize(jnp.asarray(x), format)
    assert float(q.scale) == float(quantize(jnp.asarray([1.0, -2.0]), format).scale)
    inf = np.inf if format.has_inf else np.nan
    np.testing.assert_array_equal(q.unscale(), [1, inf, -inf, np.nan, -2])


@FORMATS
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)], ids=str)
def test_quantize_shapes(format: Format, shape: tuple[int, ...]) -> None:
    x = np.full(shape, 3.0, np.float32)
    assert_quantized(quantize(jnp.asarray(x), format), x, format)
    assert_quantized(jax.jit(quantize, static_argnums=1)(x, format), x, format)


def test_quantize_takes_names_and_refuses_the_rest() -> None:
    x = jnp.ones(3)
    assert quantize(x, "e5m2").dtype == quantize(2.0, jnp.float8_e5m2).dtype == jnp.float8_e5m2
    assert quantize(x, "bf16").dtype == jnp.bfloat16
    with pytest.raises(QuantizeError, match="not float64"):
        quantize(x, "f64")
    with pytest.raises(QuantizeError, match="not int32"):
        quantize(jnp.ones(3, jnp.int32), E4M3)
    with pytest.raises(QuantizeError, match="not float8_e4m3fn"):
        quantize(x.astype(E4M3.dtype), E4M3)
    with pytest.raises(UnknownFormat):
        quantize(x, "fp8")


@FORMATS
def test_quantize_is_its_reference(format: Format) -> None:
    for x in (SPECIAL, normal(33, 5), normal(0)):
        for dtype in (jnp.float32, jnp.bfloat16):
            actual = quantize(x.astype(dtype), format)
            expected = jax.jit(quantize_reference, static_argnums=1)(x.astype(dtype), format)
            assert_same_bits(np.asarray(actual.data), np.asarray(expected.data))
            assert actual.scale == expected.scale


# --- scaled_dot

DIMENSION_NUMBERS = [
    ((8, 16), (16, 4), MATMUL),
    ((8, 16), (4, 16), (((1,), (1,)), ((), ()))),
    ((16, 8), (16, 4), (((0,), (0,)), ((), ()))),
    ((2, 8, 16), (16, 4), (((2,), (0,)), ((), ()))),
    ((2, 8, 5), (2, 8, 3), (((0, 1), (0, 1)), ((), ()))),
    ((2, 8, 3, 5), (2, 7, 3, 5), (((3,), (3,)), ((0, 2), (0, 2)))),
    ((5,), (5,), (((0,), (0,)), ((), ()))),
    ((3,), (4,), (((), ()), ((), ()))),
    ((4, 0), (0, 3), MATMUL),
    ((0, 4), (4, 3), MATMUL),
]


def product(a: ScaledArray, b: ScaledArray, dims: object) -> tuple[np.ndarray, np.ndarray]:
    """The exact product in float64, and that of the magnitudes."""
    with jax.enable_x64(True):
        wide = [x.unscale(jnp.float64) for x in (a, b)]
        dot = partial(lax.dot_general, dimension_numbers=dims)
        return np.asarray(dot(*wide)), np.asarray(dot(*map(jnp.abs, wide)))


def assert_product(actual: jax.Array, a: ScaledArray, b: ScaledArray, dims: object) -> None:
    expected, magnitude = product(a, b, dims)
    assert actual.shape == expected.shape
    tolerance = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-10}[actual.dtype.name]
    error = np.abs(np.asarray(actual, np.float64) - expected)
    assert np.all(error <= tolerance * magnitude), np.max(error / magnitude)


@pytest.mark.parametrize("case", DIMENSION_NUMBERS, ids=str)
def test_products_of_every_shape(case: tuple) -> None:
    a, b, dims = quantize(normal(*case[0]), E4M3), quantize(normal(*case[1], seed=1), E5M2), case[2]
    actual = scaled_dot(a, b, dims)
    assert_product(actual, a, b, dims)
    reference = jax.jit(scaled_dot_reference, static_argnums=2)
    np.testing.assert_array_equal(actual, reference(a, b, dims))


@pytest.mark.parametrize("pair", [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3)], ids=str)
@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16"])
def test_products_of_every_format(pair: tuple[Format, Format], out: str) -> None:
    a, b = quantize(normal(8, 16), pair[0]), quantize(normal(16, 4, seed=1) * 1e3, pair[1])
    actual = scaled_dot(a, b, MATMUL, out=out)
    reference = jax.jit(scaled_dot_reference, static_argnums=2, static_argnames="out")
    np.testing.assert_array_equal(actual, reference(a, b, MATMUL, out=out))
    operands = (a.data, a.scale, b.data, b.scale)
    on_cuda = _on_cuda(*operands, dimension_numbers=MATMUL, out=np.dtype(jnp.dtype(out)))[0]
    for result in (actual, on_cuda):
        assert result.dtype == out
        assert_product(result, a, b, MATMUL)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *[(1, 0), (0, 0), (1e30, 1e-30), (1e-30, 1e30), (1e-30, 1), (1e30, 1e5)],
        *[(1e-20, 1e-12), (8e37, 1e-37), (1e-37, 8e37), (1e-37, 1e3)],
    ],
)
def test_products_of_every_size(a: float, b: float) -> None:
    x, y = quantize(normal(8, 64) * np.float32(a), E4M3), quantize(normal(64, 8) * b, E4M3)
    assert_product(scaled_dot(x, y, MATMUL), x, y, MATMUL)
    operands = (x.data, x.scale, y.data, y.scale)
    on_cuda = partial(_on_cuda, dimension_numbers=MATMUL, out=np.dtype(np.float32))
    assert_product(jax.jit(on_cuda)(*operands)[0], x, y, MATMUL)


def test_scaling_after_the_product_never_meets_the_limits() -> None:
    """_scaled is exact where product, scales and result are normal, whatever lies between."""
    grid = np.arange(-126, 127, 21)
    p, a, b = (2.0**e for e in np.meshgrid(np.arange(-18, 40, 8), grid, grid))
    exact = p * a * b
    inside = (exact >= 2.0**-126) & (exact < 2.0**128)
    actual = jax.jit(jax.vmap(_scaled))(*(v[inside].astype(np.float32) for v in (p, a, b)))
    np.testing.assert_array_equal(actual, exact[inside])


def test_infinities_and_nans_show_in_the_product() -> None:
    y = quantize(normal(4, 3), E4M3)
    x = normal(5, 4)
    x[1, 2], x[3, 0] = np.inf, np.nan
    for format in (E4M3, E5M2):
        bad = ~np.isfinite(np.asarray(scaled_dot(quantize(x, format), y, MATMUL)))
        assert bad[[1, 3]].all()
        assert not bad[[0, 2, 4]].any()


def test_what_scaled_dot_refuses() -> None:
    a, b = quantize(normal(4, 4), E5M2), quantize(normal(4, 4), E4M3)
    with pytest.raises(ScaledDotError, match="two float8_e5m2"):
        scaled_dot(a, a, MATMUL)
    with pytest.raises(ScaledDotError, match="not float"):
        scaled_dot(a, 1.0, MATMUL)
    with pytest.raises(ScaledDotError, match=r"plain arrays of .* not float8_e4m3fn"):
        scaled_dot(a, b.data, MATMUL)
    with pytest.raises(ScaledDotError, match="not float32"):
        scaled_dot(a, ScaledArray(jnp.ones((4, 4)), b.scale), MATMUL)
    for shift in (127, 0.5):
        with pytest.raises(ScaledDotError, match="whole number from -126"):
            scaled_dot(a, b, MATMUL, shift=shift)
    with pytest.raises(TypeError, match="contract"):
        scaled_dot(a, quantize(normal(3, 4), E4M3), MATMUL)


# --- under transformations


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return scaled_dot(quantize(x, E4M3), quantize(y, E5M2), MATMUL)


def test_vmap_has_a_scale_per_example() -> None:
    x = normal(3, 8, 16) * np.float32([1, 1e3, 1e-20])[:, None, None]
    q = jax.vmap(lambda x: quantize(x, E4M3), in_axes=1)(np.moveaxis(x, 0, 1))
    assert q.scale.shape == (3,)
    for i in range(3):
        assert_quantized(ScaledArray(q.data[i], q.scale[i]), x[i], E4M3)
    nested = jax.vmap(jax.vmap(lambda x: quantize(x, E5M2)))(x)
    assert nested.scale.shape == (3, 8)
    assert_quantized(ScaledArray(nested.data[1, 2], nested.scale[1, 2]), x[1, 2], E5M2)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (2, 1), (1, None)], ids=str)
def test_vmap_is_a_loop(axes: tuple[int | None, int | None]) -> None:
    x, y = normal(8, 16), normal(16, 4, seed=1)
    if axes[0] is not None:
        x = np.stack([x * 10.0**i for i in range(3)], axes[0])
    if axes[1] is not None:
        y = np.stack([y * 10.0 ** (4 * i) for i in range(3)], axes[1])
    batched = jax.vmap(dot, in_axes=axes)(x, y)
    for i in range(3):
        one_x = x if axes[0] is None else np.take(x, i, axes[0])
        one_y = y if axes[1] is None else np.take(y, i, axes[1])
        np.testing.assert_allclose(batched[i], dot(one_x, one_y), rtol=1e-5, atol=1e-30)


def test_nested_vmap_is_a_loop() -> None:
    x, y = normal(2, 3, 8, 16), normal(3, 16, 4, seed=1)
    inner = jax.vmap(dot)
    batched = jax.vmap(inner, in_axes=(0, None))(x, y)
    every = jax.vmap(jax.vmap(dot, in_axes=(None, 0)), in_axes=(0, None))(x[:, 0], y)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(batched[i, j], dot(x[i, j], y[j]), rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(every[i, j], dot(x[i, 0], y[j]), rtol=1e-5, atol=1e-4)


def test_vmap_over_some_of_the_leaves() -> None:
    a, b = quantize(normal(8, 16), E4M3), quantize(normal(16, 4, seed=1), E5M2)
    scales = jnp.asarray([0.5, 2.0, 4.0])
    only_scale = jax.vmap(lambda s: scaled_dot(ScaledArray(a.data, s), b, MATMUL))(scales)
    other_scale = jax.vmap(lambda s: scaled_dot(a, ScaledArray(b.data, s), MATMUL))(scales)
    data = jnp.stack([a.data] * 3)
    only_data = jax.vmap(lambda d: scaled_dot(ScaledArray(d, a.scale), b, MATMUL))(data)
    both = jax.vmap(lambda d, s: scaled_dot(ScaledArray(d, s), b, MATMUL))(data, scales)
    for i in range(3):
        expected = scaled_dot(a, b, MATMUL)
        kw = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(only_scale[i], expected / a.scale * scales[i], **kw)
        np.testing.assert_allclose(other_scale[i], expected / b.scale * scales[i], **kw)
        np.testing.assert_allclose(only_data[i], expected, **kw)
        np.testing.assert_allclose(both[i], expected / a.scale * scales[i], **kw)


def test_control_flow() -> None:
    x, w = normal(8, 16), normal(16, 16, seed=1)
    expected = dot(x, w)
    np.testing.assert_array_equal(jax.jit(dot)(x, w), expected)
    np.testing.assert_array_equal(jax.checkpoint(dot)(x, w), expected)
    chosen = jax.jit(lambda p: lax.cond(p, dot, lambda x, w: x @ w, x, w))
    np.testing.assert_array_equal(chosen(True), expected)
    last, _ = jax.jit(lambda x: lax.scan(lambda c, _: (dot(c, w), None), x, None, length=3))(x)
    np.testing.assert_allclose(last, dot(dot(expected, w), w), rtol=1e-6)


def test_a_scaled_array_through_scan() -> None:
    x = normal(5, 8, 16)
    w = quantize(normal(16, 4, seed=1), E5M2)
    q = jax.vmap(lambda x: quantize(x, E4M3))(x)
    _, ys = lax.scan(lambda carry, q: (carry, scaled_dot(q, w, MATMUL)), 0, q)
    for i in range(5):
        np.testing.assert_allclose(ys[i], scaled_dot(quantize(x[i], E4M3), w, MATMUL), rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma: bool) -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    x, w = normal(8, 16), normal(16, 4, seed=1)
    sharded = jax.shard_map(
        dot, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), check_vma=check_vma
    )
    actual = jax.jit(sharded)(x, w)
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)
        np.testing.assert_allclose(actual[rows], dot(x[rows], w), rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_operands(kind: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x = jax.device_put(normal(8, 16), P("d"))
        w = jax.device_put(normal(16, 4, seed=1), P())
        actual = jax.jit(dot)(x, w)
        assert actual.sharding.spec[0] == "d"
    np.testing.assert_allclose(actual, dot(normal(8, 16), normal(16, 4, seed=1)), rtol=1e-6)


def test_a_derivative_is_refused() -> None:
    x, w = normal(8, 16), normal(16, 4, seed=1)
    with pytest.raises(DerivativeError, match="custom_vjp"):
        jax.grad(lambda x: dot(x, w).sum())(x)
    held = jax.grad(lambda x: (x.sum() * dot(lax.stop_gradient(x), w)).sum())(x)
    assert np.isfinite(held).all()


# --- the seam


def test_cuda_keeps_the_product_in_fp8() -> None:
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    y = jax.ShapeDtypeStruct((16, 4), jnp.float32)

    def lowered(out: object) -> str:
        def f(x: jax.Array, y: jax.Array) -> jax.Array:
            return scaled_dot(quantize(x, E4M3), quantize(y, E5M2), MATMUL, out=out)

        return jax.jit(f).trace(x, y).lower(lowering_platforms=("cuda",)).as_text()

    operands = r"stablehlo.dot_general .*\(tensor<8x16xf8E4M3FN>, tensor<16x4xf8E5M2>\)"
    for out, result in ((jnp.float32, "f32"), (jnp.bfloat16, "bf16"), (jnp.float16, "f32")):
        assert re.search(rf"{operands} -> tensor<8x4x{result}>", lowered(out))
    both = jax.jit(dot).trace(x, y).lower(lowering_platforms=("cuda", "cpu")).as_text()
    assert re.search(operands, both)


def test_one_name_only() -> None:
    run = subprocess.run([sys.executable, "-c", "import kernels"], capture_output=True, text=True)
    assert "import precir.kernels" in run.stderr


@pytest.mark.parametrize("block", [(), (1, 128)])
def test_fused_quantisation_is_the_same_and_binds_no_kernel(block: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), (4, 200)) * 3
    one, other = quantize(x, E4M3, block=block), quantize(x, E4M3, block=block, fused=True)
    np.testing.assert_array_equal(one.data.view(np.uint8), other.data.view(np.uint8))
    np.testing.assert_array_equal(one.scale, other.scale)
    ours, kernels = lower_for_cuda(partial(quantize, format=E4M3, block=block, fused=True), x)
    assert not kernels
    assert "custom_call" not in ours
    over = jax.vmap(partial(quantize, format=E4M3, block=block[1:], fused=True))(x)
    apart = jax.vmap(partial(quantize, format=E4M3, block=block[1:]))(x)
    np.testing.assert_array_equal(over.data.view(np.uint8), apart.data.view(np.uint8))
    with pytest.raises(DerivativeError):
        jax.grad(lambda x: quantize(x, E4M3, fused=True).unscale().sum())(x)
