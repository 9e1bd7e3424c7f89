"""Where a wide value is quantised: which ways, under which scales, and who else reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from precir.ir import Graph, Node, Operand, Value
from precir.scaled import full_block

_CASTS: Final = ("convert_element_type", "cast")
_WIDE: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_EIGHT: Final = ("float8_e4m3fn", "float8_e5m2")


@dataclass
class Sink:
    """A wide value and the quantised copies of it that one kernel can write in one pass.

    Attributes:
      value: the widest form of it; some of what reads it may read a cast of it.
      dtype: the 8-bit format.
      block: as `ScaledArray.block`: () for one scale, sizes that are 1 but along the last axis, or
        square ones.
      scale_format: dtype of the scales.
      scale: the one scale, if it is given; None for one that is still to be measured, and blocks.
      lying: `quantize` nodes of the data as it lies.
      standing: those whose blocks lie along the other axes: data of the transposed matrix.
      turned: products that sum over the other axes, and would copy what lies: (node, operand).
      others: whether anything else needs the wide value.
    """

    value: Value
    dtype: str
    block: tuple[int, ...]
    scale_format: str
    scale: Operand | None
    lying: list[Node] = field(default_factory=list)
    standing: list[Node] = field(default_factory=list)
    turned: list[tuple[Node, int]] = field(default_factory=list)
    others: bool = False

    @property
    def nodes(self) -> list[Node]:
        return [*self.lying, *self.standing]

    @property
    def measured(self) -> bool:
        """Whether its scale takes a look at all of it first."""
        return not self.block and self.scale is None

    @property
    def flips(self) -> bool:
        """Whether the transpose is of use."""
        return bool(self.standing or self.turned)

    @property
    def square(self) -> bool:
        return sum(b > 1 for b in self.block) > 1


def find_sinks(graph: Graph) -> list[Sink]:
    """One for each value that is quantised to 8 bits, in program order; what is stored between
    steps is not among them.
    """
    outputs = {o for o in graph.outputs if isinstance(o, Value)}
    groups: dict[Value, list[Node]] = {}
    for node in graph:
        if node.op != "quantize" or node.params["dtype"] not in _EIGHT or node.params.get("fused"):
            continue
        if isinstance(node.inputs[0], Value):
            groups.setdefault(root(node.inputs[0]), []).append(node)
    found = []
    for value, nodes in groups.items():
        sink = _sink(graph, value, nodes, outputs)
        if sink is not None:
            found.append(sink)
    return found


def root(value: Value) -> Value:
    """A value before it was rounded on its way to where it is read."""
    while (
        value.node is not None
        and value.node.op in _CASTS
        and isinstance(value.node.inputs[0], Value)
        and _WIDE.get(value.node.inputs[0].type.dtype, 0) >= _WIDE.get(value.type.dtype, 9)
    ):
        value = value.node.inputs[0]
    return value


def _sink(graph: Graph, value: Value, nodes: list[Node], outputs: set[Value]) -> Sink | None:
    first, shape = nodes[0], value.type.shape
    if len(shape) < 2 or not math.prod(shape) or value.type.dtype not in _WIDE:
        return None
    params = first.params
    scaling = params.get("scaling", "current")
    if scaling not in ("current", "given"):
        return None
    sink = Sink(value, params["dtype"], (), params.get("scale_format", "float32"), None)
    if scaling == "given":
        sink.scale = first.inputs[1]
    blocks = [_lies(n.params.get("block", ()), shape) for n in nodes]
    lying = next((b for b in blocks if b is not None and b[0] == "lying"), None)
    if lying is None:
        apart = next((b for b in blocks if b is not None), None)
        if apart is None or not _folds(shape, apart[1][-1]):
            return None
        lying = "lying", apart[1]
    sink.block = lying[1]
    alike = _same(first)
    for node, way in zip(nodes, blocks, strict=True):
        if way is None or _same(node) != alike:
            sink.others = True
        elif way == lying:
            sink.lying.append(node)
        elif way[0] == "standing" and way[1] == lying[1] and _folds(shape, lying[1][-1]):
            sink.standing.append(node)
        else:
            sink.others = True
    sink.others |= _read_otherwise(graph, value, set(sink.nodes), outputs)
    for node in sink.lying if not sink.block or sink.square else ():
        sink.turned += _summed_over_rows(graph, node.outputs[0])
    return sink if sink.nodes else None


def _same(node: Node) -> tuple[Any, ...]:
    p = node.params
    scaling = p.get("scaling", "current")
    return p["dtype"], scaling, p.get("scale_format", "float32"), node.inputs[1:]


def _lies(block: tuple[int, ...], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
    """How a `quantize` reads a matrix: "lying" or "standing", and the block of what lies."""
    if not block:
        return "lying", ()
    sizes = full_block(block, len(shape))
    ahead, (down, across) = sizes[:-2], sizes[-2:]
    if any(b > 1 for b in ahead):
        return None
    if down == across > 1:
        return ("lying", sizes) if all(n == 1 for n in shape[:-2]) else None
    if across > 1 and down == 1:
        return "lying", sizes
    if down > 1 and across == 1:
        return "standing", (*ahead, 1, down)
    return None


def _folds(shape: tuple[int, ...], size: int) -> bool:
    """Whether blocks of the second axis from the end are also those of all rows as one axis."""
    return math.prod(shape[:-2]) == 1 or shape[-2] % size == 0


def _read_otherwise(graph: Graph, value: Value, nodes: set[Node], outputs: set[Value]) -> bool:
    """Whether anything but those nodes, and the measuring of scales, reads it or a cast of it."""
    if value in outputs:
        return True
    for user in graph.users.get(value, ()):
        if user in nodes or user.op == "finite_amax":
            continue
        rounds = user.op in _CASTS and root(user.outputs[0]) is value
        if not rounds or _read_otherwise(graph, user.outputs[0], nodes, outputs):
            return True
    return False


def _summed_over_rows(graph: Graph, value: Value) -> Iterator[tuple[Node, int]]:
    for user in graph.users.get(value, ()):
        if user.op != "scaled_dot":
            continue
        summed, batch = user.params["dimension_numbers"]
        for i in range(2):
            rows = tuple(range(value.type.rank - 1))
            if user.inputs[i] is value and not batch[i] and tuple(summed[i]) == rows:
                yield user, i


def positions(graph: Graph) -> Mapping[Node, int]:
    return {node: n for n, node in enumerate(graph.nodes)}
