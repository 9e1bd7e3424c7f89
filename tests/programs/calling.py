"""How functions are called: keywords, static and donated arguments, odd arguments and results."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import regression
from .plain import mlp_init, mse
from .program import Program, Tree

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


# Static by position and by name, defaults, keywords that are arrays, keywords that are trees.


def keyword_step(
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    depth: int = 2,
    *,
    activation: str,
    rate: jax.Array = 0.1,
    weights: dict[str, jax.Array] | None = None,
) -> tuple[Tree, jax.Array]:
    def loss_fn(params: Tree) -> jax.Array:
        h = x
        for layer in params[:depth]:
            h = ACTIVATIONS[activation](h @ layer["w"] + layer["b"])
        error = (h @ params[-1]["w"] + params[-1]["b"] - y) ** 2
        return jnp.mean(error if weights is None else error * weights["row"][:, None])

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradients), loss


def keyword_batch(i: int) -> tuple[np.ndarray, np.ndarray, int]:
    return *regression(i), 2


def keywords(i: int) -> dict[str, Any]:
    return {
        "activation": "tanh",
        "rate": np.float32(0.2),
        "weights": {"row": np.ones(32, np.float32)},
    }


def static_options() -> dict[str, Any]:
    return {"static_argnums": (3,), "static_argnames": ("activation",)}


# Donated state, beside an output that repeats another and one that is an input.


def donated_step(state: dict[str, Tree], x: jax.Array, y: jax.Array) -> tuple[Any, ...]:
    loss, gradients = jax.value_and_grad(mse)(state["params"], x, y)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state["momentum"], gradients)
    params = jax.tree.map(lambda p, m: p - 0.02 * m, state["params"], momentum)
    return {"params": params, "momentum": momentum}, loss, x, loss


@jax.jit
def donated_init(seed: int) -> dict[str, Tree]:
    params = mlp_init(seed)
    return {"params": params, "momentum": jax.tree.map(jnp.zeros_like, params)}


# Results that are not arrays made by the function: None, empty, Python's numbers, weak types.


def odd_step(state: dict[str, Any], x: jax.Array, y: jax.Array) -> tuple[Any, ...]:
    loss, gradients = jax.value_and_grad(mse)(state["params"], x, y)
    params = jax.tree.map(lambda p, g: p - state["rate"] * g, state["params"], gradients)
    new = {
        "params": params,
        "rate": state["rate"],
        "none": None,
        "empty": (),
        "count": state["count"] + 1,
    }
    odd = (
        None,
        (),
        {},
        [],
        3,
        2.5,
        True,
        1j,
        np.float32(7),
        np.zeros((0, 4), np.float32),
        jnp.sin(0.5),
        jnp.asarray(2),
        jax.lax.full((), 1.5),
        -0.0,
        float("inf"),
        float("nan"),
    )
    return new, loss, odd


def odd_init(seed: int) -> dict[str, Any]:
    return {"params": mlp_init(seed), "rate": 0.2, "none": None, "empty": (), "count": 0}


# jit within jit: static arguments, a helper called at two shapes, one inlined, one kept.


@partial(jax.jit, static_argnames=("name", "scale"))
def dense(layer: Tree, x: jax.Array, name: str, *, scale: float = 1.0) -> jax.Array:
    return ACTIVATIONS[name](scale * (x @ layer["w"]) + layer["b"])


@partial(jax.jit, inline=True)
def square_error(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean((a - b) ** 2)


@jax.jit
def nested_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    def loss_fn(params: Tree) -> jax.Array:
        h = dense(params[0], x, "tanh", scale=1.5)
        h = dense(params[1], h, "relu")
        return square_error(h @ params[2]["w"] + params[2]["b"], y)

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradients), loss


PROGRAMS = (
    Program(
        "keywords_and_statics",
        "train",
        keyword_step,
        mlp_init,
        keyword_batch,
        products=8,
        options=static_options,
        keywords=keywords,
    ),
    Program(
        "donated",
        "train",
        donated_step,
        donated_init,
        regression,
        products=8,
        options=lambda: {"donate_argnums": 0},
    ),
    Program("odd_results", "train", odd_step, odd_init, regression, products=8),
    Program("nested_jit", "train", nested_step, mlp_init, regression, products=8),
)
