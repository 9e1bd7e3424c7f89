"""Norms as programs spell them, and train steps of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import precir

ROWS, COLUMNS, OUT = 96, 64, 128


def arrays(*shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(5), len(shapes))
    return tuple(jax.random.normal(k, s) * 2 + 0.25 for k, s in zip(keys, shapes, strict=True))


X, GAIN, BIAS, UP, DOWN = arrays(
    (ROWS, COLUMNS), (COLUMNS,), (COLUMNS,), (COLUMNS, OUT), (OUT, COLUMNS)
)
UP, DOWN = UP / 16, DOWN / 16
ARGS = X, GAIN, BIAS, UP, DOWN


def layer_by_hand(x, g, b):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3) * g + b


def layer_by_var(x, g, b):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def layer_fast(x, g, b):
    """As flax's default: the mean of the squares less the square of the mean."""
    return nn.LayerNorm(epsilon=1e-6).apply({"params": {"scale": g, "bias": b}}, x)


def layer_slow(x, g, b):
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    return norm.apply({"params": {"scale": g, "bias": b}}, x)


def layer_no_bias(x, g, b):
    return layer_by_var(x, g, 0.0)


def layer_alone(x, g, b):
    return nn.LayerNorm(use_bias=False, use_scale=False).apply({"params": {}}, x)


def rms_flax(x, g, b):
    return nn.RMSNorm(epsilon=1e-6).apply({"params": {"scale": g}}, x)


def rms_plain(x, g, b):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g


def rms_alone(x, g, b):
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) / x.shape[-1] + 1e-6)


def rms_by_power(x, g, b):
    return g * (x * ((x * x).mean(-1, keepdims=True) + 1e-5) ** -0.5) + b


def rms_of_one_more(x, g, b):
    """As Gemma has it: weights are kept as what is more than one."""
    return rms_plain(x, 1 + g, b)


def step_of(norm: Callable[..., jax.Array], stream: bool = True) -> Callable[..., Any]:
    """A block with a residual connection, and its gradients."""

    def loss(x, g, b, up, down):
        h = jnp.tanh(x)  # so that x is not the program's own
        y = jnp.sin(norm(h, g, b) @ up) @ down
        return jnp.mean((h + y if stream else y) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))


def fused_of(fn: Callable[..., Any], recipe: str = "fp8-block", **more: Any) -> precir.Compiled:
    return precir.compile(fn, recipe=precir.recipe(recipe, last_product=None, **more))


def error(found: Any, exact: Any) -> float:
    """The largest over the leaves of |found - exact| / |exact|, by the root of the squares."""
    return max(
        float(jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) or 1))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    )
