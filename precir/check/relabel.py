"""A float32 program taken for one in a format that JAX cannot trace it in."""

from __future__ import annotations

from precir.ir import Graph, Literal, Node, Operand, Type, Value

NARROWED = ("float32", "bfloat16", "float16")


def relabel(graph: Graph, dtype: str) -> Graph:
    """The same program with every float tensor in `dtype`, for analysis and not to be emitted."""
    return _graph(graph, dtype, {})


def _type(type_: Type, dtype: str) -> Type:
    return Type(type_.shape, dtype if type_.dtype in NARROWED else type_.dtype, type_.weak)


def _graph(graph: Graph, dtype: str, new: dict[Value, Value]) -> Graph:
    inputs = tuple(Value(_type(v.type, dtype), hint=v.hint) for v in graph.inputs)
    new.update(zip(graph.inputs, inputs, strict=True))

    def renamed(operand: Operand) -> Operand:
        if isinstance(operand, Literal):
            return Literal(operand.value, _type(operand.type, dtype))
        return new[operand]

    nodes = []
    for node in graph.nodes:
        made = Node(
            node.op,
            [renamed(o) for o in node.inputs],
            [_type(v.type, dtype) for v in node.outputs],
            node.params,
            regions=tuple(_graph(r, dtype, new) for r in node.regions),
            source=node.source,
            scope=node.scope,
            phase=node.phase,
            effects=node.effects,
        )
        new.update(zip(node.outputs, made.outputs, strict=True))
        nodes.append(made)
    outputs = tuple(renamed(o) for o in graph.outputs)
    return Graph(graph.name, inputs, tuple(nodes), outputs, graph.constants)
