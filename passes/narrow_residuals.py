"""Keep what the forward pass saves for the backward pass in a narrow format (COAT, 2410.19313).

A tensor that forward nodes make and backward nodes read is rounded where it is made, in 8 bits
under a scale for every 128 elements of a row, and the backward pass reads it from there; a scan's
stack for its backward scan is a stack of such layers. Where a product of that format reads it too,
it reads what the product does. Forward nodes read all digits. Of what follows from one tensor by
moves, casts, sums and products only that is kept, and the rest made again: of a GELU, its input. A
barrier keeps XLA from rounding again later instead, of the wide tensor kept.

What may be kept so is in `precir.passes.narrowable`. Where a rematerialised block is computed
again, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from precir.ir import BACKWARD, FORWARD, UPDATE, Graph, Node, Operand, Rewrite, Type, Value
from precir.passes.facts import infer_facts
from precir.passes.grains import updated_inputs
from precir.passes.narrowable import Narrowable, Origins, Roots, is_compared, is_stack, row_block
from precir.passes.residuals import alike
from precir.scaled import scale_shape
from precir.verify.contracts import stacked


def narrow_residuals(graph: Graph, format: str, keep_last: bool) -> tuple[Graph, dict[Value, str]]:
    """The program whose residuals are in `format` where they may be, and those of more than a few
    elements that may not, with the reason.

    `keep_last` leaves the operands of the last product as they are.
    """
    updates = any(n.phase == UPDATE for n in graph)
    weights = updated_inputs(graph) if updates else set()
    facts = infer_facts(graph, keep_exact=False)
    may = Narrowable(format, facts, Origins(graph, weights), keep_last)
    graph = _each_level(graph, lambda g: _Level(g, may).run())
    may.origins = Origins(graph, updated_inputs(graph) if updates else set())
    graph = _each_level(graph, lambda g: _stacks(g, may))
    return graph, may.kept


def _each_level(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """Apply to a graph, then to its sub-graphs, but those that are computed again."""
    graph = change(graph)
    rewrite = Rewrite(graph)
    for node in graph:
        regions = node.regions
        if node.op != "remat" or node.phase != BACKWARD:
            regions = tuple(_each_level(r, change) for r in node.regions)
        if regions == node.regions:
            rewrite.copy(node)
        else:
            inputs = [rewrite(o) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs, regions=regions))
    return rewrite.finish()


# --- one after the other --------------------------------------------------------------------------


class _Level:
    """One graph, loops' stacks aside. `saved` are the narrow images of values, `wide` what the
    backward pass reads in their place.
    """

    def __init__(self, graph: Graph, may: Narrowable) -> None:
        self.graph, self.format, self.root = graph, may.format, Roots(graph, may)
        self.rewrite = Rewrite(graph)
        self.saved: dict[Value, Value] = {}
        self.wide: dict[Value, Value] = {}

    def run(self) -> Graph:
        read = [v for n in self.graph if n.phase == BACKWARD for v in n.inputs]
        roots = {self.root(v) for v in read if isinstance(v, Value)} - {None}
        if not roots:
            return self.graph
        for node in self.graph:
            if node.phase == BACKWARD:
                inputs = [self.read(o) for o in node.inputs]
                self.rewrite.replace(node, node.like(inputs=inputs))
            else:
                self.rewrite.copy(node)
                self.save([v for v in node.outputs if v in roots], node)
        return self.rewrite.finish()

    def save(self, made: list[Value], node: Node) -> None:
        """Right after they are made, in 8 bits as a product reads them if one does."""
        for value in made:
            product, new = self.root.reused(value), self.rewrite(value)
            assert isinstance(new, Value)
            if product is None:
                product = self.rewrite.add(_narrowed(new, self.format, node))
            self.saved[value] = product.outputs[0]

    def read(self, operand: Operand) -> Operand:
        if not isinstance(operand, Value) or self.root(operand) is None:
            return self.rewrite(operand)
        if operand not in self.wide:
            self.wide[operand] = self.widened(operand)
        return self.wide[operand]

    def widened(self, value: Value) -> Value:
        root, node = self.root(value), value.node
        assert root is not None
        assert node is not None
        if root is not value:
            inputs = [self.read(o) for o in node.inputs]
            return self.rewrite.add(node.like(inputs=inputs, phase=BACKWARD)).outputs[0]
        narrow = self.rewrite(self.saved[root])
        assert isinstance(narrow, Value)
        held = self.rewrite.add(_node("optimization_barrier", narrow, narrow.type, node))
        return _widened(self.rewrite.nodes, held.outputs[0], value.type.dtype, node)


def _node(
    op: str, operand: Value, kind: Type, at: Node, phase: str = BACKWARD, **params: Any
) -> Node:
    """Of the place in the user's program where `at` is."""
    return Node(op, [operand], [kind], params, source=at.source, scope=at.scope, phase=phase)


def _narrowed(value: Value, format: str, at: Node) -> Node:
    shape = value.type.shape
    if "float8" not in format:
        return _node("cast", value, Type(shape, format), at, FORWARD, dtype=format)
    block = row_block(shape)
    kind = Type(shape, format, scale=scale_shape(shape, block), block=block)
    params = {"dtype": format, "scaling": "current", "block": block}
    return _node("quantize", value, kind, at, FORWARD, **params)


def _widened(nodes: list[Node], narrow: Value, dtype: str, at: Node) -> Value:
    """Add what reads a narrow image in `dtype`."""
    shape, value = narrow.type.shape, narrow
    if narrow.type.scale is not None:
        nodes.append(_node("dequantize", value, Type(shape, "float32"), at))
        value = nodes[-1].outputs[0]
    if value.type.dtype != dtype:
        nodes.append(_node("cast", value, Type(shape, dtype), at, dtype=dtype))
        value = nodes[-1].outputs[0]
    return value


# --- stacked by a loop ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Handed:
    """Stacked outputs of scan `forward`, each read as an input of scan `backward` and by nothing
    else, whose layers are all made of `root`. The first hands on its image, the others go.
    """

    forward: Node
    backward: Node
    root: Value
    members: tuple[tuple[int, int], ...]  # numbers of output and input
    quantize: Node | None  # how a product in the backward body quantises the root
    roots: Roots


def _stacks(graph: Graph, may: Narrowable) -> Graph:
    handed = _find(graph, may)
    if not handed:
        return graph
    rewrite = Rewrite(graph)
    for node in graph:
        makes = [h for h in handed if h.forward is node]
        reads = [h for h in handed if h.backward is node]
        if not makes and not reads:
            rewrite.copy(node)
            continue
        body, gone = node.regions[0], {i for h in reads for _, i in h.members[1:]}
        inputs = [rewrite(o) for i, o in enumerate(node.inputs) if i not in gone]
        if reads:
            body = _receive(body, reads, may.format)
        dropped = {i for h in makes for i, _ in h.members[1:]}
        if makes:
            body = _hand_on(body, makes, may.format)
        left = [i for i in range(len(node.outputs)) if i not in dropped]
        types = [node.outputs[i].type for i in left]
        for h in makes:
            at = left.index(h.members[0][0])
            types[at] = stacked(body.outputs[at].type, node.params["length"])
        made = rewrite.add(node.like(inputs=inputs, types=types, regions=(body,)))
        for i, value in zip(left, made.outputs, strict=True):
            rewrite.map(node.outputs[i], value)
    return rewrite.finish()


def _find(graph: Graph, may: Narrowable) -> list[_Handed]:
    roots: dict[Node, Roots] = {}
    groups: dict[tuple[Node, Node, Value], list[tuple[int, int]]] = {}
    for node in graph:
        if node.op != "scan" or node.phase != BACKWARD:
            continue
        body = node.regions[0]
        for i in range(node.params["num_consts"] + node.params["num_carry"], len(node.inputs)):
            value, received = node.inputs[i], body.inputs[i]
            if not isinstance(value, Value) or not is_stack(value) or value in graph.outputs:
                continue
            made = value.node
            assert made is not None
            alone = graph.users[value] == (node,) and node.inputs.count(value) == 1
            layer = made.regions[0].outputs[value.index]
            if made.phase != FORWARD or not alone or not isinstance(layer, Value):
                continue
            if received in body.outputs or is_compared(body, received):
                continue
            of = roots.setdefault(made, Roots(made.regions[0], may, stacked=True))
            root = of(layer)
            if root is not None:
                groups.setdefault((made, node, root), []).append((value.index, i))
    return [_handed(key, members, roots[key[0]], may.format) for key, members in groups.items()]


def _handed(
    key: tuple[Node, Node, Value], members: list[tuple[int, int]], roots: Roots, format: str
) -> _Handed:
    forward, backward, root = key
    quantize = None
    for made, read in members:
        if forward.regions[0].outputs[made] is root:
            body = backward.regions[0]
            quantize = quantize or _quantized(body, body.inputs[read], format)
    return _Handed(forward, backward, root, tuple(members), quantize, roots)


def _quantized(body: Graph, value: Value, format: str) -> Node | None:
    """The one way in which a body quantises an input to `format`, if it does."""
    found = [
        n for n in body.users.get(value, ()) if n.op == "quantize" and n.params["dtype"] == format
    ]
    return found[0] if found and all(alike(n, found[0]) for n in found) else None


def _image(handed: _Handed, value: Value, format: str) -> Node:
    """What makes the narrow image of the root."""
    how = handed.quantize
    if how is None:
        return _narrowed(value, format, value.node or handed.forward)
    return how.like(inputs=[value, *how.inputs[1:]], phase=FORWARD)


def _hand_on(body: Graph, makes: list[_Handed], format: str) -> Graph:
    """Return narrow images in the place of wide values."""
    nodes, outputs = list(body.nodes), list(body.outputs)
    for handed in makes:
        image = _image(handed, handed.root, format)
        users = body.users.get(handed.root, ())
        known = next((n for n in users if n.op == "quantize" and alike(n, image)), None)
        if known is None:
            nodes.append(image)
        outputs[handed.members[0][0]] = (known or image).outputs[0]
    gone = {i for h in makes for i, _ in h.members[1:]}
    left = tuple(o for i, o in enumerate(outputs) if i not in gone)
    return body.with_(nodes=tuple(nodes), outputs=left)


def _receive(body: Graph, reads: list[_Handed], format: str) -> Graph:
    """Take narrow inputs, and make of them what is read in wide numbers."""
    inputs, gone = list(body.inputs), set()
    rewrite = Rewrite(body)
    ready: dict[Node, Value] = {}
    for handed in reads:
        first = handed.members[0][1]
        kind = _image(handed, handed.root, format).outputs[0].type
        narrow = Value(kind, hint=inputs[first].hint)
        env: dict[Value, Operand] = {}
        for made, read in handed.members:
            old, layer = body.inputs[read], handed.forward.regions[0].outputs[made]
            assert isinstance(layer, Value)
            users, how = body.users.get(old, ()), handed.quantize
            if how is not None and layer is handed.root:
                same = [n for n in users if n.op == "quantize" and alike(n, how)]
                ready.update(dict.fromkeys(same, narrow))
            if any(n not in ready for n in users):
                rewrite.map(old, _remade(rewrite.nodes, env, layer, handed, narrow))
        inputs[first] = narrow
        gone |= {i for _, i in handed.members[1:]}
    for node in body:
        if node in ready:
            rewrite.map(node.outputs[0], ready[node])
        else:
            rewrite.copy(node)
    left = tuple(v for i, v in enumerate(inputs) if i not in gone)
    return rewrite.finish().with_(inputs=left)


def _remade(
    nodes: list[Node], env: dict[Value, Operand], layer: Value, handed: _Handed, narrow: Value
) -> Operand:
    """A layer's value, made of the image of its root; `env` has what is made already."""
    root = handed.root
    if root not in env:
        env[root] = _widened(nodes, narrow, root.type.dtype, root.node or handed.backward)
    for node in handed.roots.chain(layer):
        if node.outputs[0] not in env:
            inputs = [env.get(o, o) if isinstance(o, Value) else o for o in node.inputs]
            nodes.append(node.like(inputs=inputs, phase=BACKWARD))
            env[node.outputs[0]] = nodes[-1].outputs[0]
    return env[layer]
