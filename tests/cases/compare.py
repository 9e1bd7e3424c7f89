"""Equality of results as strict as it gets: structure, types, weak types, bits."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tests.programs.program import same_bits


def assert_same(got: Any, want: Any) -> None:
    """Both trees hold the same bits of the same types; NaNs are all one, the zeros are two."""
    left, shape = jax.tree_util.tree_flatten_with_path(got)
    right, other = jax.tree_util.tree_flatten_with_path(want)
    assert shape == other, f"structures differ:\n  {shape}\n  {other}"
    for (path, x), (_, y) in zip(left, right, strict=True):
        where = jax.tree_util.keystr(path) or "the value"
        a, b = jax.typeof(x), jax.typeof(y)
        mine, its = (str(a.dtype), a.shape, a.weak_type), (str(b.dtype), b.shape, b.weak_type)
        assert mine == its, f"{where}: (dtype, shape, weak) is {mine}, not {its}"
        if a.dtype != jax.dtypes.float0 and a.size:
            same_bits(where, host(x), host(y))


def host(x: Any) -> np.ndarray:
    key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)
