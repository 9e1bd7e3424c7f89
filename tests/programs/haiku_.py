"""haiku: functions transformed into (init, apply) pairs, with and without state."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from .data import regression
from .program import Program, Tree

ADAM = optax.adam(1e-2)


@hk.without_apply_rng
@hk.transform
def mlp(x: jax.Array) -> jax.Array:
    return hk.nets.MLP([32, 32, 4], name="mlp")(x)


def mlp_init(seed: int) -> tuple[Tree, Tree]:
    params = jax.jit(mlp.init)(jax.random.key(seed), regression(0)[0])
    return params, ADAM.init(params)


def mlp_step(state: tuple[Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    params, moments = state
    loss, gradients = jax.value_and_grad(
        lambda params: jnp.mean((mlp.apply(params, x) - y) ** 2))(params)
    updates, moments = ADAM.update(gradients, moments, params)
    return (optax.apply_updates(params, updates), moments), loss


PROGRAMS = (
    Program("haiku_mlp", "train", mlp_step, mlp_init, regression, products=8),
)
