"""equinox: the model is a pytree, split into its arrays (the state) and the rest (static)."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .data import regression
from .program import Program, Tree

ADAM = optax.adam(1e-2)


def make_mlp(seed: int) -> eqx.nn.MLP:
    return eqx.nn.MLP(8, 4, width_size=32, depth=2, key=jax.random.key(seed))


@cache
def mlp_static() -> eqx.nn.MLP:
    return eqx.partition(eqx.filter_eval_shape(make_mlp, 0), is_array)[1]


def is_array(leaf: object) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def mlp_init(seed: int) -> tuple[Tree, Tree]:
    arrays = eqx.filter(make_mlp(seed), eqx.is_array)
    return arrays, ADAM.init(arrays)


@eqx.filter_value_and_grad
def mlp_loss(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def mlp_step(state: tuple[Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    arrays, moments = state
    loss, gradients = mlp_loss(eqx.combine(arrays, mlp_static()), x, y)
    updates, moments = ADAM.update(gradients, moments, arrays)
    return (eqx.apply_updates(arrays, updates), moments), loss


PROGRAMS = (
    Program("equinox_mlp", "train", mlp_step, mlp_init, regression, products=8),
)
