"""What each part of the state is, from how the update uses it: weights, moments, the rest.

A weight is read by the model and changed by a gradient. A moment is read by the update alone, and
how it follows the gradient tells which: multiply the gradient by c, and an exponential average of
it (Adam's first moment, momentum) is multiplied by c, one of its square (Adam's second moment,
RMSprop, Adagrad) by c^2. So the degree of every value of the update in the gradient is followed
through the program; that of a moment is what makes its next value agree with it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from precir.ir import BACKWARD, UPDATE, Graph, Node, Operand, Value
from precir.ops import Keeps, op_named

Class = Literal["weight", "first moment", "second moment", "counter", "other"]
WEIGHT: Final[Class] = "weight"
FIRST: Final[Class] = "first moment"
SECOND: Final[Class] = "second moment"
COUNTER: Final[Class] = "counter"
OTHER: Final[Class] = "other"

_LINEAR: Final = frozenset({
    "neg", "convert_element_type", "copy", "reduce_sum", "reduce_window_sum", "cumsum",
    "reduce_precision", "optimization_barrier", "psum",
})  # fmt: skip
_SUMS: Final = frozenset({"add", "add_any", "sub"})
_POWERS: Final = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "cbrt": 1 / 3}


def classify_state(graph: Graph, pairs: Sequence[tuple[int, int]]) -> dict[int, Class]:
    """The class of each input that comes back, by its number; `pairs` are the numbers of such
    inputs and of the results they come back as.
    """
    degrees = _Degrees()
    found: dict[int, Class] = {}
    unknown: dict[int, Value] = {}
    shapes = set()
    for i, _ in pairs:
        value = graph.inputs[i]
        readers = graph.users.get(value, ())
        if not value.type.dtype.startswith(("float", "bfloat")) or not value.type.rank:
            found[i] = COUNTER if "int" in value.type.dtype else OTHER
        elif any(n.phase != UPDATE for n in readers):
            found[i] = WEIGHT
            shapes.add(value.type.shape)
        elif readers:
            unknown[i] = value
            degrees.begin(value)
        else:
            found[i] = OTHER
    weights = {graph.outputs[back] for i, back in pairs if found.get(i) == WEIGHT}
    degrees.run(graph, weights)
    for i, back in pairs:
        result = graph.outputs[back]
        if found.get(i) == WEIGHT and degrees.of(result) is None:
            found[i] = OTHER  # a hidden state, a target: read by the model, and not learnt
        if i not in unknown:
            continue
        found[i] = OTHER
        if not isinstance(result, Value) or unknown[i].type.shape not in shapes:
            continue
        own, new = degrees.of(unknown[i]), degrees.of(result)
        if own is not None and own == new and own.symbol is None and own.linear:
            found[i] = {1.0: FIRST, 2.0: SECOND}.get(own.number, OTHER)
    return {i: found[i] for i, _ in pairs}


@dataclass(frozen=True)
class _Degree:
    """`number`, plus `times` that of the moment `symbol`; `linear` if nothing made it but sums,
    products, powers, choices and clipping.
    """

    number: float = 0.0
    symbol: Value | None = None
    times: float = 0.0
    linear: bool = True


@dataclass
class _Degrees:
    values: dict[Operand, _Degree] = field(default_factory=dict)
    known: dict[Value, _Degree] = field(default_factory=dict)

    def begin(self, value: Value) -> None:
        self.values[value] = _Degree(symbol=value, times=1.0)

    def of(self, operand: Operand) -> _Degree | None:
        """None for what is no part of the update: a number that does not depend on the gradient."""
        found = self.values.get(operand)
        if found is None or found.symbol is None or found.symbol not in self.known:
            return found
        meant = self.known[found.symbol]
        number = found.number + found.times * meant.number
        return _Degree(number, linear=found.linear and meant.linear)

    def run(self, graph: Graph, weights: Container[Operand] = ()) -> None:
        """Follow a program; what averages its new `weights` averages no gradients."""
        for node in graph:
            if node.phase == BACKWARD:
                self.values.update({v: _Degree(1.0) for v in node.outputs})
            elif node.op == "cond" and node.phase == UPDATE:
                self.branches(node)
            elif node.phase == UPDATE:
                made = self.node(node)
                if made is not None:  # a scalar, as the norm of all gradients, is just a number
                    self.values.update({v: made for v in node.outputs if v.type.rank})
            for v in node.outputs:
                if v in weights and v in self.values:
                    self.values[v] = replace(self.values[v], linear=False)

    def branches(self, node: Node) -> None:
        """What one of several branches makes, as an update that is skipped now and then."""
        given = [self.of(o) for o in node.inputs[1:]]
        for region in node.regions:
            inside = zip(region.inputs, given, strict=True)
            self.values.update({v: d for v, d in inside if d is not None})
            self.run(region)
        for n, v in enumerate(node.outputs):
            made = [d for r in node.regions if (d := self.of(r.outputs[n])) is not None]
            if made and v.type.rank:
                self.values[v] = self.agreed(made)

    def node(self, node: Node) -> _Degree | None:
        given = [self.of(o) for o in node.inputs]
        if all(d is None for d in given):
            return None
        if node.op in _SUMS or node.op == "select_n":
            return self.agreed([d for d in given if d is not None])
        if node.op == "clamp":
            return given[1]
        if node.op in ("max", "min") and sum(d is not None for d in given) == 1:
            return next(d for d in given if d is not None)  # clipping
        if node.op == "mul" or op_named(node.op).keeps is Keeps.PRODUCT:
            return _product(given, 1.0)
        if node.op == "div":
            return _product(given, -1.0)
        first = given[0]
        if first is not None and (node.op in _LINEAR or op_named(node.op).keeps is Keeps.MOVE):
            return first
        if first is not None and (node.op in _POWERS or node.op == "integer_pow"):
            power = _POWERS.get(node.op) or float(node.params["y"])
            if first.symbol is None:
                return _Degree(power * first.number, linear=first.linear)
            return _Degree(power * first.number, first.symbol, power * first.times, first.linear)
        agreed = self.agreed([d for d in given if d is not None])
        return _Degree(agreed.number, agreed.symbol, agreed.times, linear=False)

    def agreed(self, given: Sequence[_Degree]) -> _Degree:
        """The degree of a sum; a moment that is added to what is known has its degree."""
        known = next((d for d in given if d.symbol is None), None)
        for d in given:
            alone = d.symbol is not None and d.times == 1.0 and d.number == 0.0
            if known is not None and alone and d.symbol is not None:
                self.known.setdefault(d.symbol, known)
        found = given[0] if known is None else known
        return replace(found, linear=all(d.linear for d in given))


def _product(given: Sequence[_Degree | None], power: float) -> _Degree:
    """Of the first, and of the others to a power."""
    number, times, linear = 0.0, 0.0, True
    symbol: Value | None = None
    for i, d in enumerate(given):
        if d is None:
            continue
        p = power if i else 1.0
        number, linear = number + p * d.number, linear and d.linear
        if d.symbol is not None:
            linear = linear and symbol in (None, d.symbol)
            symbol, times = d.symbol, times + p * d.times
    return _Degree(number, symbol, times, linear) if times else _Degree(number, linear=linear)
