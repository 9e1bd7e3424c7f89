"""How the weights of a model are stored for inference: from what reads each of them.

A weight that an 8-bit product takes, or that rows are looked up in, is stored in 8 bits, under
scales over what the recipe says of that product's operand. One that only 16-bit products read is
stored in their format, which changes no bit of them, or where the recipe says so in 8-bit integers,
dequantised for each product. All else stays as it is: what is no matrix,
and what is computed with before it comes to a product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from precir.ir import Graph, Node, Type, Value
from precir.ops import Keeps, op_named
from precir.ops.stored import Block, block_before, is_lookup, is_move, is_row
from precir.passes.assign import Assignment, Product
from precir.passes.grains import BLOCK, MX_BLOCK, grain
from precir.passes.stored import handed
from precir.recipe import Recipe
from precir.scaled import full_block, scale_shape

NO_MATRIX: Final = "no matrix"
_SIXTEEN: Final = ("bfloat16", "float16")
_FLOATS: Final = ("float32", *_SIXTEEN)


@dataclass(frozen=True)
class Use:
    """One reader of a weight.

    Attributes:
      node: a product, a lookup, or anything else.
      what: "product", "lookup" or "other".
      format: what it reads the weight in; "" where that is not known.
      block: over what one scale of the weight reaches for it, as `ScaledArray.block`; None where
        nothing says.
      stacked: whether it reads one layer of a stack at a time.
      reason: of a product that is not in 8 bits, why.
    """

    node: Node | None
    what: str
    format: str = ""
    block: Block | None = None
    stacked: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Weight:
    """How one input is stored.

    Attributes:
      number: which input of the program.
      stored: its type in storage, None if it stays as it is.
      scales: dtype of its scales.
      reason: why it is stored so, or why it stays.
      uses: all that reads it.
    """

    number: int
    stored: Type | None
    scales: str
    reason: str
    uses: tuple[Use, ...]


def choose_weights(
    graph: Graph, assignment: Assignment, recipe: Recipe, count: int
) -> list[Weight]:
    """How each of the first `count` inputs is stored; `assignment` is of this graph, and says how
    its products run under the recipe.
    """
    readers = _Readers(assignment, recipe)
    return [_weight(v, i, tuple(readers.of(graph, v)), recipe) for i, v in
            enumerate(graph.inputs[:count])]  # fmt: skip


def _weight(value: Value, number: int, uses: tuple[Use, ...], recipe: Recipe) -> Weight:
    kind = value.type
    rank = kind.rank - any(u.stacked for u in uses)
    if kind.dtype not in _FLOATS:
        return Weight(number, None, "", f"{kind.dtype}, no numbers to round", uses)
    if not uses:
        return Weight(number, None, "", "nothing reads it", uses)
    if rank < 2:
        return Weight(number, None, "", NO_MATRIX, uses)
    narrow = recipe.forward or recipe.stored
    reads = recipe.forward or recipe.compute
    eight = next((u for u in uses if u.what == "product" and u.format == reads), None)
    looked = next((u for u in uses if u.what == "lookup"), None)
    chosen = eight or looked
    if narrow is not None and chosen is not None:
        block = chosen.block
        if block is None:  # lost on the way: one scale for all, or for each layer
            stack = any(u.stacked for u in uses)
            block = (1, *kind.shape[1:]) if stack else ()
        stored = Type(kind.shape, narrow, scale=scale_shape(kind.shape, block), block=block)
        scales = "float8_e8m0fnu" if recipe.weight_scales == "mx" and block else "float32"
        return Weight(number, stored, scales, _readers_in_words(uses), uses)
    formats = {u.format for u in uses}
    if len(formats) == 1 and formats <= {*_SIXTEEN} and kind.dtype == "float32":
        (format_,) = formats
        stack = any(u.stacked for u in uses)
        block = (1, *kind.shape[1:]) if stack else ()
        stored = Type(kind.shape, format_, scale=scale_shape(kind.shape, block), block=block)
        return Weight(number, stored, "float32", _why_sixteen(uses, recipe), uses)
    return Weight(number, None, "", _why_wide(uses, kind), uses)


def _readers_in_words(uses: Sequence[Use]) -> str:
    """`3 products, a lookup`; what dequantises it besides by its name."""
    counts = Counter(u.what for u in uses)
    said = []
    for what in ("product", "lookup"):
        if counts[what]:
            said.append(f"{counts[what]} {what}{'s' * (counts[what] > 1)}")
    others = dict.fromkeys(u.node.op if u.node is not None else "results" for u in uses
                           if u.what == "other")  # fmt: skip
    return ", ".join([*said, *(f"dequantised for {o}" for o in others)])


def _why_sixteen(uses: Sequence[Use], recipe: Recipe) -> str:
    return next((u.reason for u in uses if u.reason), f"recipe {recipe.name}")


def _why_wide(uses: Sequence[Use], kind: Type) -> str:
    for use in uses:
        if use.what == "other":
            node = use.node
            line = f" at {node.source}" if node is not None and node.source.where else ""
            return f"read by {node.op}{line}" if node is not None else "a result as it is"
    formats = {u.format for u in uses}
    if formats == {kind.dtype}:
        return f"its products run in {kind.dtype}"
    return next((u.reason for u in uses if u.reason), f"its products run in {sorted(formats)}")


class _Readers:
    """What reads a value, past casts and moves, in sub-programs too."""

    def __init__(self, assignment: Assignment, recipe: Recipe) -> None:
        self.assignment, self.recipe = assignment, recipe
        self.products = {p.node: p for p in assignment.products}

    def of(self, graph: Graph, value: Value) -> Iterator[Use]:
        if value in graph.outputs:
            yield Use(None, "other")
        for node in graph.users.get(value, ()):
            for i, operand in enumerate(node.inputs):
                if operand is value:
                    yield from self.use(graph, node, i)

    def use(self, graph: Graph, node: Node, i: int) -> Iterator[Use]:
        """Of operand `i` of a node."""
        product = self.products.get(node)
        if product is not None:
            yield self.product(node, i, product)
        elif op_named(node.op).keeps is Keeps.CONVOLUTION:
            compute = self.assignment.compute.get(node, node.inputs[i].type.dtype)
            yield Use(node, "product", compute, reason=f"no 8-bit kernel for {node.op}")
        elif node.regions:
            yield from self.inside(node, i)
        elif i == 0 and is_lookup(node):
            dtype = self.assignment.dtype(node.outputs[0])
            yield Use(node, "lookup", dtype, self.of_rows(node.inputs[0].type))
        elif i == 0 and is_move(node):
            yield from self.moved(graph, node)
        else:
            yield Use(node, "other")

    def inside(self, node: Node, i: int) -> Iterator[Use]:
        """In the sub-programs that are handed it."""
        places = [h for h in handed(node) if h.operand == i]
        if not places:
            yield Use(node, "other")
        for h in places:
            region = node.regions[h.region]
            inner = region.inputs[h.input]
            for use in self.of(region, inner):
                block = use.block
                if block is not None and h.stacked:
                    shape = inner.type.shape
                    block = (1, *(full_block(block, len(shape)) if block else shape))
                yield replace(use, block=block, stacked=use.stacked or h.stacked)

    def moved(self, graph: Graph, node: Node) -> Iterator[Use]:
        for use in self.of(graph, node.outputs[0]):
            block = None if use.block is None else block_before(node, use.block)
            yield replace(use, block=block, stacked=use.stacked or is_row(node))

    def product(self, node: Node, i: int, product: Product) -> Use:
        found = grain(node, i, self.recipe.weight_scales)
        if not product.low:
            block = found.block if self.recipe.stored is not None else None
            return Use(node, "product", product.operands[i], block, reason=product.reason)
        return Use(node, "product", product.operands[i], found.block)

    def of_rows(self, kind: Type) -> Block:
        """Blocks of a table, a row of which is one embedding."""
        width = max(1, kind.shape[-1])
        sizes: dict[str, Block] = {
            "row": (1, width), "1x128": (1, BLOCK), "128x128": (BLOCK, BLOCK), "mx": (1, MX_BLOCK),
        }  # fmt: skip
        reach = self.recipe.weight_scales
        return () if reach == "tensor" else full_block(sizes[reach], kind.rank)
