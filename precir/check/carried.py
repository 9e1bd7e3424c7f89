"""State that a step takes and gives back: what may stand still where it should move."""

from __future__ import annotations

from collections.abc import Iterator

from precir.formats import FORMATS
from precir.ir import Graph, Literal, Value


def carried(graph: Graph) -> list[tuple[int, int]]:
    """Inputs and results of one shape, where the result is the input with something added."""
    inputs = {v: i for i, v in enumerate(graph.inputs) if v.type.dtype in FORMATS}
    pairs = []
    for j, result in enumerate(graph.outputs):
        if isinstance(result, Value) and result.node is not None:
            pairs += [
                (inputs[v], j)
                for v in _moved_from(result)
                if v in inputs and _like(v, result) and not _corrects(result, v)
            ]
    return pairs


def _corrects(result: Value, given: Value) -> bool:
    """Whether what is added to an input is made of that input alone: y + log1p(-exp(-y)) loses no
    step of anything when the second term is negligible.
    """
    node = result.node
    if node is None or node.op not in ("add", "sub") or given not in node.inputs:
        return False
    for operand in node.inputs:
        made = operand.node if isinstance(operand, Value) else None
        if (
            made is not None
            and made.op == "mul"
            and any(isinstance(o, Literal) for o in made.inputs)
        ):
            return False  # a step of a given size
    leaves: set[Value] = set()
    pending = [o for o in node.inputs if isinstance(o, Value) and o is not given]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if value.node is None:
            leaves.add(value)
        else:
            pending += [o for o in value.node.inputs if isinstance(o, Value)]
    return leaves == {given}


def _moved_from(result: Value, depth: int = 12) -> Iterator[Value]:
    """Values that a result is a few steps away from: x of x - u, of a * x + b, of loops of such."""
    node = result.node
    if node is None or depth == 0:
        yield result
    elif node.op in ("add", "sub", "add_any"):
        for operand in node.inputs:
            if isinstance(operand, Value):
                yield from _moved_from(operand, depth - 1)
    elif node.op == "convert_element_type":
        if isinstance(node.inputs[0], Value):
            yield from _moved_from(node.inputs[0], depth - 1)
    elif node.op == "mul":
        for operand, other in (node.inputs, node.inputs[::-1]):
            if isinstance(operand, Value) and isinstance(other, Literal):
                yield from _moved_from(operand, depth - 1)
    elif node.op == "scan" and result.index < node.params["num_carry"]:
        start = node.inputs[node.params["num_consts"] + result.index]
        if isinstance(start, Value):
            yield from _moved_from(start, depth - 1)


def _like(a: Value, b: Value) -> bool:
    return a.type.shape == b.type.shape and a.type.dtype == b.type.dtype
