"""One program of the corpus: what to compile, how to feed it, how to run and compare it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

Tree = Any


def second(outputs: Tree) -> jax.Array:
    """The loss of a train step that returns (state, loss, ...)."""
    return outputs[1]


def no_keywords(i: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Program:
    """A JAX program with its inputs.

    "train": ``state, loss, ... = step(state, *batch(i), **keywords(i))``, `loss` picks the loss.
    "model": ``outputs = step(params, *batch(i), **keywords(i))``, to be compiled and then
    differentiated; `loss` makes a scalar of the outputs.

    `init` returns fresh arrays at every call, so a step may donate them.
    """

    name: str
    kind: Literal["train", "model"]
    step: Callable[..., Tree]
    init: Callable[[int], Tree]
    batch: Callable[[int], tuple[Any, ...]]
    products: int | None  # dot_general equations in the jaxpr of step; None where jax versions vary
    loss: Callable[[Tree], jax.Array] = second
    steps: int = 50
    convolutions: int = 0
    gradient_products: int | None = None  # of a model: with those of its gradient
    learns: bool = True  # whether the loss falls over `steps`
    slow: bool = False  # compiles for seconds, and is like another that stays in the quick run
    needs_devices: int = 1
    rate: float = 0.1  # of the plain gradient descent that trains a model
    options: Callable[[], dict[str, Any]] = dict  # what jax.jit is told: static, donated, sharded
    keywords: Callable[[int], dict[str, Any]] = no_keywords


def run(
    step: Callable[..., Tree], program: Program, steps: int | None = None, seed: int = 0
) -> tuple[list[float], Tree]:
    """The losses of `steps` steps and the last state; `step` stands in for `program.step`."""
    state, losses = program.init(seed), []
    for i in range(program.steps if steps is None else steps):
        state, loss = advance(step, program, state, i)
        losses.append(float(loss))
    return losses, state


def advance(
    step: Callable[..., Tree], program: Program, state: Tree, i: int
) -> tuple[Tree, jax.Array]:
    """One step: of the program's own for "train", of gradient descent for "model"."""
    arguments, keywords = program.batch(i), program.keywords(i)
    if program.kind == "train":
        outputs = step(state, *arguments, **keywords)
        return outputs[0], program.loss(outputs)
    loss, gradients = jax.value_and_grad(
        lambda params: program.loss(step(params, *arguments, **keywords))
    )(state)
    return descend(state, gradients, program.rate), loss


@jax.jit
def descend(params: Tree, gradients: Tree, rate: float) -> Tree:
    return jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), params, gradients)


def count(jaxpr: Any, primitive: str) -> int:
    """Equations of `primitive` in a jaxpr and below: a helper called twice counts twice."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(
        (equation.primitive.name == primitive)
        + sum(
            count(sub, primitive)
            for value in equation.params.values()
            for sub in jax.tree.leaves(value, is_leaf=is_jaxpr)
            if is_jaxpr(sub)
        )
        for equation in inner.eqns
    )


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def assert_bit_identical(a: Tree, b: Tree) -> None:
    """Both trees hold the same bits: signed zeros count, the payload of a NaN does not."""
    (left, shape), (right, other) = (jax.tree_util.tree_flatten_with_path(t) for t in (a, b))
    assert shape == other, f"structures differ:\n  {shape}\n  {other}"
    for (path, x), (_, y) in zip(left, right, strict=True):
        same_bits(jax.tree_util.keystr(path) or "the value", host(x), host(y))


def host(x: Any) -> np.ndarray:
    is_key = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def same_bits(where: str, x: np.ndarray, y: np.ndarray) -> None:
    assert (x.dtype, x.shape) == (y.dtype, y.shape), (
        f"{where}: {x.dtype}{x.shape} against {y.dtype}{y.shape}"
    )
    same = bits(x) == bits(y)
    if jax.dtypes.issubdtype(x.dtype, np.inexact):
        parts = (lambda v: np.stack([v.real, v.imag], -1)) if np.iscomplexobj(x) else np.asarray
        same |= (np.isnan(parts(x)) & np.isnan(parts(y))).reshape(same.shape)
    if not same.all():
        at = np.unravel_index(int(np.argmin(same)), same.shape)[: x.ndim]
        raise AssertionError(
            f"{where}: {np.sum(~same)} of {same.size} elements differ, "
            f"first at {tuple(map(int, at))}: {x[at]!r} against {y[at]!r}"
        )


def bits(x: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers; a complex one as two."""
    size = x.dtype.itemsize // (2 if np.iscomplexobj(x) else 1)
    flat = np.ascontiguousarray(x).view(f"u{size}")
    return flat.reshape(*x.shape, 2) if np.iscomplexobj(x) else flat.reshape(x.shape)
