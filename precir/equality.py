"""When two graphs are the same: in structure, in every parameter, and bit by bit in constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from precir.ir import Graph, Node, Operand, Value


def same_graph(a: Graph, b: Graph) -> bool:
    """Whether the graphs differ in nothing but the identity of their nodes and values."""
    if a is b:
        return True
    if (a.name, len(a.inputs), len(a.nodes), len(a.outputs)) != (
        *(b.name, len(b.inputs), len(b.nodes), len(b.outputs)),
    ):
        return False
    values: dict[Value, Value] = {}
    return (
        _same_values(a.inputs, b.inputs, values)
        and all(_same_node(m, n, values) for m, n in zip(a.nodes, b.nodes, strict=True))
        and all(_same_operand(v, w, values) for v, w in zip(a.outputs, b.outputs, strict=True))
        and _same_constants(a.constants, b.constants)
    )


def _same_values(a: tuple[Value, ...], b: tuple[Value, ...], values: dict[Value, Value]) -> bool:
    if len(a) != len(b):
        return False
    for v, w in zip(a, b, strict=True):
        if (v.type is not w.type and v.type != w.type) or v.hint != w.hint:
            return False
        values[v] = w
    return True


def _same_node(m: Node, n: Node, values: dict[Value, Value]) -> bool:
    return (
        m.op == n.op
        and len(m.inputs) == len(n.inputs)
        and all(_same_operand(v, w, values) for v, w in zip(m.inputs, n.inputs, strict=True))
        and (m.params is n.params or _same_mapping(m.params, n.params))
        and (m.scope, m.phase, m.effects) == (n.scope, n.phase, n.effects)
        and len(m.regions) == len(n.regions)
        and all(map(same_graph, m.regions, n.regions))
        and (m.source is n.source or m.source == n.source)
        and _same_values(m.outputs, n.outputs, values)
    )


def _same_operand(v: Operand, w: Operand, values: dict[Value, Value]) -> bool:
    if type(v) is Value:
        return values.get(v, v) is w
    return v == w


def _same_constants(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a is b or (a.keys() == b.keys() and all(same_constant(a[k], b[k]) for k in a))


def _same_mapping(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    if len(a) != len(b):
        return False
    return all(key in b and same_value(value, b[key]) for key, value in a.items())


def same_value(a: Any, b: Any) -> bool:
    """Equality of parameters, stricter than Python's.

    1, True and 1.0 differ, and so do 0.0 and -0.0; NaN is NaN.
    """
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind is tuple or kind is list or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return len(a) == len(b) and all(map(same_value, a, b))
    if kind is float or kind is complex:
        return repr(a) == repr(b)
    if kind is dict:
        return _same_mapping(a, b)
    if issubclass(kind, np.generic):
        return bool(a.dtype == b.dtype and repr(a) == repr(b))
    if issubclass(kind, (np.ndarray, jax.Array)):
        return same_constant(a, b)
    if kind is jax.lax.Tolerance:
        return bool(vars(a) == vars(b))  # JAX compares these by identity
    return _equal(a, b)


def same_constant(a: Any, b: Any) -> bool:
    """Whether two arrays hold the same bits of the same dtype, on whatever device."""
    if a is b:
        return True
    x, y = bits_of(a), bits_of(b)
    if x is None or y is None:
        return x is y and type(a) is type(b) and _equal(a, b)
    (data, implementation), (other, its_implementation) = x, y
    if (data.dtype, data.shape) != (other.dtype, other.shape):
        return False
    return implementation == its_implementation and bool(
        np.array_equal(_bytes(data), _bytes(other))
    )


def bits_of(array: Any) -> tuple[np.ndarray[Any, Any], str | None] | None:
    """The numbers of an array on the host and, for PRNG keys, the name of their implementation.

    None for what has no such form: no array at all, an array spread over other hosts, keys of an
    unregistered implementation.
    """
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        return None
    try:
        if not jnp.issubdtype(array.dtype, jax.dtypes.extended):
            host, implementation = np.asarray(array), None
        else:
            host = np.asarray(jax.random.key_data(array))
            implementation = jax.random.key_impl(array)
    except Exception:  # every kind of array refuses in its own way
        return None
    if host.dtype.hasobject or not isinstance(implementation, (str, type(None))):
        return None
    return host, implementation


def _bytes(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if host.dtype.itemsize == 0:
        return np.empty(0, np.uint8)  # float0 holds nothing
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # an object that cannot be compared equals itself alone
        return False
