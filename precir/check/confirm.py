"""Run the function itself on what was found in simulation: an error is what really came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from precir.check.fills import Leaf
from precir.check.search import TOLERANCE, Witnessed
from precir.check.shadow import Pair, numbers
from precir.formats import FORMATS


class Real:
    """The function itself, run on a witness."""

    def __init__(self, fn: Callable[..., Any], structure: Any, leaves: Sequence[Leaf]) -> None:
        self._fn, self._structure, self._leaves = jax.jit(fn), structure, leaves

    def confirms(self, w: Witnessed) -> Any:
        """The arguments, if the symptom shows in what the function really gives."""
        leaves = self._leaves
        arrays = [_array(p.low, x) for p, x in zip(w.fill.pairs, leaves, strict=True)]
        args, kwargs = jax.tree.unflatten(self._structure, arrays)
        try:
            with np.errstate(all="ignore"):
                outs = jax.tree.leaves(self._fn(*args, **kwargs))
        except Exception:  # a function that raises on its input is not a witness
            return None
        if not self._shows(w, [numbers(o) for o in outs]):
            return None
        wide = [_wide(p.wide, x) for p, x in zip(w.fill.pairs, leaves, strict=True)]
        return jax.tree.unflatten(self._structure, wide)

    def _shows(self, w: Witnessed, outs: Sequence[Any]) -> bool:
        """Whether the symptom is in the results of the real run."""
        symptom, pair, out = w.blame.symptom, w.outs[w.blame.output], outs[w.blame.output]
        if w.blame.root.kind == "inexact":
            return any(map(alike, outs, w.outs))
        if symptom in ("stuck", "index") or str(out.dtype) not in FORMATS:
            return alike(out, pair)
        real = out.astype(np.float64)
        if symptom == "zero":
            return not real.any()
        if symptom in ("nan", "inf") and np.isfinite(real).all():
            return _off(real, pair, str(out.dtype))  # killed, but what is left is wrong
        return not np.isfinite(real).all() or _off(real, pair, str(out.dtype))


def alike(out: Any, pair: Pair) -> bool:
    """Whether a real result is the simulated one where that differs from the shadow's."""
    low, wide = numbers(pair.low), numbers(pair.wide)
    if low.dtype.kind not in "fiu" or pair.same:
        return False
    with np.errstate(all="ignore"):
        low, wide, real = (np.asarray(x, np.float64) for x in (low, wide, out))
        apart = ~((low == wide) | (np.isnan(low) & np.isnan(wide)))
        nearer = (np.abs(real - low) < np.abs(real - wide)) | ~np.isfinite(real)
    return bool(apart.any() and nearer[apart].mean() > 0.5)


def _off(real: Any, pair: Pair, dtype: str) -> bool:
    """Whether a real result is far from the shadow's."""
    wide = np.asarray(pair.wide, np.float64)
    with np.errstate(all="ignore"):
        error, size = np.abs(real - wide).max(), np.abs(wide).max()
    return bool(error > 0.5 * TOLERANCE.get(dtype, 1.0) * size)


def _array(x: Any, leaf: Leaf) -> Any:
    if leaf.dtype.startswith("key"):
        return x
    return jax.numpy.asarray(np.asarray(x), leaf.dtype)


def _wide(x: Any, leaf: Leaf) -> Any:
    if leaf.dtype.startswith("key") or not leaf.floating:
        return x
    return np.asarray(x, np.float32)
