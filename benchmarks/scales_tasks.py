"""The models that benchmarks/scales.py trains: the example's GPT, and an MLP on digits.

A train step here takes a state and a batch and returns a state and the loss. It can be `shifted`:
the loss is multiplied by 2^-18, which puts most gradients below what float16 holds, and the
optimizer undoes it exactly, so that in float32 the run is the same bit for bit.
"""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).parent.parent
SHIFT = 2.0**-18


def load_example() -> ModuleType:
    """Import examples/train_gpt.py, which is not part of a package, by its path."""
    spec = importlib.util.spec_from_file_location("train_gpt", ROOT / "examples" / "train_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_gpt"] = module
    spec.loader.exec_module(module)
    return module


gpt = load_example()


class Scores(NamedTuple):
    """How good parameters are, computed in float32: nats, and the share of right guesses."""

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Task:
    """One model with its data.

    Attributes:
      name: what it is called.
      steps: how many steps a run has.
      start: from `shifted` and a seed, the state of a fresh model.
      make_step: from `shifted`, the train step, neither jitted nor cast.
      batches: from a seed and a number of steps, the batches to train on.
      evaluate: held-out scores of float32 parameters.
    """

    name: str
    steps: int
    start: Callable[[bool, int], Any]
    make_step: Callable[[bool], Callable[[Any, Any], tuple[Any, jax.Array]]]
    batches: Callable[[int, int], Any]
    evaluate: Callable[[Any], Scores]


class State(NamedTuple):
    """All that one step hands to the next."""

    params: Any
    opt_state: Any


# --- digits ---------------------------------------------------------------------------------------

SIZES = (64, 128, 128, 10)
LAYERS = tuple(f"layer_{i}" for i in range(len(SIZES) - 1))
TEST, BATCH = 297, 100


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The images of scikit-learn's digits, float32[1797, 64] in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)


def digits_params(seed: int) -> dict[str, Any]:
    """He's initial weights, and biases of zero."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, n, m in zip(LAYERS, SIZES[:-1], SIZES[1:], strict=True):
        w = rng.standard_normal((n, m)) * (2 / n) ** 0.5
        params[name] = {"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(m, jnp.float32)}
    return params


def digits_logits(params: Any, x: jax.Array) -> jax.Array:
    """From images, [batch, 64], to logits, [batch, 10]."""
    for name in LAYERS:
        with jax.named_scope(name):
            x = x @ params[name]["w"] + params[name]["b"]
            x = x if name == LAYERS[-1] else jax.nn.relu(x)
    return x


def digits_loss(params: Any, batch: Any) -> jax.Array:
    """The mean cross entropy."""
    images, labels = batch
    logits = digits_logits(params, images)
    with jax.named_scope("loss"):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits_optimizer(shifted: bool) -> optax.GradientTransformation:
    """Adam; SGD with momentum where the loss is shifted, its learning rate shifted back."""
    return optax.sgd(0.1 / SHIFT, momentum=0.9) if shifted else optax.adam(2e-3)


def digits_start(shifted: bool, seed: int) -> State:
    """A fresh state."""
    params = digits_params(seed)
    return State(params, digits_optimizer(shifted).init(params))


def digits_step(shifted: bool) -> Callable[[State, Any], tuple[State, jax.Array]]:
    """The train step."""
    return make_step(digits_loss, digits_optimizer(shifted), shifted)


def digits_batches(seed: int, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random batches of all but the held-out images."""
    images, labels = digits()
    places = np.random.default_rng(seed).integers(TEST, len(labels), (steps, BATCH))
    return [(images[at], labels[at]) for at in places]


@jax.jit
def digits_scores(params: Any, images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    guesses = digits_logits(params, images).argmax(1)
    return digits_loss(params, (images, labels)), jnp.mean(guesses == labels)


def digits_evaluate(params: Any) -> Scores:
    """Scores on the held-out images."""
    images, labels = digits()
    return Scores(*map(float, digits_scores(params, images[:TEST], labels[:TEST])))


def make_step(
    loss_fn: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    shifted: bool,
) -> Callable[[State, Any], tuple[State, jax.Array]]:
    """A train step; the loss that it returns is the unshifted one."""

    def train_step(state: State, batch: Any) -> tuple[State, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            value = loss_fn(params, batch)
            return (value * SHIFT if shifted else value), value

        grads, value = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), value

    return train_step


# --- GPT ------------------------------------------------------------------------------------------

CONFIG = gpt.Config(layers=2, width=64, steps=300)


def gpt_optimizer(shifted: bool) -> optax.GradientTransformation:
    """The example's; where the loss is shifted, its two absolute sizes are too."""
    if not shifted:
        return gpt.make_optimizer(CONFIG)
    warmup = 1 + CONFIG.steps // 20
    schedule = optax.warmup_cosine_decay_schedule(0.0, CONFIG.lr, warmup, CONFIG.steps + 1)
    adam = optax.adamw(schedule, eps=1e-8 * SHIFT, weight_decay=0.01)
    return optax.chain(optax.clip_by_global_norm(SHIFT), adam)


def gpt_start(shifted: bool, seed: int) -> State:
    """A fresh state."""
    tokens = jnp.zeros((1, CONFIG.context), jnp.int32)
    params = gpt.GPT(CONFIG).init(jax.random.key(seed), tokens)["params"]
    return State(params, gpt_optimizer(shifted).init(params))


def gpt_step(shifted: bool) -> Callable[[State, Any], tuple[State, jax.Array]]:
    """The train step."""
    loss_fn = functools.partial(gpt.loss_fn, config=CONFIG)
    return make_step(loss_fn, gpt_optimizer(shifted), shifted)


@functools.cache
def gpt_data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches to train on, and held-out ones."""
    config = dataclasses.replace(CONFIG, seed=seed)
    batches: tuple[np.ndarray, np.ndarray] = gpt.make_batches(gpt.read_text(), config)
    return batches


@jax.jit
def gpt_scores(params: Any, tokens: Any) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    logits = gpt.GPT(CONFIG).apply({"params": params}, tokens[:, :-1])
    right = logits.argmax(-1) == tokens[:, 1:]
    return gpt.loss_fn(params, tokens, CONFIG), right.mean()


def gpt_evaluate(params: Any) -> Scores:
    """Mean scores over the held-out batches."""
    scores = np.array([gpt_scores(params, tokens) for tokens in gpt_data(0)[1]])
    return Scores(*scores.mean(0).tolist())


TASKS = {
    task.name: task
    for task in (
        Task("digits", 480, digits_start, digits_step, digits_batches, digits_evaluate),
        Task(
            "gpt", CONFIG.steps, gpt_start, gpt_step,
            lambda seed, steps: gpt_data(seed)[0][:steps], gpt_evaluate,
        ),
    )
}  # fmt: skip
