"""Programs on which FP8 tools fail without a word: stay wide, lose a scale, make a NaN."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from .data import TEACHER, regression
from .plain import dense_init, descent, mlp, mlp_init, mse
from .program import Program, Tree

X, Y = regression(0)


# The full-precision model is traced before it is compiled, here by `init`: a tool that swaps
# functions while it traces then finds JAX's caches filled, and these products stay wide.

@jax.jit
def helper(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot(x, w)


def scan_body(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
    return jnp.tanh(h @ w), None


def scanned(params: Tree, x: jax.Array) -> jax.Array:
    h, _ = jax.lax.scan(scan_body, x @ params["in"], params["layers"])
    return h @ params["out"]


def scanned_init(seed: int) -> Tree:
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {"in": jax.random.normal(a, (8, 16)) * 0.35, "out": jax.random.normal(b, (16, 4)) * 0.25,
            "layers": jax.random.normal(c, (3, 16, 16)) * 0.25}


def dense_by(product: Callable[..., jax.Array]) -> Callable[[Tree, jax.Array], jax.Array]:
    def forward(params: Tree, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jax.nn.relu(product(x, layer["w"]) + layer["b"])
        return product(x, params[-1]["w"]) + params[-1]["b"]

    return forward


def loss_of(forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda params, x, y: jnp.mean((forward(params, x) - y) ** 2)


@jax.jit
def fixed_loss(outputs: jax.Array) -> jax.Array:
    return jnp.mean((outputs - Y) ** 2)


def traced_first(forward: Callable[..., jax.Array], init: Callable[[int], Tree]) -> dict[str, Any]:
    """The `step` and `init` of a train step whose gradient `init` has already run, wide."""
    def traced_init(seed: int) -> Tree:
        params = init(seed)
        jax.block_until_ready(jax.jit(jax.grad(loss_of(forward)))(params, X, Y))
        return params

    return {"step": descent(loss_of(forward), 0.2), "init": traced_init}


OPERATOR, DOT, HELPER = (dense_by(f) for f in (lambda x, w: x @ w, jnp.dot, helper))
OPERATOR_FIRST, DOT_FIRST, HELPER_FIRST = (
    traced_first(f, mlp_init) for f in (OPERATOR, DOT, HELPER))
SCAN_FIRST = traced_first(scanned, scanned_init)


# Every activation has exactly the shape of a weight.

def square_init(seed: int) -> Tree:
    return dense_init(jax.random.key(seed), (8, 8, 8, 8, 4))


# One layer called several times: its scale is used, and must be updated, once a step.

class Reused(nn.Module):
    calls: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shared = nn.Dense(8, name="shared")
        for _ in range(self.calls):
            x = x + jnp.tanh(shared(x))
        return nn.Dense(4, name="head")(x)


def reused(calls: int) -> Program:
    model = Reused(calls)
    return Program(
        f"silent_reuse_{calls}", "train", descent(loss_of(model.apply), 0.1),
        jax.jit(lambda seed: model.init(jax.random.key(seed), X)), regression,
        products=3 * calls + 2)


# Micro-batches of very different size, whose gradients are averaged: an amax must be a maximum.
# The normalisation after the first product makes the sizes of its gradients differ inversely.

SIZES = np.array([1, 1e-3, 30, 1e3], np.float32)


def micro_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    h = x @ params[0]["w"]
    h = jnp.tanh(2 * h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True)) + params[0]["b"])
    return mse(params[1:], h, y)


def micro_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x, _ = regression(i)
    y = np.tanh(2 * x @ TEACHER / np.sqrt(np.mean(x * x, -1, keepdims=True)))
    return SIZES[:, None, None] * x.reshape(4, 8, 8), y.reshape(4, 8, 4)


def micro_scan_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    def add(total: Tree, batch: tuple[jax.Array, jax.Array]) -> tuple[Tree, jax.Array]:
        loss, gradients = jax.value_and_grad(micro_loss)(params, *batch)
        return jax.tree.map(jnp.add, total, gradients), loss

    total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (x, y))
    return jax.tree.map(lambda p, g: p - 0.2 * g / 4, params, total), losses.mean()


def micro_loop_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    losses, gradients = zip(*(jax.value_and_grad(micro_loss)(params, *batch)
                              for batch in zip(x, y, strict=True)), strict=True)
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *gradients)
    return jax.tree.map(lambda p, g: p - 0.2 * g, params, mean), sum(losses) / len(losses)


# Products of two gradients: e5m2 with e5m2, which no GPU multiplies. A penalty on the gradient
# of the input is differentiated again; a Gram matrix of the gradient scales the update.

def penalty_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    def smooth(params: Tree, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    slope = jax.grad(lambda x: jnp.sum(smooth(params, x)))(x)
    return jnp.mean((smooth(params, x) - y) ** 2) + 0.003 * jnp.mean(jnp.sum(slope ** 2, -1))


def gram_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    loss, gradients = jax.value_and_grad(mse)(params, x, y)

    def update(p: jax.Array, g: jax.Array) -> jax.Array:
        rows = g if g.ndim == 2 else g[None]
        gram = rows @ rows.T
        return p - 0.1 * g * jax.lax.rsqrt(jnp.trace(gram) + 1e-2)

    return jax.tree.map(update, params, gradients), loss


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

    return Program(f"silent_inputs_{name}", "train", descent(partial(sized_loss, size), 0.2),
                   mlp_init, batch, products=8)


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
    return mlp_init(seed), jnp.float32(2.0 ** 24), jnp.int32(0)


def loss_scale_step(state: tuple[Any, ...], x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
    params, scale, good = state

    def scaled(params: Tree) -> tuple[jax.Array, jax.Array]:
        half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
        error = mlp(half, x.astype(jnp.float16)).astype(jnp.float32) - y
        loss = jnp.mean(error ** 2)
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


# Sides below a tile, and none a multiple of 16; bfloat16 inputs that meet float32 weights.

def narrow_init(seed: int) -> Tree:
    return dense_init(jax.random.key(seed), (8, 24, 13, 4))


def promoted_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return mse(params, x.astype(jnp.bfloat16), y)


PROGRAMS = (
    Program("silent_first_operator", "train", **OPERATOR_FIRST, batch=regression, products=8),
    Program("silent_first_dot", "train", **DOT_FIRST, batch=regression, products=8),
    Program("silent_first_helper", "train", **HELPER_FIRST, batch=regression, products=8),
    Program("silent_first_scan", "train", **SCAN_FIRST, batch=regression, products=8),
    Program("silent_first_model", "model", HELPER, HELPER_FIRST["init"], lambda i: (X,),
            products=3, gradient_products=8, loss=fixed_loss),
    Program("silent_square", "train", descent(mse, 0.2), square_init,
            lambda i: regression(0, rows=8), products=11),
    reused(1), reused(2), reused(4),
    Program("silent_micro_scan", "train", micro_scan_step, mlp_init, micro_batch, products=8),
    Program("silent_micro_loop", "train", micro_loop_step, mlp_init, micro_batch, products=32),
    Program("silent_gradient_penalty", "train", descent(penalty_loss, 0.2), mlp_init, regression,
            products=22),
    Program("silent_gram", "train", gram_step, mlp_init, regression, products=14),
    Program("silent_zero_inputs", "train", descent(mse, 0.2), mlp_init, sometimes_zero,
            products=8),
    Program("silent_zero_weights", "train", descent(mse, 0.2), zero_last_init, regression,
            products=8),
    Program("silent_zero_gradients", "train", descent(zero_gradient_loss, 0.2), mlp_init,
            regression, products=8, learns=False),
    Program("silent_zero_blocks", "train", descent(mse, 0.2), blocks_init, blocks_batch,
            products=8),
    Program("silent_all_zero", "train", descent(mse, 0.2), all_zero_init, all_zero_batch,
            products=8, learns=False),
    sized("huge", 1e30), sized("tiny", 1e-30),
    gradients_sized("huge", 1e12), gradients_sized("tiny", 1e-12),
    Program("silent_outliers", "train", descent(outlier_loss, 0.2), mlp_init, outlier_batch,
            products=8),
    Program("silent_skip_batch", "train", skip_step, skip_init, skip_batch, products=8),
    Program("silent_loss_scale", "train", loss_scale_step, loss_scale_init, regression,
            products=8),
    Program("silent_global_norm", "train", normed_step, mlp_init, regression, products=8),
    Program("silent_narrow", "train", descent(mse, 0.2), narrow_init,
            lambda i: regression(i, rows=20), products=8),
    Program("silent_promotion", "train", descent(promoted_loss, 0.2), mlp_init, regression,
            products=8),
)
