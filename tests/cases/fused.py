"""Arrays and programs for the tests of kernels that compute and quantise in one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import precir
from precir.ir import Graph, Node

ROWS, COLUMNS, OUT = 256, 128, 256


def arrays(*shapes: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(4), len(shapes))
    return tuple(
        jax.random.normal(k, s, dtype) * 2 + 0.25 for k, s in zip(keys, shapes, strict=True)
    )


X, W, GAIN, BIAS, UP, G = arrays(
    (ROWS, COLUMNS), (COLUMNS, OUT), (COLUMNS,), (COLUMNS,), (ROWS, COLUMNS), (ROWS, OUT)
)


def graph_of(fn: Callable[..., Any], *args: Any, recipe: str = "fp8-block") -> Graph:
    """As it is before the pass."""
    plain = precir.recipe(recipe, kernels="plain", last_product=None)
    return precir.compile(fn, recipe=plain).program(*args).graph


def fused_of(fn: Callable[..., Any], *args: Any, recipe: str = "fp8-block") -> precir.Compiled:
    return precir.compile(fn, recipe=precir.recipe(recipe, last_product=None))


def nodes(graph: Graph, op: str) -> list[Node]:
    return [n for n in graph.walk() if n.op == op]
