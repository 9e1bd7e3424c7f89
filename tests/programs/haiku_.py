"""haiku: functions transformed into (init, apply) pairs, with and without state."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from .data import VOCAB, regression, series, tokens
from .linen import next_token_loss
from .program import Program, Tree

ADAM = optax.adam(5e-3)


@hk.without_apply_rng
@hk.transform
def mlp(x: jax.Array) -> jax.Array:
    return hk.nets.MLP([32, 32, 4], name="mlp")(x)


@hk.without_apply_rng
@hk.transform
def lstm(x: jax.Array) -> jax.Array:
    core = hk.LSTM(32)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(2)(outputs[:, -1])


@hk.transform
def transformer(tokens: jax.Array) -> jax.Array:
    x = hk.Embed(VOCAB, 32)(tokens)
    causal = jnp.tril(jnp.ones((1, 1, tokens.shape[1], tokens.shape[1])))
    init = hk.initializers.VarianceScaling(1.0)
    for i in range(2):
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True, name=f"norm_{i}")(x)
        h = hk.MultiHeadAttention(4, 8, w_init=init, name=f"attention_{i}")(h, h, h, mask=causal)
        x = x + hk.dropout(hk.next_rng_key(), 0.05, h)
        x = x + hk.nets.MLP([64, 32], activation=jax.nn.gelu, name=f"mlp_{i}")(x)
    return hk.Linear(VOCAB, with_bias=False)(x)


@hk.without_apply_rng
@hk.transform_with_state
def normed(x: jax.Array) -> jax.Array:
    for _ in range(2):
        x = hk.BatchNorm(True, True, decay_rate=0.9)(hk.Linear(32)(x), is_training=True)
        x = jax.nn.relu(x)
    return hk.Linear(4)(x)


def mse(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((outputs - y) ** 2)


def update(params: Tree, gradients: Tree, moments: Tree) -> tuple[Tree, Tree]:
    updates, moments = ADAM.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments


def trained(model: Any, x: Any) -> Callable[[int], tuple[Tree, Tree]]:
    @jax.jit
    def init(seed: int) -> tuple[Tree, Tree]:
        params = model.init(jax.random.key(seed), x)
        return params, ADAM.init(params)

    return init


def regress(model: Any) -> Callable[..., tuple[Tree, jax.Array]]:
    def step(state: tuple[Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
        params, moments = state
        loss, gradients = jax.value_and_grad(lambda params: mse(model.apply(params, x), y))(params)
        return update(params, gradients, moments), loss

    return step


# The transformer draws its dropout from one key folded with the number of the step.


def transformer_init(seed: int) -> tuple[Tree, Tree, int]:
    return *trained(transformer, tokens(0)[0][:, :-1])(seed), 0


def transformer_step(state: tuple[Tree, Tree, Any], tokens: jax.Array) -> tuple[Any, jax.Array]:
    params, moments, count = state
    key = jax.random.fold_in(jax.random.PRNGKey(7), count)
    loss, gradients = jax.value_and_grad(
        lambda params: next_token_loss(transformer.apply(params, key, tokens[:, :-1]), tokens)
    )(params)
    return (*update(params, gradients, moments), count + 1), loss


@jax.jit
def normed_init(seed: int) -> tuple[Tree, Tree, Tree]:
    params, stats = normed.init(jax.random.key(seed), regression(0)[0])
    return params, ADAM.init(params), stats


def normed_step(state: tuple[Tree, ...], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    params, moments, stats = state

    def loss_fn(params: Tree) -> tuple[jax.Array, Tree]:
        outputs, changed = normed.apply(params, stats, x)
        return mse(outputs, y), changed

    (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return (*update(params, gradients, moments), stats), loss


PROGRAMS = (
    Program(
        "haiku_mlp", "train", regress(mlp), trained(mlp, regression(0)[0]), regression, products=8
    ),
    Program("haiku_lstm", "train", regress(lstm), trained(lstm, series(0)[0]), series, products=6),
    Program(
        "haiku_transformer",
        "train",
        transformer_step,
        transformer_init,
        tokens,
        products=51,
        slow=True,
    ),
    Program("haiku_batchnorm", "train", normed_step, normed_init, regression, products=8),
)
