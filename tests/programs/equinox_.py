"""equinox: the model is a pytree, split into its arrays (the state) and the rest (static)."""

from collections.abc import Callable
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .data import VOCAB, images, regression, tokens
from .linen import next_token_loss
from .program import Program, Tree

ADAM = optax.adam(1e-2)


def is_array(leaf: object) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


@cache
def static(make: Callable[[int], eqx.Module]) -> eqx.Module:
    """What is no array in the model: activations, sizes, flags."""
    return eqx.partition(eqx.filter_eval_shape(make, 0), is_array)[1]


def trained(make: Callable[[int], eqx.Module]) -> Callable[[int], tuple[Tree, Tree]]:
    @jax.jit
    def init(seed: int) -> tuple[Tree, Tree]:
        arrays = eqx.filter(make(seed), eqx.is_array)
        return arrays, ADAM.init(arrays)

    return init


def update(arrays: Tree, gradients: Tree, moments: Tree) -> tuple[Tree, Tree]:
    updates, moments = ADAM.update(gradients, moments, arrays)
    return eqx.apply_updates(arrays, updates), moments


def make_mlp(seed: int) -> eqx.nn.MLP:
    return eqx.nn.MLP(8, 4, width_size=32, depth=2, key=jax.random.key(seed))


@eqx.filter_value_and_grad
def mlp_loss(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def mlp_step(state: tuple[Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    arrays, moments = state
    loss, gradients = mlp_loss(eqx.combine(arrays, static(make_mlp)), x, y)
    return update(arrays, gradients, moments), loss


# The model function alone, on one batch.

X, Y = regression(0)


@jax.jit
def mlp_params(seed: int) -> Tree:
    return eqx.filter(make_mlp(seed), eqx.is_array)


def mlp_forward(arrays: Tree, x: jax.Array) -> jax.Array:
    return jax.vmap(eqx.combine(arrays, static(make_mlp)))(x)


@jax.jit
def mlp_model_loss(y: jax.Array) -> jax.Array:
    return jnp.mean((y - Y) ** 2)


# A module of our own: one sequence at a time, the batch is a vmap around it.


class Attention(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    scale: jax.Array
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, key: jax.Array) -> None:
        q, k, v = jax.random.split(key, 3)
        self.query = eqx.nn.Linear(width, width, use_bias=False, key=q)
        self.key = eqx.nn.Linear(width, width, use_bias=False, key=k)
        self.value = eqx.nn.Linear(width, width, key=v)
        self.norm = eqx.nn.LayerNorm(width)
        self.scale = jnp.array((width / heads) ** -0.5)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.vmap(self.norm)(x)
        q, k, v = (
            jax.vmap(linear)(h).reshape(len(x), self.heads, -1).swapaxes(0, 1)
            for linear in (self.query, self.key, self.value)
        )
        scores = q @ k.swapaxes(1, 2) * self.scale
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(causal, scores, jnp.finfo(scores.dtype).min)
        mixed = jax.nn.softmax(scores, axis=-1) @ v
        return x + mixed.swapaxes(0, 1).reshape(x.shape)


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    layers: list[Attention]
    head: eqx.nn.Linear

    def __init__(self, seed: int) -> None:
        embed, head, *layers = jax.random.split(jax.random.key(seed), 4)
        self.embed = eqx.nn.Embedding(VOCAB, 32, key=embed)
        self.layers = [Attention(32, 4, key) for key in layers]
        self.head = eqx.nn.Linear(32, VOCAB, key=head)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(tokens)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.head)(x)


@eqx.filter_value_and_grad
def transformer_loss(model: Transformer, tokens: jax.Array) -> jax.Array:
    return next_token_loss(jax.vmap(model)(tokens[:, :-1]), tokens)


def transformer_step(state: tuple[Tree, Tree], tokens: jax.Array) -> tuple[Tree, jax.Array]:
    arrays, moments = state
    loss, gradients = transformer_loss(eqx.combine(arrays, static(Transformer)), tokens)
    return update(arrays, gradients, moments), loss


# Batch statistics: eqx.nn.State beside the model, and a mean over a vmapped axis by name.


class ConvNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, seed: int) -> None:
        conv, head = jax.random.split(jax.random.key(seed))
        self.conv = eqx.nn.Conv2d(1, 8, 3, padding=1, key=conv)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.head = eqx.nn.Linear(128, 4, key=head)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        h, state = self.norm(self.conv(x.transpose(2, 0, 1)), state)
        h = jax.nn.relu(h).reshape(8, 4, 2, 4, 2).mean((2, 4))
        return self.head(h.reshape(-1)), state


@jax.jit
def conv_init(seed: int) -> tuple[Tree, Tree, Tree]:
    model, stats = eqx.nn.make_with_state(ConvNet)(seed)
    arrays = eqx.filter(model, eqx.is_array)
    return arrays, ADAM.init(arrays), stats


@cache
def conv_static() -> ConvNet:
    return eqx.partition(eqx.nn.make_with_state(ConvNet)(0)[0], eqx.is_array)[1]


def conv_loss(arrays: Tree, stats: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Tree]:
    model = eqx.combine(arrays, conv_static())
    logits, stats = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
        x, stats
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), stats


def conv_step(state: tuple[Tree, ...], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    arrays, moments, stats = state
    (loss, stats), gradients = jax.value_and_grad(conv_loss, has_aux=True)(arrays, stats, x, y)
    return (*update(arrays, gradients, moments), stats), loss


PROGRAMS = (
    Program("equinox_mlp", "train", mlp_step, trained(make_mlp), regression, products=8),
    Program(
        "equinox_mlp_model",
        "model",
        mlp_forward,
        mlp_params,
        lambda i: (X,),
        products=3,
        gradient_products=8,
        loss=mlp_model_loss,
    ),
    Program(
        "equinox_transformer",
        "train",
        transformer_step,
        trained(Transformer),
        tokens,
        products=33,
        slow=True,
    ),
    Program(
        "equinox_conv_batchnorm", "train", conv_step, conv_init, images, products=3, convolutions=2
    ),
)
