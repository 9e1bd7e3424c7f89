"""Pure JAX: parameters in dicts and lists, gradients and updates by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import VOCAB, images, regression, tokens
from .program import Program, Tree


def dense_init(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)) * m**-0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def mlp(params: Tree, x: jax.Array) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def mse(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((mlp(params, x) - y) ** 2)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    scores = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(scores, labels[..., None], axis=-1))


def descent(loss_fn: Callable[..., jax.Array], rate: float) -> Callable[..., Any]:
    """The train step of plain gradient descent."""

    def step(params: Tree, *batch: jax.Array) -> tuple[Tree, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_fn)(params, *batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradients), loss

    return step


@jax.jit
def mlp_init(seed: int) -> Tree:
    return dense_init(jax.random.key(seed), (8, 32, 32, 4))


@jax.jit
def dict_init(seed: int) -> dict[str, jax.Array]:
    first, second = dense_init(jax.random.key(seed), (8, 32, 4))
    return {"w1": first["w"], "b1": first["b"], "w2": second["w"], "b2": second["b"]}


def dict_loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    h = jnp.tanh(jnp.dot(x, params["w1"]) + params["b1"])
    return jnp.mean(jnp.abs(jnp.matmul(h, params["w2"]) + params["b2"] - y))


# Gradients of every example, each clipped to norm 1 before the mean: vmap of grad.


def per_example_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    losses, gradients = jax.vmap(jax.value_and_grad(mse), in_axes=(None, 0, 0))(params, x, y)
    squares = [jnp.sum(g**2, axis=range(1, g.ndim)) for g in jax.tree.leaves(gradients)]
    factor = jnp.minimum(1.0, jax.lax.rsqrt(sum(squares) + 1e-12))
    mean = jax.tree.map(lambda g: jnp.tensordot(factor, g, axes=1) / len(x), gradients)
    return jax.tree.map(lambda p, g: p - 0.2 * g, params, mean), losses.mean()


# Grouped-query attention, all einsums: four query heads share two heads of keys and values.


def gqa_init(seed: int) -> Tree:
    shapes = {
        "embed": (VOCAB, 32),
        "q": (32, 2, 2, 8),
        "k": (32, 2, 8),
        "v": (32, 2, 8),
        "o": (2, 2, 8, 32),
        "head": (32, VOCAB),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) * (1.0 if name == "embed" else 32**-0.5)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def gqa_loss(params: Tree, tokens: jax.Array) -> jax.Array:
    x = params["embed"][tokens[:, :-1]]
    q = jnp.einsum("bte,egnd->btgnd", x, params["q"])
    k = jnp.einsum("bte,egd->btgd", x, params["k"])
    v = jnp.einsum("bte,egd->btgd", x, params["v"])
    scores = jnp.einsum("btgnd,bsgd->bgnts", q, k, preferred_element_type=jnp.float32) * 8**-0.5
    bias = jnp.triu(jnp.full(scores.shape[-2:], -1e9), k=1)
    weights = jax.nn.softmax(scores + bias, axis=-1)
    mixed = jnp.einsum("bgnts,bsgd->btgnd", weights, v)
    x = x + jnp.einsum("btgnd,gnde->bte", mixed, params["o"])
    return cross_entropy(x @ params["head"], tokens[:, 1:])


# A mixture of experts: top 2 of 4, dispatched and combined by one-hot einsums.


def experts_init(seed: int) -> Tree:
    gate, up, down = jax.random.split(jax.random.key(seed), 3)
    return {
        "gate": jax.random.normal(gate, (8, 4)) * 0.5,
        "up": jax.random.normal(up, (4, 8, 16)) * 8**-0.5,
        "down": jax.random.normal(down, (4, 16, 4)) * 0.25,
    }


def experts_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    gates = jax.nn.softmax(x @ params["gate"])
    weight, chosen = jax.lax.top_k(gates, 2)
    weight /= weight.sum(-1, keepdims=True)
    slots = jax.nn.one_hot(chosen, 4, dtype=x.dtype)
    h = jax.nn.silu(jnp.einsum("td,tke,edf->tkf", x, slots, params["up"]))
    out = jnp.einsum("tkf,tke,efg,tk->tg", h, slots, params["down"], weight)
    balance = 4 * jnp.sum(gates.mean(0) * slots.mean((0, 1)))
    return jnp.mean((out - y) ** 2) + 0.01 * balance


# Convolutions by the primitive itself: strided, dilated, grouped.


def conv_init(seed: int) -> Tree:
    shapes = {"wide": (3, 3, 1, 8), "grouped": (3, 3, 2, 16), "head": (64, 4)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def conv_loss(params: Tree, x: jax.Array, labels: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["wide"], (2, 2), "SAME", dimension_numbers=layout)
    x = jax.lax.conv_general_dilated(
        jnp.tanh(x),
        params["grouped"],
        (2, 2),
        ((2, 2), (2, 2)),
        rhs_dilation=(2, 2),
        dimension_numbers=layout,
        feature_group_count=4,
    )
    return cross_entropy(jax.nn.elu(x).reshape(len(x), -1) @ params["head"], labels)


# A spectral loss: learn a filter whose output has the right spectrum.

SIGNAL = np.random.default_rng(5).normal(size=(8, 32)).astype(np.float32)
FILTER = np.fft.rfft(np.exp(-np.arange(32) / 4).astype(np.float32))


def fft_init(seed: int) -> jax.Array:
    return 0.1 * jax.random.normal(jax.random.key(seed), (32,))


def fft_batch(i: int) -> tuple[np.ndarray]:
    return (np.roll(SIGNAL, i, axis=1),)


def fft_loss(filter: jax.Array, x: jax.Array) -> jax.Array:
    error = jnp.fft.rfft(x) * (jnp.fft.rfft(filter) - FILTER.astype(np.complex64))
    return jnp.mean(jnp.abs(error) ** 2) / 32


# A Gaussian process: the negative log likelihood, by Cholesky and triangular solves.


def process_init(seed: int) -> dict[str, jax.Array]:
    return {"length": jnp.zeros(()), "noise": jnp.zeros(()), "amplitude": jnp.zeros(())}


def process_batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(i).uniform(-3, 3, size=(24, 1)).astype(np.float32)
    return x, np.sin(2 * x[:, 0])


def process_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    length, noise, amplitude = (jnp.exp(params[k]) for k in ("length", "noise", "amplitude"))
    square = jnp.sum((x[:, None] - x) ** 2, -1)
    kernel = amplitude * jnp.exp(-0.5 * square / length**2) + (noise + 1e-3) * jnp.eye(len(x))
    factor = jnp.linalg.cholesky(kernel)
    weights = jax.scipy.linalg.cho_solve((factor, True), y)
    return (0.5 * y @ weights + jnp.sum(jnp.log(jnp.diag(factor)))) / len(x)


PROGRAMS = (
    Program("mlp_layers", "train", descent(mse, 0.2), mlp_init, regression, products=8),
    Program("mlp_dict", "train", descent(dict_loss, 0.2), dict_init, regression, products=5),
    Program("per_example_clipped", "train", per_example_step, mlp_init, regression, products=14),
    Program(
        "attention_grouped",
        "train",
        descent(gqa_loss, 0.3),
        jax.jit(gqa_init),
        tokens,
        products=21,
        slow=True,
    ),
    Program(
        "experts",
        "train",
        descent(experts_loss, 0.5),
        jax.jit(experts_init),
        regression,
        products=14,
    ),
    Program(
        "conv",
        "train",
        descent(conv_loss, 0.1),
        jax.jit(conv_init),
        images,
        products=3,
        convolutions=5,
    ),
    Program("fft", "train", descent(fft_loss, 0.3), jax.jit(fft_init), fft_batch, products=0),
    Program(
        "gaussian_process",
        "train",
        descent(process_loss, 0.3),
        jax.jit(process_init),
        process_batch,
        products=5,
    ),
)
