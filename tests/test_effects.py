"""Prints and callbacks: each fires as often, in the same order, with the same values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import precir
from tests.cases.compare import assert_same

X = np.array([1.5, -2.0, 0.25], np.float32)
Log = list[Any]


def printed(log: Log, x: jax.Array) -> jax.Array:
    jax.debug.print("x is {x}, {y:.3f}", x=x, y=x.sum(), ordered=True)
    jax.debug.print("again {}", x * 2, ordered=True)
    return x + 1


def printed_only(log: Log, x: jax.Array) -> None:
    jax.debug.print("{x}", x=x)


def printed_in_loops(log: Log, x: jax.Array) -> jax.Array:
    def body(c: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.print("c={c} x={x}", c=c, x=x, ordered=True)
        return c + x, c

    total, seen = lax.scan(body, jnp.float32(0), x)
    jax.debug.print("total {}", total, ordered=True)
    return seen


def printed_in_branches(log: Log, x: jax.Array) -> jax.Array:
    def shown(x: jax.Array) -> jax.Array:
        jax.debug.print("positive {}", x)
        return x * 2

    return lax.cond(x[0] > 0, shown, lambda x: x, x)


def debug_callbacks(log: Log, x: jax.Array) -> jax.Array:
    for i in range(3):
        jax.debug.callback(lambda v, i=i: log.append((i, v.tolist())), x * i, ordered=True)
    return x


def ordered_io(log: Log, x: jax.Array) -> jax.Array:
    def count(v: Any) -> Any:
        log.append(np.asarray(v).tolist())
        return np.float32(len(log))

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    first = io_callback(count, shape, x, ordered=True)
    second = io_callback(count, shape, x * first, ordered=True)
    return lax.fori_loop(0, 3, lambda i, c: c + io_callback(count, shape, c, ordered=True), second)


def unread_io(log: Log, x: jax.Array) -> jax.Array:
    io_callback(lambda v: log.append(v.tolist()), None, x)
    return x


def pure(log: Log, x: jax.Array) -> jax.Array:
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    once = jax.pure_callback(lambda v: np.sin(np.asarray(v)), shape, x)
    each = jax.vmap(
        lambda v: jax.pure_callback(
            lambda v: np.cos(np.asarray(v)), jax.ShapeDtypeStruct((), v.dtype), v,
            vmap_method="sequential",
        )
    )  # fmt: skip
    return once + each(x)


PROGRAMS = [
    *(printed, printed_only, printed_in_loops, printed_in_branches),
    *(debug_callbacks, ordered_io, unread_io, pure),
]


def observed(
    transform: Callable[..., Any], program: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> list[Any]:
    """What two calls return, log and print."""
    log: Log = []
    compiled = transform(functools.partial(program, log))
    results = [compiled(X), compiled(X * 2)]
    jax.effects_barrier()
    return [results, log, capfd.readouterr().out]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_effects(program: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    (want, *its_effects) = observed(jax.jit, program, capfd)
    (got, *effects) = observed(precir.compile, program, capfd)
    assert_same(got, want)
    assert effects == its_effects
    assert program is pure or any(effects)
