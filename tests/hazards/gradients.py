"""Gradients: traps of where, sqrt, norm, std and pow at zero, vanishing and overflowing ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .case import Real, hazard, safe

Array = Any

# --- hazards ---


def where_sqrt(x: Array) -> Array:
    def loss(x: Array) -> Array:
        return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))  # HERE

    return jax.grad(loss)(x)


def norm_at_zero(x: Array, y: Array) -> Array:
    def distance(x: Array) -> Array:
        return jnp.linalg.norm(x - y)  # HERE

    return jax.grad(distance)(x)


def hand_norm_at_zero(x: Array) -> Array:
    def length(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(x**2))  # HERE

    return jax.grad(length)(x)


def deviation_of_constant(x: Array) -> Array:
    def spread(x: Array) -> Array:
        return jnp.std(x)  # HERE

    return jax.grad(spread)(x)


def where_log(p: Array) -> Array:
    def entropy(p: Array) -> Array:
        terms = jnp.where(p > 0, p * jnp.log(p), 0.0)  # HERE
        return -jnp.sum(terms)

    return jax.grad(entropy)(p)


def where_divide(x: Array, y: Array) -> Array:
    def ratio(y: Array) -> Array:
        return jnp.sum(jnp.where(y != 0, x / y, 0.0))  # HERE

    return jax.grad(ratio)(y)


def fractional_power(x: Array) -> Array:
    def loss(x: Array) -> Array:
        return jnp.sum(x**0.5)  # HERE

    return jax.grad(loss)(x)


def angle_of_one(c: Array) -> Array:
    def angle(c: Array) -> Array:
        return jnp.sum(jnp.arccos(c))  # HERE

    return jax.grad(angle)(c)


def lost_eps_under_sqrt(x: Array) -> Array:
    def length(x: Array) -> Array:
        return jnp.sum(jnp.sqrt(x * x + 1e-12))  # HERE

    return jax.grad(length)(x)


def where_softplus(x: Array) -> Array:
    def softplus(x: Array) -> Array:
        return jnp.sum(jnp.where(x > 20.0, x, jnp.log1p(jnp.exp(x))))  # HERE

    return jax.grad(softplus)(x)


def scaled_backward(params: Array, x: Array, y: Array) -> Array:
    def loss(params: Array) -> Array:
        prediction = x @ params["w"] + params["b"]  # HERE
        return 32768.0 * jnp.mean((prediction - y) ** 2)

    return jax.value_and_grad(loss)(params)


def saturated_sigmoid(x: Array) -> Array:
    def score(x: Array) -> Array:
        return jnp.sum(jax.nn.sigmoid(x))  # HERE

    return jax.grad(score)(x)


def saturated_tanh(x: Array) -> Array:
    def score(x: Array) -> Array:
        return jnp.sum(jnp.tanh(x))  # HERE

    return jax.grad(score)(x)


def direction_at_origin(x: Array, y: Array) -> Array:
    def heading(x: Array) -> Array:
        return jnp.sum(jnp.arctan2(y, x))  # HERE

    return jax.grad(heading)(x)


def maximum_after_sqrt(x: Array) -> Array:
    def loss(x: Array) -> Array:
        length = jnp.maximum(jnp.sqrt(jnp.sum(x * x)), 1e-3)  # HERE
        return jnp.sum(x) / length

    return jax.grad(loss)(x)


def where_unit_vector(x: Array) -> Array:
    def loss(x: Array) -> Array:
        length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))  # HERE
        return jnp.sum(jnp.where(length > 0, x, 0.0) * length)

    return jax.grad(loss)(x)


def gradient_of_log(x: Array) -> Array:
    def loss(x: Array) -> Array:
        return jnp.sum(jnp.log(x + 1e-5))  # HERE

    return jax.grad(loss)(x)


def gradient_of_reciprocal(x: Array) -> Array:
    def loss(x: Array) -> Array:
        return jnp.sum(1.0 / x)  # HERE

    return jax.grad(loss)(x)


def train_step_log_softmax(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        logits = x @ params["w"]
        probabilities = jax.nn.softmax(logits)
        return -jnp.mean(jnp.log(probabilities[:, 0]))  # HERE

    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def rnn_grows(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        def cell(h: Array, x: Array) -> tuple[Array, None]:
            return h * w + x, None  # HERE

        h, _ = jax.lax.scan(cell, jnp.zeros_like(x[0]), x)
        return jnp.sum(h)

    return jax.grad(loss)(w)


def gradient_underflows(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        return jnp.sum(x * (w * 1e-4))  # HERE

    return jax.grad(loss)(w)


ROWS = (3, 4)

HAZARDS = (
    hazard(
        where_sqrt, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        where_sqrt, Real(0, 1), intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        norm_at_zero, Real(-1, 1), Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan",
        trigger=(0.5, 0.5),
    ),
    hazard(
        hand_norm_at_zero, Real(-1, 1), format="bfloat16", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        hand_norm_at_zero, Real(-1e-4, 1e-4),
        kind="underflow", root="integer_pow", at=("mul", "div"), symptom="inf", trigger=(1e-4,),
    ),
    hazard(
        deviation_of_constant, Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan", trigger=(0.5,),
    ),
    hazard(
        where_log, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root=("log", "div"), at=("div", "mul", "log"), symptom="nan",
        trigger=(0.0,),
    ),
    hazard(
        where_divide, Real(-1, 1), Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("div", "integer_pow"), at=("div", "mul", "integer_pow"),
        symptom="nan", trigger=(0.5, 0.0),
    ),
    hazard(
        fractional_power, Real(0, 1), intrinsic=True,
        kind="invalid", root="pow", at="pow", symptom="inf", trigger=(0.0,),
    ),
    hazard(
        angle_of_one, Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("acos", "rsqrt"), at=("rsqrt", "div"), symptom="inf", trigger=(1.0,),
    ),
    hazard(
        lost_eps_under_sqrt, Real(-1, 1),
        kind=("underflow", "invalid"), root="literal", at=("div", "mul"), symptom="nan",
        trigger=(0.0,),
    ),
    hazard(
        where_softplus, Real(-100, 100), format="float32",
        kind=("overflow", "invalid"), root="exp", at=("exp", "mul", "div"), symptom="nan",
        trigger=(95.0,),
    ),
    hazard(
        where_softplus, Real(-100, 100),
        kind=("overflow", "invalid"), root="exp", at=("exp", "mul", "div"), symptom="nan",
        trigger=(50.0,),
    ),
    hazard(
        scaled_backward, {"w": Real(-0.01, 0.01, (3, 1)), "b": Real(-0.1, 0.1, (1,))},
        Real(-10, 10, (4, 3)), Real(-0.5, 0.5, (4, 1)),
        kind="overflow", root="dot_general", at="dot_general", symptom="inf",
        trigger=(0.0, 10.0, 0.5),
    ),
    hazard(
        saturated_sigmoid, Real(9, 12),
        kind="rounds-to-bound", root="logistic", at=("sub", "mul"), symptom="zero",
        trigger=(10.0,),
    ),
    hazard(
        saturated_sigmoid, Real(7, 10), format="bfloat16",
        kind="rounds-to-bound", root="logistic", at=("sub", "mul"), symptom="zero",
        trigger=(8.0,),
    ),
    hazard(
        saturated_tanh, Real(5, 8),
        kind="rounds-to-bound", root="tanh", at=("sub", "mul"), symptom="zero", trigger=(6.0,),
    ),
    hazard(
        direction_at_origin, Real(-1, 1), Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("div", "atan2"), at="div", symptom="nan", trigger=(0.0, 0.0),
    ),
    hazard(
        maximum_after_sqrt, Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        where_unit_vector, Real(-1, 1, ROWS), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        gradient_of_log, Real(0, 1),
        kind="overflow", root="div", at="div", symptom="inf", trigger=(0.0,),
    ),
    hazard(
        gradient_of_reciprocal, Real(1e-3, 1),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(1e-3,),
    ),
    hazard(
        train_step_log_softmax, {"w": Real(-5, 5, (3, 4))}, Real(-1, 1, (2, 3)),
        kind="underflow", root=("exp", "div"), at=("log", "div"), symptom="inf",
        trigger=({"w": np.array([-5.0, 5, 0, 0])}, 1.0),
    ),
    hazard(
        rnn_grows, Real(-5, 5), Real(-1, 1, (12, 4)),
        kind="overflow", root=("mul", "add"), at=("mul", "add"), symptom="inf",
        trigger=(4.5, 1.0),
    ),
    hazard(
        gradient_underflows, Real(1, 10), Real(1e-5, 2e-4),
        kind="underflow", root="mul", at="mul", symptom="zero", trigger=(1.0, 2e-4),
    ),
)  # fmt: skip

# --- safe ---


def double_where_sqrt(x: Array) -> Array:
    def loss(x: Array) -> Array:
        positive = x > 0.01
        return jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0))

    return jax.grad(loss)(x)


def double_where_log(p: Array) -> Array:
    def entropy(p: Array) -> Array:
        some = p > 0.01
        return -jnp.sum(jnp.where(some, p * jnp.log(jnp.where(some, p, 1.0)), 0.0))

    return jax.grad(entropy)(p)


def double_where_divide(x: Array, y: Array) -> Array:
    def ratio(y: Array) -> Array:
        some = jnp.abs(y) > 0.1
        return jnp.sum(jnp.where(some, x / jnp.where(some, y, 1.0), 0.0))

    return jax.grad(ratio)(y)


def kept_eps_under_sqrt(x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(jnp.sqrt(x * x + 1e-2)))(x)


def norm_away_from_zero(x: Array) -> Array:
    return jax.grad(lambda x: jnp.linalg.norm(x))(x)


def clipped_before_log(p: Array) -> Array:
    return jax.grad(lambda p: jnp.sum(jnp.log(jnp.maximum(p, 0.01))))(p)


def library_softplus(x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(jax.nn.softplus(x)))(x)


def library_logsumexp(x: Array) -> Array:
    return jax.grad(lambda x: jax.scipy.special.logsumexp(x))(x)


def absolute(x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(jnp.abs(x) + jax.nn.relu(x)))(x)


def squared_length(x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(x**2))(x)


def small_network(params: Array, x: Array, y: Array) -> Array:
    def loss(params: Array) -> Array:
        hidden = jnp.tanh(x @ params["a"])
        return jnp.mean((hidden @ params["b"] - y) ** 2)

    return jax.value_and_grad(loss)(params)


def unselected_without_gradient(x: Array) -> Array:
    return jnp.where(x > 0.01, jnp.log(x), -5.0)


def stopped(x: Array, scale: Array) -> Array:
    def loss(x: Array) -> Array:
        length = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(scale * scale)))
        return jnp.sum(x) * length

    return jax.grad(loss)(x)


def library_sinc(x: Array) -> Array:
    return jnp.sinc(x)


def sigmoid_in_reach(x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(jax.nn.sigmoid(x)))(x)


def scanned(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        def cell(h: Array, x: Array) -> tuple[Array, None]:
            return jnp.tanh(h * w + x), None

        h, _ = jax.lax.scan(cell, jnp.zeros_like(x[0]), x)
        return jnp.sum(h)

    return jax.grad(loss)(w)


SAFE = (
    safe(double_where_sqrt, Real(0, 1), error=5.0),
    safe(double_where_log, Real(0, 1), error=5.0),
    safe(double_where_divide, Real(-1, 1), Real(-1, 1), error=2.0),
    safe(kept_eps_under_sqrt, Real(-10, 10)),
    safe(norm_away_from_zero, Real(0.1, 1)),
    safe(norm_away_from_zero, Real(0.1, 1), format="float32"),
    safe(clipped_before_log, Real(0, 1), error=2.0),
    safe(library_softplus, Real(-50, 50)),
    safe(library_logsumexp, Real(-50, 50), error=0.05),
    safe(absolute, Real(-1, 1)),
    safe(squared_length, Real(-1000, 1000), format="float32"),
    safe(
        small_network,
        {"a": Real(-1, 1, (3, 4)), "b": Real(-1, 1, (4, 2))},
        Real(-1, 1, (5, 3)),
        Real(-1, 1, (5, 2)),
    ),
    safe(unselected_without_gradient, Real(-1, 1), format="float32"),
    safe(unselected_without_gradient, Real(-1, 1), error=0.2),
    safe(stopped, Real(-1, 1), Real(-1, 1)),
    safe(library_sinc, Real(-1, 1), format="float32"),
    safe(sigmoid_in_reach, Real(-4, 4)),
    safe(scanned, Real(-0.9, 0.9), Real(-1, 1, (6, 4)), error=0.1),
)
