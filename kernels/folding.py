"""Axes of examples under ``jax.vmap``, folded into the one leading axis that a kernel has for them.

An operand is [examples, ...]. What examples may share (``shared``) is [1, ...] where they all do,
and what is not there is [0, ...].
"""

from __future__ import annotations

from collections.abc import Sequence

from jax import Array
from jax import numpy as jnp

from precir.kernels.primitive import Dims, Results


def fold(
    operands: Sequence[Array], dims: Dims, *, shared: Sequence[bool]
) -> tuple[list[Array], int]:
    """Operands with their axis of a batch folded into that of examples, and the batch's size.

    The first operand is one that examples do not share, and the first of its axes that is not of
    the batch says how many there are.
    """
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    first = operands[0].shape
    examples = first[0 if dims[0] != 0 else 1] if dims[0] is not None else first[0]
    return [
        _folded(x, d, size, examples, s) for x, d, s in zip(operands, dims, shared, strict=True)
    ], size


def _folded(x: Array, dim: int | None, size: int, examples: int, shared: bool) -> Array:
    if dim is None:
        if x.shape[0] == 0 or (shared and x.shape[0] == 1):
            return x
        x = jnp.broadcast_to(x, (size, *x.shape))
    else:
        x = jnp.moveaxis(x, dim, 0)
    if shared and x.shape[1] == 1:
        x = jnp.broadcast_to(x, (size, examples, *x.shape[2:]))
    return x.reshape(size * x.shape[1], *x.shape[2:])


def unfold(results: Results, size: int) -> tuple[Results, Dims]:
    """Results [size * examples, ...] as [size, examples, ...], for a batching rule to return."""
    apart = tuple(r.reshape(size, r.shape[0] // size, *r.shape[1:]) for r in results)
    return apart, (0,) * len(apart)
