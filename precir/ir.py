"""The IR: one small SSA graph whose ops are JAX's own primitives under their own names.

Nodes and graphs are immutable. A pass walks a graph and builds a new one (`Rewrite`), so that
there is nothing to invalidate: facts belong to the graph they were computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx

from precir.source import NOWHERE, Source

FORWARD, BACKWARD, UPDATE, UNPHASED = "forward", "backward", "update", ""


@dataclass(frozen=True, slots=True)
class Type:
    """What a value is: shape, dtype name, and whether JAX holds its dtype weakly.

    `scale` is the shape of the scale of a quantised value (data and scale travel as one
    `ScaledArray`), None for a plain array; `block` is what each scale reaches over, as
    `ScaledArray.block`. Extended dtypes keep JAX's spelling (`key<fry>`).
    """

    shape: tuple[int, ...]
    dtype: str
    weak: bool = False
    scale: tuple[int, ...] | None = None
    block: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)


class Value:
    """One SSA value: output `index` of `node`, or an input of a graph (`node` is None).

    Identity is equality. `hint` is a name worth keeping (an argument's path), not an identity.
    """

    __slots__ = ("hint", "index", "node", "type")

    def __init__(
        self, type: Type, node: Node | None = None, index: int = 0, hint: str = ""
    ) -> None:
        self.type = type
        self.node = node
        self.index = index
        self.hint = hint

    def __repr__(self) -> str:
        made = f"{self.node.op}[{self.index}]" if self.node else f"input {self.hint}"
        return f"<{made}: {self.type.dtype}{list(self.type.shape)}>"


class Literal:
    """A scalar constant operand: a Python number, exactly as `type` holds it."""

    __slots__ = ("_key", "type", "value")

    def __init__(self, value: bool | int | float | complex, type: Type) -> None:
        self.value = value
        self.type = type
        self._key = (repr(value), type)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Literal) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"{self.value!r}:{self.type.dtype}"


Operand = Value | Literal


class Node:
    """One operation. Frozen by convention: passes make new nodes, never edit one.

    Attributes:
      op: the JAX primitive's name, or one of precir's precision ops (`precir.ops.precision`).
      inputs: operands, in the primitive's order.
      params: the primitive's parameters, without sub-programs.
      outputs: the values it makes.
      regions: sub-programs (scan, while, cond, remat, custom rules, shard_map) as closed graphs.
      source: the user's file, line and columns.
      scope: the module path from JAX's name stack, transforms stripped (`GPT/h_0/attn`).
      phase: FORWARD, BACKWARD or UPDATE.
    """

    __slots__ = (
        "effects",
        "inputs",
        "op",
        "outputs",
        "params",
        "phase",
        "regions",
        "scope",
        "source",
    )

    def __init__(
        self,
        op: str,
        inputs: Sequence[Operand],
        types: Iterable[Type],
        params: Mapping[str, Any] | None = None,
        *,
        regions: tuple[Graph, ...] = (),
        source: Source = NOWHERE,
        scope: str = "",
        phase: str = UNPHASED,
        effects: bool = False,
    ) -> None:
        self.op = op
        self.inputs = tuple(inputs)
        self.params: Mapping[str, Any] = {} if params is None else params
        self.regions = regions
        self.source = source
        self.scope = scope
        self.phase = phase
        self.effects = effects
        self.outputs = tuple([Value(t, self, i) for i, t in enumerate(types)])

    def like(
        self,
        *,
        op: str | None = None,
        inputs: Sequence[Operand] | None = None,
        types: Iterable[Type] | None = None,
        params: Mapping[str, Any] | None = None,
        regions: tuple[Graph, ...] | None = None,
        phase: str | None = None,
    ) -> Node:
        """A node from the same place in the user's program, with some fields changed."""
        return Node(
            self.op if op is None else op,
            self.inputs if inputs is None else inputs,
            [v.type for v in self.outputs] if types is None else types,
            self.params if params is None else params,
            regions=self.regions if regions is None else regions,
            source=self.source,
            scope=self.scope,
            phase=self.phase if phase is None else phase,
            effects=self.effects,
        )

    def __repr__(self) -> str:
        return f"<{self.op} {list(self.inputs)}>"


class Region:
    """Stands in `Node.params` where a primitive of no canonical form held a sub-program."""

    __slots__ = ("closed", "index")

    def __init__(self, index: int, closed: bool) -> None:
        self.index, self.closed = index, closed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and (self.index, self.closed) == (
            other.index,
            other.closed,
        )

    def __hash__(self) -> int:
        return hash((self.index, self.closed))

    def __repr__(self) -> str:
        return f"Region({self.index}, {self.closed})"


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: inputs, nodes in an executable order, outputs.

    `constants` maps the name of each `constant` node to its array; those are what a text or an
    emitted module keeps beside it in an `.npz`.
    """

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Operand, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __eq__(self, other: object) -> bool:
        from precir.equality import same_graph  # a leaf that only __eq__ needs

        return isinstance(other, Graph) and same_graph(self, other)

    __hash__ = object.__hash__

    @cached_property
    def users(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value, in program order, each once."""
        users: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for operand in node.inputs:
                if type(operand) is Value:
                    seen = users.setdefault(operand, [])
                    if not seen or seen[-1] is not node:
                        seen.append(node)
        return {v: tuple(nodes) for v, nodes in users.items()}

    @cached_property
    def _dependencies(self) -> nx.DiGraph[Node]:
        network: nx.DiGraph[Node] = nx.DiGraph()
        network.add_nodes_from(self.nodes)
        network.add_edges_from(
            (operand.node, node)
            for node in self.nodes
            for operand in node.inputs
            if type(operand) is Value and operand.node is not None
        )
        return network

    def ancestors(self, node: Node) -> set[Node]:
        """Every node that `node` depends on."""
        return set(nx.ancestors(self._dependencies, node))

    def descendants(self, node: Node) -> set[Node]:
        """Every node that depends on `node`."""
        return set(nx.descendants(self._dependencies, node))

    def is_acyclic(self) -> bool:
        return bool(nx.is_directed_acyclic_graph(self._dependencies))

    def walk(self) -> Iterator[Node]:
        """Every node, those of sub-graphs after the node that holds them."""
        for node in self.nodes:
            yield node
            for region in node.regions:
                yield from region.walk()

    def with_(self, **changes: Any) -> Graph:
        fields = {
            "name": self.name,
            "inputs": self.inputs,
            "nodes": self.nodes,
            "outputs": self.outputs,
            "constants": self.constants,
        }
        return Graph(**(fields | changes))


class Rewrite:
    """Builds a new graph from an old one in one forward walk.

    `map` an old value to what replaces it, `add` new nodes, `copy` what stays; `finish` gives the
    graph. Nodes that need no change are shared between the two graphs.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self._new: dict[Value, Operand] = {}

    def __call__(self, operand: Operand) -> Operand:
        """The operand in the new graph."""
        return self._new.get(operand, operand) if type(operand) is Value else operand

    def map(self, old: Value, new: Operand) -> None:
        self._new[old] = new

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def copy(self, node: Node) -> Node:
        """Take `node` over, with its operands replaced where they were mapped."""
        new = self._new
        if new and any(type(o) is Value and o in new for o in node.inputs):
            made = node.like(inputs=[self(o) for o in node.inputs])
            return self.replace(node, made)
        self.nodes.append(node)
        return node

    def replace(self, old: Node, new: Node) -> Node:
        """Put `new` in the place of `old`, output by output."""
        self.nodes.append(new)
        for was, now in zip(old.outputs, new.outputs, strict=True):
            self._new[was] = now
        return new

    def finish(self, *, outputs: Sequence[Operand] | None = None) -> Graph:
        if outputs is None:
            outputs = [self(o) for o in self.graph.outputs]
        nodes = tuple(self.nodes)
        if nodes == self.graph.nodes and tuple(outputs) == self.graph.outputs:
            return self.graph
        return self.graph.with_(nodes=nodes, outputs=tuple(outputs))


def map_regions(graph: Graph, transform: Callable[[Graph], Graph]) -> Graph:
    """Apply `transform` to every sub-graph, innermost first, sharing what does not change."""
    rewrite = Rewrite(graph)
    for node in graph:
        if not node.regions:
            rewrite.copy(node)
            continue
        regions = tuple(transform(map_regions(r, transform)) for r in node.regions)
        if regions == node.regions:
            rewrite.copy(node)
        else:
            inputs = [rewrite(o) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs, regions=regions))
    return rewrite.finish()
