"""A GPT of any size as shapes alone: its train step and abstract arguments, nothing allocated.

`SEVEN_B` has the layers of a 7B model: 32 of them, 4096 wide, 6.6 billion weights. Layers are
scanned over (one body, weights stacked) or unrolled (one after the other), and rematerialised or
not. The weights and the optimizer's state are float32, and the model is an ordinary float32
program, for a recipe to narrow; `dtype=jnp.bfloat16` casts by hand, as programs without precir do,
and `product` puts another library's products in the place of those with weights.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any


def multiply(x: jax.Array, weights: Tree, name: str) -> jax.Array:
    """x[batch, length, in] times a layer's weight of that name, in the dtype of x."""
    product: jax.Array = x @ weights[name].astype(x.dtype)
    return product


@dataclass(frozen=True)
class Shape:
    """The sizes of a GPT and how its layers are written."""

    layers: int
    width: int
    heads: int
    length: int  # tokens in a row
    batch: int
    vocabulary: int
    scanned: bool = True
    remat: bool = True
    optimizer: str = "adam"  # or "sgd"
    dtype: Any = None  # of products and what follows them, if cast by hand
    product: Callable[[jax.Array, Tree, str], jax.Array] = multiply
    rows: Any = None  # the sharding of activations[batch, length, width], if several devices

    @property
    def parameters(self) -> int:
        """How many weights."""
        return sum(x.size for x in jax.tree.leaves(abstract_params(self)))


SEVEN_B = Shape(32, 4096, 32, 2048, 1, 32000)
SMALL = Shape(12, 768, 12, 1024, 8, 50304)  # 124M, as GPT-2's smallest
TINY = Shape(2, 128, 4, 64, 8, 256)


# --- arguments ------------------------------------------------------------------------------------


def abstract_params(shape: Shape) -> Tree:
    """The weights as `jax.ShapeDtypeStruct`s; a scanned model's have the layer as first axis."""

    def weight(*size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, jnp.float32)

    width = shape.width

    def layer(*stack: int) -> Tree:
        return {
            "ln_1": weight(*stack, width),
            "qkv": weight(*stack, width, 3 * width),
            "proj": weight(*stack, width, width),
            "ln_2": weight(*stack, width),
            "up": weight(*stack, width, 4 * width),
            "down": weight(*stack, 4 * width, width),
        }

    layers = layer(shape.layers) if shape.scanned else [layer() for _ in range(shape.layers)]
    return {
        "wte": weight(shape.vocabulary, width),
        "wpe": weight(shape.length, width),
        "layers": layers,
        "ln_f": weight(width),
    }


def abstract_args(shape: Shape) -> tuple[Tree, Tree, jax.ShapeDtypeStruct]:
    """The arguments of `train_step`: weights, optimizer state, tokens int32[batch, length + 1]."""
    params = abstract_params(shape)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    opt = {"count": count}
    if shape.optimizer == "adam":
        opt |= {"m": params, "v": params}
    return params, opt, jax.ShapeDtypeStruct((shape.batch, shape.length + 1), jnp.int32)


# --- the train step -------------------------------------------------------------------------------


def layer_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + 1e-5) * gain).astype(x.dtype)


def placed(x: jax.Array, shape: Shape) -> jax.Array:
    """On the devices as the shape says; else XLA divides activations as the weights are divided."""
    return x if shape.rows is None else lax.with_sharding_constraint(x, shape.rows)


def block(p: Tree, x: jax.Array, shape: Shape) -> jax.Array:
    """One layer, x[batch, length, width]: attention, then the MLP."""
    batch, length, width = x.shape
    x = placed(x, shape)
    qkv = shape.product(layer_norm(x, p["ln_1"]), p, "qkv")
    qkv = qkv.reshape(batch, length, 3, shape.heads, width // shape.heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = (q @ k.swapaxes(2, 3)).astype(jnp.float32) * (width // shape.heads) ** -0.5
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)).astype(x.dtype)
    mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)
    x = x + shape.product(mixed, p, "proj")
    up = shape.product(layer_norm(x, p["ln_2"]), p, "up")
    return x + shape.product(jax.nn.gelu(up), p, "down")


def loss_fn(params: Tree, tokens: jax.Array, shape: Shape) -> jax.Array:
    """The mean cross entropy of each next token."""
    dtype = shape.dtype or jnp.float32
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = (params["wte"][inputs] + params["wpe"]).astype(dtype)
    layer = functools.partial(block, shape=shape)
    if shape.remat:
        layer = jax.checkpoint(layer)
    if shape.scanned:
        x = lax.scan(lambda x, p: (layer(p, x), None), x, params["layers"])[0]
    else:
        for i, p in enumerate(params["layers"]):
            with jax.named_scope(f"h_{i}"):
                x = layer(p, x)
    x = layer_norm(placed(x, shape), params["ln_f"])
    logits = (x @ params["wte"].T.astype(dtype)).astype(jnp.float32)
    logp = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logp, targets[..., None], axis=-1))


def make_train_step(shape: Shape) -> Callable[[Tree, Tree, jax.Array], tuple[Tree, Tree, Any]]:
    """`train_step(params, opt, tokens) -> params, opt, loss`."""

    def train_step(params: Tree, opt: Tree, tokens: jax.Array) -> tuple[Tree, Tree, Any]:
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens, shape)
        return *update(params, opt, grads), loss

    return train_step


def update(params: Tree, opt: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """The weights and the optimizer's state after one step: Adam if it has moments, else SGD."""

    def adam(p: Any, m: Any, v: Any, g: Any, t: Any) -> tuple[Any, Any, Any]:
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        step = (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.95**t)) + 1e-8)
        return p - 3e-4 * step, m, v

    count = opt["count"] + 1
    if "m" not in opt:
        return jax.tree.map(lambda p, g: p - 1e-2 * g, params, grads), {"count": count}
    t = count.astype(jnp.float32)
    moved = jax.tree.map(lambda p, m, v, g: adam(p, m, v, g, t), params, opt["m"], opt["v"], grads)
    params, m, v = (jax.tree.map(lambda _, r, i=i: r[i], params, moved) for i in range(3))
    return params, {"count": count, "m": m, "v": v}


# --- shardings ------------------------------------------------------------------------------------


def data_parallel(args: tuple[Tree, ...], axis: str = "data") -> tuple[Tree, ...]:
    """Partition specs: the state on every device, the rows of the batch divided."""
    spec = jax.sharding.PartitionSpec
    return (*(jax.tree.map(lambda _: spec(), a) for a in args[:-1]), spec(axis))
