"""Which weights of a model are stored in what, and the storing of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from precir.compile import compile
from precir.inference.errors import InferenceError
from precir.ir import Graph, Node
from precir.kernels import quantize
from precir.ops import Keeps, op_named
from precir.packed import is_scaled
from precir.passes.weights import Weight, choose_weights
from precir.recipe import Recipe
from precir.scaled import ScaledArray, full_block, scale_shape, spread

_SIXTEEN = ("bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class Plan:
    """How the leaves of a tree of weights are stored.

    Attributes:
      tree: their structure.
      names: of each leaf, as `params["up"]["kernel"]`.
      shapes: of each leaf.
      weights: how each is stored.
      products: for each product of the program, in order, the numbers of the leaves that it takes.
    """

    tree: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[Weight, ...]
    products: tuple[tuple[int, ...], ...]

    @property
    def stored(self) -> tuple[Weight, ...]:
        return tuple(w for w in self.weights if w.stored is not None)

    def leaves(self, params: Any) -> list[Any]:
        """Raises `InferenceError` unless these are wide weights of the model's own structure."""
        leaves, tree = jax.tree.flatten(params, is_leaf=is_scaled)
        if any(map(is_scaled, leaves)):
            raise InferenceError(
                "some of these weights are ScaledArrays already",
                fix="give the wide ones, as they were trained: precir.unscale(params)",
            )
        shapes = tuple(np.shape(x) for x in leaves)
        if tree != self.tree or shapes != self.shapes:
            raise InferenceError(
                "these weights have another structure or shapes than those that were quantised",
                fix="precir.quantize_model(model, params, batches) with them",
            )
        return leaves

    def quantized(self, params: Any) -> Any:
        """The tree in storage."""
        leaves = self.leaves(params)
        made = _quantized(self, [leaves[w.number] for w in self.stored])
        for w, stored in zip(self.stored, made, strict=True):
            leaves[w.number] = stored
        return jax.tree.unflatten(self.tree, leaves)

    def reference(self, params: Any) -> Any:
        """The tree that stands for it unquantised: what is stored, in float32."""
        leaves = self.leaves(params)
        for w in self.stored:
            leaves[w.number] = _widened(leaves[w.number])
        return jax.tree.unflatten(self.tree, leaves)


@partial(jax.jit, static_argnums=0)
def _quantized(plan: Plan, wide: list[Any]) -> list[ScaledArray]:
    return [
        quantize_int8(x, w.stored.block)
        if w.stored.dtype == "int8"
        else quantize(x, w.stored.dtype, block=w.stored.block, scale_format=w.scales)
        for x, w in zip(wide, plan.stored, strict=True)
        if w.stored is not None
    ]


def quantize_int8(x: jax.Array, block: tuple[int, ...]) -> ScaledArray:
    """Finite numbers as integers from -127 to 127, zero being zero, each block under the scale
    amax / 127 (float32), and of zeros alone under 1.

    No power of two: that would waste up to half of the integers, and saves no rounding here, where
    what is dequantised is rounded once, to bfloat16.
    """
    wide = x.astype(jnp.float32)
    sizes = full_block(block, wide.ndim) if block else wide.shape
    # Each axis apart into blocks and what is in one, the last perhaps not full.
    rest = [(0, -n % b) for n, b in zip(wide.shape, sizes, strict=True)]
    parts = [k for n, b in zip(wide.shape, sizes, strict=True) for k in (-(-n // max(b, 1)), b)]
    split = jnp.pad(jnp.abs(wide), rest).reshape(parts)
    amax = jnp.max(split, axis=tuple(range(1, split.ndim, 2)), initial=0)
    # What is subnormal in float32 is no scale: XLA:CPU reads it as zero.
    scale = jnp.where(amax < 127 * np.finfo(np.float32).tiny, 1, amax / 127)
    scale = scale.reshape(scale_shape(wide.shape, block))
    data = jnp.clip(jnp.round(wide / spread(scale, wide.shape, block)), -127, 127)
    return ScaledArray(data.astype(jnp.int8), scale, block)


def make_plan(
    model_fn: Callable[..., Any], params: Any, inputs: Sequence[Any], recipe: Recipe, options: Any
) -> Plan:
    """How the weights of `model_fn(params, *inputs)` are stored under a recipe.

    Raises `InferenceError` where nothing can be, and of weights that are not finite.
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_scaled)
    shapes = tuple(np.shape(x) for x in leaves)
    plan = Plan(tree, tuple(str(i) for i in range(len(leaves))), shapes, (), ())
    plan.leaves(params)
    wide = jax.tree.unflatten(
        tree, [_widened(x) if np.ndim(x) > 1 and _dtype(x) in _SIXTEEN else x for x in leaves]
    )
    # Which products run in 8 bits does not depend on where scales come from.
    current = recipe.replace(scaling="current")
    program = compile(model_fn, recipe=current, **options).program(wide, *inputs)
    names = tuple(program.signature.labels()[: len(leaves)])
    graph = {s.name: s.graph for s in program.stages}["scales"]
    weights = tuple(choose_weights(graph, program.assignment, recipe, len(leaves)))
    if not any(w.stored for w in weights):
        raise InferenceError(
            f"recipe {recipe.name} stores no weight of {program.signature.name} in fewer bits",
            where="; ".join(f"{names[w.number]}: {w.reason}" for w in weights[:4]),
            fix="weights are matrices that products or lookups read; for one product alone, "
            "which is the last, recipe.replace(last_product=None)",
        )
    _check_finite(leaves, names, {w.number for w in weights if w.stored is not None})
    places: dict[Any, int] = {node: i for i, node in enumerate(products(graph))}
    taken: list[list[int]] = [[] for _ in places]
    for w in weights:
        for use in w.uses:
            if use.node in places:
                taken[places[use.node]].append(w.number)
    return Plan(tree, names, shapes, weights, tuple(map(tuple, taken)))


def products(graph: Graph) -> list[Node]:
    """Matrix products and convolutions, in order."""
    kinds = (Keeps.PRODUCT, Keeps.CONVOLUTION)
    return [n for n in graph.walk() if op_named(n.op).keeps in kinds or n.op == "scaled_dot"]


def _dtype(leaf: Any) -> str:
    return str(getattr(leaf, "dtype", ""))


def _widened(leaf: Any) -> Any:
    return leaf.astype(np.float32) if _dtype(leaf) in _SIXTEEN else leaf


@jax.jit
def _not_finite(leaves: list[Any]) -> list[tuple[jax.Array, jax.Array]]:
    return [(jnp.isnan(x).any(), jnp.isinf(x).any()) for x in leaves]


def _check_finite(leaves: Sequence[Any], names: Sequence[str], stored: Container[int]) -> None:
    """Of what is stored; what is not may hold infinities, as a mask does."""
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    found = jax.device_get(_not_finite([leaves[i] for i in floats]))
    broken = [
        names[i]
        for i, (nan, infinite) in zip(floats, found, strict=True)
        if nan or (infinite and i in stored)
    ]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InferenceError(
            f"not all numbers are finite in {', '.join(broken[:3])}{more}",
            fix="quantise weights of a run that stayed finite; precir.check finds where one broke",
        )
