"""What goes in and comes out: pytrees of every kind, shared, empty and constant results."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.cases.case import array, f32, table

CASES, case = table("trees")


class Pair(NamedTuple):
    left: Any
    right: Any = 3


class Empty(NamedTuple):
    pass


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "y"], meta_fields=["kind"])
@dataclasses.dataclass(frozen=True)
class Record:
    x: Any
    y: Any
    kind: str = "plain"


@jax.tree_util.register_pytree_node_class
class Keyless:
    def __init__(self, *parts, tag=0):
        self.parts, self.tag = parts, tag

    def tree_flatten(self):
        return self.parts, self.tag

    @classmethod
    def tree_unflatten(cls, tag, parts):
        return cls(*parts, tag=tag)


@jax.tree_util.register_pytree_with_keys_class
class Keyed:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def tree_flatten_with_keys(self):
        attribute = jax.tree_util.GetAttrKey
        return ((attribute("a"), self.a), (attribute("b"), self.b)), None

    def tree_flatten(self):
        return (self.a, self.b), None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


@case(f32(2))
def inputs_returned(x):
    return x, x


@case(f32(2), f32(3))
def unused_and_reordered(x, y):
    return y, {"x": x, "again": (y, x)}


@case(f32(2))
def nothing(x):
    return None


@case()
def empty():
    return (), [], {}, None, ((), None)


@case(f32(2))
def constants(x):
    return (
        jnp.arange(3),
        np.arange(4.0, dtype=np.float32),
        2,
        True,
        np.float16(1.5),
        np.zeros((0, 2), np.int8),
        x + np.array([1, 2], np.float32),
    )


@case(f32(2))
def shared_constants(x):
    table = np.arange(2, dtype=np.float32)
    return table, table, x + table, jnp.asarray(table) * 2


@case(f32(2))
def constants_of_every_dtype(x):
    names = (
        "bool",
        "int8",
        "uint16",
        "uint32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int4",
        "uint4",
        "complex64",
    )
    return {
        n: np.array([[0, 1], [1, 0]]).astype(getattr(jnp, n + "_" * (n == "bool"))) for n in names
    }, jax.random.split(jax.random.key(0), 2)


@case(f32(2))
def duplicate_outputs(x):
    y = x + 1
    return y, y, [y, {"y": y}], x, 1.0, 1.0


@case({"a": f32(2), "b": [f32(), (f32(1), None)]})
def nested(tree):
    return jax.tree.map(lambda x: x * 2, tree)


@case(
    {True: f32(), False: f32(2)},
    {2: f32(), 10: f32(3)},
    {"1 x": f32(), "class": f32(1), "a'b\"c\n": f32(2)},
)
@case({(1, 2): f32()}, {np.int32(3): f32()}, {"": f32(), "é": f32(), "\\": f32()})
@case({None: f32()}, {b"x": f32()}, {frozenset({1}): f32()})
def keys_of_every_kind(a, b, c):
    return jax.tree.map(jnp.sin, (a, b, c)), a, {"new": b, "old": c}


@case(Pair(f32(2), f32()), Empty())
def namedtuples(p, e):
    return Pair(p.right, p.left), p._replace(left=p.left + 1), Pair(1.0), e, Empty(), (p, [p])


@case(Record(f32(2), None, "some"))
def dataclasses_(r):
    return r, dataclasses.replace(r, x=r.x + 1), Record(r.x, (r.x, 2)), Record(1, 2, "other")


@case(Keyless(f32(2), f32(), tag=4), Keyed(f32(2), {"k": f32()}))
def custom_nodes(a, b):
    return a, b, Keyless(b.a, tag="x"), Keyed(a.parts[0] * 2, a), Keyless(), [Keyed(None, None)]


@case(jax.tree_util.Partial(jnp.add, f32(2)), f32(2))
def partials(f, x):
    return f(x), f, jax.tree_util.Partial(jnp.sin, x)


@case([], {}, None, (), f32())
def empty_inputs(a, b, c, d, x):
    return a, b, c, d, x + 1


@case(1.5, 2, True, 1j, np.float32(3), np.array([1, 2]), np.uint8(200))
def scalars(*xs):
    return [x + 1 for x in xs], xs


@case(f32(2), f32(3))
def scalars_and_rest(x, *rest):
    return x.sum(), rest


@case(f32(), array(np.int8), array(bool))
def rank_zero(x, i, p):
    return x * i, jnp.where(p, x, i), x.reshape(1), i + 1, x.T, jnp.stack([x, x]), -x


@case(f32(2))
def large_constant(x):
    return x + jnp.asarray(np.random.RandomState(0).randn(50, 2), jnp.float32)


@case(f32(3), f32(2), donate_argnums=0)
def donated(x, y):
    return x * 2, y.sum()


@case(f32(3), 2, "name", static_argnums=(1, 2))
def static(x, n, name):
    return {name: x * n}


@case(f32(3), f32(3), keep_unused=True)
def unused(x, y):
    return x + 1
