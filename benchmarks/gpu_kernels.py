"""The kernels that benchmarks/gpu.py checks and times: one short entry each.

An entry is a function and its arguments. What a kernel must return is what the same function
returns where there is no kernel: on a CPU, bit for bit, and at the sizes that are timed also on the
GPU, by XLA. Products are judged against the exact product of their operands instead.

The floor of a kernel is the longer of its bytes over the measured bandwidth of a copy and its
multiplications over the peak. Its bytes are those of its arguments, as often as its kind of scale
makes it read them, and those of its results.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from gpu_entry import SAME, WITHIN, Group, Kernel, Sizes, numbers, said
from gpu_fused import FUSED
from jax import lax
from jax import numpy as jnp

from precir.kernels import (
    E4M3,
    E5M2,
    E8M0FNU,
    dequantize,
    observe,
    quantize,
    quantize_and_amax,
    quantize_both,
    quantize_both_and_amax,
    quantize_stochastic,
    scaled_dot,
)
from precir.kernels.tiling import USUAL, Tiling
from precir.scaled import ScaledArray

NT = (((1,), (1,)), ((), ()))  # both operands contiguous along what is summed over
SCALE = 2.0**-5  # a given one


@cache
def one(dtype: Any = jnp.bfloat16) -> Callable[..., tuple[Any, ...]]:
    """A matrix."""
    return lambda key, sizes, special: (numbers(key, sizes, dtype, special),)


def with_scale(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    """A matrix, and a scale that is not its own."""
    return numbers(key, sizes, jnp.bfloat16, special), jnp.float32(SCALE)


# --- what moves bytes -----------------------------------------------------------------------------

MATRICES = ((1, 1), (515, 1001), (1024, 4096))
WIDE, STATE = (8192, 4096), (4096, 16384)
LARGE, SMALL_MATRIX = (8192, 8192), (64, 256)
_moving = partial(
    Kernel, judge=SAME, checked=MATRICES, tiny=SMALL_MATRIX, way="triton", aim=("share", 0.85)
)  # fmt: skip


def _quantized(name: str, block: Sizes | str = (), reads: int = 1, **options: Any) -> Kernel:
    def function(x: jax.Array) -> Any:
        own = (1, x.shape[-1]) if block == "row" else block
        return quantize(x, options.get("format", E4M3), block=own, **others)

    others = {k: v for k, v in options.items() if k not in ("format", "dtype")}
    return _moving(name, function, one(options.get("dtype", jnp.bfloat16)), reads=reads)


def _given(name: str, function: Callable[..., Any]) -> Kernel:
    """A kernel of a matrix and a scale that is given."""
    return _moving(name, lambda x, scale: data(function(x, E4M3, scale=scale)), with_scale)


def data(result: Any) -> Any:
    """A result without scales that were given: to return them, XLA would copy them."""

    def narrow(x: Any) -> bool:
        return isinstance(x, ScaledArray)

    return jax.tree.map(lambda x: x.data if narrow(x) else x, result, is_leaf=narrow)


def _both(name: str, block: Sizes = (), reads: int = 1) -> Kernel:
    def function(x: jax.Array) -> Any:
        one, other = quantize_both(x, E4M3, block=block)
        return one, other if block else other.data  # the scale is one, which XLA would copy

    return _moving(name, function, one(), reads=reads)


def _scaled(block: Sizes) -> Callable[..., tuple[Any, ...]]:
    return lambda key, sizes, special: (
        quantize(numbers(key, sizes, jnp.bfloat16, special), E4M3, block=block),
    )


def _stochastic(x: jax.Array, seed: jax.Array) -> Any:
    return quantize_stochastic(x, E4M3, jax.random.wrap_key_data(seed), scale=SCALE).data


def _with_seed(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    return numbers(key, sizes, jnp.bfloat16, special), jax.random.key_data(key)


QUANTIZE = (
    _quantized("quantize, tensor", reads=2),
    _given("quantize, given scale", quantize),
    _quantized("quantize, row", "row"),
    _quantized("quantize, 1x128", (1, 128)),
    _quantized("quantize, 128x128", (128, 128)),
    _quantized("quantize, mx", (1, 32), scale_format=E8M0FNU),
    _both("quantize_both, tensor", reads=2),
    _given("quantize_both, given scale", quantize_both),
    _both("quantize_both, 1x128", (1, 128)),
    _both("quantize_both, 128x128", (128, 128)),
)
OTHERS = (
    _quantized("quantize float32, 128x128", (128, 128), dtype=jnp.float32),
    _quantized("quantize to E5M2, 1x128", (1, 128), format=E5M2),
    _given("quantize_and_amax", quantize_and_amax),
    _given("quantize_both_and_amax", quantize_both_and_amax),
    _moving("dequantize, tensor", lambda q: dequantize(q, jnp.bfloat16), _scaled(())),
    _moving("dequantize, 1x128", lambda q: dequantize(q, jnp.bfloat16), _scaled((1, 128))),
    # Sums of floats depend on their order, and stand in a place of their own.
    _moving("observe", lambda x: jnp.delete(observe(x), np.array([2, 3])), one()),
    _moving("quantize_stochastic", _stochastic, _with_seed, aim=None),  # random bits are most of it
)  # fmt: skip


# --- products -------------------------------------------------------------------------------------

PRODUCTS = ((129, 33, 257), (300, 520, 1000), (512, 1024, 2048))
TINY_PRODUCT = (64, 32, 256)
GRAINS: dict[str, tuple[Any, Any]] = {
    "tensor": ((), ()),
    "row": ("row", "row"),
    "1x128, 128x128": ((1, 128), (128, 128)),
    "1x128, 1x128": ((1, 128), (1, 128)),
    "mx": ((1, 32), (1, 32)),
}


def operands(
    key: jax.Array, sizes: Sizes, special: bool, *, grains: str, formats: Any = (E4M3, E4M3)
) -> tuple[Any, ...]:
    """a[m, k] and b[n, k], quantised; Gaussian, with one column larger than the others."""
    m, n, k = sizes
    made = []
    for i, (rows, block, format) in enumerate(zip((m, n), GRAINS[grains], formats, strict=True)):
        x = numbers(jax.random.fold_in(key, i), (rows, k)).at[:, k // 2].multiply(10)
        own = (1, k) if block == "row" else block
        scales = E8M0FNU if grains == "mx" else np.float32
        made.append(quantize(x, format, block=own, scale_format=scales))
    return tuple(made)


def exact(a: Any, b: Any) -> tuple[Any, Any]:
    """The product, and that of the magnitudes, in float64 where JAX has it."""
    wide = jnp.result_type(float)
    x, y = (v.unscale(wide) if isinstance(v, ScaledArray) else v.astype(wide) for v in (a, b))
    dot = partial(lax.dot_general, dimension_numbers=NT, precision=lax.Precision.HIGHEST)
    return dot(x, y), dot(jnp.abs(x), jnp.abs(y))


def _operations(sizes: Sizes) -> float:
    return 2.0 * sizes[0] * sizes[1] * sizes[2]


_product = partial(
    Kernel, judge=WITHIN, checked=PRODUCTS, tiny=TINY_PRODUCT, work=_operations, expected=exact
)  # fmt: skip


def scaled_product(
    grains: str, way: str | None, tiling: Tiling | None = None, **options: Any
) -> Kernel:
    """scaled_dot under these scales, by this way; by Triton with this tiling, if one is given."""
    make = partial(operands, grains=grains, **options)
    how = {"triton": "", None: ", as chosen"}.get(way, f", by {way}")
    how += f", {said(tiling)}" if tiling else ""
    formats = ", E4M3 x E5M2" if options else ""
    function = partial(scaled_dot, dimension_numbers=NT, out=jnp.bfloat16)
    return _product(f"scaled_dot, {grains}{formats}{how}", function, make, way=way, tiling=tiling)


def _raw(a: Any, b: Any) -> Any:
    """What XLA's rewriter to cuBLASLt looks for: operands times their scales, widened."""
    x, y = (v.data.astype(jnp.bfloat16) * v.scale.astype(jnp.bfloat16) for v in (a, b))
    return lax.dot_general(x, y, NT)


def _wide(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    m, n, k = sizes
    other = jax.random.fold_in(key, 1)
    return numbers(key, (m, k)), numbers(other, (n, k))


def _layer(a: Any, b: Any, bias: jax.Array) -> Any:
    return scaled_dot(
        a, b, NT, out=E4M3.dtype, out_scale=SCALE, bias=bias, activation="gelu_tanh", amax=True
    )


def _layer_operands(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    bias = numbers(jax.random.fold_in(key, 3), (sizes[1],))
    a, b = operands(key, sizes, special, grains="tensor")
    small = ScaledArray(b.data, b.scale * 2.0**-6)
    return a, small, bias


def _layer_exact(a: Any, b: Any, bias: jax.Array) -> tuple[Any, ...]:
    value, magnitude = exact(a, b)
    result = jax.nn.gelu(value + bias.astype(value.dtype))
    return result, magnitude + 1, jnp.max(jnp.abs(result))


BF16 = _product(
    "bf16", partial(lax.dot_general, dimension_numbers=NT), _wide, rate="bf16"
)  # fmt: skip
XLA_FP8 = _product("XLA FP8, tensor", _raw, partial(operands, grains="tensor"))
TMA = USUAL._replace(tma=True)
DOTS = tuple(scaled_product(grains, "triton") for grains in GRAINS)
BY_TMA = {g: scaled_product(g, "triton", TMA) for g in GRAINS if g != "mx"}
LAYER = _product(
    "scaled_dot, bias, gelu, E4M3 out, amax", _layer, _layer_operands, expected=_layer_exact,
    way="triton",
)  # fmt: skip
LAYER_BY_TMA = replace(LAYER, name=f"{LAYER.name}, TMA", tiling=TMA)
BY_OTHERS = (
    scaled_product("tensor", "xla"), scaled_product("row", "xla"),
    scaled_product("tensor", "bf16"),
    scaled_product("row", "triton", formats=(E4M3, E5M2)),
)  # fmt: skip

KERNELS = (
    *QUANTIZE,
    *DOTS,
    *FUSED,
    LAYER,
    *BY_TMA.values(),
    LAYER_BY_TMA,
    XLA_FP8,
    *BY_OTHERS,
    *OTHERS,
)

# Those that are run in the tiny mode; of the others the shapes are made.
TINY = frozenset(
    k.name for k in (QUANTIZE[-2], DOTS[2], LAYER, FUSED[2], FUSED[-3], FUSED[-1], OTHERS[-1])
)

# Tokens times features in and out of the layers of a 7B model and of one of 125M, forward and for
# a gradient, and what is small. Every other one is timed; all are for the table of choices.
SQUARES = ((8192, 8192, 8192), (4096, 4096, 4096))
LAYERS = (
    (8192, 12288, 4096), (8192, 16384, 4096), (8192, 4096, 16384), (8192, 4096, 4096),
    (4096, 16384, 8192), (8192, 768, 3072), (8192, 3072, 768), (2048, 2048, 2048),
    (1024, 1024, 1024), (256, 256, 256), (512, 512, 512),
)  # fmt: skip
AIMS = {"tensor": 1200e12, "1x128, 128x128": 1000e12}  # at 8192


def groups(tiny: bool = False) -> tuple[Group, ...]:
    """What is timed, the most important first; or one of each kind."""
    if tiny:
        product = Group("product", TINY_PRODUCT, (BF16, XLA_FP8, DOTS[0]), "bf16", 1)
        return Group(QUANTIZE[0].name, SMALL_MATRIX, _beside_xla(QUANTIZE[0]), "XLA", 0), product
    found = [Group(k.name, LARGE, _beside_xla(k), "XLA", 0) for k in QUANTIZE]
    timed = (BF16, XLA_FP8, *DOTS[:4], *(BY_TMA[grains] for grains in AIMS))
    for sizes in (*SQUARES, *LAYERS[::2]):
        # The last is what the choice says of one scale for each tensor: the one that users get.
        chosen = replace(scaled_product("tensor", None), aim=("over", 1.0))
        each = (*(_aimed(k, sizes) for k in timed), chosen)
        found.append(Group("product", sizes, each, "bf16", 1 if sizes in SQUARES else 3.2))
    for kernel in FUSED:
        sizes = STATE if kernel.name.startswith("adam") else WIDE
        found.append(Group(kernel.name, sizes, _beside_xla(kernel), "XLA", 3))
    found.append(Group(LAYER.name, SQUARES[1], (LAYER, LAYER_BY_TMA), LAYER.name, 4))
    found += [Group(k.name, LARGE, _beside_xla(k), "XLA", 4) for k in OTHERS]
    found += [Group(k.name, (2048, 4096), _beside_xla(k), "XLA", 5) for k in QUANTIZE[:6]]
    return tuple(sorted(found, key=lambda g: g.rank))


def _beside_xla(kernel: Kernel) -> tuple[Kernel, ...]:
    return kernel, replace(kernel, name="XLA", way="reference", aim=None)


def _aimed(kernel: Kernel, sizes: Sizes) -> Kernel:
    for grains, rate in AIMS.items():
        if sizes == SQUARES[0] and kernel.name == f"scaled_dot, {grains}":
            return replace(kernel, aim=("rate", rate))
    return kernel
