"""Dynamic loss scaling: Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, 3.2."""

from __future__ import annotations

import numpy as np
from jax import Array, lax
from jax import numpy as jnp

FIRST_LOSS_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
_SMALLEST, _LARGEST = 2.0**-24, 2.0**24


def all_finite(*values: Array) -> Array:
    """Whether every element of every array is finite; a boolean scalar."""
    found = [jnp.all(lax.is_finite(value)) for value in values]
    return jnp.stack(found).all() if found else jnp.asarray(True)


def next_loss_scale(scale: Array, good_steps: Array, finite: Array) -> tuple[Array, Array]:
    """The loss scale (float32) and the count of good steps (int32) of the next step.

    Where the gradients were not ``finite`` the scale is halved and the count begins anew; after
    2,000 good steps in a row the scale is doubled. It stays within [2^-24, 2^24].
    """
    grown = good_steps + 1 >= GROWTH_INTERVAL
    after = jnp.where(finite, jnp.where(grown, scale * 2, scale), scale / 2)
    count = jnp.where(finite & ~grown, good_steps + 1, 0)
    return lax.clamp(np.float32(_SMALLEST), after, np.float32(_LARGEST)), count.astype(np.int32)
