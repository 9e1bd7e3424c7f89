"""Programs on which FP8 tools silently stay wide, lose a scale, or make what a GPU refuses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .data import TEACHER, regression
from .plain import dense_init, descent, mlp_init, mse
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
    return {
        "in": jax.random.normal(a, (8, 16)) * 0.35,
        "out": jax.random.normal(b, (16, 4)) * 0.25,
        "layers": jax.random.normal(c, (3, 16, 16)) * 0.25,
    }


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
    traced_first(f, mlp_init) for f in (OPERATOR, DOT, HELPER)
)
SCAN_FIRST = traced_first(scanned, scanned_init)


# Every activation has exactly the shape of a weight.


def smooth(params: Tree, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


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
        f"silent_reuse_{calls}",
        "train",
        descent(loss_of(model.apply), 0.1),
        jax.jit(lambda seed: model.init(jax.random.key(seed), X)),
        regression,
        products=3 * calls + 2,
    )


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
    losses, gradients = zip(
        *(jax.value_and_grad(micro_loss)(params, *batch) for batch in zip(x, y, strict=True)),
        strict=True,
    )
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *gradients)
    return jax.tree.map(lambda p, g: p - 0.2 * g, params, mean), sum(losses) / len(losses)


# Products of two gradients: e5m2 with e5m2, which no GPU multiplies. A penalty on the gradient
# of the input is differentiated again; a Gram matrix of the gradient scales the update.


def penalty_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    slope = jax.grad(lambda x: jnp.sum(smooth(params, x)))(x)
    return jnp.mean((smooth(params, x) - y) ** 2) + 0.003 * jnp.mean(jnp.sum(slope**2, -1))


def gram_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    loss, gradients = jax.value_and_grad(mse)(params, x, y)

    def update(p: jax.Array, g: jax.Array) -> jax.Array:
        rows = g if g.ndim == 2 else g[None]
        gram = rows @ rows.T
        return p - 0.1 * g * jax.lax.rsqrt(jnp.trace(gram) + 1e-2)

    return jax.tree.map(update, params, gradients), loss


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
    Program(
        "silent_first_model",
        "model",
        HELPER,
        HELPER_FIRST["init"],
        lambda i: (X,),
        products=3,
        gradient_products=8,
        loss=fixed_loss,
    ),
    Program(
        "silent_square",
        "train",
        descent(loss_of(smooth), 0.2),
        square_init,
        lambda i: regression(0, rows=8),
        products=11,
    ),
    reused(1),
    reused(2),
    reused(4),
    Program("silent_micro_scan", "train", micro_scan_step, mlp_init, micro_batch, products=8),
    Program("silent_micro_loop", "train", micro_loop_step, mlp_init, micro_batch, products=32),
    Program(
        "silent_gradient_penalty",
        "train",
        descent(penalty_loss, 0.2),
        mlp_init,
        regression,
        products=22,
    ),
    Program("silent_gram", "train", gram_step, mlp_init, regression, products=14),
    Program(
        "silent_narrow",
        "train",
        descent(mse, 0.2),
        narrow_init,
        lambda i: regression(i, rows=20),
        products=8,
    ),
    Program(
        "silent_promotion", "train", descent(promoted_loss, 0.2), mlp_init, regression, products=8
    ),
)
