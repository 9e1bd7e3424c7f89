"""Pure JAX: parameters in dicts and lists, gradients and updates by hand."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .data import regression
from .program import Program, Tree


def dense_init(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    return [{"w": jax.random.normal(k, (m, n)) * m ** -0.5, "b": jnp.zeros(n)}
            for k, m, n in zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:],
                               strict=False)]


def mlp(params: Tree, x: jax.Array) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def mse(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((mlp(params, x) - y) ** 2)


def sgd_init(seed: int) -> list[dict[str, jax.Array]]:
    return dense_init(jax.random.key(seed), (8, 32, 32, 4))


def sgd_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    loss, gradients = jax.value_and_grad(mse)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), loss


PROGRAMS = (
    Program("mlp_sgd", "train", sgd_step, sgd_init, regression, products=8),
)
