"""A product that is only read transposed, multiplied the other way round.

JAX's gradient of a weight is a product and its transpose. XLA lets its own products write any
layout; a kernel writes one, and the transpose is a copy of a weight's size.
"""

from __future__ import annotations

from precir.ir import Graph, Node, Rewrite, Type, Value


def turn_products(graph: Graph) -> Graph:
    """The program without transposes that swap the free axes of the two operands of a product of
    quantised tensors; one level of it.
    """
    outputs = {o for o in graph.outputs if isinstance(o, Value)}
    rewrite = Rewrite(graph)
    turned: dict[Node, Node] = {}
    for node in graph:
        if node.op == "scaled_dot":
            readers = graph.users.get(node.outputs[0], ())
            alone = len(readers) == 1 and node.outputs[0] not in outputs
            if alone and readers[0].op == "transpose" and _swaps(node, readers[0]):
                made = _other_way(node, readers[0].outputs[0].type, rewrite)
                turned[readers[0]] = rewrite.add(made)
                continue
        if node in turned:
            rewrite.map(node.outputs[0], turned[node].outputs[0])
        else:
            rewrite.copy(node)
    return rewrite.finish() if turned else graph


def _swaps(product: Node, transpose: Node) -> bool:
    """Whether the transpose puts the axes of the second operand before those of the first."""
    (summed, _), (batch, _) = product.params["dimension_numbers"]
    if batch:
        return False
    rank, first = product.outputs[0].type.rank, product.inputs[0].type.rank - len(summed)
    wanted = (*range(first, rank), *range(first))
    return tuple(transpose.params["permutation"]) == wanted and 0 < first < rank


def _other_way(product: Node, kind: Type, rewrite: Rewrite) -> Node:
    (summed, its), batch = product.params["dimension_numbers"]
    params = {**product.params, "dimension_numbers": ((its, summed), batch)}
    inputs = [rewrite(o) for o in reversed(product.inputs)]
    return product.like(inputs=inputs, types=[kind], params=params)
