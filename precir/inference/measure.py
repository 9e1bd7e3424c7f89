"""Run a model quantised and not, side by side on the device, and see what differs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from precir.compile import Compiled
from precir.formats import format_of
from precir.inference.storing import products
from precir.ir import Literal, Node, Operand
from precir.observe import Instrumented, instrument
from precir.passes.expose import Exposed
from precir.program import Program
from precir.scaled import ScaledArray


@dataclass
class Sums:
    """Over all batches, of one tensor: squares of the difference and of the unquantised numbers,
    each an array with an entry for each iteration of the loops around it.
    """

    difference: Any = 0.0
    reference: Any = 0.0

    def add(self, pair: Any) -> None:
        self.difference = self.difference + np.asarray(pair[0], np.float64)
        self.reference = self.reference + np.asarray(pair[1], np.float64)

    @property
    def error(self) -> float | None:
        return relative(np.sum(self.difference), np.sum(self.reference))

    @property
    def each(self) -> tuple[float, ...]:
        """Of each iteration; nothing where there is no loop."""
        if np.ndim(self.difference) == 0 or np.size(self.difference) < 2:
            return ()
        pairs = zip(np.ravel(self.difference), np.ravel(self.reference), strict=True)
        return tuple(relative(d, r) or 0.0 for d, r in pairs)


def relative(difference: float, reference: float) -> float | None:
    """A ratio of root mean squares; None of nothing."""
    if not reference:
        return None if not difference else float("inf")
    return float(np.sqrt(difference / reference))


@dataclass
class Cosines:
    """Of rows of a result: their sum, the least, and how many there were."""

    total: float = 0.0
    least: float = 1.0
    count: int = 0


@dataclass
class Measured:
    """What was measured on all batches.

    Attributes:
      batches: how many there were.
      products: by the number of the product; those that cannot be seen are missing.
      outputs: by the number of the result, floating-point ones alone.
      cosines: the same, those that have rows.
      beyond: by the number of the activation: how many elements saturated, of how many.
    """

    batches: int = 0
    products: dict[int, Sums] = field(default_factory=dict)
    outputs: dict[int, Sums] = field(default_factory=dict)
    cosines: dict[int, Cosines] = field(default_factory=dict)
    beyond: dict[int, tuple[int, int]] = field(default_factory=dict)


def compare(
    wide: Compiled, low: Compiled, reference: Any, stored: Any, batches: Iterable[Sequence[Any]]
) -> Measured:
    """Run `wide(reference, *inputs)` and `low(stored, *inputs)` on each batch."""
    found, sides = Measured(), dict[tuple[int, int], _Sides]()
    for inputs in batches:
        programs = wide.program(reference, *inputs), low.program(stored, *inputs)
        key = id(programs[0]), id(programs[1])
        if key not in sides:
            sides[key] = _Sides(*programs)
        given = wide._dynamic((reference, *inputs), {})[0][1:]
        sides[key].add(found, reference, stored, given)
        found.batches += 1
    return found


def static_scales(program: Program) -> list[tuple[Node, float]]:
    """What quantises activations under a scale of calibration, with the largest magnitude that
    each holds.
    """
    found = []
    for node in program.graph.walk():
        if node.op == "quantize" and len(node.inputs) == 2 and type(node.inputs[1]) is Literal:
            scale = float(node.inputs[1].value.real)
            found.append((node, scale * format_of(node.params["dtype"]).max))
    return found


class _Sides:
    """Two programs at one signature, measured by one jitted function."""

    def __init__(self, wide: Program, low: Program) -> None:
        left, right = products(wide.graph), products(low.graph)
        assert len(left) == len(right), "the two programs have different products"
        self.scales = static_scales(low)
        chosen = {n.outputs[0] for n in left}
        also = {n.outputs[0] for n in right} | {n.inputs[0] for n, _ in self.scales}
        self.wide = instrument(wide, lambda value, _: value in chosen)
        self.low = instrument(low, lambda value, _: value in also)
        in_wide, in_low = _places(self.wide), _places(self.low)
        self.pairs = {
            k: (in_wide[a.outputs[0]], in_low[b.outputs[0]])
            for k, (a, b) in enumerate(zip(left, right, strict=True))
            if a.outputs[0] in in_wide and b.outputs[0] in in_low
        }
        self.limits = {
            k: (place, limit)
            for k, (node, limit) in enumerate(self.scales)
            if (place := in_low.get(node.inputs[0])) is not None
        }
        self.run: Any = jax.jit(self._run)

    def add(self, found: Measured, reference: Any, stored: Any, inputs: Any) -> None:
        made = jax.device_get(self.run(reference, stored, inputs))
        for k, pair in made["products"].items():
            found.products.setdefault(k, Sums()).add(pair)
        for k, pair in made["outputs"].items():
            found.outputs.setdefault(k, Sums()).add(pair)
        for k, (total, least, count) in made["cosines"].items():
            cosines = found.cosines.setdefault(k, Cosines())
            cosines.total += float(total)
            cosines.least = min(cosines.least, float(least))
            cosines.count += int(count)
        for k, (beyond, elements) in made["beyond"].items():
            before = found.beyond.get(k, (0, 0))
            found.beyond[k] = before[0] + int(beyond), before[1] + int(elements)

    def _run(self, reference: Any, stored: Any, inputs: Any) -> dict[str, dict[int, Any]]:
        wide, of_wide = self.wide.call(reference, *inputs)
        low, of_low = self.low.call(stored, *inputs)
        results = [
            (i, a, b)
            for i, (a, b) in enumerate(
                zip(jax.tree.leaves(wide), jax.tree.leaves(low), strict=True)
            )
            if jnp.issubdtype(a.dtype, jnp.floating)
        ]
        return {
            "products": {
                k: _squares(of_wide[a.output], of_low[b.output], len(a.leading))
                for k, (a, b) in self.pairs.items()
            },
            "outputs": {i: _squares(a, b, 0) for i, a, b in results},
            "cosines": {i: _cosines(a, b) for i, a, b in results if a.ndim},
            "beyond": {
                k: (jnp.sum(_past(of_low[e.output], limit)), of_low[e.output].size)
                for k, (e, limit) in self.limits.items()
            },
        }


def _places(instrumented: Instrumented) -> dict[Operand, Exposed]:
    return {e.value: e for e in instrumented.exposed}


def _squares(wide: jax.Array, low: jax.Array, leading: int) -> tuple[jax.Array, jax.Array]:
    """Sums of squares over all but the leading axes, in float32."""
    axes = tuple(range(leading, wide.ndim))
    a, b = wide.astype(jnp.float32), low.astype(jnp.float32)
    same = (a == b) | (jnp.isnan(a) & jnp.isnan(b))  # a mask of -inf, which both have
    difference = jnp.where(same, 0, a - b)
    return jnp.sum(difference**2, axes), jnp.sum(jnp.where(jnp.isfinite(a), a, 0) ** 2, axes)


def _cosines(wide: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    a, b = wide.astype(jnp.float32), low.astype(jnp.float32)
    norms = jnp.sqrt(jnp.sum(a**2, -1) * jnp.sum(b**2, -1))
    cosines = jnp.where(norms > 0, jnp.sum(a * b, -1) / norms, 1.0)
    return jnp.sum(cosines), jnp.min(cosines, initial=1.0), cosines.size


def _past(x: jax.Array, limit: float) -> jax.Array:
    magnitude = jnp.abs(x.astype(jnp.float32))
    return (magnitude > limit) & jnp.isfinite(magnitude)


def signals_to_noise(wide: list[Any], stored: list[ScaledArray]) -> list[float]:
    """Of stored weights, in dB; infinite where nothing changed."""
    return [
        float(10 * np.log10(power / noise)) if noise else float("inf")
        for power, noise in jax.device_get(_powers(wide, stored))
    ]


@jax.jit
def _powers(wide: list[Any], stored: list[ScaledArray]) -> list[tuple[jax.Array, jax.Array]]:
    floats = [x.astype(jnp.float32) for x in wide]
    return [
        (jnp.sum(a**2), jnp.sum((a - b.unscale()) ** 2))
        for a, b in zip(floats, stored, strict=True)
    ]
