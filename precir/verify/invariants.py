"""One small function per invariant of the IR; each looks at one graph, not at its sub-graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from jax import numpy as jnp

from precir.ir import Graph, Literal, Node, Operand, Region, Type, Value
from precir.scaled import scale_shape
from precir.text.types import SHORT, numpy_dtype
from precir.verify.contracts import is_block
from precir.verify.fused import EVERY_CONTRACT as CONTRACTS

Broken = Iterator[tuple[Node | None, str]]
"""What is wrong, at which node (None: with the graph itself)."""


# -- the graph as a graph ------------------------------------------------------------------------


def operands_are_defined_before_use(graph: Graph) -> Broken:
    """In the same graph, for a region takes what it needs as inputs."""
    defined = set(graph.inputs)
    for node in graph.nodes:
        for operand in node.inputs:
            if type(operand) is Value and operand not in defined:
                yield node, f"operand {operand!r} is not defined before it in {graph.name}"
        defined.update(node.outputs)
    for operand in graph.outputs:
        if type(operand) is Value and operand not in defined:
            yield None, f"the graph returns {operand!r}, which it does not define"


def nodes_stand_once(graph: Graph) -> Broken:
    if len(set(map(id, graph.nodes))) < len(graph.nodes):
        seen = set()
        for node in graph.nodes:
            if id(node) in seen:
                yield node, "stands twice in the graph"
            seen.add(id(node))


def outputs_belong_to_their_node(graph: Graph) -> Broken:
    for node in graph.nodes:
        for i, value in enumerate(node.outputs):
            if value.node is not node or value.index != i:
                yield node, f"result {i} says it is {value!r}"


def inputs_belong_to_no_node(graph: Graph) -> Broken:
    if len(set(graph.inputs)) < len(graph.inputs):
        yield None, "two inputs are one value"
    for value in graph.inputs:
        if value.node is not None:
            yield None, f"input {value!r} is the result of a node"


def operands_are_values_or_literals(graph: Graph) -> Broken:
    for node in graph.nodes:
        for operand in node.inputs:
            if type(operand) is not Value and type(operand) is not Literal:
                yield node, f"operand {operand!r} is neither a value nor a literal"
    for operand in graph.outputs:
        if type(operand) is not Value and type(operand) is not Literal:
            yield None, f"the graph returns {operand!r}, neither a value nor a literal"


def types_are_sound(graph: Graph) -> Broken:
    checked: set[Type] = set()
    for node, value in _values(graph):
        if value.type not in checked:
            checked.add(value.type)
            what = _unsound(value.type)
            if what:
                yield node, f"{value!r} has {what}"


def _values(graph: Graph) -> Iterator[tuple[Node | None, Operand]]:
    for value in graph.inputs:
        yield None, value
    for node in graph.nodes:
        for value in node.outputs:
            yield node, value


def _unsound(type_: Type) -> str | None:
    dtype: Any = type_.dtype
    if not dtype or not isinstance(dtype, str):
        return f"no dtype but {dtype!r}"
    if any(type(n) is int and n < 0 for n in type_.shape):
        return f"a negative size: {type_.shape}"
    # A loop over layers takes the leading axis off the data; blocks stay what they were.
    if type_.block and (type_.scale is None or not is_block(type_.block, type_.rank + 1)):
        return f"blocks of {type_.block}, which are no blocks of scaled data of shape {type_.shape}"
    if type_.scale is not None and type_.scale != (
        scale_shape(type_.shape, type_.block) if type_.block else type_.shape[: len(type_.scale)]
    ):
        return f"a scale of shape {type_.scale} on data of shape {type_.shape}"
    return None


def literals_are_representable(graph: Graph) -> Broken:
    good: set[Literal] = set()
    for node in graph.nodes:
        for operand in node.inputs:
            if type(operand) is Literal and operand not in good:
                if not representable(operand):
                    yield node, f"literal {operand!r} is no value of its type"
                good.add(operand)
    for operand in graph.outputs:
        if type(operand) is Literal and not representable(operand):
            yield None, f"literal {operand!r} is no value of its type"


def representable(literal: Literal) -> bool:
    """Whether the Python number is exactly one of its dtype's.

    One of a weak type, which is as the user wrote it, need only be in its range.
    """
    value: Any = literal.value
    dtype = numpy_dtype(SHORT.get(literal.type.dtype, ""))
    if dtype is None or literal.type.shape != () or literal.type.scale is not None:
        return False
    if dtype == np.bool_:
        return type(value) is bool
    if jnp.issubdtype(dtype, np.integer):
        iinfo: Any = jnp.iinfo
        limits = iinfo(dtype)
        return type(value) is int and limits.min <= value <= limits.max
    python = complex if dtype.kind == "c" else float
    return type(value) is python and _held(value, dtype, literal.type.weak)


def _held(value: Any, dtype: np.dtype[Any], weak: bool) -> bool:
    wide = np.complex128 if isinstance(value, complex) else np.float64
    with np.errstate(all="ignore"):
        held = np.asarray(value).astype(dtype).astype(wide)
    return repr(held.item()) == repr(value) or bool(weak and np.isfinite(held))


# -- sub-graphs ------------------------------------------------------------------------------------


def regions_are_referred_to(graph: Graph) -> Broken:
    """`Region` parameters are the sub-graphs of the node, each once, in order."""
    for node in graph.nodes:
        held = [p.index for p in node.params.values() if type(p) is Region]
        if held and held != list(range(len(node.regions))):
            yield node, f"parameters refer to regions {held} of {len(node.regions)}"
        elif not held and node.regions and node.op not in CONTRACTS:
            yield node, f"no parameter refers to its {len(node.regions)} regions"


def regions_keep_no_constants(graph: Graph) -> Broken:
    for node in graph.nodes:
        for region in node.regions:
            if region.constants:
                yield (
                    node,
                    f"region {region.name} keeps constants, which belong to the whole program",
                )


def constants_are_there(graph: Graph) -> Broken:
    """`constant` nodes, also those of sub-graphs, name constants of the whole program."""
    for node in graph.walk():
        if node.op == "constant" and node.params.get("name") not in graph.constants:
            yield node, f"the program has no constant {node.params.get('name')}"


def contracts_are_kept(graph: Graph) -> Broken:
    for node in graph.nodes:
        contract = CONTRACTS.get(node.op)
        if contract is not None:
            for what in contract(node):
                yield node, what


INVARIANTS: Final[tuple[Callable[[Graph], Broken], ...]] = (
    operands_are_values_or_literals,
    nodes_stand_once,
    outputs_belong_to_their_node,
    inputs_belong_to_no_node,
    operands_are_defined_before_use,
    types_are_sound,
    literals_are_representable,
    regions_are_referred_to,
    regions_keep_no_constants,
    contracts_are_kept,
)
