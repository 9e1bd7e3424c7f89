"""A train step that is sound in float32 and breaks in float16: `precir check` says where.

precir check examples/buggy_step.py:train_step --format float16
"""

import jax
import jax.numpy as jnp

CLASSES = 8


def loss_fn(params, x, there, label):
    """Cross entropy of sequences (batch, time, features), pooled by attention."""
    scores = jnp.where(there, x @ params["query"], -1e9)
    pooled = jnp.sum(jax.nn.softmax(scores)[..., None] * x, axis=1)
    probabilities = jax.nn.softmax(pooled @ params["head"])
    right = jax.nn.one_hot(label, CLASSES)
    return -jnp.mean(jnp.sum(right * jnp.log(probabilities), axis=-1))


def clip_by_norm(grads, limit=1.0):
    """Scale all gradients down to a common norm of at most `limit`."""
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, limit / norm), grads)


def adam(p, m, v, g, rate=1e-3, b1=0.9, b2=0.999, eps=1e-8):
    """The update of one parameter and of its two moments."""
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    return p - rate * m / (jnp.sqrt(v) + eps), m, v


def train_step(params, m, v, x, there, label):
    """The new parameters and moments, and the loss."""
    loss, grads = jax.value_and_grad(loss_fn)(params, x, there, label)
    grads = clip_by_norm(grads)
    new = {k: adam(params[k], m[k], v[k], grads[k]) for k in params}
    return *({k: new[k][i] for k in new} for i in range(3)), loss


def train_step_args():
    """A first step: pixels from 0 to 255."""
    a, b, c = jax.random.split(jax.random.key(0), 3)
    params = {
        "query": jax.random.normal(a, (32,)) / 300,
        "head": jax.random.normal(b, (32, CLASSES)) / 300,
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    x = jax.random.uniform(c, (16, 12, 32), maxval=255)
    there = jnp.arange(12) <= jnp.arange(16)[:, None]  # shorter sequences are padded
    return params, zeros, zeros, x, there, jnp.arange(16) % CLASSES
