"""flax nnx: the module is split into a static definition and its arrays, and merged in the step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .data import VOCAB, images, regression, tokens
from .linen import next_token_loss
from .program import Program, Tree

ADAM, ADAMW = optax.adam(1e-2), optax.adamw(1e-2, weight_decay=1e-3)


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(8, 32, rngs=rngs)
        self.second = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jax.nn.gelu(self.first(x)))


@jax.jit
def mlp_init(seed: int) -> tuple[Any, Tree, Tree]:
    graphdef, params = nnx.split(MLP(nnx.Rngs(jax.random.key(seed))))
    return graphdef, params, ADAM.init(params)


def mlp_step(state: tuple[Any, Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
    graphdef, params, moments = state
    loss, gradients = jax.value_and_grad(
        lambda params: jnp.mean((nnx.merge(graphdef, params)(x) - y) ** 2)
    )(params)
    updates, moments = ADAM.update(gradients, moments, params)
    return (graphdef, optax.apply_updates(params, updates), moments), loss


# A transformer whose dropout keys are part of its state, with nnx's own optimizer and gradient.


class Block(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(width, 64, rngs=rngs)
        self.down = nnx.Linear(64, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.05, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.norms[0](x), mask=mask))
        return x + self.dropout(self.down(jax.nn.gelu(self.up(self.norms[1](x)))))


class Transformer(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(2)])
        self.head = nnx.Linear(width, VOCAB, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x, mask = self.embed(tokens), nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


@jax.jit
def transformer_init(seed: int) -> tuple[Any, Tree]:
    model = Transformer(32, nnx.Rngs(params=jax.random.key(seed), dropout=jax.random.key(1)))
    return nnx.split((model, nnx.Optimizer(model, ADAMW, wrt=nnx.Param)))


def transformer_step(state: tuple[Any, Tree], tokens: jax.Array) -> tuple[Any, jax.Array]:
    model, optimizer = nnx.merge(*state)
    loss, gradients = nnx.value_and_grad(
        lambda model: next_token_loss(model(tokens[:, :-1]), tokens)
    )(model)
    optimizer.update(model, gradients)
    return nnx.split((model, optimizer)), loss


# Batch statistics beside the parameters, split by type.


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(128, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x)))
        return self.head(nnx.avg_pool(x, (2, 2), strides=(2, 2)).reshape(x.shape[0], -1))


@jax.jit
def conv_init(seed: int) -> tuple[Any, Tree, Tree, Tree]:
    graphdef, params, rest = nnx.split(ConvNet(nnx.Rngs(jax.random.key(seed))), nnx.Param, ...)
    return graphdef, params, rest, ADAM.init(params)


def conv_step(state: tuple[Any, ...], x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
    graphdef, params, rest, moments = state

    def loss_fn(params: Tree) -> tuple[jax.Array, Tree]:
        model = nnx.merge(graphdef, params, rest, copy=True)  # rest is of the outer trace
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
        return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

    (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, moments = ADAM.update(gradients, moments, params)
    return (graphdef, optax.apply_updates(params, updates), rest, moments), loss


PROGRAMS = (
    Program("nnx_mlp", "train", mlp_step, mlp_init, regression, products=5),
    Program(
        "nnx_transformer",
        "train",
        transformer_step,
        transformer_init,
        tokens,
        products=51,
        slow=True,
    ),
    Program(
        "nnx_conv_batchnorm", "train", conv_step, conv_init, images, products=3, convolutions=2
    ),
)
