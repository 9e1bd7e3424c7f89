"""Types beside float32: parameters in 16 bits, integers, complex numbers, keys, large constants."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import VOCAB, regression, tokens
from .plain import cross_entropy, descent, mlp, mlp_init, mse
from .program import Program, Tree


def cast(tree: Tree, dtype: Any) -> Tree:
    return jax.tree.map(lambda p: p.astype(dtype), tree)


# All in bfloat16; bfloat16 products of float32 parameters; float16 with a loss scale.


@jax.jit
def bfloat16_init(seed: int) -> Tree:
    return cast(mlp_init(seed), jnp.bfloat16)


def bfloat16_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return mse(params, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))


def mixed_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    outputs = mlp(cast(params, jnp.bfloat16), x.astype(jnp.bfloat16))
    return jnp.mean((outputs.astype(jnp.float32) - y) ** 2)


def float16_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    def scaled(params: Tree) -> jax.Array:
        outputs = mlp(cast(params, jnp.float16), x.astype(jnp.float16))
        return 1024 * jnp.mean((outputs.astype(jnp.float32) - y) ** 2)

    loss, gradients = jax.value_and_grad(scaled)(params)
    finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]))
    params = jax.tree.map(lambda p, g: jnp.where(finite, p - 0.2 / 1024 * g, p), params, gradients)
    return params, loss / 1024


# Only integers: a linear congruential generator, histograms, bits, an integer product.


def integer_init(seed: int) -> dict[str, jax.Array]:
    return {"seen": jnp.zeros(VOCAB, jnp.int32), "word": jnp.uint32(seed + 1)}


def integer_step(state: dict[str, jax.Array], tokens: jax.Array) -> tuple[Any, jax.Array, Any]:
    word = state["word"] * jnp.uint32(1664525) + jnp.uint32(1013904223)
    seen = state["seen"] + jnp.bincount(tokens.reshape(-1), length=VOCAB)
    hashed = (tokens.astype(jnp.uint32) ^ word) >> 27
    pairs = jax.nn.one_hot(tokens, VOCAB, dtype=jnp.int8)
    together = jnp.einsum("btv,btw->vw", pairs, pairs, preferred_element_type=jnp.int32)
    return (
        {"seen": seen, "word": word},
        jnp.sum(seen > 0),
        (hashed, together, jnp.sort(seen)[::-1], jax.lax.population_count(word)),
    )


# Complex numbers: a unitary-like layer and its phase, trained by the conjugate gradient.


@jax.jit
def complex_init(seed: int) -> jax.Array:
    key = jax.random.key(seed)
    return jax.random.normal(key, (8, 8), jnp.complex64) / 4


def complex_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x, _ = regression(i)
    z = (x + 1j * x[::-1]).astype(np.complex64)
    return z, (z * np.exp(1j * np.arange(8))).astype(np.complex64)


def complex_step(w: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    loss, gradient = jax.value_and_grad(lambda w: jnp.mean(jnp.abs(x @ w - y) ** 2))(w)
    return w - 0.5 * jnp.conj(gradient), loss, jnp.angle(jnp.trace(w))


# Closing over a large constant: a table of positions, which belongs beside the text of a program.

ANGLES = np.arange(512)[:, None] / 1000 ** (np.arange(64) / 64)
POSITIONS = np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], axis=1).astype(np.float32)


@jax.jit
def table_init(seed: int) -> Tree:
    embed, head = jax.random.split(jax.random.key(seed))
    return {
        "embed": 0.1 * jax.random.normal(embed, (VOCAB, 128)),
        "head": jax.random.normal(head, (128, VOCAB)) * 128**-0.5,
    }


def table_loss(params: Tree, tokens: jax.Array) -> jax.Array:
    x = params["embed"][tokens[:, :-1]] + 0.2 * jnp.asarray(POSITIONS)[: tokens.shape[1] - 1]
    return cross_entropy(x @ params["head"], tokens[:, 1:])


# Random numbers inside the step: inputs augmented, noise on the weights, keys as state.


def random_init(seed: int) -> tuple[Tree, jax.Array]:
    return mlp_init(seed), jax.random.key(seed)


def random_step(state: tuple[Tree, jax.Array], x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
    params, key = state
    key, noise, drop, order = jax.random.split(key, 4)
    x = x + 0.05 * jax.random.normal(noise, x.shape)
    shuffle = jax.random.permutation(order, len(x))
    x, y = x[shuffle], jnp.where(jax.random.bernoulli(drop, 0.95, y.shape), y[shuffle], 0.0)
    params, loss = descent(mse, 0.2)(params, x, y)
    return (params, key), loss


# A model whose inputs are a key, integers and a mask beside its floats, and so are its outputs.

X, Y = regression(0)


def many_forward(params: Tree, inputs: dict[str, Any]) -> dict[str, Any]:
    key, noise = jax.random.split(inputs["key"])
    x = jnp.where(inputs["mask"], inputs["x"], 0.0)
    h = jax.nn.relu(x @ params[0]["w"] + params[0]["b"])
    h *= jax.random.bernoulli(noise, 0.95, h.shape)
    y = mlp(params[1:], h)
    return {
        "y": y,
        "key": key,
        "best": jnp.argmax(y, -1),
        "steps": inputs["steps"] + 1,
        "positive": y > 0,
    }


def many_batch(i: int) -> tuple[dict[str, Any]]:
    return (
        {
            "x": X,
            "key": jax.random.key(i),
            "steps": np.int32(i),
            "mask": np.arange(8) < 8 - (i == 3),
        },
    )


@jax.jit
def many_loss(outputs: dict[str, Any]) -> jax.Array:
    return jnp.mean((outputs["y"] - Y) ** 2)


PROGRAMS = (
    Program(
        "bfloat16_params",
        "train",
        descent(bfloat16_loss, 0.2),
        bfloat16_init,
        regression,
        products=8,
    ),
    Program(
        "bfloat16_compute", "train", descent(mixed_loss, 0.2), mlp_init, regression, products=8
    ),
    Program("float16_loss_scale", "train", float16_step, mlp_init, regression, products=8),
    Program(
        "many_types_model",
        "model",
        many_forward,
        mlp_init,
        many_batch,
        products=3,
        gradient_products=8,
        loss=many_loss,
    ),
    Program("integers", "train", integer_step, integer_init, tokens, products=1, learns=False),
    Program("complex", "train", complex_step, complex_init, complex_batch, products=2),
    Program("large_constant", "train", descent(table_loss, 2.0), table_init, tokens, products=3),
    Program("random_augmentation", "train", random_step, random_init, regression, products=8),
)
