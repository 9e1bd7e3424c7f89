"""What one op gives on given numbers, in float64: the arithmetic of both runs of `shadow`.

Common ops are computed by numpy, which compiles nothing; all others are bound to their JAX
primitive, in float64 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np
from scipy import special

from precir.formats import FORMATS
from precir.ir import Node
from precir.primitives import primitive_named

Array = Any
Rule = Callable[[Node, Sequence[Array]], Array]


class NotEvaluated(Exception):
    """An op that cannot be run on its own."""


def evaluate(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """The results of a node without sub-programs: floats as float64, before any rounding.

    Raises:
      NotEvaluated: the op has effects or sub-programs, or JAX refuses these operands.
    """
    rule = RULES.get(node.op)
    keys = any(o.type.dtype.startswith("key") for o in (*node.inputs, *node.outputs))
    if rule is not None and not keys:
        result = rule(node, inputs)
        if result is not None:
            return list(result) if isinstance(result, (tuple, list)) else [result]
    return _bound(node, inputs)


def _scatter(node: Node, xs: Sequence[Array]) -> Array:
    """Scatters carry a program of their own; the public functions make it anew."""
    if node.op == "scatter" and node.params.get("update_jaxpr") is not None:
        return None
    function = getattr(jax.lax, node.op.replace("-", "_"))
    p = node.params
    with jax.enable_x64(True):
        operands = [_operand(x, o.type.dtype) for x, o in zip(xs, node.inputs, strict=True)]
        result = function(
            *operands,
            p["dimension_numbers"],
            indices_are_sorted=p["indices_are_sorted"],
            unique_indices=p["unique_indices"],
            mode=p["mode"],
        )
    return _plain(result, node.outputs[0].type.dtype)


def scattered(node: Node, xs: Sequence[Array]) -> Array:
    """A scattered sum as its dtype has it, rounded at every addition."""
    p = node.params
    a, indices, updates = (
        jax.numpy.asarray(x, o.type.dtype) for x, o in zip(xs, node.inputs, strict=True)
    )
    result = jax.lax.scatter_add(
        a,
        indices,
        updates,
        p["dimension_numbers"],
        indices_are_sorted=p["indices_are_sorted"],
        unique_indices=p["unique_indices"],
        mode=p["mode"],
    )
    return np.asarray(result).astype(np.float64)


def _bound(node: Node, inputs: Sequence[Array]) -> list[Array]:
    primitive = primitive_named(node.op)
    if primitive is None or node.regions or node.effects:
        raise NotEvaluated(node.op)
    with jax.enable_x64(True):
        operands = [_operand(x, o.type.dtype) for x, o in zip(inputs, node.inputs, strict=True)]
        params = {k: _widened(v) for k, v in node.params.items()}
        try:
            results = primitive.bind(*operands, **params)
        except Exception as error:  # whatever a primitive raises on float64 operands
            raise NotEvaluated(node.op) from error
    results = results if primitive.multiple_results else [results]
    return [_plain(r, v.type.dtype) for r, v in zip(results, node.outputs, strict=True)]


def _operand(x: Array, dtype: str) -> Array:
    if dtype.startswith("key"):
        return x
    if dtype in FORMATS:
        return jax.numpy.asarray(x, np.float64)
    return jax.numpy.asarray(x, dtype)


def _plain(x: Array, dtype: str) -> Array:
    if dtype.startswith("key"):
        return x
    x = np.asarray(x)
    return x.astype(np.float64) if dtype in FORMATS else x.astype(dtype, copy=False)


def _widened(value: Any) -> Any:
    """Parameters that name a float dtype name float64 instead."""
    try:
        name = (
            np.dtype(value).name
            if not isinstance(value, (str, tuple, dict)) and value is not None
            else ""
        )
    except TypeError:
        return value
    return np.dtype(np.float64) if name in FORMATS else value


# -- numpy's rules -----------------------------------------------------------------------------


def _ufunc(function: Callable[..., Array]) -> Rule:
    return lambda node, xs: function(*xs)


def _div(node: Node, xs: Sequence[Array]) -> Array:
    if node.outputs[0].type.dtype in FORMATS:
        return np.divide(*xs)
    return None


def _integer_pow(node: Node, xs: Sequence[Array]) -> Array:
    y = node.params["y"]
    if node.outputs[0].type.dtype not in FORMATS:
        return None
    return np.float_power(xs[0], y)


def _pow(node: Node, xs: Sequence[Array]) -> Array:
    return np.float_power(xs[0], xs[1]) if node.outputs[0].type.dtype in FORMATS else None


def _convert(node: Node, xs: Sequence[Array]) -> Array:
    source, target = node.inputs[0].type.dtype, node.outputs[0].type.dtype
    if target in FORMATS:
        return np.asarray(xs[0]).astype(np.float64) if "complex" not in source else None
    if target == "bool":
        return np.asarray(xs[0]) != 0
    if source in FORMATS and target.startswith(("int", "uint")):
        info = np.iinfo(target)
        x = np.nan_to_num(np.trunc(xs[0]), nan=0.0, posinf=info.max, neginf=info.min)
        return np.clip(x, info.min, info.max).astype(target)
    if "complex" in target or "complex" in source or target not in np.sctypeDict:
        return None
    return np.asarray(xs[0]).astype(target)


def _bitcast(node: Node, xs: Sequence[Array]) -> Array:
    source, target = (jax.numpy.dtype(v.type.dtype) for v in (node.inputs[0], node.outputs[0]))
    if source.itemsize != target.itemsize:
        return None
    bits = np.ascontiguousarray(np.asarray(xs[0]).astype(source)).view(target)
    bits = bits.reshape(node.outputs[0].type.shape)
    return bits.astype(np.float64) if target.name in FORMATS else bits


def _broadcast(node: Node, xs: Sequence[Array]) -> Array:
    shape, dims = node.params["shape"], node.params["broadcast_dimensions"]
    if len(xs) > 1:
        return None
    x = np.asarray(xs[0])
    expanded = [1] * len(shape)
    for i, d in enumerate(dims):
        expanded[d] = x.shape[i]
    return np.broadcast_to(x.reshape(expanded), shape)


def _reshape(node: Node, xs: Sequence[Array]) -> Array:
    if node.params.get("dimensions") is not None:
        return None
    return np.reshape(xs[0], node.outputs[0].type.shape)


def _as_result(node: Node, xs: Sequence[Array]) -> Array:
    return np.reshape(xs[0], node.outputs[0].type.shape)


def _transpose(node: Node, xs: Sequence[Array]) -> Array:
    return np.transpose(xs[0], node.params["permutation"])


def _slice(node: Node, xs: Sequence[Array]) -> Array:
    p = node.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    index = tuple(
        slice(a, b, s)
        for a, b, s in zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    )
    return np.asarray(xs[0])[index]


def _iota(node: Node, xs: Sequence[Array]) -> Array:
    kind = node.outputs[0].type
    axis = node.params["dimension"]
    shape = [1] * len(kind.shape)
    shape[axis] = kind.shape[axis]
    dtype = np.float64 if kind.dtype in FORMATS else kind.dtype
    return np.broadcast_to(np.arange(kind.shape[axis]).astype(dtype).reshape(shape), kind.shape)


def _concatenate(node: Node, xs: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(x) for x in xs], axis=node.params["dimension"])


def _select(node: Node, xs: Sequence[Array]) -> Array:
    which, *cases = xs
    which = np.asarray(which).astype(np.int64)
    if which.ndim == 0:
        return cases[int(which)]
    return np.choose(np.broadcast_to(which, np.shape(cases[0])), cases) if len(cases) < 30 else None


def _clamp(node: Node, xs: Sequence[Array]) -> Array:
    low, x, high = xs
    return np.minimum(np.maximum(low, x), high)


def _dot(node: Node, xs: Sequence[Array]) -> Array:
    if node.outputs[0].type.dtype not in FORMATS:
        return None
    ((ca, cb), (ba, bb)) = node.params["dimension_numbers"]
    a, b = (np.asarray(x) for x in xs)
    free_a = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    free_b = [i for i in range(b.ndim) if i not in (*cb, *bb)]
    batch = [a.shape[i] for i in ba]
    k = math.prod(a.shape[i] for i in ca)
    left = a.transpose(*ba, *free_a, *ca).reshape(
        *batch, -1 if a.size else math.prod(a.shape[i] for i in free_a), k
    )
    right = b.transpose(*bb, *cb, *free_b).reshape(
        *batch, k, -1 if b.size else math.prod(b.shape[i] for i in free_b)
    )
    return np.matmul(left, right).reshape(node.outputs[0].type.shape)


def _reduce(function: Callable[..., Array]) -> Rule:
    def rule(node: Node, xs: Sequence[Array]) -> Array:
        x = np.asarray(xs[0])
        axes = tuple(node.params["axes"])
        if 0 in x.shape:
            return None
        kind = node.outputs[0].type.dtype
        result = function(x, axis=axes)
        return result if kind in FORMATS else np.asarray(result).astype(kind)

    return rule


def _argument(function: Callable[..., Array]) -> Rule:
    def rule(node: Node, xs: Sequence[Array]) -> Array:
        axes = node.params["axes"]
        if len(axes) != 1:
            return None
        return np.asarray(function(xs[0], axis=axes[0])).astype(node.outputs[0].type.dtype)

    return rule


def _cumulative(function: Callable[..., Array]) -> Rule:
    def rule(node: Node, xs: Sequence[Array]) -> Array:
        axis, dtype = node.params["axis"], node.outputs[0].type.dtype
        x = np.asarray(xs[0])
        if node.params.get("reverse"):
            return np.flip(function(np.flip(x, axis), axis=axis), axis)
        result = function(x, axis=axis)
        return result if dtype in FORMATS else result.astype(dtype)

    return rule


def _sort(node: Node, xs: Sequence[Array]) -> Array:
    return np.sort(xs[0], axis=node.params["dimension"]) if len(xs) == 1 else None


def _expand(node: Node, xs: Sequence[Array]) -> Array:
    return _as_result(node, xs)


def _identity(node: Node, xs: Sequence[Array]) -> Array:
    return list(xs[: len(node.outputs)])


def _rsqrt(x: Array) -> Array:
    return 1 / np.sqrt(x)


def _logical(function: Callable[..., Array]) -> Rule:
    return lambda node, xs: function(*xs)


def _dynamic_slice(node: Node, xs: Sequence[Array]) -> Array:
    x, *starts = xs
    x = np.asarray(x)
    sizes = node.params["slice_sizes"]
    index = tuple(
        slice(s := int(np.clip(int(start), 0, n - size)), s + size)
        for start, n, size in zip(starts, x.shape, sizes, strict=True)
    )
    return x[index]


def _dynamic_update(node: Node, xs: Sequence[Array]) -> Array:
    x, update, *starts = xs
    x, update = np.array(x), np.asarray(update)
    index = tuple(
        slice(s := int(np.clip(int(start), 0, n - size)), s + size)
        for start, n, size in zip(starts, x.shape, update.shape, strict=True)
    )
    x[index] = update
    return x


def _split(node: Node, xs: Sequence[Array]) -> Array:
    ends = np.cumsum(node.params["sizes"])[:-1]
    return np.split(np.asarray(xs[0]), ends, axis=node.params["axis"])


def _sign(x: Array) -> Array:
    return np.where(np.isnan(x), x, np.sign(x)) if np.asarray(x).dtype.kind == "f" else np.sign(x)


def _exp2(x: Array) -> Array:
    return np.exp2(x)


RULES: Final[dict[str, Rule]] = {
    **{
        name: _ufunc(function)
        for name, function in {
            "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply,
            "neg": np.negative, "abs": np.abs, "max": np.maximum, "min": np.minimum,
            "sign": _sign, "floor": np.floor, "ceil": np.ceil, "square": np.square,
            "exp": np.exp, "exp2": _exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
            "log2": np.log2, "sqrt": np.sqrt, "rsqrt": _rsqrt, "cbrt": np.cbrt,
            "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
            "atan": np.arctan, "atan2": np.arctan2, "sinh": np.sinh, "cosh": np.cosh,
            "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
            "logistic": special.expit, "erf": special.erf, "erfc": special.erfc,
            "erf_inv": special.erfinv, "lgamma": special.gammaln, "digamma": special.digamma,
            "is_finite": np.isfinite, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
            "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "and": np.bitwise_and,
            "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
            "one_minus_square": lambda x: 1 - x * x,
        }.items()
    },
    "div": _div, "integer_pow": _integer_pow, "pow": _pow, "convert_element_type": _convert,
    "cast": _convert, "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _as_result,
    "expand_dims": _expand, "transpose": _transpose, "slice": _slice, "iota": _iota,
    "concatenate": _concatenate, "select_n": _select, "clamp": _clamp, "dot_general": _dot,
    "reduce_sum": _reduce(np.sum), "reduce_max": _reduce(np.max), "reduce_min": _reduce(np.min),
    "reduce_prod": _reduce(np.prod), "reduce_and": _reduce(np.all), "reduce_or": _reduce(np.any),
    "argmax": _argument(np.argmax), "argmin": _argument(np.argmin),
    "cumsum": _cumulative(np.cumsum), "cumprod": _cumulative(np.cumprod),
    "cummax": _cumulative(np.maximum.accumulate), "cummin": _cumulative(np.minimum.accumulate),
    "sort": _sort, "stop_gradient": _identity, "copy": _identity, "optimization_barrier": _identity,
    "sharding_constraint": _identity, "reduce_precision": _identity, "split": _split,
    "dynamic_slice": _dynamic_slice, "dynamic_update_slice": _dynamic_update,
    **{f"scatter{kind}": _scatter for kind in ("", "-add", "-sub", "-mul", "-min", "-max")},
    "rev": lambda node, xs: np.flip(xs[0], node.params["dimensions"]),
}  # fmt: skip
