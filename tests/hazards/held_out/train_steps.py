"""Whole small train steps: a model, a loss, its gradient, an update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.hazards.case import Real, hazard, safe

Array = Any


def descend(params: Array, grads: Array) -> Array:
    return jax.tree.map(lambda p, g: p - 0.0625 * g, params, grads)


# --- hazards ---


def linear_step(params: Array, x: Array, y: Array) -> Array:
    def loss(params: Array) -> Array:
        prediction = x @ params["w"] + params["b"]
        return jnp.mean((prediction - y) ** 2)  # HERE

    value, grads = jax.value_and_grad(loss)(params)
    return value, descend(params, grads)


def logistic_step(params: Array, x: Array, y: Array) -> Array:
    def loss(params: Array) -> Array:
        p = jax.nn.sigmoid(x @ params["w"] + params["b"])
        missed = (1.0 - y) * jnp.log(1.0 - p)  # HERE
        return -jnp.mean(y * jnp.log(p + 1e-3) + missed)

    value, grads = jax.value_and_grad(loss)(params)
    return value, descend(params, grads)


def perceptron_step(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        hidden = jax.nn.relu(x @ params["first"])
        scores = jnp.exp(hidden @ params["second"])  # HERE
        return -jnp.mean(jnp.log(scores[:, 0] / jnp.sum(scores, axis=-1)))

    return descend(params, jax.grad(loss)(params))


def attention_step(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        q, k = x @ params["q"], x @ params["k"]
        scores = q @ k.T  # HERE
        return jnp.mean(jax.nn.softmax(scores, axis=-1) @ x)

    return jax.value_and_grad(loss)(params)


def recurrent_step(w: Array, xs: Array) -> Array:
    def loss(w: Array) -> Array:
        def cell(h: Array, x: Array) -> tuple[Array, None]:
            return jax.nn.relu(h @ w + x), None  # HERE

        final, _ = jax.lax.scan(cell, jnp.zeros_like(xs[0]), xs)
        return jnp.mean(final)

    return w - 0.125 * jax.grad(loss)(w)


def autoencoder_step(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        mean = x @ params["mean"]
        log_variance = x @ params["spread"]
        variance = jnp.exp(log_variance)  # HERE
        return 0.5 * jnp.mean(variance + mean**2 - 1.0 - log_variance)

    return jax.value_and_grad(loss)(params)


def many_little_steps(w: Array, x: Array, y: Array) -> Array:
    def step(w: Array, _: None) -> tuple[Array, None]:
        gradient = jax.grad(lambda w: 0.5 * (w * x - y) ** 2)(w)
        return w - 0.001 * gradient, None  # HERE

    return jax.lax.scan(step, w, None, length=300)[0]


def discriminator_step(w: Array, real: Array, fake: Array) -> Array:
    def loss(w: Array) -> Array:
        believed = jax.nn.log_sigmoid(real @ w)
        fooled = jnp.log(1.0 - jax.nn.sigmoid(fake @ w))  # HERE
        return -jnp.mean(believed) - jnp.mean(fooled)

    return jax.value_and_grad(loss)(w)


def dead_embeddings_step(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        z = jax.nn.relu(x @ w)
        length = jnp.sqrt(jnp.sum(z * z, axis=-1, keepdims=True))
        unit = z / length  # HERE
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(unit @ unit.T)))

    return jax.value_and_grad(loss)(w)


def policy_step(w: Array, x: Array, old: Array, advantage: Array) -> Array:
    def loss(w: Array) -> Array:
        new = jax.nn.log_softmax(x @ w, axis=-1)[:, 0]
        ratio = jnp.exp(new - old)  # HERE
        clipped = jnp.clip(ratio, 0.8, 1.2) * advantage
        return -jnp.mean(jnp.minimum(ratio * advantage, clipped))

    return jax.value_and_grad(loss)(w)


HAZARDS = (
    hazard(
        linear_step, {"w": Real(-2, 2, (3,)), "b": Real(-1, 1, ())},
        Real(-300, 300, (4, 3)), Real(-100, 100, (4,)),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf",
        trigger=({"w": 2.0, "b": 0.0}, 300.0, 0.0),
    ),
    hazard(
        logistic_step, {"w": Real(-2, 2, (3,)), "b": Real(-1, 1, ())},
        Real(-3, 3, (4, 3)), Real(0, 1, (4,)), format="bfloat16",
        kind="rounds-to-bound", root="logistic", at="log", symptom="inf",
        trigger=({"w": 1.0, "b": 0.0}, 3.0, 0.0),
    ),
    hazard(
        perceptron_step, {"first": Real(-1, 1, (4, 5)), "second": Real(-1, 1, (5, 3))},
        Real(-2, 2, (3, 4)),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(1.0, 2.0),
    ),
    hazard(
        attention_step, {"q": Real(-2, 2, (8, 8)), "k": Real(-2, 2, (8, 8))}, Real(-8, 8, (3, 8)),
        kind="overflow", root="dot_general", at="dot_general", symptom="inf", trigger=(2.0, 8.0),
    ),
    hazard(
        recurrent_step, Real(-2, 2, (4, 4)), Real(-1, 1, (10, 4)),
        kind="overflow", root=("dot_general", "add"), at=("dot_general", "add"), symptom="inf",
        trigger=(2.0, 1.0),
    ),
    hazard(
        autoencoder_step, {"mean": Real(-1, 1, (4, 2)), "spread": Real(-2, 2, (4, 2))},
        Real(-2, 2, (3, 4)),
        kind="overflow", root="exp", at="exp", symptom="inf",
        trigger=({"mean": 0.0, "spread": 2.0}, 2.0),
    ),
    hazard(
        many_little_steps, Real(1, 2, ()), Real(0.5, 1, ()), Real(2, 4, ()), format="bfloat16",
        kind="absorption", root="sub", at="sub", symptom="stuck", trigger=(1.0, 1.0, 4.0),
    ),
    hazard(
        discriminator_step, Real(-2, 2, (4,)), Real(-2, 2, (3, 4)), Real(-2, 2, (3, 4)),
        kind="rounds-to-bound", root="logistic", at="log", symptom="inf",
        trigger=(2.0, 1.0, 2.0),
    ),
    hazard(
        dead_embeddings_step, Real(-1, 1, (4, 3)), Real(-1, 1, (3, 4)),
        format="float32", intrinsic=True,
        kind="invalid", root=("div", "sqrt"), at=("div",), symptom="nan", trigger=(-1.0, 1.0),
    ),
    hazard(
        policy_step, Real(-5, 5, (3, 2)), Real(-1, 1, (4, 3)), Real(-15, 0, (4,)),
        Real(-1, 1, (4,)),
        kind="overflow", root="exp", at="exp", symptom="inf",
        trigger=(np.array([5.0, -5.0]), 1.0, -15.0, -1.0),
    ),
)  # fmt: skip

# --- safe ---


def standardized_linear_step(params: Array, x: Array, y: Array) -> Array:
    def loss(params: Array) -> Array:
        prediction = x @ params["w"] + params["b"]
        return jnp.mean((prediction - y) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return value, descend(params, grads)


def logistic_step_from_logits(params: Array, x: Array, y: Array) -> Array:
    def loss(params: Array) -> Array:
        z = x @ params["w"] + params["b"]
        missed = (1.0 - y) * jax.nn.log_sigmoid(-z)
        return -jnp.mean(y * jax.nn.log_sigmoid(z) + missed)

    value, grads = jax.value_and_grad(loss)(params)
    return value, descend(params, grads)


def perceptron_step_in_logs(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        hidden = jax.nn.relu(x @ params["first"])
        return -jnp.mean(jax.nn.log_softmax(hidden @ params["second"], axis=-1)[:, 0])

    return descend(params, jax.grad(loss)(params))


def scaled_attention_step(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        q, k = x @ params["q"], x @ params["k"]
        scores = (q / jnp.sqrt(8.0).astype(q.dtype)) @ k.T
        return jnp.mean(jax.nn.softmax(scores, axis=-1) @ x)

    return jax.value_and_grad(loss)(params)


def contracting_recurrent_step(w: Array, xs: Array) -> Array:
    def loss(w: Array) -> Array:
        def cell(h: Array, x: Array) -> tuple[Array, None]:
            return jax.nn.relu(h @ w + x), None

        final, _ = jax.lax.scan(cell, jnp.zeros_like(xs[0]), xs)
        return jnp.mean(final)

    return w - 0.125 * jax.grad(loss)(w)


def saturating_recurrent_step(w: Array, xs: Array) -> Array:
    def cell(h: Array, x: Array) -> tuple[Array, None]:
        return jnp.tanh(h @ w + x), None

    return jax.lax.scan(cell, jnp.zeros_like(xs[0]), xs)[0]


def bounded_autoencoder_step(params: Array, x: Array) -> Array:
    def loss(params: Array) -> Array:
        mean = x @ params["mean"]
        log_variance = jnp.clip(x @ params["spread"], -8.0, 8.0)
        variance = jnp.exp(log_variance)
        return 0.5 * jnp.mean(variance + mean**2 - 1.0 - log_variance)

    return jax.value_and_grad(loss)(params)


def many_little_steps_in_float32(w: Array, x: Array, y: Array) -> Array:
    x32, y32 = x.astype(jnp.float32), y.astype(jnp.float32)

    def step(master: Array, _: None) -> tuple[Array, None]:
        gradient = jax.grad(lambda w: 0.5 * (w * x32 - y32) ** 2)(master)
        return master - 0.001 * gradient, None

    final, _ = jax.lax.scan(step, w.astype(jnp.float32), None, length=300)
    return final.astype(w.dtype)


def few_large_steps(w: Array, x: Array, y: Array) -> Array:
    def step(w: Array, _: None) -> tuple[Array, None]:
        gradient = jax.grad(lambda w: 0.5 * (w * x - y) ** 2)(w)
        return w - 0.5 * gradient, None

    return jax.lax.scan(step, w, None, length=8)[0]


def discriminator_step_from_logits(w: Array, real: Array, fake: Array) -> Array:
    def loss(w: Array) -> Array:
        believed = jax.nn.log_sigmoid(real @ w)
        fooled = jax.nn.log_sigmoid(-(fake @ w))
        return -jnp.mean(believed) - jnp.mean(fooled)

    return jax.value_and_grad(loss)(w)


def softened_embeddings_step(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        z = jax.nn.relu(x @ w)
        unit = z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-2)
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(unit @ unit.T)))

    return jax.value_and_grad(loss)(w)


def bounded_policy_step(w: Array, x: Array, old: Array, advantage: Array) -> Array:
    def loss(w: Array) -> Array:
        new = jax.nn.log_softmax(x @ w, axis=-1)[:, 0]
        ratio = jnp.exp(jnp.clip(new - old, -5.0, 5.0))
        clipped = jnp.clip(ratio, 0.8, 1.2) * advantage
        return -jnp.mean(jnp.minimum(ratio * advantage, clipped))

    return loss(w)


SAFE = (
    safe(
        standardized_linear_step, {"w": Real(-1, 1, (3,)), "b": Real(-1, 1, ())},
        Real(-3, 3, (4, 3)), Real(-3, 3, (4,)),
    ),
    safe(
        logistic_step_from_logits, {"w": Real(-2, 2, (3,)), "b": Real(-1, 1, ())},
        Real(-3, 3, (4, 3)), Real(0, 1, (4,)), format="bfloat16",
    ),
    safe(
        perceptron_step_in_logs, {"first": Real(-1, 1, (4, 5)), "second": Real(-1, 1, (5, 3))},
        Real(-2, 2, (3, 4)), error=0.1,
    ),
    safe(
        scaled_attention_step, {"q": Real(-0.5, 0.5, (8, 8)), "k": Real(-0.5, 0.5, (8, 8))},
        Real(-1, 1, (3, 8)), error=0.1,
    ),
    safe(contracting_recurrent_step, Real(-0.2, 0.2, (4, 4)), Real(-1, 1, (10, 4)), error=0.05),
    safe(saturating_recurrent_step, Real(-0.5, 0.5, (4, 4)), Real(-1, 1, (10, 4)), error=0.05),
    safe(
        bounded_autoencoder_step, {"mean": Real(-1, 1, (4, 2)), "spread": Real(-2, 2, (4, 2))},
        Real(-2, 2, (3, 4)), error=0.1,
    ),
    safe(
        many_little_steps_in_float32, Real(1, 2, ()), Real(0.5, 1, ()), Real(2, 4, ()),
        format="bfloat16",
    ),
    safe(few_large_steps, Real(1, 2, ()), Real(0.5, 1, ()), Real(2, 4, ()), format="bfloat16"),
    safe(
        discriminator_step_from_logits, Real(-2, 2, (4,)), Real(-2, 2, (3, 4)),
        Real(-2, 2, (3, 4)), error=0.1,
    ),
    safe(softened_embeddings_step, Real(-1, 1, (4, 3)), Real(-1, 1, (3, 4)), format="float32"),
    safe(
        bounded_policy_step, Real(-5, 5, (3, 2)), Real(-1, 1, (4, 3)), Real(-15, 0, (4,)),
        Real(-1, 1, (4,)), error=0.1,
    ),
)  # fmt: skip
