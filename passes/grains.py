"""Over what one scale reaches in an operand of a product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from precir.ir import UPDATE, Graph, Node, Operand, Value
from precir.ops import Keeps, op_named

BLOCK: Final = 128  # of the axis that is summed over: DeepSeek-V3, arXiv 2412.19437, section 3.3
_CASTS: Final = frozenset({"convert_element_type", "cast", "dequantize"})
MX_BLOCK: Final = 32  # OCP MX 1.0, section 5.1


@dataclass(frozen=True)
class Grain:
    """The scales of one operand.

    Attributes:
      reach: as in a recipe: "tensor", "row", "1x128", "128x128" or "mx".
      block: what that is for the operand's shape, as `ScaledArray.block`.
      scale_format: dtype of the scales.
      scale: the one scale, where it is known beforehand (static scaling).
    """

    reach: str = "tensor"
    block: tuple[int, ...] = ()
    scale_format: str = "float32"
    scale: float | None = None

    def params(self, dtype: str, scaling: str) -> dict[str, Any]:
        """Parameters of the `quantize` node."""
        params: dict[str, Any] = {"dtype": dtype, "scaling": scaling}
        if self.block:
            params["block"] = self.block
        if self.scale_format != "float32":
            params["scale_format"] = self.scale_format
        return params


def grain(node: Node, operand: int, reach: str) -> Grain:
    """The scales of operand 0 or 1 of a `dot_general` whose scales have a reach.

    Blocks lie along the last of the axes that are summed over; 128x128 also along the last axis
    that is not, batch axes aside. Along all other axes they are 1. A row is all that is summed
    over. With nothing to sum over, an outer product, there is one scale for each element: the
    tensor has one instead.
    """
    shape = node.inputs[operand].type.shape
    contracted, batch = (axes[operand] for axes in node.params["dimension_numbers"])
    free = [i for i in range(len(shape)) if i not in contracted and i not in batch]
    if reach == "tensor" or not contracted:
        return Grain()
    block = [1] * len(shape)
    if reach == "row":
        for axis in contracted:
            block[axis] = max(1, shape[axis])
        return Grain(reach, tuple(block))
    block[contracted[-1]] = MX_BLOCK if reach == "mx" else BLOCK
    if reach == "128x128" and free:
        block[free[-1]] = BLOCK
    return Grain(reach, tuple(block), "float8_e8m0fnu" if reach == "mx" else "float32")


def updated_inputs(graph: Graph) -> set[Value]:
    """The weights among the inputs of a whole train step: what the update reads, and what only
    moves or casts it.
    """
    read = {o for node in graph if node.phase == UPDATE for o in node.inputs}
    for node in reversed(graph.nodes):
        if moves_or_casts(node) and not read.isdisjoint(node.outputs):
            read.add(node.inputs[0])
    return {v for v in graph.inputs if v in read}


def stored_inputs(graph: Graph) -> set[Value]:
    """The weights among the inputs of a model whose weights are stored in 8 bits."""
    return {v for v in graph.inputs if v.type.scale is not None and "float8" in v.type.dtype}


def data_of(node: Node) -> Operand:
    """Which operand of a product of two of a program's inputs is the data: that of more axes,
    for weights have none for examples; of as many, the first, as in `x @ w`.
    """
    a, b = node.inputs[:2]
    return b if b.type.rank > a.type.rank else a


def moves_or_casts(node: Node) -> bool:
    return node.op in _CASTS or op_named(node.op).keeps is Keeps.MOVE


def reach_in_words(reaches: Sequence[str]) -> str:
    """Of activations, weights and gradients: `a scale for each row`; nothing for whole tensors."""
    activations, weights, gradients = reaches
    if activations == weights == gradients:
        return "" if weights == "tensor" else f"a scale for each {_WORDS[weights]}"
    if activations == gradients:
        return f"{activations} activations and gradients, {weights} weights"
    return f"{activations} activations, {weights} weights, {gradients} gradients"


_WORDS: Final = {
    "row": "row",
    "1x128": "1x128 block",
    "128x128": "128x128 block",
    "mx": "32 elements (MX, E8M0)",
}
