"""The entries of gpu_kernels.py for what is fused around products, and for the optimizer."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from gpu_entry import NEAR, Kernel, Sizes
from gpu_entry import numbers as gaussian
from jax import lax
from jax import numpy as jnp

from precir.kernels import (
    E4M3,
    E5M2,
    act_gradients,
    act_quantize,
    adam_update,
    norm_gradients,
    norm_quantize,
    norm_scale,
    quantize,
)

SCALE = 2.0**-5  # a given one
SHAPES = ((3, 64), (70, 1000), (260, 512))
_near = partial(
    Kernel, judge=NEAR, checked=SHAPES, tiny=(64, 256), way="triton", aim=("share", 0.85)
)  # fmt: skip
LINES = (1, 128)


def numbers(key: jax.Array, shape: Sizes, special: bool) -> Any:
    """Activations: bfloat16, some rows of zeros, of NaN or with an outlier if ``special``."""
    x = gaussian(key, shape, np.float32) * 3 + 1
    if special:
        row, column = (lax.broadcasted_iota(np.int32, shape, axis) for axis in (0, 1))
        x = jnp.where(row == 1, 0, jnp.where(row == 2, np.nan, x))
        x = jnp.where((row == 4) & (column == 3), 1e4, x)
        x = jnp.where((row == 5) & (column == 3), np.inf, x)
    return x.astype(jnp.bfloat16)


# --- activations ----------------------------------------------------------------------------------


@cache
def several(*widths: int) -> Callable[..., tuple[Any, ...]]:
    """Matrices so many times as wide as they are said to be; the last is ordinary."""

    def make(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
        m, n = sizes
        last = len(widths) - 1
        return tuple(
            numbers(jax.random.fold_in(key, i), (m, wide * n), special and (i < last or not i))
            for i, wide in enumerate(widths)
        )

    return make


def _given(x: jax.Array, scale: jax.Array) -> Any:
    written = gelu(x, scale=scale, amax=True)
    return written.quantized.data, written.amax  # what was given is not returned: a copy


def _with_scale(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    return numbers(key, sizes, special), jnp.float32(SCALE)


gelu = partial(act_quantize, format=E4M3, activation="gelu_tanh")
swiglu = partial(act_quantize, format=E4M3, activation="silu", packed=True)
ACTIVATIONS = (
    _near("act_quantize, gelu, given scale, amax", _given, _with_scale),
    _near("act_quantize, gelu, 1x128", partial(gelu, block=LINES), several(1)),
    _near(
        "act_quantize, swiglu, 1x128, both", partial(swiglu, block=LINES, transposed=True),
        several(2),
    ),
    _near(
        "act_gradients, gelu, 1x128",
        partial(act_gradients, format=E5M2, activation="gelu_tanh", block=LINES),
        several(1, 1),
    ),
    _near(
        "act_gradients, swiglu, 1x128, both",
        partial(
            act_gradients, format=E5M2, activation="silu", packed=True, block=LINES,
            transposed=True,
        ),
        several(2, 1),
    ),
)  # fmt: skip


# --- norms ----------------------------------------------------------------------------------------


def _norm(x: jax.Array, weight: jax.Array, **options: Any) -> Any:
    return norm_quantize(x, E4M3, weight=weight, **options)


def _with_weight(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    return numbers(key, sizes, special), gaussian(jax.random.fold_in(key, 1), sizes[1:], np.float32)


def _norm_gradients(x: Any, weight: Any, gradient: Any, mean: Any, rstd: Any) -> Any:
    return norm_gradients(x, gradient, mean, rstd, weight=weight)


def _layer(x: jax.Array, weight: jax.Array, scale: jax.Array) -> Any:
    written, mean, rstd = _norm(x, weight, scale=scale)
    return written.quantized.data, mean, rstd


def _with_bound(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    x, weight = _with_weight(key, sizes, special)
    return x, weight, norm_scale(sizes[1], E4M3, weight=weight)


def _gradient_operands(key: jax.Array, sizes: Sizes, special: bool) -> tuple[Any, ...]:
    # Sums over the rows are of the size of their terms where these do not cancel.
    x, weight = _with_weight(key, sizes, False)
    gradient = jnp.abs(gaussian(jax.random.fold_in(key, 2), sizes))
    wide = x.astype(np.float32)
    mean = jnp.mean(wide, axis=1)
    rstd = lax.rsqrt(jnp.var(wide, axis=1) + 1e-5)
    return x, weight, gradient, mean, rstd


NORMS = (
    _near("norm_quantize, layer, proved scale", _layer, _with_bound),
    _near(
        "norm_quantize, rms, 1x128, both",
        partial(_norm, kind="rms", block=LINES, transposed=True), _with_weight,
    ),
    _near("norm_gradients, layer", _norm_gradients, _gradient_operands),
)  # fmt: skip


# --- the optimizer --------------------------------------------------------------------------------

# How weight, first and second moment and gradient are stored: a format and a block, or a dtype.
Store = tuple[Any, ...]
BLOCKS: tuple[Store, ...] = (("float16", LINES), (E4M3, LINES), (E5M2, LINES), ("bfloat16",))
FP8_LM: tuple[Store, ...] = (("float16", ()), (E4M3, ()), ("float16", ()), (E4M3, ()))


def _state(key: jax.Array, sizes: Sizes, special: bool, *, stores: Any) -> tuple[Any, ...]:
    w, m, v, g = (gaussian(k, sizes, np.float32) for k in jax.random.split(key, 4))
    each = zip((w, 0.1 * m, 0.01 * v * v, g), stores, strict=True)
    return tuple(x.astype(s[0]) if len(s) == 1 else quantize(x, s[0], block=s[1]) for x, s in each)


adam = partial(adam_update, lr=3e-3, count=5, weight_decay=0.1)
ADAM = (
    _near("adam_update, blocks", adam, partial(_state, stores=BLOCKS)),
    _near("adam_update, FP8-LM", adam, partial(_state, stores=FP8_LM), reads=2),
)

FUSED = (*ACTIVATIONS, *NORMS, *ADAM)
