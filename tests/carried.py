"""Arguments as data and powers of two, and the answers to expect of a program that carries them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

import precir
from precir import ScaledArray
from tests.cases import Case
from tests.cases.compare import host

ULPS = 64  # of the largest element of a result: what another order of the same work may change


def split(value: Any, random: np.random.RandomState) -> ScaledArray:
    """An array as a `ScaledArray` of float32 data that is worth exactly the same.

    The scale is drawn from 2^-12 to 2^12, for 16 bits from 2^-3 to 2^3, and is one where the array
    holds numbers that would leave its dtype or become subnormal. For 8 bits it is always one: what
    overflows there does not under another scale, which is what scales are for.
    """
    wide = np.asarray(value).astype(np.float64)
    dtype = np.dtype(value.dtype)
    reach = {1: 0, 2: 3}.get(dtype.itemsize, 12)
    power = int(random.randint(-reach, reach + 1))
    with np.errstate(all="ignore"):
        data = (wide * 2.0**-power).astype(dtype)
        back = data.astype(np.float64) * 2.0**power
    least = float(jnp.finfo(dtype).smallest_normal)
    finite = np.isfinite(wide)
    normal = (np.abs(wide[finite & (wide != 0)]) * 2.0**-power >= least).all()
    if not normal or not np.array_equal(back, wide, equal_nan=True):
        power, data = 0, np.asarray(value)
    return ScaledArray(jnp.asarray(data, np.float32), jnp.float32(2.0**power))


def carrying(
    case: Case, arguments: tuple[Any, ...], seed: int
) -> tuple[Callable[..., Any], dict[str, list[Any]]]:
    """`case.function` as a function of one dict, and that: its floating-point arrays as
    `ScaledArray`s, and all other arrays.

    A `ScaledArray` stands for a float32 array: the function brings each to the dtype it had. No
    result has the structure of the dict, so that none is taken for state and stored.
    """
    random = np.random.RandomState(seed + 1)
    leaves, tree = jax.tree.flatten(arguments)
    floats = {i: x.dtype for i, x in enumerate(leaves) if is_narrow(x)}
    fixed = bool(case.options)  # Python numbers among the arguments may be static
    others = [
        i for i, x in enumerate(leaves) if i not in floats and (isinstance(x, _ARRAYS) or not fixed)
    ]
    given = {
        "floats": [split(leaves[i], random) for i in floats],
        "others": [leaves[i] for i in others],
    }

    @functools.wraps(case.function)
    def function(given: dict[str, list[Any]]) -> Any:
        found = list(leaves)
        for (i, dtype), x in zip(floats.items(), given["floats"], strict=True):
            found[i] = x.astype(dtype)
        for i, x in zip(others, given["others"], strict=True):
            found[i] = x
        return case.function(*jax.tree.unflatten(tree, found))

    return function, given


_ARRAYS = (np.ndarray, np.generic, jax.Array)


def is_narrow(leaf: Any) -> bool:
    """Whether it is an array that a `ScaledArray` can stand for."""
    return isinstance(leaf, _ARRAYS) and jnp.issubdtype(leaf.dtype, jnp.floating)


def has_floats(arguments: Any) -> bool:
    return any(map(is_narrow, jax.tree.leaves(arguments)))


def assert_close(got: Any, want: Any, ulps: float = ULPS) -> None:
    """The same types; integers and masks equal; NaN and infinities in the same places; all else
    within `ulps` units in the last place of the largest number of the array.
    """
    left, shape = jax.tree_util.tree_flatten_with_path(got)
    right, other = jax.tree_util.tree_flatten_with_path(want)
    assert shape == other, f"structures differ:\n  {shape}\n  {other}"
    for (path, x), (_, y) in zip(left, right, strict=True):
        if y.dtype == jax.dtypes.float0:
            continue
        where = jax.tree_util.keystr(path) or "the value"
        a, b = host(x), host(y)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{where}: {a.dtype}{a.shape}"
        if not jnp.issubdtype(b.dtype, jnp.inexact):
            np.testing.assert_array_equal(a, b, where)
            continue
        kind = np.complex128 if jnp.issubdtype(b.dtype, jnp.complexfloating) else np.float64
        eps = float(jnp.finfo(b.dtype).eps)
        a, b = a.astype(kind), b.astype(kind)
        size = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=ulps * eps * size, err_msg=where)


def check_law(case: Case, arguments: Callable[[], tuple[Any, ...]], seed: int) -> Any:
    """The program that carries the arguments' scales gives what `jax.jit` gives without any."""
    expected = jax.jit(case.function, **case.options)(*arguments())
    function, given = carrying(case, arguments(), seed)
    compiled = precir.compile(function, recipe="scaled-32")
    assert_close(compiled(given), expected)
    return compiled, given
