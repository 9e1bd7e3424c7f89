"""The train steps that benchmarks/gpu.py times: one GPT of shapes.py, by precir and by its peers.

"bf16" is plain jax.jit of the model with casts to bfloat16 written into it, and what the others are
compared to. precir gets the same model in float32 and a recipe. flax's FP8 ops and qwix multiply by
the weights of each layer in FP8, in the place of the bfloat16 model's products; with attention and
logits in bfloat16, as their users have it.

No state is donated, so that all may start from the same arrays: two sets of float32 weights and
moments would be too much for one GPU. That costs memory and no time.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from gpu_clock import bound

import precir

Tree = Any
Call = Callable[[], Any]
PRODUCTS = ("qkv", "proj", "up", "down")
BF16 = "bf16"
FLAX, QWIX = "flax FP8 ops", "qwix"
APART = "fp8, plain kernels"  # norms and activations by XLA, and quantised after
CONTENDERS = (BF16, "fp8", "fp8-block", APART, FLAX, "bf16-mixed", "fp8-lm-block", QWIX)
TINY_CONTENDERS = (BF16, "fp8", FLAX, QWIX)


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


shapes = _load("shapes")


@dataclass(frozen=True)
class Model:
    """A shape, and how many times as fast as bf16 the FP8 recipes have to be."""

    name: str
    shape: Any
    aim: float
    rank: float

    @property
    def size(self) -> str:
        """In words."""
        s = self.shape
        return f"{s.layers} layers of {s.width}, {s.batch}x{s.length} tokens"


# Four of the 32 layers and an eighth of the vocabulary, so that the logits weigh what they do in
# the whole model; and all of the one of 125M.
SOME_LAYERS = replace(shapes.SEVEN_B, layers=4, batch=4, vocabulary=4000)
MODELS = (
    Model("7B-shaped step", SOME_LAYERS, 1.4, 2),
    Model("125M step", replace(shapes.SMALL, batch=16), 1.0, 3.5),
)
TINY = Model("tiny step", replace(shapes.TINY, batch=2), 1.0, 2)


class NotInstalled(Exception):
    """A peer that is not on this machine."""


def start(shape: Any) -> tuple[Tree, Tree, jax.Array]:
    """Weights, moments and tokens: what the first step takes."""

    @jax.jit
    def make(key: jax.Array) -> tuple[Tree, Tree, jax.Array]:
        params, opt, tokens = shapes.abstract_args(shape)
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        weights = [
            jnp.ones(x.shape, x.dtype)
            if jax.tree_util.keystr(at[-1:]).startswith("['ln")
            else 0.02 * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            for i, (at, x) in enumerate(leaves)
        ]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), opt)
        words = jax.random.randint(key, tokens.shape, 0, shape.vocabulary, tokens.dtype)
        return jax.tree.unflatten(tree, weights), zeros, words

    params, opt, tokens = make(jax.random.key(0))
    return params, opt, tokens


def build(name: str, shape: Any, args: tuple[Tree, Tree, jax.Array]) -> Call:
    """A compiled step of that contender with its arguments; its result ends with the loss.

    Raises ``NotInstalled``.
    """
    by_hand = replace(shape, dtype=jnp.bfloat16)
    if name == BF16:
        return bound(jax.jit(shapes.make_train_step(by_hand)).lower(*args).compile(), *args)
    if name == FLAX:
        return _by_flax(by_hand, args)
    if name == QWIX:
        hand = replace(by_hand, product=_qwix_product())
        return bound(jax.jit(shapes.make_train_step(hand)).lower(*args).compile(), *args)
    recipe = precir.recipe("fp8", kernels="plain") if name == APART else name
    step: Any = precir.compile(shapes.make_train_step(shape), recipe=recipe)
    begun = step.init(*args)
    return bound(step.lower(*begun).compile(), *begun)


# --- flax -----------------------------------------------------------------------------------------

HISTORY = 1024  # as flax's ops have it
META = ("input", "kernel", "output_grad")


def _by_flax(shape: Any, args: tuple[Tree, Tree, jax.Array]) -> Call:
    """A layer's scales and histories ride along with its weights; their "gradients" are the new
    ones.
    """
    ops = _import("flax.linen.fp8_ops")

    def product(x: jax.Array, weights: Tree, name: str) -> jax.Array:
        own, w = weights["fp8"][name], weights[name].astype(x.dtype)
        result: jax.Array = ops.fp8_scaled_dot_general(
            x, w, (((2,), (0,)), ((), ())), preferred_element_type=x.dtype,
            lhs_scale=own["input_scale"], rhs_scale=own["kernel_scale"],
            grad_scale=own["output_grad_scale"], lhs_amax_history=own["input_history"],
            rhs_amax_history=own["kernel_history"], grad_amax_history=own["output_grad_history"],
            quantize_compute_type=x.dtype,
        )  # fmt: skip
        return result

    def loss_fn(params: Tree, meta: Tree, tokens: jax.Array) -> jax.Array:
        layers = params["layers"] | {"fp8": meta}
        loss: jax.Array = shapes.loss_fn(params | {"layers": layers}, tokens, hand)
        return loss

    def train_step(params: Tree, opt: Tree, meta: Tree, tokens: jax.Array) -> Any:
        loss, (grads, meta) = jax.value_and_grad(loss_fn, argnums=(0, 1))(params, meta, tokens)
        return *shapes.update(params, opt, grads), meta, loss

    hand, (params, opt, tokens) = replace(shape, product=product), args
    ones, zeros = jnp.ones((shape.layers, 1)), jnp.zeros((shape.layers, HISTORY))
    each = {f"{m}_scale": ones for m in META} | {f"{m}_history": zeros for m in META}
    begun = (params, opt, {name: dict(each) for name in PRODUCTS}, tokens)
    return bound(jax.jit(train_step).lower(*begun).compile(), *begun)


# --- qwix -----------------------------------------------------------------------------------------


def _qwix_product() -> Callable[[jax.Array, Tree, str], jax.Array]:
    qt = _import("qwix._src.core.dot_general_qt")
    four, five = jnp.float8_e4m3fn, jnp.float8_e5m2
    config = qt.DotGeneralQtConfig(
        lhs_qtype=four, rhs_qtype=four, dlhs_grad_qtype=five, drhs_grad_qtype=five
    )

    def product(x: jax.Array, weights: Tree, name: str) -> jax.Array:
        w = weights[name].astype(x.dtype)
        result: jax.Array = qt.dot_general_qt(x, w, (((2,), (0,)), ((), ())), config)
        return result.astype(x.dtype)

    return product


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NotInstalled(f"not installed: {error.name}") from error
