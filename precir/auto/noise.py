"""Gradients that float32 does not determine: rounding noise, in which nothing is to be kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import numpy as jnp

from precir.observe import emitted_with
from precir.program import Program

LARGEST: Final = 0.01  # the relative mean square that an array may move by, and tell something


def noise(program: Program, wanted: Sequence[Any], batches: Iterable[Any]) -> frozenset[int]:
    """Which of the values `wanted` are rounding noise, by their place.

    A bias of attention's keys has none but a gradient of zero, since a softmax forgets what is
    added to all, and so has a bias before a normalisation; what is computed for them is the noise
    of float32, which is millions of times as large in 16 bits. So every number that goes in is
    moved by its last bit, up or down at random, and what moves by more than `LARGEST` of its mean
    square over the batches is noise. `batches` are the program's dynamic arguments and captured
    arrays.
    """
    main = emitted_with(program, program.graph.with_(outputs=(*program.graph.outputs, *wanted)))

    @jax.jit
    def run(args: Any, captured: Any) -> Any:
        return main(*args, **{f"captured_{i}": v for i, v in enumerate(captured)})[1]

    sums = np.zeros((len(wanted), 2))
    key = jax.random.key(0)
    for given in batches:
        key, mine = jax.random.split(key)
        found = _apart(run(*given), run(*nudged(given, mine)))
        sums += np.asarray(jax.device_get(found), np.float64).reshape(sums.shape)
    moved, size = sums.T
    return frozenset(np.flatnonzero(moved > LARGEST * size).tolist())


def nudged(tree: Any, key: Any) -> Any:
    """Every float32 number moved by one or two units in its last place; zeros stay."""
    leaves, form = jax.tree.flatten(tree)
    moved = [
        _nudged(x, jax.random.fold_in(key, i)) if getattr(x, "dtype", None) == np.float32 else x
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(form, moved)


@jax.jit  # once for each shape, which is far less to compile than all together
def _nudged(x: Any, key: Any) -> Any:
    signs: Any = jax.random.rademacher(key, x.shape, np.float32)
    return x * (1 + np.float32(2.0**-23) * signs)


@jax.jit
def _apart(right: Any, other: Any) -> Any:
    """The mean square of the difference and of the first, of each array."""
    return [
        (jnp.mean(jnp.square(a.astype(np.float32) - b.astype(np.float32))),
         jnp.mean(jnp.square(a.astype(np.float32))))
        for a, b in zip(right, other, strict=True)
    ]  # fmt: skip
