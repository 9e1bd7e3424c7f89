"""The cheapest formats under a price on error, as a minimum cut.

Every group of values that share a format is a vertex, on one side of the cut where it is float32
and on the other where it is 16 bits; a product that may run in 8 bits has two more, one for each
step down. What a step saves and what it costs are edges to the source or the sink, and what must
follow from what (a cast from a reader, a rounding from a cast) are edges that nothing can cut.
That is a problem of labels in an order with costs that a cut can count (Ishikawa, PAMI 2003), so
the answer is the best there is under the model, not only a good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from precir.auto.cost import Model
from precir.auto.errors import Errors, Pair
from precir.auto.places import WIDE, Places, is_wide, origin
from precir.ir import Node, Value

FP8, FP8_BLOCK, BF16, F32 = "fp8", "fp8-block", "bfloat16", "float32"
_SOURCE, _SINK = 0, 1
_NOTHING: Final = 0.1  # of a cast: the difference that is none
_WHOLE: Final = 2**30  # all finite capacities together, so that no flow leaves 32 bits
_UNCUT: Final = 2**31 - 1


class Cut:
    """The problem of one program on one card; `solve` answers for a price."""

    def __init__(
        self, places: Places, model: Model, errors: Errors, usual: Mapping[Node, str]
    ) -> None:
        """`usual` are formats to keep to where there is nothing in it either way."""
        self.places, self.model, self.errors, self.usual = places, model, errors, usual
        self.count = 2
        self.group: dict[Any, int] = {places.groups[WIDE]: _SOURCE}
        self.copies: dict[tuple[Value, str], int] = {}
        self.steps: dict[Node, tuple[int, int]] = {}
        # Edges: from, to, seconds, loss variance, results' error; and those that are never cut.
        self.edges: list[tuple[int, int, float, float, float]] = []
        self.never: list[tuple[int, int]] = []
        self._build()

    # -- the graph -----------------------------------------------------------------------------

    def vertex(self) -> int:
        self.count += 1
        return self.count - 1

    def of(self, value: Value) -> int:
        root = self.places.groups[value]
        if root not in self.group:
            self.group[root] = self.vertex()
        return self.group[root]

    def pay(self, a: int, b: int, seconds: float, error: tuple[float, float] = (0.0, 0.0)) -> None:
        """A price for `a` on the source's side and `b` on the sink's."""
        self.edges.append((a, b, seconds, *error))

    def narrower(self, v: int, seconds: float, error: tuple[float, float] = (0.0, 0.0)) -> None:
        """What it costs more (or, if negative, less) to have `v` on the sink's side."""
        if seconds >= 0:
            self.pay(_SOURCE, v, seconds, error)
        else:
            self.pay(v, _SINK, -seconds)
            self.pay(_SOURCE, v, 0.0, error)

    def _build(self) -> None:
        model = self.model
        for move in model.moves:
            self.narrower(self.of(move.value), -model.bytes_seconds(2 * move.elements))
        for node in self.places.ops:
            nothing = _NOTHING * model.converting(node.outputs[0], self.places.times[node])
            self.narrower(
                self.of(node.outputs[0]), nothing if self.usual[node] == F32 else -nothing
            )
            for value in node.outputs:
                if is_wide(value):
                    self.never.append((self.rounding(value), self.of(value)))
            for i, operand in enumerate(node.inputs):
                if isinstance(operand, Value) and is_wide(operand):
                    self.read(node, i, operand)
                    cast = model.converting(operand, self.places.times[node])
                    ends = self.of(operand), self.of(node.outputs[0])
                    self.pay(*ends, cast)
                    self.pay(*ends[::-1], cast)
        for node in self.places.multiplied:
            self._product(node)

    def read(self, node: Node, i: int, operand: Value) -> None:
        """What rounding a wide operand for this reader adds, others reading it too."""
        one, out = self.errors.read(node, i), self.of(node.outputs[0])
        if one is None:
            self.never.append((self.rounding(operand), out))
        elif self.of(operand) != out:
            self.pay(self.of(operand), out, 0.0, one)

    def rounding(self, value: Value) -> int:
        """On the sink's side where a value is rounded to 16 bits, for itself or a reader."""
        value = origin(value)
        key = value, "rounded"
        if key not in self.copies:
            self.copies[key] = v = self.vertex()
            self.never.append((v, self.of(value)))
            self.narrower(v, 0.0, self.errors.value(value))
        return self.copies[key]

    def _product(self, node: Node) -> None:
        model, out = self.model, self.of(node.outputs[0])
        narrow, times = self.places.products.get(node), self.places.times[node]
        wide, half = model.product(node, "tf32", 4), model.product(node, "bf16", 2)
        self.narrower(out, half - wide)
        for i, operand in enumerate(node.inputs):
            if isinstance(operand, Value):
                self.read(node, i, operand)
                self.never.append((self.copy(operand, times), out))
        if narrow is None:
            self.never.append((self.rounding(node.outputs[0]), out))
            return
        block, tensor = self.vertex(), self.vertex()  # down to blocks, down to one scale
        self.steps[node] = block, tensor
        self.never += [(out, block), (block, tensor)]
        kept = narrow.tensor.result == F32  # of 8-bit operands, all digits of the result
        if kept:
            self.pay(block, out, 0.0, self.errors.value(node.outputs[0]))
        else:
            self.never.append((self.rounding(node.outputs[0]), out))
        errors = self.errors.uses(node)
        blocks = model.product(node, "fp8", 4 if kept else 2, block=True)
        self.narrower(block, blocks - half, errors[1])
        more = tuple(max(0.0, a - b) for a, b in zip(errors[0], errors[1], strict=True))
        one = model.product(node, "fp8", 4 if kept else 2)
        self.narrower(tensor, one - blocks, (more[0], more[1]))
        for operand in node.inputs:
            assert isinstance(operand, Value)
            self.never.append((self.quantised(operand, times, block=True), block))
            self.never.append((self.quantised(operand, times, block=False), tensor))

    def copy(self, value: Value, times: int) -> int:
        """On the sink's side where a float32 value is copied to fewer bits for a product."""
        key = value, "copied"
        if key not in self.copies:
            self.copies[key] = v = self.vertex()
            self.pay(self.of(value), v, self.model.casting(value, times))
        return self.copies[key]

    def quantised(self, value: Value, times: int, *, block: bool) -> int:
        """On the sink's side where a value is quantised by blocks or under one scale, and where it
        is under one scale: what that costs more than the step before it.
        """
        key = value, "blocks" if block else "one"
        if key not in self.copies:
            self.copies[key] = v = self.vertex()
            half, wide = (
                self.model.quantising(value, times, width, block)
                - (0.0 if block else self.model.quantising(value, times, width, block=True))
                for width in (2, 4)
            )
            if self.of(value) == _SOURCE:  # never in 16 bits, so that its copy is not made
                spared = self.model.casting(value, times) if block else 0.0
                self.narrower(v, max(0.0, wide - spared))
            else:
                self.narrower(v, half)
                self.pay(self.of(value), v, max(0.0, wide - half))
        return self.copies[key]

    # -- the answer ----------------------------------------------------------------------------

    def solve(self, price: Pair) -> dict[Node, str]:
        """The format of each product, convolution and op, where an error costs `price` seconds: so
        much for the variance of the loss, and so much for the error of the results.
        """
        flow = np.array([e[2] for e in self.edges])
        error = np.array([price[0] * e[3] + price[1] * e[4] for e in self.edges])
        error[~np.isfinite(error)] = 1e30
        capacity = np.minimum(flow + error, 10 * (flow.sum() + 1e-30))
        scale = _WHOLE / max(capacity.sum(), 1e-300)
        whole = np.rint(capacity * scale).astype(np.int64)
        a = np.array([e[0] for e in self.edges] + [n[0] for n in self.never])
        b = np.array([e[1] for e in self.edges] + [n[1] for n in self.never])
        caps = np.concatenate([whole, np.full(len(self.never), _UNCUT, np.int64)])
        keep = (a != b) & (caps > 0)
        key = a[keep] * self.count + b[keep]
        pairs, inverse = np.unique(key, return_inverse=True)
        total = np.minimum(np.bincount(inverse, caps[keep]), _UNCUT).astype(np.int32)
        rows, columns = (
            (pairs // self.count).astype(np.int32),
            (pairs % self.count).astype(np.int32),
        )
        shape = (self.count, self.count)
        network = csr_array((total, (rows, columns)), shape=shape)
        found = maximum_flow(network, _SOURCE, _SINK)
        left = network - found.flow
        left.data = np.maximum(left.data, 0)
        left.eliminate_zeros()
        reached = np.zeros(self.count, bool)
        reached[breadth_first_order(left, _SOURCE, return_predecessors=False)] = True
        return self._formats(reached)

    def _formats(self, wide: np.ndarray[Any, Any]) -> dict[Node, str]:
        made: dict[Node, str] = {}
        for node in (*self.places.ops, *self.places.multiplied):
            made[node] = F32 if wide[self.of(node.outputs[0])] else BF16
            if node in self.steps:
                block, tensor = self.steps[node]
                if not wide[tensor]:
                    made[node] = FP8
                elif not wide[block]:
                    made[node] = FP8_BLOCK
        return made
