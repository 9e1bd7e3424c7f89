"""What rounding a tensor would do to a number that depends on it, found while differentiating."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from precir.kernels.quantize import quantize

Rounding = tuple[str, tuple[int, ...]]
"""A format, and for an 8-bit one the block of its scales as `ScaledArray.block`."""

_BITS: Final = {"bfloat16": (8, 7), "float16": (5, 10)}  # of exponent and mantissa
TAPPED: Final = 4  # numbers for each rounding


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def tap(x: Array, row: Array, roundings: tuple[Rounding, ...]) -> Array:
    """``x`` itself. Its derivative tells, in the cotangent of ``row``, of each of ``roundings``.

    ``row`` is float32[1, n] with n at least ``TAPPED * len(roundings)``, and what it holds is not
    read. Where ``g`` is the derivative of a number L in ``x`` and ``e`` what a rounding adds to
    ``x``, its cotangent holds the sums of ``(g * e)**2`` and of ``g * e`` over the elements: the
    variance of L if the elements are rounded independently of each other, and its change to first
    order; then, of an 8-bit format alone, how many elements are rounded from a number to zero, and
    how many are not zero. Cotangents add up over whatever reads ``row`` again: a loop's iterations.
    """
    del row, roundings
    return x


def _forward(x: Array, row: Array, roundings: tuple[Rounding, ...]) -> tuple[Array, Any]:
    del roundings
    return x, (x, row.shape[1])


def _backward(roundings: tuple[Rounding, ...], saved: Any, g: Array) -> tuple[Array, Array]:
    x, width = saved
    found: list[Any] = []
    for dtype, block in roundings:
        wide = x.astype(np.float32)
        new = rounded(wide, dtype, block)
        moved = g.astype(np.float32) * (new - wide)
        moved = jnp.where(g == 0, np.float32(0), moved)  # nothing depends on it: not NaN either
        found += [jnp.sum(moved * moved), jnp.sum(moved)]
        if np.dtype(dtype).itemsize > 1:
            found += [np.float32(0), np.float32(0)]
            continue
        some = wide != 0
        found += [jnp.sum(some & (new == 0), dtype=np.float32), jnp.sum(some, dtype=np.float32)]
    row = jnp.stack([*found, *[np.float32(0)] * (width - len(found))])
    return g, row.reshape(1, width)


tap.defvjp(_forward, _backward)


def rounded(x: Array, dtype: str, block: tuple[int, ...]) -> Array:
    """float32 ``x`` as ``dtype`` holds it, under scales of its own if that is an 8-bit format."""
    if np.dtype(dtype).itemsize == 1:
        narrow: Any = quantize(x, np.dtype(dtype), block=block)
        apart: Any = lax.optimization_barrier  # or XLA takes both casts for none
        wide: Array = apart(narrow).unscale()
        return wide
    return lax.reduce_precision(x, *_BITS[dtype])
