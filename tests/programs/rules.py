"""Derivatives that are not the function's own: custom rules, stopped gradients, second orders."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import regression
from .plain import descent, mlp_init, mse
from .program import Program, Tree

X, Y = regression(0)


# Rounding, with the gradient passed straight through: the true derivative is zero.


@jax.custom_vjp
def quarter(x: jax.Array) -> jax.Array:
    return jnp.round(4 * x) / 4


quarter.defvjp(lambda x: (quarter(x), None), lambda _, g: (g,))


def rounded_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    first, second, third = params
    h = quarter(jnp.tanh(x @ first["w"] + first["b"]))
    h = quarter(jnp.tanh(h @ quarter(second["w"]) + second["b"]))
    return jnp.mean((h @ third["w"] + third["b"] - y) ** 2)


# A product with its own rule: the gradient of the weights is clipped inside the rule.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def clipped_matmul(x: jax.Array, w: jax.Array, limit: float) -> jax.Array:
    return x @ w


def clipped_forward(x: jax.Array, w: jax.Array, limit: float) -> tuple[jax.Array, Any]:
    return x @ w, (x, w)


def clipped_backward(limit: float, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    return g @ w.T, jnp.clip(x.T @ g, -limit, limit)


clipped_matmul.defvjp(clipped_forward, clipped_backward)


def clipped_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(clipped_matmul(x, layer["w"], 0.05) + layer["b"])
    return jnp.mean((clipped_matmul(x, params[-1]["w"], 0.05) + params[-1]["b"] - y) ** 2)


# log(1 + exp(x)), stable, by custom_jvp; differentiated by the step or by the user.


@jax.custom_jvp
def log1pexp(x: jax.Array) -> jax.Array:
    return jnp.where(x > 20, x, jnp.log1p(jnp.exp(jnp.minimum(x, 20))))


@log1pexp.defjvp
def _log1pexp_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    (x,), (t,) = primals, tangents
    return log1pexp(x), t * jax.nn.sigmoid(x)


def softplus_forward(params: Tree, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = log1pexp(8 * (x @ layer["w"] + layer["b"])) / 8
    return x @ params[-1]["w"] + params[-1]["b"]


def softplus_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((softplus_forward(params, x) - y) ** 2)


def rounded_forward(params: Tree, x: jax.Array) -> jax.Array:
    first, second, third = params
    h = quarter(jnp.tanh(x @ first["w"] + first["b"]))
    h = clipped_matmul(h, second["w"], 0.1) + second["b"]
    return quarter(jnp.tanh(h)) @ third["w"] + third["b"]


@jax.jit
def fixed_mse(outputs: jax.Array) -> jax.Array:
    return jnp.mean((outputs - Y) ** 2)


def fixed_input(i: int) -> tuple[np.ndarray]:
    return (X,)


# Stopped gradients: a target network that follows by an exponential average.


def target_init(seed: int) -> tuple[Tree, Tree]:
    return mlp_init(seed), mlp_init(seed + 1)


def target_step(state: tuple[Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    online, target = state

    def loss_fn(params: Tree) -> jax.Array:
        bootstrap = jax.lax.stop_gradient(softplus_forward(target, x))
        return jnp.mean((softplus_forward(params, x) - 0.9 * y - 0.1 * bootstrap) ** 2)

    loss, gradients = jax.value_and_grad(loss_fn)(online)
    online = jax.tree.map(lambda p, g: p - 0.1 * g, online, gradients)
    return (online, jax.tree.map(lambda t, p: 0.95 * t + 0.05 * p, target, online)), loss


# Second order: a step along the gradient, as long as the curvature allows (a Hessian's product
# with a vector, forward over reverse).


def curvature_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
    loss, gradients = jax.value_and_grad(mse)(params, x, y)
    _, along = jax.jvp(lambda p: jax.grad(mse)(p, x, y), (params,), (gradients,))

    def dot(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return sum(jnp.vdot(u, v) for u, v in pairs)

    rate = jnp.clip(dot(gradients, gradients) / (jnp.abs(dot(gradients, along)) + 1e-6), 0, 0.3)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradients), loss, rate


PROGRAMS = (
    Program(
        "custom_vjp_straight_through",
        "train",
        descent(rounded_loss, 0.2),
        mlp_init,
        regression,
        products=8,
    ),
    Program(
        "custom_vjp_matmul", "train", descent(clipped_loss, 0.3), mlp_init, regression, products=9
    ),
    Program(
        "custom_vjp_model",
        "model",
        rounded_forward,
        mlp_init,
        fixed_input,
        products=3,
        gradient_products=8,
        loss=fixed_mse,
        rate=0.2,
    ),
    Program(
        "custom_jvp_log1pexp",
        "train",
        descent(softplus_loss, 0.2),
        mlp_init,
        regression,
        products=8,
    ),
    Program(
        "custom_jvp_model",
        "model",
        softplus_forward,
        mlp_init,
        fixed_input,
        products=3,
        gradient_products=8,
        loss=fixed_mse,
        rate=0.2,
    ),
    Program("stop_gradient_target", "train", target_step, target_init, regression, products=11),
    Program("hessian_vector", "train", curvature_step, mlp_init, regression, products=42),
)
