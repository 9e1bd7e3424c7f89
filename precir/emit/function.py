"""Write one function body: statements from nodes, loops from repeats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from precir.emit.loops import LoopWriter
from precir.emit.names import Names, module_part, noun
from precir.emit.paths import Leaves
from precir.emit.plan import Item, Loop
from precir.ir import BACKWARD, Graph, Literal, Node, Operand, Value
from precir.ops import norm_gradients, products
from precir.ops.adam import ADAM, role
from precir.ops.control import condition
from precir.ops.fused import FUSED, suffixes
from precir.ops.writing import ATOM, Hole, Template, literal_source
from precir.source import NOWHERE, Source

_WIDTH = 72  # expressions longer than this get a name
Line = tuple[str, Source]


@dataclass(slots=True)
class Pending:
    """An expression read once, by a node still to come."""

    value: Value
    node: Node
    text: str
    precedence: int


class FunctionWriter(LoopWriter):
    """Writes the statements of one graph into `lines`, in the graph's order of evaluation."""

    def __init__(self, module: object, graph: Graph, names: Names, indent: int = 1) -> None:
        super().__init__(module, graph, names, indent)
        self.pending: list[Pending] = []
        self._uses: dict[Value, int] = {}
        self._plain: set[Node] = set()
        self._escaping: set[Value] = set()

    # -- the walk ------------------------------------------------------------------------------

    def write(self, items: Sequence[Item]) -> None:
        self._plain = {item for item in items if not isinstance(item, Loop)}
        self._count_uses(items)
        self.rank(items)
        for n, item in enumerate(items):
            if isinstance(item, Loop):
                self.flush()
                self.loop(item, n)
            else:
                self.node(item)
        self.flush()

    def _count_uses(self, items: Sequence[Item]) -> None:
        """How often each value is read by a plain node; anything else counts twice. Notes which
        values another module reads: those are worth its name.
        """
        uses = self._uses
        for item in items:
            if isinstance(item, Loop):
                for port in item.ports:
                    for v in port.values:
                        if type(v) is Value:
                            uses[v] = uses.get(v, 0) + 2
            else:
                weight = 2 if item.regions else 1
                behind = self._condition(item)
                part = module_part(item.scope)
                for n, o in enumerate(item.inputs):
                    o = behind if behind is not None and n == 0 else o
                    if type(o) is Value:
                        uses[o] = uses.get(o, 0) + weight
                        made = o.node
                        if (
                            made is not None
                            and made.phase == item.phase
                            and module_part(made.scope) != part
                        ):
                            self._escaping.add(o)
        for o in self.graph.outputs:
            if type(o) is Value:
                uses[o] = uses.get(o, 0) + 2

    # -- nodes ---------------------------------------------------------------------------------

    def node(self, node: Node) -> None:
        if node.op == "constant":
            self.env[node.outputs[0]] = (self.module.constant(node), ATOM)
            return
        if node.op == "element":
            self.env[node.outputs[0]] = (self.fill(self.module.template(node), node.inputs), ATOM)
            return
        if not node.outputs:
            self.flush()
        elif not node.effects and not any(v in self._uses or v in self.kept for v in node.outputs):
            return  # nobody reads it
        operands = list(node.inputs)
        behind = self._condition(node)
        if behind is not None:
            operands[0] = behind
        template: Template = self.module.template(node)
        self._settle(node, template, operands)
        text = self.fill(template, operands)
        if self._may_wait(node, text):
            value = node.outputs[0]
            self.pending.append(Pending(value, node, text, template.precedence))
            return
        self.flush()
        self.assign(node, template, text)

    def _condition(self, node: Node) -> Value | None:
        """The boolean behind a cond's index, unless a loop made both: that hands on the index."""
        index = node.inputs[0] if node.op == "cond" else None
        plain = type(index) is Value and index.node in self._plain
        return condition(node) if plain else None

    def _may_wait(self, node: Node, text: str) -> bool:
        return (
            len(node.outputs) == 1
            and self._uses.get(node.outputs[0]) == 1
            and not node.effects
            and not node.regions
            and len(text) < _WIDTH - 24
            and node.op in _INLINE
        )

    def _settle(self, node: Node, template: Template, operands: Sequence[Operand]) -> None:
        """Decide which waiting expressions this node takes in; name the others.

        Evaluation order must stay the graph's: only the last waiting ones, in the order in
        which they would be evaluated here, may be taken.
        """
        if not self.pending:
            return
        waiting = {p.value: p for p in self.pending}
        holes = [operands[h.index] for h in template.pieces if isinstance(h, Hole)]
        wanted = [o for o in holes if isinstance(o, Value) and o in waiting]
        tail = [p.value for p in self.pending[len(self.pending) - len(wanted) :]]
        room = sum(len(waiting[v].text) for v in wanted) + len(template.key) < _WIDTH
        same_place = all(self._place(waiting[v].node) == self._place(node) for v in wanted)
        if wanted and tail == wanted and room and same_place:
            keep = self.pending[len(self.pending) - len(wanted) :]
            self.pending = self.pending[: len(self.pending) - len(wanted)]
            self.flush()
            for p in keep:
                self.env[p.value] = (p.text, p.precedence)
        else:
            self.flush()

    def flush(self) -> None:
        """Name every waiting expression."""
        for p in self.pending:
            name = self.name_for(p.value, p.node)
            self.env[p.value] = (name, ATOM)
            self.line(f"{name} = {p.text}", p.node)
        self.pending = []

    def fill(self, template: Template, operands: Sequence[Operand]) -> str:
        parts = []
        for piece in template.pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            operand = operands[piece.index]
            if piece.array and isinstance(operand, Literal):
                parts.append(literal_source(operand, self.module, False, array=True)[0])
            else:
                parts.append(self.ref(operand, piece.precedence, bare=piece.bare))
        return "".join(parts)

    def ref(self, operand: Operand, precedence: int = 0, *, bare: bool = False) -> str:
        """The source for an operand, bracketed if it binds less tightly than `precedence`."""
        if isinstance(operand, Literal):
            text, own = literal_source(operand, self.module, bare)
        else:
            text, own = self.lookup(operand)
        return f"({text})" if own < precedence else text

    def assign(self, node: Node, template: Template, text: str) -> None:
        names = []
        for value in node.outputs:
            read = value in self._uses or value in self.kept
            name = self.name_for(value, node) if read else "_"
            names.append(name)
            if read:
                self.env[value] = (name, ATOM)
        if not names:
            self.line(text, node)
            return
        target = template.targets.format(*names) if template.targets else ", ".join(names)
        self.line(f"{target} = {text}", node)

    # -- names and comments --------------------------------------------------------------------

    def name_for(self, value: Value, node: Node) -> str:
        """A module's name for its product and for what it hands on, else what the op makes."""
        if node.op == "quantize" and isinstance(node.inputs[0], Value):
            text, own = self.env.get(node.inputs[0], ("", 0))
            if own == ATOM:
                words = self.words(node.inputs[0])
                wish = words[-1] if text.isidentifier() else "_".join(words[-2:]) or "q"
                return self.names.fresh(f"{wish}_q")
        if node.op == "dequantize" and isinstance(node.inputs[0], Value):
            words = self.words(node.inputs[0])
            return self.names.fresh(words[-1] if words else "wide")
        if node.op == "turned_back" and isinstance(node.inputs[0], Value):
            text = self.env.get(node.inputs[0], ("", 0))[0]
            return self.names.fresh(f"{text.removesuffix('_t')}_columns")
        if node.op == ADAM:
            words = self.words(node.inputs[0])
            words = words[1:] or words  # without the argument that it is a part of
            moment = ("", "first", "second")[value.index]
            return self.names.fresh("_".join(filter(None, ["new", *words[-2:], moment])))
        for user in self.graph.users.get(value, ()) if not value.type.rank else ():
            if user.op == ADAM:
                return self.names.fresh(role(user, user.inputs.index(value)))
        part = module_part(node.scope)
        if node.op == "scaled_dot" and products.suffixes(node)[value.index]:
            name = f"d_{part}" if part and node.phase == BACKWARD else part or noun(node.op)
            return self.names.fresh(f"{name}_{products.suffixes(node)[value.index]}")
        if node.op in FUSED:
            return self.names.fresh(self.fused_name(value, node, part))
        if node.op == "norm_gradients":
            which = f"d_{part or 'norm'}", norm_gradients.suffixes(node.params)[value.index]
            return self.names.fresh("_".join(filter(None, which)))
        if part and (node.op in _NAMED_BY_SCOPE or value in self._escaping):
            return self.names.fresh(f"d_{part}" if node.phase == BACKWARD else part)
        return self.names.fresh(noun(node.op))

    def words(self, operand: Operand) -> list[str]:
        """The words of how a value is written that say what it is: `params`, `mlp`, `w`."""
        text = self.env.get(operand, ("", 0))[0] if isinstance(operand, Value) else ""
        text = text.replace("kernel", "w").replace(".tree", "")
        return [w for w in re.findall(r"[A-Za-z_]\w*", text) if w not in _NO_NAMES]

    def fused_name(self, value: Value, node: Node, part: str) -> str:
        """`ln_1_q`, `ln_1_t`: what is written of a module's result, or of a weight."""
        name = f"d_{part}" if part and node.phase == BACKWARD else part or noun(node.op)
        if node.op == "quantize_both":
            words = self.words(node.inputs[0])
            name = "_".join(words[-2:]) if words else name
        suffix = suffixes(node)[value.index]
        return f"{name}_{suffix}" if suffix else name

    def _place(self, node: Node) -> tuple[str, str]:
        return (node.scope, "")

    def line(self, text: str, node: Node | None = None) -> None:
        source = node.source if node is not None else NOWHERE
        if node is not None and self.module.comments:
            where = str(source) if source.where else self.comment[1]
            place = (self.shown_scope(node.scope), where)
            if place != self.comment and (place[0] or place[1]):
                self.comment = place
                shown = ", ".join(p for p in place if p)
                self.lines.append((f"{'    ' * self.indent}# {shown}", source))
        self.lines.append(("    " * self.indent + text, source))

    def shown_scope(self, scope: str) -> str:
        prefix = self.graph_scope
        while scope.rpartition("/")[2].startswith("_"):
            scope = scope.rpartition("/")[0]  # a helper of JAX's own
        return scope[len(prefix) :].lstrip("/") if prefix and scope.startswith(prefix) else scope

    def inputs_from(self, leaves: Leaves) -> None:
        self.leaves = leaves
        for value, path in leaves.paths.items():
            self.env[value] = (str(path), ATOM)

    def bind(self, value: Value, name: str) -> None:
        self.env[value] = (name, ATOM)


_NO_NAMES = frozenset({
    "Layer", "T", "astype", "bfloat16", "float16", "float32", "jnp", "layer", "lax", "np",
    "reshape", "unscale",
})  # fmt: skip
_NAMED_BY_SCOPE = {"dot_general", "scaled_dot", "conv_general_dilated"}
_INLINE = {
    "add", "add_any", "sub", "mul", "div", "neg", "max", "min", "exp", "log", "sqrt", "rsqrt",
    "tanh", "logistic", "integer_pow", "square", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "not", "select_n", "convert_element_type", "cast", "reshape", "transpose", "squeeze",
    "broadcast_in_dim", "reduce_sum", "reduce_max", "abs", "sign", "erf", "pow", "log1p",
    "is_finite", "stop_gradient", "iota", "expm1", "dequantize", "delayed_scale", "current_scale",
    "layer",
}  # fmt: skip
