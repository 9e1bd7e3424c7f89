"""Control flow: recurrences by scan and while, layers under scan with remat, cond and switch."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import TEACHER, VOCAB, regression, series, tokens
from .plain import cross_entropy, descent, mlp, mlp_init, mse
from .program import Program, Tree

# A recurrent network, trained through scan.


@jax.jit
def rnn_init(seed: int) -> dict[str, jax.Array]:
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "in": jax.random.normal(a, (4, 16)) * 0.5,
        "h": jnp.eye(16) * 0.7,
        "out": jax.random.normal(b, (16, 2)) * 0.25,
        "b": jax.random.normal(c, (16,)) * 0.1,
    }


def cell(params: Tree, h: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["in"] + h @ params["h"] + params["b"])


def rnn(params: Tree, x: jax.Array) -> jax.Array:
    h, _ = jax.lax.scan(
        lambda h, x: (cell(params, h, x), None), jnp.zeros((len(x), 16)), x.swapaxes(0, 1)
    )
    return h @ params["out"]


def rnn_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((rnn(params, x) - y) ** 2)


# The same trained, and run forward by while: to a length known only at run time, and until the
# state settles.


def while_step(
    params: Tree, x: jax.Array, y: jax.Array, length: jax.Array
) -> tuple[Tree, jax.Array, dict[str, jax.Array]]:
    params, loss = descent(rnn_loss, 0.1)(params, x, y)

    def advance(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        t, h = carry
        return t + 1, cell(params, h, x[:, t])

    _, h = jax.lax.while_loop(lambda carry: carry[0] < length, advance, (0, jnp.zeros((16, 16))))
    moved = lambda carry: (carry[0] < 20) & (carry[2] > 1e-3)  # noqa: E731

    def settle(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        t, h, _ = carry
        new = cell(params, h, jnp.zeros((16, 4)))
        return t + 1, new, jnp.max(jnp.abs(new - h))

    count, h, _ = jax.lax.while_loop(moved, settle, (0, h, jnp.inf))
    return params, loss, {"steps": count, "rest": h @ params["out"]}


def while_batch(i: int) -> tuple[np.ndarray, np.ndarray, np.int32]:
    return *series(i), np.int32(3 + i % 9)


# An equilibrium found by while, differentiated by the implicit function theorem.


@jax.custom_vjp
def equilibrium(params: Tree, x: jax.Array) -> jax.Array:
    return settle(lambda h: cell(params, h, x), jnp.zeros((len(x), 16)))


def settle(f: Any, h: jax.Array) -> jax.Array:
    def more(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return (carry[2] < 30) & jnp.any(jnp.abs(carry[0] - carry[1]) > 1e-4)

    return jax.lax.while_loop(more, lambda c: (f(c[0]), c[0], c[2] + 1), (f(h), h, 0))[0]


def equilibrium_backward(saved: tuple[Any, ...], g: jax.Array) -> tuple[Tree, jax.Array]:
    params, x, h = saved
    _, pull = jax.vjp(lambda params, x, h: cell(params, h, x), params, x, h)
    u = settle(lambda u: g + pull(u)[2], g)
    return pull(u)[:2]


equilibrium.defvjp(
    lambda params, x: (h := equilibrium(params, x), (params, x, h)), equilibrium_backward
)


def equilibrium_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    h = equilibrium({**params, "h": params["h"] * 0.5}, x)
    return jnp.mean((h @ params["out"] - y) ** 2)


def equilibrium_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x = regression(i)[0][:, :4]
    return x, np.tanh(2 * x @ TEACHER[:4, :2])


# A transformer whose layers are stacked: scan over them, products saved, the rest rematerialised.


@jax.jit
def layers_init(seed: int) -> Tree:
    shapes = {
        "qkv": (3, 32, 96),
        "proj": (3, 32, 32),
        "up": (3, 32, 64),
        "down": (3, 64, 32),
        "embed": (VOCAB, 32),
        "head": (32, VOCAB),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) * shape[-2] ** -0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def rms(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


@partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
def layer(x: jax.Array, w: Tree) -> tuple[jax.Array, None]:
    rows, length, width = x.shape
    qkv = (rms(x) @ w["qkv"]).reshape(rows, length, 3, 4, width // 4)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ w["proj"]
    return x + jax.nn.gelu(rms(x) @ w["up"]) @ w["down"], None


def layers_logits(params: Tree, tokens: jax.Array) -> jax.Array:
    stacked = {name: params[name] for name in ("qkv", "proj", "up", "down")}
    x, _ = jax.lax.scan(layer, params["embed"][tokens], stacked)
    return rms(x) @ params["head"]


def layers_loss(params: Tree, tokens: jax.Array) -> jax.Array:
    return cross_entropy(layers_logits(params, tokens[:, :-1]), tokens[:, 1:])


# Two of these as models for their users to differentiate, each on one batch.

(FIXED,), (X, Y) = tokens(0), series(0)


def fixed_tokens(i: int) -> tuple[np.ndarray]:
    return (FIXED[:, :-1],)


@jax.jit
def fixed_loss(logits: jax.Array) -> jax.Array:
    return cross_entropy(logits, FIXED[:, 1:])


def fixed_series(i: int) -> tuple[np.ndarray]:
    return (X,)


@jax.jit
def fixed_error(outputs: jax.Array) -> jax.Array:
    return jnp.mean((outputs - Y) ** 2)


# Branches: cond on data in the loss, switch on the step, nested scans, reverse, unrolled, fori.


def cond_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    error = mlp(params, x) - y
    return jax.lax.cond(
        jnp.max(jnp.abs(error)) > 1.5,
        lambda e: jnp.mean(jnp.where(jnp.abs(e) < 1, e * e, 2 * jnp.abs(e) - 1)),
        lambda e: jnp.mean(e * e),
        error,
    )


def switch_step(state: tuple[Tree, jax.Array], x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
    params, count = state
    loss, gradients = jax.value_and_grad(mse)(params, x, y)
    scale = jax.lax.switch(count % 3, [lambda: 0.1, lambda: 0.2, lambda: 0.3 / (1 + count / 100)])
    params = jax.lax.cond(
        loss > 0,
        lambda: jax.tree.map(lambda p, g: p - scale * g, params, gradients),
        lambda: params,
    )
    return (params, count + 1), loss


def switch_init(seed: int) -> tuple[Tree, jax.Array]:
    return mlp_init(seed), jnp.int32(0)


def nested_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    def row(total: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        series, target = inputs
        h, _ = jax.lax.scan(lambda h, x: (cell(params, h, x), h), jnp.zeros(16), series, unroll=3)
        h = jax.lax.fori_loop(0, 2, lambda _, h: 0.5 * (h + jnp.tanh(h @ params["h"])), h)
        error = jnp.sum((h @ params["out"] - target) ** 2)
        return total + error, error

    total, _ = jax.lax.scan(row, 0.0, (x, y), reverse=True)
    return total / (2 * len(x))


# A linear recurrence, by associative scan.


def linear_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    decay = jax.nn.sigmoid(params["b"])
    inputs = x @ params["in"]
    factors = jnp.broadcast_to(decay, inputs.shape)
    _, h = jax.lax.associative_scan(
        lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (factors, inputs), axis=1
    )
    return jnp.mean((h[:, -1] @ params["out"] - y) ** 2)


PROGRAMS = (
    Program("rnn_scan", "train", descent(rnn_loss, 0.1), rnn_init, series, products=8),
    Program("rnn_while", "train", while_step, rnn_init, while_batch, products=13),
    Program(
        "equilibrium",
        "train",
        descent(equilibrium_loss, 0.2),
        rnn_init,
        equilibrium_batch,
        products=21,
    ),
    Program(
        "layers_scan_remat",
        "train",
        descent(layers_loss, 0.5),
        layers_init,
        tokens,
        products=21,
        slow=True,
    ),
    Program(
        "layers_scan_remat_model",
        "model",
        layers_logits,
        layers_init,
        fixed_tokens,
        products=7,
        gradient_products=21,
        loss=fixed_loss,
        rate=0.5,
    ),
    Program(
        "rnn_scan_model",
        "model",
        rnn,
        rnn_init,
        fixed_series,
        products=3,
        gradient_products=8,
        loss=fixed_error,
    ),
    Program("cond_loss", "train", descent(cond_loss, 0.2), mlp_init, regression, products=8),
    Program("switch_update", "train", switch_step, switch_init, regression, products=8),
    Program("nested_scans", "train", descent(nested_loss, 0.1), rnn_init, series, products=11),
    Program("associative_scan", "train", descent(linear_loss, 0.1), rnn_init, series, products=5),
)
