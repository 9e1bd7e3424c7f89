"""Scales of every reach: blocks, rows, MX; given scales; products of what they scale."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax import numpy as jnp

from precir.formats import BF16, E4M3, E5M2, E8M0FNU, F16, F32, Format, power_of_two
from precir.kernels import ScaledArray, quantize, scaled_dot
from precir.kernels.quantize import QuantizeError, power_of_two_scale, quantize_reference
from precir.kernels.scaled_dot import _prepared
from precir.kernels.scaled_dot_cuda import by_xla as _on_cuda
from precir.scaled import ScaleError

NARROW = (E4M3, E5M2, F16, BF16)
FORMATS = pytest.mark.parametrize("format", NARROW, ids=str)
MATMUL = (((1,), (0,)), ((), ()))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def uneven(*shape: int, seed: int = 0) -> np.ndarray:
    """Every element of a size of its own."""
    powers = np.random.default_rng(seed + 1).uniform(-20, 20, shape)
    return (normal(*shape, seed=seed) * 2.0**powers).astype(np.float32)


def decibels(actual: Any, expected: np.ndarray) -> float:
    error = np.asarray(actual, np.float64) - expected
    return 10 * math.log10(np.mean(expected**2) / np.mean(error**2))


# --- scales

GOLDEN = {
    E4M3: {1: -8, 10: -5, 32: -3, 448: 0, 449: 1, 10000: 5},
    E5M2: {1: -15, 10: -12, 32: -10, 57344: 0, 57345: 1},
    F16: {1: -15, 10: -12, 65504: 0, 65505: 1, 10000: -2},
    BF16: {1: 0, 1.5: 1, 0.5: -1, 10: 4, 10000: 14, 3e38: 126},
}


@FORMATS
def test_golden_scales(format: Format) -> None:
    golden = {float(np.float32(a)): 2.0**e for a, e in GOLDEN[format].items()}
    for special in (0.0, -1.0, math.inf, math.nan, 1e-40):
        golden[special] = 1.0
    golden[2.0**-126] = 2.0**-126
    scales = power_of_two_scale(jnp.asarray(list(golden), jnp.float32), format)
    assert scales.tolist() == list(golden.values())
    assert [power_of_two(amax, format) for amax in golden] == list(golden.values())


@FORMATS
@given(bits=st.integers(0, 2**32 - 1))
def test_scale_of_any_amax(format: Format, bits: int) -> None:
    amax = np.uint32(bits).view(np.float32)
    scale = power_of_two(float(amax), format)
    assert scale == float(power_of_two_scale(jnp.asarray(amax), format))
    assert math.frexp(scale)[0] == 0.5
    assert 2.0**-126 <= scale <= 2.0**126
    if amax >= 2.0**-126 and np.isfinite(amax):
        assert float(amax) / scale <= format.max
        tighter = float(amax) / (scale / 2) > format.largest_scaled
        assert tighter or scale == 2.0**-126 or format is BF16


# --- quantize

BLOCKS = [
    ((8, 16), (1, 4)),
    ((8, 16), (4, 4)),
    ((8, 16), (1, 16)),
    ((8, 16), (100, 1)),
    ((7, 13), (3, 5)),
    ((2, 7, 13), (3, 5)),
    ((13,), (4,)),
    ((3, 5, 6), (1, 1, 32)),
    ((0, 4), (1, 2)),
    ((4, 0), (1, 2)),
]


def blockwise(x: np.ndarray, block: tuple[int, ...], format: Format) -> ScaledArray:
    """Quantize of a block, one by one."""
    full = (1,) * (x.ndim - len(block)) + block
    counts = tuple(-(-n // b) for n, b in zip(x.shape, full, strict=True))
    data, scale = np.zeros(x.shape, format.dtype), np.ones(counts, np.float32)
    for at in np.ndindex(counts):
        part = tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, full, strict=True))
        one = quantize_reference(x[part], format)
        data[part], scale[at] = np.asarray(one.data), float(one.scale)
    return ScaledArray(jnp.asarray(data), jnp.asarray(scale), block)


def assert_same(actual: ScaledArray, expected: ScaledArray) -> None:
    assert actual.block == expected.block
    assert actual.scale.dtype == expected.scale.dtype
    np.testing.assert_array_equal(np.asarray(actual.scale), np.asarray(expected.scale))
    assert actual.dtype == expected.dtype
    wide = [np.asarray(x.data).astype(np.float32) for x in (actual, expected)]
    np.testing.assert_array_equal(*wide)


@FORMATS
@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_a_scale_for_each_block(format: Format, case: Any) -> None:
    shape, block = case
    x = uneven(*shape)
    if x.size > 30:
        x.flat[[3, 11, 12]] = [np.inf, np.nan, 0]
    expected = blockwise(x, block, format)
    for make in (quantize, jax.jit(quantize, static_argnums=1, static_argnames="block")):
        assert_same(make(x, format, block=block), expected)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=3),
    format=st.sampled_from(NARROW),
    seed=st.integers(0, 99),
)
def test_any_blocks(sizes: list[tuple[int, int]], format: Format, seed: int) -> None:
    x, block = uneven(*(n for n, _ in sizes), seed=seed), tuple(b for _, b in sizes)
    q = quantize(x, format, block=block)
    assert_same(q, blockwise(x, block, format))
    scale = np.asarray(q.scale)
    assert np.all(np.frexp(scale)[0] == 0.5)
    assert np.all(np.isfinite(np.asarray(q.unscale())))
    off = np.abs(np.asarray(q.unscale(), np.float64) - x)
    least = np.abs(np.asarray(blockwise(x, block, format).scale)).max()
    assert np.all(off <= np.abs(x) * format.epsilon / 2 + least * format.smallest_subnormal)


def test_blocks_under_vmap_and_scan() -> None:
    x = uneven(3, 6, 10)
    make = partial(quantize, format=E4M3, block=(1, 4))
    batched = jax.vmap(make, in_axes=1)(np.moveaxis(x, 0, 1))
    assert batched.block == (1, 4)
    assert batched.scale.shape == (3, 6, 3)
    _, scanned = lax.scan(lambda c, x: (c, make(x)), 0, x)
    nested = jax.vmap(jax.vmap(lambda x: quantize(x, E4M3, block=(4,))))(x)
    for i in range(3):
        one = make(x[i])
        for many in (batched, scanned, nested):
            np.testing.assert_array_equal(many.scale[i], one.scale)
            np.testing.assert_array_equal(many.unscale()[i], one.unscale())
    _, values = lax.scan(lambda c, q: (c, q.unscale()), 0, batched)
    np.testing.assert_array_equal(values, batched.unscale())


def test_mx_keeps_its_scales_in_e8m0() -> None:
    x = uneven(4, 70)
    x[1, :32], x[2, 0], x[2, 40] = 0, np.inf, np.nan
    q = quantize(x, E4M3, block=(1, 32), scale_format=E8M0FNU)
    assert q.scale.dtype == E8M0FNU.dtype
    assert q.scale.shape == (4, 3)
    plain = quantize(x, E4M3, block=(1, 32))
    np.testing.assert_array_equal(q.unscale(), plain.unscale())
    np.testing.assert_array_equal(jax.jit(lambda q: q.unscale())(q), plain.unscale())
    tiny = quantize(
        np.full((1, 32), 2.0**-126, np.float32), E4M3, block=(1, 32), scale_format="e8m0fnu"
    )
    assert float(tiny.scale.astype(np.float32)[0, 0]) == 2.0**-126


@FORMATS
def test_under_a_given_scale_values_saturate(format: Format) -> None:
    top = format.max if format is not BF16 else 3e38
    x = np.array([0, -0.0, 1, -3, top / 4, top, -top, np.inf, -np.inf, np.nan], np.float32)
    q = quantize(x, format, scale=2**-2)
    inf = np.inf if format.has_inf else np.nan
    with np.errstate(over="ignore"):
        most = float(np.float32(format.max))
    expected = [0, 0, 4, -12, np.float32(top), most, -most, inf, -inf, np.nan]
    held = np.asarray(expected, np.float64).astype(format.dtype).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(q.data, np.float32), held)
    assert float(q.scale) == 0.25
    one, unit = quantize(x, format, scale=1.0), quantize(x, format, scaling="unit")
    np.testing.assert_array_equal(
        np.asarray(one.data, np.float32), np.asarray(unit.data, np.float32)
    )


def test_a_given_scale_under_transformations() -> None:
    x, scales = normal(3, 8), jnp.asarray([0.5, 1.0, 8.0])
    both = jax.vmap(lambda x, s: quantize(x, E4M3, scale=s))(x, scales)
    only_scale = jax.vmap(lambda s: quantize(x, E4M3, scale=s))(scales)
    only_x = jax.jit(jax.vmap(lambda x: quantize(x, E4M3, scale=scales[2])))(x)
    for i in range(3):
        np.testing.assert_array_equal(
            both.unscale()[i], quantize(x[i], E4M3, scale=scales[i]).unscale()
        )
        np.testing.assert_array_equal(
            only_scale.unscale()[i], quantize(x, E4M3, scale=scales[i]).unscale()
        )
        np.testing.assert_array_equal(only_x.unscale()[i], quantize(x[i], E4M3, scale=8).unscale())
    twice = jax.vmap(jax.vmap(lambda x, s: quantize(x, E4M3, scale=s)), in_axes=(0, None))
    nested = twice(normal(2, 3, 8), scales)
    np.testing.assert_array_equal(
        nested.unscale()[1, 2], quantize(normal(2, 3, 8)[1, 2], E4M3, scale=8).unscale()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 3.0}, "power of two"),
        ({"scale": 0.0}, "power of two"),
        ({"scale": math.inf}, "power of two"),
        ({"scale": 2.0**-127}, "power of two"),
        ({"scale": jnp.ones(3)}, "one float32 scalar"),
        ({"scale": 1.0, "block": (2,)}, "whole tensor"),
        ({"scaling": "given"}, "a scale is given"),
        ({"scaling": "delayed"}, "a scale is given"),
        ({"block": (0,)}, "a size for each"),
        ({"block": (1, 2)}, "a size for each"),
        ({"block": (2,), "scale_format": "f16"}, "not float16"),
    ],
)
def test_what_quantize_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        quantize(jnp.ones(3), E4M3, **options)


# --- ScaledArray in blocks


def test_axes_of_blocks_move_with_the_data() -> None:
    q = quantize(uneven(4, 6, 10), E4M3, block=(3, 4))
    plain = np.asarray(q.unscale())
    for moved, expected in (
        (q.T, plain.T),
        (q.transpose(1, 0, 2), plain.transpose(1, 0, 2)),
        (q.transpose((2, 0, 1)), plain.transpose(2, 0, 1)),
        (q.transpose(-1, 0, 1), plain.transpose(2, 0, 1)),
        (q.swapaxes(0, -1), plain.swapaxes(0, 2)),
    ):
        np.testing.assert_array_equal(moved.unscale(), expected)
    assert q.T.block == (4, 3, 1)
    with pytest.raises(ScaleError, match="a scale for each block"):
        q.reshape(-1)
    assert repr(quantize(np.ones((2, 4), np.float32), E5M2, block=(1, 2))) == (
        "ScaledArray(float8_e5m2[2,4], scale=float32[2,2], block=(1, 2))"
    )


def test_a_block_is_part_of_the_structure() -> None:
    q = quantize(uneven(4, 6), E4M3, block=(1, 3))
    _, tree = jax.tree.flatten(q)
    assert tree != jax.tree.structure(quantize(uneven(4, 6), E4M3, block=(1, 2)))
    assert jax.tree.map(lambda x: x, q).block == (1, 3)
    assert jax.tree.leaves(jax.tree.unflatten(tree, [1, 2])) == [1, 2]


# --- products

GRAINS = {
    "tensor": (),
    "rows": (1, 40),
    "columns": (24, 1),
    "1x16": (1, 16),
    "16x16": (16, 16),
    "mx": (1, 32),
}


def exact(a: Any, b: Any, dims: Any) -> np.ndarray:
    with jax.enable_x64(True):
        wide = [
            x.unscale(jnp.float64) if isinstance(x, ScaledArray) else jnp.asarray(x, jnp.float64)
            for x in (a, b)
        ]
        return np.asarray(lax.dot_general(*wide, dims))


def on_cuda(a: Any, b: Any, dims: Any, **options: Any) -> jax.Array:
    operands, params = _prepared(
        a, b, dims, options.get("out", np.float32), options.get("shift", 0)
    )
    return jax.jit(partial(_on_cuda, **params))(*operands)[0]


@pytest.mark.parametrize("left", GRAINS)
@pytest.mark.parametrize("right", GRAINS)
def test_products_of_every_grain(left: str, right: str) -> None:
    a = quantize(uneven(24, 40), E4M3, block=GRAINS[left])
    b = quantize(uneven(24, 40, seed=3), E5M2, block=GRAINS[right])
    for axes in (((1,), (1,)), ((0,), (0,))):
        dims = (axes, ((), ()))
        expected = exact(a, b, dims)
        magnitude = exact(*(jnp.abs(x.unscale()) for x in (a, b)), dims)
        for dot in (scaled_dot, on_cuda):
            assert np.all(np.abs(dot(a, b, dims) - expected) <= 1e-5 * magnitude)


def test_products_of_blocks_with_batch_axes() -> None:
    dims = (((3,), (1,)), ((0, 2), (2, 0)))
    a = quantize(uneven(2, 5, 3, 8), E4M3, block=(1, 1, 1, 8))
    b = quantize(uneven(3, 8, 2, 6, seed=1), E4M3, block=(1, 8, 1, 1))
    mixed = quantize(uneven(3, 8, 2, 6, seed=1), E4M3, block=(1, 4, 1, 2))
    for y in (b, mixed):
        expected = exact(a, y, dims)
        magnitude = exact(*(jnp.abs(x.unscale()) for x in (a, y)), dims)
        for dot in (scaled_dot, on_cuda):
            assert np.all(np.abs(dot(a, y, dims) - expected) <= 1e-5 * magnitude)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("block", [(), (1, 40), (1, 16)], ids=str)
def test_a_batch_of_products(axes: tuple[int | None, int | None], block: tuple[int, ...]) -> None:
    def dot(x: jax.Array, y: jax.Array) -> jax.Array:
        a, b = quantize(x, E4M3, block=block), quantize(y, E4M3, block=block[::-1])
        return scaled_dot(a, b, MATMUL)

    x = normal(3, 8, 40) if axes[0] == 0 else normal(8, 40)
    y = normal(3, 40, 6, seed=1) if axes[1] == 0 else normal(40, 6, seed=1)
    batched = jax.vmap(dot, in_axes=axes)(x, y)
    for i in range(3):
        one = dot(x[i] if axes[0] == 0 else x, y[i] if axes[1] == 0 else y)
        np.testing.assert_allclose(batched[i], one, rtol=1e-5, atol=1e-5)


def test_row_scales_stay_out_of_the_product_on_cuda() -> None:
    x, y = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 16), (16, 4)))

    def f(x: jax.Array, y: jax.Array) -> jax.Array:
        a, b = quantize(x, E4M3, block=(1, 16)), quantize(y, E4M3, block=(16, 1))
        return scaled_dot(a, b, MATMUL, out=jnp.bfloat16)

    text = jax.jit(f).trace(x, y).lower(lowering_platforms=("cuda",)).as_text()
    assert "(tensor<8x16xf8E4M3FN>, tensor<16x4xf8E4M3FN>) -> tensor<8x4xbf16>" in text


PLAIN = (jnp.float16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("dtypes", [(a, b) for a in PLAIN for b in PLAIN], ids=str)
@pytest.mark.parametrize("out", PLAIN)
def test_plain_operands(dtypes: Any, out: Any) -> None:
    a, b = jnp.asarray(normal(8, 40), dtypes[0]), jnp.asarray(normal(40, 6, seed=1), dtypes[1])
    scaled = quantize(normal(40, 6, seed=1), E4M3)
    tolerance = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-10}[np.dtype(out).name]
    for y in (b, scaled):
        expected = exact(a, y, MATMUL)
        magnitude = exact(jnp.abs(a), jnp.abs(y.astype(np.float32)), MATMUL)
        for dot in (scaled_dot, on_cuda):
            actual = dot(a, y, MATMUL, out=out)
            assert actual.dtype == out
            error = np.abs(np.asarray(actual, np.float64) - expected)
            assert np.all(error <= tolerance * magnitude)


@pytest.mark.parametrize("shift", [-126, -20, -6, 0, 5, 126])
@pytest.mark.parametrize("size", [1e-30, 1, 1e4])
def test_a_shift_comes_before_the_rounding(shift: int, size: float) -> None:
    x = jnp.asarray(normal(16, 64) * min(size, 2e3), jnp.float16 if size >= 1 else jnp.float32)
    w = jnp.asarray(normal(64, 8, seed=1) * size, jnp.float16 if size >= 1 else jnp.float32)
    with np.errstate(over="ignore", under="ignore"):
        expected = exact(x, w, MATMUL) * 2.0**shift
        magnitude = exact(jnp.abs(x), jnp.abs(w), MATMUL) * 2.0**shift
        fits = (np.abs(expected) < 65504) & (magnitude >= 2.0**-14)
    for dot in (scaled_dot, on_cuda):
        actual = np.asarray(dot(x, w, MATMUL, out=jnp.float16, shift=shift), np.float64)
        assert np.all(np.abs(actual - expected)[fits] <= 2**-10 * magnitude[fits])
        assert np.all(np.isinf(actual[np.abs(expected) > 65520]))


def test_sixteen_bit_products_do_not_overflow_inside() -> None:
    x, w = jnp.full((4, 512), 200, jnp.float16), jnp.full((512, 4), 40, jnp.float16)
    assert not np.isfinite(np.asarray(scaled_dot(x, w, MATMUL, out=jnp.float16))).any()
    shifted = scaled_dot(x, w, MATMUL, out=jnp.float16, shift=-6)
    np.testing.assert_array_equal(shifted, np.full((4, 4), 64000.0))
    batched = jax.vmap(lambda x: scaled_dot(x, w, MATMUL, out=jnp.float16, shift=-6))(x[None])
    np.testing.assert_array_equal(batched[0], shifted)


def test_scales_and_shift_never_meet_the_limits() -> None:
    """On CUDA scales and shift come last: exact where product and result are normal."""
    from precir.kernels.scaled_dot_cuda import _scaled

    powers = np.arange(-126, 127, 42)
    a, b = (2.0**e for e in np.meshgrid(powers, powers))
    for shift in (-126, -80, -10, 10, 80, 126):
        result = a * b * 2.0**shift
        inside = (result >= 2.0**-126) & (result < 2.0**127)
        one = np.ones_like(a, np.float32)
        actual = jax.jit(_scaled, static_argnums=3)(
            one, a.astype(np.float32), b.astype(np.float32), shift
        )
        np.testing.assert_array_equal(np.asarray(actual)[inside], result[inside])


# --- what finer scales are for


@pytest.mark.parametrize("grain", ["1x128", "128x128", "row", "mx"])
def test_signal_to_noise(grain: str) -> None:
    """At least 28 dB on Gaussian numbers, and no worse for a channel a thousand times larger."""
    blocks = {
        "1x128": ((1, 128), (128, 1)),
        "128x128": ((1, 128), (128, 128)),
        "row": ((1, 512), (512, 1)),
        "mx": ((1, 32), (32, 1)),
    }[grain]
    scales = E8M0FNU if grain == "mx" else F32
    x, w = normal(256, 512), normal(512, 256, seed=1)

    def noise(x: np.ndarray, w: np.ndarray, blocks: Any) -> float:
        a = quantize(x, E4M3, block=blocks[0], scale_format=scales if blocks[0] else F32)
        b = quantize(w, E4M3, block=blocks[1], scale_format=scales if blocks[1] else F32)
        actual = scaled_dot(a, b, MATMUL)
        return decibels(actual, x.astype(np.float64) @ w.astype(np.float64))

    assert noise(x, w, blocks) >= 28
    outlier = x.copy()
    outlier[7] *= np.float32(1e5)  # one token
    quiet = np.arange(256) != 7
    a, b = quantize(outlier, E4M3, block=blocks[0]), quantize(w, E4M3, block=blocks[1])
    fine = np.asarray(scaled_dot(a, b, MATMUL))[quiet]
    coarse = np.asarray(scaled_dot(quantize(outlier, E4M3), b, MATMUL))[quiet]
    expected = (x.astype(np.float64) @ w)[quiet]
    assert decibels(fine, expected) >= 28
    assert decibels(fine, expected) >= decibels(coarse, expected) + 10
