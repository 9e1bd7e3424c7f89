"""flax linen with more in its state: batch statistics, gradients accumulated over micro-batches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from .data import images, regression, tokens
from .linen import GPT_TIED, next_token_loss
from .program import Program, Tree


class TrainState(train_state.TrainState):
    batch_stats: Any


class NormedMLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        for _ in range(2):
            x = nn.Dense(32, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(4)(x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


MLP, CONV, ADAM = NormedMLP(), ConvNet(), optax.adam(1e-2)


@partial(jax.jit, static_argnums=0)
def state(model: nn.Module, seed: int, x: Any) -> TrainState:
    variables = model.init(jax.random.key(seed), x)
    return TrainState.create(apply_fn=model.apply, tx=ADAM, **variables)


def mlp_init(seed: int) -> TrainState:
    return state(MLP, seed, regression(0)[0])


def conv_init(seed: int) -> TrainState:
    return state(CONV, seed, images(0)[0])


def apply(state: TrainState, params: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
    variables = {"params": params, "batch_stats": state.batch_stats}
    outputs, changed = state.apply_fn(variables, x, mutable=["batch_stats"])
    return outputs, changed["batch_stats"]


def mlp_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_fn(params: Tree) -> tuple[jax.Array, Tree]:
        outputs, stats = apply(state, params, x)
        return jnp.mean(jnp.square(outputs - y)), stats

    (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, batch_stats=stats), loss


def conv_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array, Tree]:
    def loss_fn(params: Tree) -> tuple[jax.Array, Tree]:
        logits, stats = apply(state, params, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (stats, jnp.mean(jnp.argmax(logits, -1) == y))

    (loss, (stats, accuracy)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=gradients, batch_stats=stats)
    return state, loss, {"accuracy": accuracy, "step": state.step}


# Gradients summed over micro-batches, by lax.scan and by optax.MultiSteps.

MULTI = optax.MultiSteps(optax.adamw(2e-2), every_k_schedule=2)


def accumulate_init(seed: int) -> train_state.TrainState:
    return gpt_state(ADAM, seed)


def multisteps_init(seed: int) -> train_state.TrainState:
    return gpt_state(MULTI, seed)


@partial(jax.jit, static_argnums=0)
def gpt_state(tx: Any, seed: int) -> train_state.TrainState:
    params = GPT_TIED.init(jax.random.key(seed), tokens(0)[0][:, :-1])
    return train_state.TrainState.create(apply_fn=GPT_TIED.apply, params=params, tx=tx)


def accumulate_step(state: train_state.TrainState, tokens: jax.Array) -> tuple[Any, jax.Array]:
    def loss_fn(params: Tree, tokens: jax.Array) -> jax.Array:
        return next_token_loss(state.apply_fn(params, tokens[:, :-1]), tokens)

    def add(total: Tree, tokens: jax.Array) -> tuple[Tree, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_fn)(state.params, tokens)
        return jax.tree.map(jnp.add, total, gradients), loss

    micro = tokens.reshape(4, -1, tokens.shape[-1])
    total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), micro)
    gradients = jax.tree.map(lambda g: g / micro.shape[0], total)
    return state.apply_gradients(grads=gradients), losses.mean()


def multisteps_step(state: train_state.TrainState, tokens: jax.Array) -> tuple[Any, jax.Array]:
    loss, gradients = jax.value_and_grad(
        lambda params: next_token_loss(state.apply_fn(params, tokens[:, :-1]), tokens)
    )(state.params)
    return state.apply_gradients(grads=gradients), loss


PROGRAMS = (
    Program("linen_mlp_batchnorm", "train", mlp_step, mlp_init, regression, products=8),
    Program(
        "linen_conv_batchnorm", "train", conv_step, conv_init, images, products=3, convolutions=5
    ),
    Program(
        "linen_accumulate",
        "train",
        accumulate_step,
        accumulate_init,
        tokens,
        products=39,
        slow=True,
    ),
    Program(
        "linen_multisteps",
        "train",
        multisteps_step,
        multisteps_init,
        tokens,
        products=39,
        slow=True,
    ),
)
