"""Which tensors between the forward and the backward pass may be kept in a narrow format.

COAT (arXiv 2410.19313, section 5) keeps the inputs of non-linear layers in FP8, a scale for each
group of a row. What is asked here is what that would harm.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from precir.formats import FORMATS
from precir.ir import BACKWARD, FORWARD, Graph, Literal, Node, Operand, Value
from precir.ops import Keeps, op_named
from precir.passes.facts import Facts, literal_fact
from precir.passes.grains import BLOCK, moves_or_casts
from precir.scaled import scale_shape

SMALL: Final = 1024  # elements: what has fewer takes no memory that matters
FLOATS: Final = ("float32", "float64", "bfloat16", "float16")
COMPARES: Final = frozenset({
    "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "sort", "floor", "ceil", "round",
    "sign", "is_finite", "bitcast_convert_type", "reduce_max", "reduce_min", "rem",
})  # fmt: skip
_REDUCTIONS: Final = frozenset({
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cummax", "cumlogsumexp",
    "argmax", "argmin",
})  # fmt: skip


class Origin(enum.IntEnum):
    """What a value was made of, at most."""

    WEIGHTS = 0
    """Constants, and what the update changes."""
    ARGUMENT = 1
    """An input of the program, moved or cast: it is there anyway."""
    DATA = 2


class Origins:
    """The origin of every value of a program, sub-programs' included."""

    def __init__(self, graph: Graph, weights: set[Value]) -> None:
        self.of: dict[Value, Origin] = {}
        first = [Origin.WEIGHTS if v in weights else Origin.ARGUMENT for v in graph.inputs]
        self._run(graph, first)

    def __getitem__(self, operand: Operand) -> Origin:
        if isinstance(operand, Literal):
            return Origin.WEIGHTS
        return self.of.get(operand, Origin.DATA)

    def _run(self, graph: Graph, first: Sequence[Origin]) -> list[Origin]:
        self.of.update(zip(graph.inputs, first, strict=True))
        for node in graph:
            inputs = [self[o] for o in node.inputs]
            most = max(inputs, default=Origin.WEIGHTS)
            kept = node.op == "quantize" or moves_or_casts(node)
            made = [Origin.DATA if most and not kept else most] * len(node.outputs)
            if node.op == "scan":
                made = self._scan(node, inputs)
            else:
                for region in node.regions:
                    count = len(region.inputs)
                    given = inputs[-count:] if 0 < count <= len(inputs) else []
                    self._run(region, given or [Origin.DATA] * count)
            self.of.update(zip(node.outputs, made, strict=True))
        return [self[o] for o in graph.outputs]

    def _scan(self, node: Node, inputs: list[Origin]) -> list[Origin]:
        consts, carry = node.params["num_consts"], node.params["num_carry"]
        while True:  # a carried origin only rises, and there are three
            made = self._run(node.regions[0], inputs)
            carried = [max(a, b) for a, b in zip(inputs[consts:], made[:carry], strict=False)]
            if carried == inputs[consts : consts + carry]:
                return made
            inputs = [*inputs[:consts], *carried, *inputs[consts + carry :]]


@dataclass
class Narrowable:
    """What may be kept in `format`; `kept` are the larger ones that may not, and why."""

    format: str
    facts: Facts
    origins: Origins
    keep_last: bool  # whether the operand of the last product stays
    kept: dict[Value, str] = field(default_factory=dict)

    def __call__(self, graph: Graph, tail: set[Node], value: Value) -> bool:
        """Whether a value that the forward pass makes may; `tail` as `after_products`."""
        kind = value.type
        floating = kind.dtype in FLOATS and kind.scale is None
        if not floating or kind.rank < 2 or math.prod(kind.shape) < SMALL:
            return False
        if _bits(kind.dtype) <= _bits(self.format) or self.origins[value] is not Origin.DATA:
            return False
        reason = self.reason(graph, tail, value)
        if reason:
            self.kept.setdefault(value, reason)
        return not reason

    def reason(self, graph: Graph, tail: set[Node], value: Value) -> str:
        """Why a value keeps its digits; nothing if it need not."""
        fact, grid = self.facts[value], FORMATS[self.format]
        node = value.node
        if is_statistic(value):
            return "a statistic: one number for many"
        if node in tail:
            return "part of the loss: it is read as soon as it is made"
        if self.keep_last and _feeds_last(graph, value, tail):
            return "an operand of the last product"
        digits = 2.0 ** (grid.mantissa_bits + 1)
        if fact.whole and digits < fact.magnitude < math.inf:
            return f"whole numbers up to {fact.magnitude:.4g}"
        if "float8" in self.format and _holds_fill(value, grid.max):
            return "filled with a number that leaves no room for the others"
        if is_compared(graph, value):
            return "the backward pass compares it"
        kind = value.type
        if _bytes(kind.shape, self.format) > 0.75 * _bytes(kind.shape, kind.dtype):
            return "its rows are too short for scales of their own"
        return ""


def after_products(graph: Graph) -> set[Node]:
    """The last products of the forward pass (the logits) and what is made of them."""
    products = [n for n in graph if n.phase == FORWARD and _multiplies(n)]
    before: set[Node] = set()
    waiting = list(products)
    while waiting:
        for o in waiting.pop().inputs:
            node = o.node if isinstance(o, Value) else None
            if node is not None and node not in before:
                before.add(node)
                waiting.append(node)
    tail = {n for n in products if n not in before}
    for node in graph:
        made = (o.node for o in node.inputs if isinstance(o, Value))
        if node.phase == FORWARD and any(n in tail for n in made):
            tail.add(node)
    return tail


def _feeds_last(graph: Graph, value: Value, tail: set[Node]) -> bool:
    """Whether one of the last products reads it, moved or cast."""
    for node in graph.users.get(value, ()):
        if node in tail and _multiplies(node):
            return True
        moves = node.phase == FORWARD and moves_or_casts(node)
        if moves and any(_feeds_last(graph, v, tail) for v in node.outputs):
            return True
    return False


def _multiplies(node: Node) -> bool:
    if node.op == "scaled_dot" or op_named(node.op).keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION):
        return True
    return any(_multiplies(n) for region in node.regions for n in region)


def is_statistic(value: Value) -> bool:
    """Whether it is made of reductions alone: a mean, a norm, a logsumexp."""
    node = value.node
    if node is None or node.regions:
        return False
    if node.op in _REDUCTIONS:
        return True
    elementwise = op_named(node.op).keeps in (Keeps.WIDE, Keeps.FOLLOW, Keeps.MOVE)
    if not elementwise and not moves_or_casts(node):
        return False
    read = [o for o in node.inputs if isinstance(o, Value)]
    return bool(read) and all(map(is_statistic, read))


def _holds_fill(value: Value, largest: float) -> bool:
    """Whether a `where` puts a number among the others that is beyond them."""
    node = value.node
    if node is None:
        return False
    if node.op == "select_n":
        facts = [literal_fact(o) for o in map(_unmoved, node.inputs[1:]) if isinstance(o, Literal)]
        return any(f.empty or f.magnitude > largest for f in facts)
    single = moves_or_casts(node) and isinstance(node.inputs[0], Value)
    return single and _holds_fill(node.inputs[0], largest)  # type: ignore[arg-type]


def _unmoved(operand: Operand) -> Operand:
    while isinstance(operand, Value) and operand.node and moves_or_casts(operand.node):
        operand = operand.node.inputs[0]
    return operand


def is_compared(graph: Graph, value: Value) -> bool:
    """Whether a backward node asks which of two is the larger, in sub-programs too."""
    readers = [n for n in graph.users.get(value, ()) if n.phase == BACKWARD]
    return any(n.op in COMPARES or _is_compared_inside(n, value) for n in readers)


def _is_compared_inside(node: Node, value: Value) -> bool:
    for region in node.regions:
        first = len(node.inputs) - len(region.inputs)
        for i, operand in enumerate(node.inputs):
            if operand is value and 0 <= i - first < len(region.inputs):
                inner = region.inputs[i - first]
                users = region.users.get(inner, ())
                if any(n.op in COMPARES or _is_compared_inside(n, inner) for n in users):
                    return True
    return False


# What is made again of a narrow image rather than kept beside it: no rounding grows by more than
# a small factor on the way, as it would in an exponential.
_AGAIN: Final = frozenset({
    "cast", "convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "rev",
    "broadcast_in_dim", "copy", "mul", "add", "add_any", "sub", "neg", "abs", "max", "min",
    "square", "one_minus_square", "integer_pow", "tanh", "logistic", "erf", "select_n",
})  # fmt: skip


class Roots:
    """The value whose narrow image is kept for the backward pass, for each that it reads.

    In the body of a loop (`stacked`) nothing but that image comes to the backward pass; elsewhere
    booleans, whole numbers and weights do.
    """

    def __init__(self, graph: Graph, may: Narrowable, stacked: bool = False) -> None:
        self.graph, self.may, self.stacked = graph, may, stacked
        self.tail = set() if stacked else after_products(graph)
        self.outputs = set() if stacked else set(graph.outputs)
        self.found: dict[Value, Value | None] = {}

    def __call__(self, value: Value) -> Value | None:
        """None if the value is kept as it is."""
        if value not in self.found:
            self.found[value] = self._find(value)
        return self.found[value]

    def chain(self, value: Value) -> list[Node]:
        """The nodes that make a value of its root, in order."""
        chain: dict[Node, None] = {}

        def add(v: Operand) -> None:
            if isinstance(v, Value) and v.node not in chain and self(v) not in (None, v):
                assert v.node is not None
                for o in v.node.inputs:
                    add(o)
                chain[v.node] = None

        add(value)
        return list(chain)

    def reused(self, value: Value) -> Node | None:
        """How a product reads it, if it takes it from the forward pass in this format anyway."""
        for node in self.graph.users.get(value, ()):
            if node.op == "quantize" and node.params["dtype"] == self.may.format:
                readers = self.graph.users.get(node.outputs[0], ())
                if node.phase == FORWARD and any(n.phase == BACKWARD for n in readers):
                    return node
        return None

    def _find(self, value: Value) -> Value | None:
        node = value.node
        if not self.stacked and (node is None or node.phase != FORWARD or is_stack(value)):
            return None
        if value in self.outputs:
            return None
        if node is not None and node.op in _AGAIN and self.reused(value) is None:
            read = {r for o in node.inputs if isinstance(o, Value) for r in self._roots(o)}
            root = next(iter(read), None)
            if len(read) == 1 and root is not None and not is_compared(self.graph, value):
                return root
        return value if self.may(self.graph, self.tail, value) else None

    def _roots(self, operand: Value) -> set[Value | None]:
        """Of an operand; none at all if the backward pass has it anyway."""
        plain = operand.type.dtype not in FLOATS
        there = plain or self.may.origins[operand] is not Origin.DATA
        return set() if there and not self.stacked else {self(operand)}


def is_stack(value: Value) -> bool:
    """Whether a scan stacks it."""
    node = value.node
    return node is not None and node.op == "scan" and value.index >= node.params["num_carry"]


def row_block(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A scale for every 128 elements of a row."""
    return (1,) * (len(shape) - 1) + (min(BLOCK, shape[-1]),)


def _bits(dtype: str) -> int:
    return FORMATS[dtype].bits


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Of a tensor as it is kept, scales included."""
    scales = 4 * math.prod(scale_shape(shape, row_block(shape))) if "float8" in dtype else 0
    return math.prod(shape) * _bits(dtype) // 8 + scales
