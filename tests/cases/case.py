"""One case: a JAX function and arguments for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Draw:
    """An array to be drawn: normal numbers, integers of both signs, or a mask."""

    shape: tuple[int, ...]
    dtype: Any

    def __call__(self, random: np.random.RandomState) -> jax.Array:
        dtype = np.dtype(self.dtype)
        if dtype == np.bool_:
            return jnp.asarray(random.rand(*self.shape) < 0.5)
        if jax.dtypes.issubdtype(dtype, np.integer):
            info = jax.numpy.iinfo(dtype)
            low, high = max(int(info.min), -9), min(int(info.max), 9)
            return jnp.asarray(random.randint(low, high + 1, self.shape)).astype(dtype)
        drawn = random.randn(*self.shape) * 2
        if jax.dtypes.issubdtype(dtype, np.complexfloating):
            drawn = drawn + 1j * random.randn(*self.shape)
        return jnp.asarray(np.asarray(drawn).astype(dtype))


@dataclass(frozen=True)
class Case:
    """A function, how to make its arguments, and what is said to `jax.jit` of it."""

    name: str
    group: str
    function: Callable[..., Any]
    arguments: Callable[[np.random.RandomState], tuple[Any, ...]]
    options: dict[str, Any] = field(default_factory=dict)


def f32(*shape: int) -> Draw:
    return Draw(shape, np.float32)


def i32(*shape: int) -> Draw:
    return Draw(shape, np.int32)


def array(dtype: Any, *shape: int) -> Draw:
    return Draw(shape, dtype)


def table(group: str) -> tuple[list[Case], Callable[..., Any]]:
    """A list of cases, and a decorator that adds to it: `@case(f32(3), 2.0)` over a function of
    those arguments (pytrees of draws and values). A function may serve several cases.
    """
    cases: list[Case] = []

    def case(*arguments: Any, **options: Any) -> Callable[..., Any]:
        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            names = {c.name for c in cases}
            base = f"{group}_{function.__name__.strip('_')}"
            name = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 99))) if n not in names)
            cases.append(Case(name, group, function, lambda r: drawn(arguments, r), options))
            return function

        return add

    return cases, case


def drawn(arguments: Any, random: np.random.RandomState) -> Any:
    return jax.tree.map(
        lambda x: x(random) if isinstance(x, Draw) else x,
        arguments,
        is_leaf=lambda x: isinstance(x, Draw),
    )
