"""Activations that are quantised, and their gradients: one `act_quantize` or `act_gradients`.

What an operand of a product is made of is evaluated (`precir.passes.samples`) as a function of one
or two values (three, in a gradient) from before, ever further up the program, until it is an
activation of the first, the product of one with the second, or a gradient of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

import numpy as np
from scipy import special

from precir.ir import Node, Value
from precir.passes.samples import Samples, Unknown, elementwise
from precir.passes.smooth import FLOATS, compared, uncast

Array = np.ndarray[Any, Any]

_STEPS: Final = 40  # nodes that a function is made of at most
_LEAVES: Final = 4  # more arguments than any has
_WITHIN: Final = 3e-5  # of what the function is at most: constants are rounded to float32
_USUAL: Final = 96  # samples about as large as activations are
_FAR: Final = 96  # samples of any size, where a program may cap what it computes
_FINITE: Final = 0.75  # of the samples: a program's own way may overflow where the kernel does not


def _gelu(x: Array) -> tuple[Array, Array]:
    phi = 0.5 * (1 + special.erf(x / 2**0.5))
    return x * phi, phi + x * np.exp(-x * x / 2) / (2 * np.pi) ** 0.5


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    k = (2 / np.pi) ** 0.5
    t = np.tanh(k * (x + 0.044715 * x**3))
    slope = k * (1 + 3 * 0.044715 * x * x)
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t * t) * slope / 2


def _silu(x: Array) -> tuple[Array, Array]:
    s = special.expit(x)
    return x * s, s + x * s * (1 - s)


def _relu(x: Array) -> tuple[Array, Array]:
    return np.maximum(x, 0), (x > 0) * 1.0


FUNCTIONS: Final[dict[str, Callable[[Array], tuple[Array, Array]]]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "silu": _silu,
    "relu": _relu,
}
"""Each activation and its slope, as `precir.kernels.act_quantize` defines them."""


@dataclass(frozen=True)
class Activation:
    """What a value is: act(x), act(x) * up, or a gradient of x under `gradient`.

    `inside` are the nodes between the arguments and the value.
    """

    name: str
    x: Value
    up: Value | None
    gradient: Value | None
    inside: frozenset[Node]

    @property
    def arguments(self) -> tuple[Value, ...]:
        return tuple(v for v in (self.x, self.up, self.gradient) if v is not None)


def find_activation(value: Value, position: Mapping[Node, int]) -> Activation | None:
    """The first that fits, going up; None if there is none."""
    for leaves, inside in _cuts(value, position):
        found = _recognised(value, leaves)
        if found is not None:
            name, x, up, gradient = found
            return Activation(name, x, up, gradient, inside)
    return None


def _cuts(
    value: Value, position: Mapping[Node, int]
) -> Iterator[tuple[tuple[Value, ...], frozenset[Node]]]:
    """Sets of values that make `value`, element by element, with the nodes in between. Nothing else
    changes along the tensor. What was made last is taken apart first; then again, with one of what
    was met left whole, for an argument may itself be a sum.
    """
    met: list[Value] = []
    opens: dict[Value, bool] = {}
    yield from _apart(value, None, position, met, opens)
    for held in met[1:]:
        yield from _apart(value, held, position, [], opens)


def _apart(
    value: Value,
    held: Value | None,
    position: Mapping[Node, int],
    met: list[Value],
    opens: dict[Value, bool],
) -> Iterator[tuple[tuple[Value, ...], frozenset[Node]]]:
    shape = value.type.shape
    leaves, inside = {value: None}, set[Node]()  # in the order in which they are met
    for _ in range(_STEPS):
        for v in leaves:
            if v not in opens:
                opens[v] = v.node is not None and _opens(v.node)
        open_ = [v for v in leaves if v is not held and opens[v]]
        if not open_:
            return
        leaf = max(open_, key=lambda v: _at(v, position))
        assert leaf.node is not None
        met.append(leaf)
        del leaves[leaf]
        inside.add(leaf.node)
        for o in leaf.node.inputs:
            if isinstance(o, Value) and o.type.shape == shape:
                leaves[o] = None
            elif isinstance(o, Value) and not is_constant(o):
                return
        if 0 < len(leaves) < _LEAVES:
            yield tuple(sorted(leaves, key=lambda v: _at(v, position))), frozenset(inside)


def _opens(node: Node) -> bool:
    """Whether a node makes each element of what is in the same place, or is the same all over."""
    apart = elementwise(node) and node.op != "broadcast_in_dim"
    return apart or is_constant(node.outputs[0])


def is_constant(value: Value) -> bool:
    """A number that is spread or converted."""
    node = value.node
    return (
        node is not None
        and elementwise(node)
        and all(not isinstance(o, Value) or is_constant(o) for o in node.inputs)
    )


def _at(value: Value, position: Mapping[Node, int]) -> int:
    return -1 if value.node is None else position.get(value.node, -1)


def _recognised(
    value: Value, leaves: Sequence[Value]
) -> tuple[str, Value, Value | None, Value | None] | None:
    if any(v.type.dtype not in FLOATS for v in leaves):
        return None
    asked = compared([value], leaves)
    if asked is None or any(v not in leaves and uncast(v) not in leaves for v in asked):
        return None
    given = _samples(leaves)
    try:
        found = Samples(given).of(value)
    except Unknown:
        return None
    if np.isfinite(found).mean() < _FINITE or found.shape != given[leaves[0]].shape:
        return None
    of = {v: [(name, *function(given[v])) for name, function in FUNCTIONS.items()] for v in leaves}
    for x, *others in permutations(leaves):
        # |act(x)| <= |x|, and slopes are about one at most.
        rest = np.prod([given[v] for v in others], axis=0) if others else np.ones_like(found)
        most, least = np.abs(given[x] * rest), np.abs(rest)
        for name, y, slope in of[x]:
            if len(others) < 2 and _close(found, y * rest, most):
                return name, x, others[0] if others else None, None
            if len(others) == 1 and _close(found, slope * rest, least):
                return name, x, None, others[0]
            if len(others) == 2 and _close(found, slope * rest, least):
                late = others[1] if _at_node(others[1]) else others[0]
                early = others[0] if late is others[1] else others[1]
                return name, x, early, late
    return None


def _at_node(value: Value) -> bool:
    """Whether it is of the backward pass."""
    return value.node is None or value.node.phase == "backward"


def _samples(leaves: Sequence[Value]) -> dict[Value, Array]:
    """Points that tell the functions apart, and from the same with a cap or a threshold, or with
    something else at zero.
    """
    size = (1,) * (leaves[0].type.rank - 1) + (-1,)
    return {v: row.reshape(size) for v, row in zip(leaves, _POINTS, strict=False)}


def _points() -> Array:
    """Samples of each leaf. A fixed choice, for compilation is deterministic."""
    random = np.random.default_rng(20)
    far = 2.0 ** random.uniform(-20, 40, (_LEAVES, _FAR))
    far *= random.choice([-1.0, 1.0], far.shape)
    usual = 3 * random.standard_normal((_LEAVES, _USUAL))
    usual[:, -_LEAVES:] *= 1 - np.eye(_LEAVES)  # each alone at zero
    return np.concatenate([usual, far], axis=1)


_POINTS: Final = _points()


def _close(found: Array, function: Array, most: Array) -> bool:
    """Where the program's own way does not overflow."""
    for part in (slice(0, 4), slice(4, None)):  # most are told apart by a few
        f = found[..., part]
        apart, bound = np.abs(f - function[..., part]), _WITHIN * most[..., part]
        if not np.all((apart <= bound) | ~np.isfinite(f)):
            return False
    return True
