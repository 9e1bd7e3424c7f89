"""How much the loss and the gradients would change if a tensor were rounded: one gradient pass.

The program is differentiated as it stands, backward pass included: once from its loss, and once
from the gradients that its update reads, multiplied by random signs (of a program without gradients
from its results). What a rounding does to either is then the derivative in the tensor times what
the rounding adds to it, and `precir.kernels.tap` sums up the squares of those while it passes. With
random signs, the expected square is that of the whole change of all gradients (Hutchinson, 1990).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax import numpy as jnp

from precir.ir import BACKWARD, UPDATE, Graph, Value
from precir.kernels.tap import TAPPED
from precir.observe import emitted_with
from precir.passes.taps import Tap, Wish, tap_values
from precir.program import Program

SEED: Final = 2.0**24  # what derivatives are multiplied by, so that squares of small ones last


@dataclass(frozen=True)
class Moved:
    """What one rounding of one tensor does.

    Attributes:
      loss: the expected square of the loss's change, in the loss's unit squared.
      results: the expected relative mean square error of gradients (or of results), over all of
        their elements, each array of them relative to its own mean square.
      lost: the share of its nonzero elements that become zero in 8 bits.
    """

    loss: float
    results: float
    lost: float


@dataclass(frozen=True)
class Sensitivity:
    """What each rounding that was asked about at a tap does."""

    tap: Tap
    moved: tuple[Moved, ...]


def gradients_of(graph: Graph) -> list[Value]:
    """The gradients that the update reads: none in a program that updates nothing."""
    return [
        v for node in graph if node.phase == BACKWARD for v in node.outputs
        if v.type.dtype in ("float32", "bfloat16")
        and any(n.phase == UPDATE for n in graph.users.get(v, ()))
    ]  # fmt: skip


def looked_at(graph: Graph, loss: int | None) -> list[Value]:
    """The gradients that the update reads, or else the results that are not the loss: in an order
    that is the same whatever the recipe.
    """
    return gradients_of(graph) or [
        o for i, o in enumerate(graph.outputs)
        if i != loss and isinstance(o, Value) and o.type.dtype in ("float32", "bfloat16")
    ]  # fmt: skip


def sensitivities(
    program: Program,
    wish: Wish,
    loss: int | None,
    batches: Iterable[Any],
    seed: int = 0,
    without: Container[int] = (),
) -> list[Sensitivity]:
    """For each tap that `wish` asks for in a program that changes nothing.

    `loss` is which of the program's results is one, and `batches` its dynamic arguments, one batch
    each; expected squares are means over the batches. `without` are the places of the gradients
    that do not count (`precir.auto.noise`).
    """
    tapped, taps = tap_values(program.graph, wish)
    counted = [v for i, v in enumerate(looked_at(tapped, loss)) if i not in without]
    main = emitted_with(program, tapped.with_(outputs=(*tapped.outputs, *counted)))
    last = f"captured_{len(tapped.inputs) - 1 - program.leaves}"
    width = tapped.inputs[-1].type.shape[1]

    def numbers(rows: Any, args: Any, captured: Any, key: Any) -> Any:
        named = {f"captured_{i}": v for i, v in enumerate(captured)}
        out, more = main(*args, **named, **{last: rows})
        lost = jnp.float32(0) if loss is None else jax.tree.leaves(out)[loss].astype(np.float32)
        return lost, _signed(more, key)

    @jax.jit
    def both(rows: Any, args: Any, captured: Any, key: Any) -> Any:
        _, pull = jax.vjp(lambda r: numbers(r, args, captured, key), rows)
        return jax.vmap(pull)(tuple(SEED * np.eye(2, dtype=np.float32)))[0]

    rows = jnp.zeros((len(taps), width), np.float32)
    sums, count = np.zeros((2, len(taps), width // TAPPED, TAPPED)), 0
    key = jax.random.key(seed)
    for args, captured in batches:
        found = both(rows, args, captured, jax.random.fold_in(key, count))
        for k, f in enumerate(jax.device_get(found)):
            sums[k] += _squares(np.asarray(f, np.float64).reshape(sums[k].shape))
        count += 1
    sums /= max(count, 1)
    return [
        Sensitivity(tap, tuple(_moved(sums[:, t, r]) for r in range(len(tap.roundings))))
        for t, tap in enumerate(taps)
    ]


def _signed(results: list[Any], key: Any) -> Any:
    """A sum of all elements under random signs, such that an error of its own size in every array
    has an expected square of one.
    """
    count = sum(r.size for r in results)
    total = jnp.float32(0)
    for i, r in enumerate(results):
        wide = r.astype(np.float32)
        signs = jax.random.rademacher(jax.random.fold_in(key, i), r.shape, np.float32)
        size = jax.lax.stop_gradient(jnp.sqrt(jnp.mean(wide * wide)))
        known = size > 0
        total += jnp.where(known, jnp.sum(signs * wide) / jnp.where(known, size, 1), 0)
    return total / math.sqrt(max(count, 1))


def _squares(found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Variance, square of the change, elements lost, elements: float[taps, roundings, 4]."""
    made = found.copy()
    made[..., 0] /= SEED**2
    made[..., 1] = (made[..., 1] / SEED) ** 2
    return made


def _moved(sums: np.ndarray[Any, Any]) -> Moved:
    """Of a variance and the square of a change, which agree where elements are rounded
    independently, the larger. No number at all is an error without bound.
    """

    def square(k: int) -> float:
        found = max(sums[k, 0], sums[k, 1])
        return float(found) if math.isfinite(found) and not math.isnan(sums[k, 1]) else math.inf

    lost, some = sums[:, 2].max(), sums[:, 3].max()
    return Moved(square(0), square(1), float(lost / some) if some else 0.0)
