"""Programs on which FP8 tools silently make zeros or NaNs: extreme sizes, zeros, inf and NaN."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .data import TEACHER, regression
from .plain import dense_init, descent, mlp, mlp_init, mse
from .program import Program, Tree

X, Y = regression(0)


# Zeros: whole inputs at some steps, whole weights, whole gradients, blocks of 32, everything.


def sometimes_zero(i: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = regression(i)
    return (np.zeros_like(x), np.zeros_like(y)) if i % 5 == 1 else (x, y)


@jax.jit
def zero_last_init(seed: int) -> Tree:
    *hidden, last = mlp_init(seed)
    return [*hidden, jax.tree.map(jnp.zeros_like, last)]


def zero_gradient_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return 0.0 * mse(params, x, y) + 1.0


def blocks_init(seed: int) -> Tree:
    first, *rest = dense_init(jax.random.key(seed), (64, 64, 32, 4))
    return [{**first, "w": first["w"].at[:32].set(0).at[:, 32:].set(0)}, *rest]


def blocks_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = regression(i)
    return np.pad(x, ((0, 0), (32, 24))), y


def all_zero_init(seed: int) -> Tree:
    return jax.tree.map(jnp.zeros_like, mlp_init(seed))


def all_zero_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros_like(X), np.zeros_like(Y)


# Sizes far from 1, on the first step already: inputs, gradients, single elements.


def sized_loss(size: float, params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    h = (x @ params[0]["w"]) / size
    return mse(params[1:], jax.nn.relu(h + params[0]["b"]), y)


def sized(name: str, size: float) -> Program:
    def batch(i: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = regression(i)
        return x * np.float32(size), y

    return Program(
        f"silent_inputs_{name}",
        "train",
        descent(partial(sized_loss, size), 0.2),
        mlp_init,
        batch,
        products=8,
    )


def gradients_sized(name: str, size: float) -> Program:
    def step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
        loss, gradients = jax.value_and_grad(lambda p: size * mse(p, x, y))(params)
        return jax.tree.map(lambda p, g: p - 0.2 * (g / size), params, gradients), loss / size

    return Program(f"silent_gradients_{name}", "train", step, mlp_init, regression, products=8)


def outlier_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x, _ = regression(i)
    x[::8, 0] *= 1e4
    return x, np.tanh(2 * x @ TEACHER)


def outlier_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ params[0]["w"] + params[0]["b"])
    return mse(params[1:], h, y)


# A batch that is inf and one that is NaN: the update is skipped, and nothing remembers them.

SKIP = optax.apply_if_finite(optax.adam(1e-2), max_consecutive_errors=5)


@jax.jit
def skip_init(seed: int) -> tuple[Tree, Tree, jax.Array]:
    params = mlp_init(seed)
    return params, SKIP.init(params), jnp.zeros(())


def skip_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = regression(i)
    if i in (2, 7):
        x[3] = np.inf if i == 2 else np.nan
    return x, y


def skip_step(state: tuple[Tree, ...], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    params, moments, last = state
    loss, gradients = jax.value_and_grad(mse)(params, x, y)
    updates, moments = SKIP.update(gradients, moments, params)
    loss = jnp.where(jnp.isfinite(loss), loss, last)
    return (optax.apply_updates(params, updates), moments, loss), loss


# A loss scale that halves and doubles by itself, as the state of a float16 step.


def loss_scale_init(seed: int) -> tuple[Tree, jax.Array, jax.Array]:
    return mlp_init(seed), jnp.float32(2.0**24), jnp.int32(0)


def loss_scale_step(state: tuple[Any, ...], x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
    params, scale, good = state

    def scaled(params: Tree) -> tuple[jax.Array, jax.Array]:
        half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
        error = mlp(half, x.astype(jnp.float16)).astype(jnp.float32) - y
        loss = jnp.mean(error**2)
        return loss * scale, loss

    (_, loss), gradients = jax.value_and_grad(scaled, has_aux=True)(params)
    finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]).all()
    params = jax.tree.map(lambda p, g: jnp.where(finite, p - 0.2 * g / scale, p), params, gradients)
    good = jnp.where(finite, good + 1, 0)
    scale = jnp.where(finite, jnp.where(good % 20 == 0, scale * 2, scale), scale / 2)
    return (params, scale, good), loss


# A step of the length of the gradient's norm, which must count gradients only.


def normed_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
    loss, gradients = jax.value_and_grad(mse)(params, x, y)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda p, g: p - 0.15 * g / norm, params, gradients), loss, norm


PROGRAMS = (
    Program("silent_zero_inputs", "train", descent(mse, 0.2), mlp_init, sometimes_zero, products=8),
    Program(
        "silent_zero_weights", "train", descent(mse, 0.2), zero_last_init, regression, products=8
    ),
    Program(
        "silent_zero_gradients",
        "train",
        descent(zero_gradient_loss, 0.2),
        mlp_init,
        regression,
        products=8,
        learns=False,
    ),
    Program(
        "silent_zero_blocks", "train", descent(mse, 0.2), blocks_init, blocks_batch, products=8
    ),
    Program(
        "silent_all_zero",
        "train",
        descent(mse, 0.2),
        all_zero_init,
        all_zero_batch,
        products=8,
        learns=False,
    ),
    sized("huge", 1e30),
    sized("tiny", 1e-30),
    gradients_sized("huge", 1e12),
    gradients_sized("tiny", 1e-12),
    Program(
        "silent_outliers", "train", descent(outlier_loss, 0.2), mlp_init, outlier_batch, products=8
    ),
    Program("silent_skip_batch", "train", skip_step, skip_init, skip_batch, products=8),
    Program("silent_loss_scale", "train", loss_scale_step, loss_scale_init, regression, products=8),
    Program("silent_global_norm", "train", normed_step, mlp_init, regression, products=8),
)
