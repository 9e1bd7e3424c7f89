"""What is known of the arguments: ranges given by the user, example values, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from precir.check.fills import Leaf
from precir.domains.fact import Basis, Fact, of_array, top
from precir.domains.kinds import ZERO
from precir.domains.range import Range
from precir.errors import PrecirError
from precir.formats import FORMATS, Format

Ranges = Any
Rule = Callable[[str], Range | None]


class RangesError(PrecirError, ValueError):
    """Ranges that do not fit the arguments."""


def leaves_of(
    args: Sequence[Any], kwargs: dict[str, Any], ranges: Ranges, format: Format
) -> tuple[list[Leaf], Any]:
    """Every array of the arguments, and their structure.

    Args:
      args, kwargs: arrays, numbers or `jax.ShapeDtypeStruct`s in any pytrees.
      ranges: one entry per positional argument: a `Range`, None, a pytree prefix of those, or a
        function from an array's path to one of them; None altogether takes the ranges of the
        example values, where there are values.
      format: what floats become.

    Raises:
      RangesError: more entries than arguments, or an entry that is none of those.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path((tuple(args), kwargs))
    given = _entries(args, kwargs, ranges)
    leaves = []
    for (path, x), entry in zip(paths, given, strict=True):
        leaves.append(_leaf(_name(path), x, entry, format, ranges is None))
    return leaves, structure


def given_facts(traced: Any, ranges: Ranges) -> list[Fact | None]:
    """What ranges say of each input of a traced program (`jax.jit(fn).trace(...)`).

    Raises:
      RangesError: they do not fit the arguments.
    """
    inputs = [i.shape for i in jax.tree.leaves(traced.args_info)]
    args, kwargs = jax.tree.unflatten(traced.in_tree, inputs and list(range(len(inputs))))
    entries = _entries(args, kwargs, ranges)
    basis = int(Basis.ASSUMED)
    return [None if e is None else e.fact()._replace(basis=basis) for e in entries]


def _name(path: Sequence[Any]) -> str:
    keys = jax.tree_util.keystr(tuple(path[1:]))
    if path[0].idx == 0:
        return f"argument {path[1].idx}{jax.tree_util.keystr(tuple(path[2:]))}"
    return f"argument {keys}"


def _entries(args: Sequence[Any], kwargs: dict[str, Any], ranges: Ranges) -> list[Any]:
    """The entry of each array."""
    if ranges is None:
        return [None] * len(jax.tree.leaves((tuple(args), kwargs)))
    if callable(ranges):
        ranges = (ranges,) * len(args)
    if isinstance(ranges, (Range, list)) or not isinstance(ranges, tuple):
        ranges = (ranges,) if isinstance(ranges, Range) else ranges
        if isinstance(ranges, list):
            ranges = tuple(ranges)
        if not isinstance(ranges, tuple):
            raise RangesError(
                f"ranges is {type(ranges).__name__}, expected a tuple with one entry per argument",
                fix="ranges=(precir.Range(-1, 1), None)",
            )
    if len(ranges) > len(args):
        raise RangesError(
            f"{len(ranges)} ranges for {len(args)} arguments",
            fix="give one entry per positional argument; None where nothing is known",
        )
    entries: list[Any] = []
    for i, arg in enumerate(args):
        entries += _spread(ranges[i] if i < len(ranges) else None, arg, i)
    return entries + [None] * len(jax.tree.leaves(kwargs))


def _spread(entry: Any, arg: Any, index: int) -> list[Any]:
    """A prefix's entries, one for each array below."""
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(arg)[0]]
    if entry is None or isinstance(entry, Range):
        return [entry] * len(paths)
    if callable(entry):
        return [_checked(entry(jax.tree_util.keystr(p)), index) for p in paths]
    try:
        spread = jax.tree.broadcast(entry, arg, is_leaf=_is_entry)
    except ValueError as error:
        raise RangesError(
            f"the ranges of argument {index} are no prefix of it: {error}",
            fix="a Range or None in place of any part of the argument",
        ) from error
    found = jax.tree.leaves(spread, is_leaf=_is_entry)
    return [_checked(f, index) for f in found]


def _is_entry(x: Any) -> bool:
    return x is None or isinstance(x, Range)


def _checked(entry: Any, index: int) -> Any:
    if not _is_entry(entry):
        raise RangesError(
            f"{entry!r} in the ranges of argument {index} is no range",
            fix="a precir.Range(lo, hi), or None where nothing is known",
        )
    return entry


def _leaf(path: str, x: Any, entry: Range | None, format: Format, example: bool) -> Leaf:
    dtype = _dtype(x)
    shape = tuple(np.shape(x)) if not hasattr(x, "shape") else tuple(x.shape)
    value = None if isinstance(x, jax.ShapeDtypeStruct) else x
    if dtype.startswith("key"):
        return Leaf(path, shape, dtype, None, None, value, True, dtype)
    if dtype not in FORMATS:
        lo, hi = (entry.lo, entry.hi) if entry else (None, None)
        fixed = entry is None and value is not None
        return Leaf(path, shape, dtype, lo, hi, value, fixed, dtype)
    lo, hi = (entry.lo, entry.hi) if entry else (None, None)
    if entry is None and example and value is not None:
        numbers = np.asarray(value).astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            lo, hi = float(finite.min()), float(finite.max())
    target = format.name if dtype in ("float32", "float64", "bfloat16", "float16") else dtype
    return Leaf(
        path, shape, target, lo, hi, value if example or entry is None else None, False, dtype
    )


def _dtype(x: Any) -> str:
    if isinstance(x, bool):
        return "bool"
    if isinstance(x, int):
        return "int32"
    if isinstance(x, float):
        return "float32"
    return str(x.dtype) if hasattr(x, "dtype") else str(np.asarray(x).dtype)


def abstract(leaf: Leaf, dtype: str) -> Any:
    """What to trace with in place of an array, in that dtype if it is a float."""
    if leaf.dtype.startswith("key"):
        if leaf.value is not None:
            return leaf.value
        return jax.eval_shape(lambda: jax.numpy.broadcast_to(jax.random.key(0), leaf.shape))
    shaped: Any = jax.ShapeDtypeStruct
    return shaped(leaf.shape, jax.numpy.dtype(dtype if leaf.floating else leaf.dtype))


def fact_of(leaf: Leaf, example: bool) -> Fact | None:
    """What is known of an argument; None is nothing."""
    if leaf.dtype.startswith("key"):
        return None
    if leaf.known:
        assert leaf.lo is not None
        assert leaf.hi is not None
        basis = Basis.OBSERVED if example and leaf.value is not None else Basis.ASSUMED
        whole = not leaf.floating
        return Range(leaf.lo, leaf.hi).fact()._replace(basis=int(basis), whole=whole)
    if leaf.fixed and leaf.value is not None:
        return of_array(leaf.value, int(Basis.OBSERVED))
    if leaf.floating:
        f = top(leaf.dtype)  # any finite number
        return f._replace(flags=ZERO, basis=int(Basis.UNKNOWN))
    return top(leaf.dtype)._replace(basis=int(Basis.UNKNOWN))
