"""Delayed scaling: the scale of a tensor from the largest elements of the steps before."""

from __future__ import annotations

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.formats import Format
from precir.kernels.layer import Layer, as_array
from precir.kernels.powers import power_of_two_scale


def finite_amax(x: ArrayLike | Layer) -> Array:
    """The largest finite magnitude in ``x`` (floating-point, any shape), float32[]; 0 of nothing.

    An infinity or NaN says nothing of the scale that the next steps need, and must not stay in
    the history: it is seen in the data, at once.
    """
    x = as_array(x)
    magnitude = lax.abs(x)
    finite = jnp.where(magnitude < np.inf, magnitude, 0)  # NaN compares false too
    return jnp.max(finite, initial=0).astype(np.float32)


def delayed_scale(seen: ArrayLike, current: ArrayLike, format: DTypeLike | Format) -> Array:
    """The scale for a tensor whose largest element in the steps before was ``seen``: the power of
    two of ``quantize``. Where nothing was seen yet (``seen`` is 0), that for ``current``, the
    largest element of the tensor itself, so that a first step does not saturate. All float32[].
    """
    known = jnp.asarray(seen, np.float32)
    return power_of_two_scale(jnp.where(known > 0, known, current), format)


def current_scale(amax: ArrayLike, format: DTypeLike | Format) -> Array:
    """The scale of ``quantize`` for a tensor whose largest finite magnitude is ``amax``, float32[]:
    the smallest power of two under which it does not overflow.
    """
    return power_of_two_scale(jnp.asarray(amax, np.float32), format)


def recent_amax(history: Array) -> Array:
    """The largest of each row of ``history`` (float32[n, steps]): float32[n]."""
    return jnp.max(history, axis=1)


def record_amax(history: Array, *amaxes: ArrayLike) -> Array:
    """``history`` (float32[n, steps], newest first) with the n of this step put in front; the
    oldest fall out.
    """
    newest = jnp.stack([jnp.asarray(a, history.dtype) for a in amaxes])
    return jnp.concatenate([newest[:, None], history[:, :-1]], axis=1)
