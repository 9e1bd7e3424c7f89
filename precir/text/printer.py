"""A graph as text: one line per node, for people, for diffs, and to be parsed again."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from precir.ir import BACKWARD, FORWARD, UPDATE, Graph, Literal, Node, Operand, Type, Value
from precir.source import Where
from precir.text.constants import spell_constant
from precir.text.types import NAME, WORD, spell_scalar_type, spell_type
from precir.text.values import Speller

VERSION: Final = 1
PHASES: Final = (FORWARD, BACKWARD, UPDATE)
_RESERVED: Final = ("graph", "return", "beside", "prng", "scope", "phase", "effects", *PHASES)
_COLUMNS: Final = 100
_BARE: Final = re.compile(rf"{WORD}|<[\w.]+>")
_FILE: Final = re.compile(r"[\w.\-+]+")


def print_graph(graph: Graph, *, places: bool = True) -> str:
    """The text of a graph, in time linear in its size; it fails on no graph.

    Args:
      graph: any graph, a broken one too.
      places: whether to tell files, lines and columns (without them a text is the same wherever
        the program lies, and parses to a graph of unknown places).
    """
    return Printer(places).program(graph)


def externals_of(graph: Graph) -> dict[int, Any]:
    """The objects that the text of `graph` only refers to, by their number there."""
    printer = Printer(places=False)
    printer.program(graph)
    return printer.spell.externals


def node_text(graph: Graph, node: Node) -> str:
    """The line of one node of `graph`, without its sub-graphs."""
    return Printer(places=False).one(graph, node)


class _Names:
    """Names of the values of one graph: from the hint, else from the op and its count."""

    def __init__(self, graph: Graph) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        self._names: dict[Value, str] = {
            v: self._fresh(_clean(v.hint) or "in") for v in graph.inputs
        }

    def __getitem__(self, value: Value) -> str:
        return self._names.get(value, "undefined")

    def add(self, node: Node) -> None:
        outputs = node.outputs
        if len(outputs) == 1:
            hint = outputs[0].hint
            self._names[outputs[0]] = self._fresh(_clean(hint) if hint else _clean_op(node.op))
            return
        if outputs:
            base = self._fresh(_clean_op(node.op))
            for i, v in enumerate(outputs):
                self._names[v] = self._fresh(_clean(v.hint)) if v.hint else f"{base}#{i}"

    def _fresh(self, base: str) -> str:
        base = base or "v"
        count = self._counts.get(base, 0)
        name = f"{base}.{count}" if count else base
        while name in self._taken:
            count += 1
            name = f"{base}.{count}"
        self._counts[base] = count + 1
        self._taken.add(name)
        return name


class Printer:
    """Prints one program."""

    def __init__(self, places: bool) -> None:
        self.places = places
        self.spell = Speller()
        self.lines: list[str] = []
        self.beside: list[str] = []  # constants too large to stand in the text
        self._files: dict[str, str] = {}
        self._wheres: dict[Where, str] = {}
        self._types: dict[Type, str] = {}
        self._literals: dict[Literal, str] = {}

    def program(self, graph: Graph) -> str:
        head = [f"precir {VERSION}"]
        constants = []
        for name, array in graph.constants.items():
            text, is_large = spell_constant(array, self.spell)
            constants.append(f"  {bare(name)}{text}")
            if is_large:
                self.beside.append(name)
        self.graph(graph, "")
        head += [f"file {bare(short)} = {path!r}" for path, short in self._files.items()]
        if constants:
            head += ["", "constants {", *constants, "}"]
        return "\n".join([*head, "", *self.lines, ""])

    def one(self, graph: Graph, node: Node) -> str:
        names = _Names(graph)
        for each in graph.nodes:
            names.add(each)
        return self.node(node, names)

    def graph(self, graph: Graph, indent: str) -> None:
        names = _Names(graph)
        inputs = [self.definition(v, names, _clean(v.hint)) for v in graph.inputs]
        self.wrapped(f"{indent}graph {bare(graph.name)}(", inputs, ") {")
        inner = indent + "  "
        for node in graph.nodes:
            names.add(node)
            text = self.node(node, names)
            if not node.regions:
                self.lines.append(inner + text)
                continue
            self.lines.append(f"{inner}{text} {{")
            for region in node.regions:
                self.graph(region, inner + "  ")
            self.lines.append(inner + "}")
        outputs = [self.operand(o, names) for o in graph.outputs]
        line = f"{inner}return {', '.join(outputs)}".rstrip()
        if len(line) <= _COLUMNS:
            self.lines.append(line)
        else:
            self.wrapped(f"{inner}return (", outputs, ")")
        self.lines.append(indent + "}")

    def wrapped(self, opening: str, items: Sequence[str], closing: str) -> None:
        """On one line if it fits, else one item per line."""
        line = f"{opening}{', '.join(items)}{closing}"
        if len(line) <= _COLUMNS:
            self.lines.append(line)
            return
        indent = " " * (len(opening) - len(opening.lstrip()))
        self.lines += [opening, *(f"{indent}  {item}," for item in items), indent + closing]

    def definition(self, value: Value, names: _Names, implied: str) -> str:
        """`%x: f32[4]`, with the hint where it is not what the name implies."""
        name = names[value]
        same = value.hint == name if implied else not value.hint
        if implied and same:
            return f"%{name}: {self.type(value.type)}"
        return f"%{name} {value.hint!r}: {self.type(value.type)}"

    def node(self, node: Node, names: _Names) -> str:
        outputs = [
            f"%{names[v]} {v.hint!r}: {self.type(v.type)}"
            if v.hint
            else f"%{names[v]}: {self.type(v.type)}"
            for v in node.outputs
        ]
        inner = [
            f"%{names[o]}" if type(o) is Value else self.operand(o, names) for o in node.inputs
        ]
        if node.params:
            spell = self.spell
            inner += [f"{_key(k)}={spell(v)}" for k, v in node.params.items()]
        made = f"{', '.join(outputs)} = " if outputs else ""
        return f"{made}{bare(node.op)}({', '.join(inner)}){self.tail(node)}"

    def operand(self, operand: Operand, names: _Names) -> str:
        if isinstance(operand, Value):
            return f"%{names[operand]}"
        if type(operand) is not Literal:
            return self.spell.external(operand)  # a broken graph
        text = self._literals.get(operand)
        if text is None:
            type_ = spell_scalar_type(operand.type) or self.spell(operand.type)
            text = self._literals[operand] = f"{self.number(operand)}:{type_}"
        return text

    def number(self, literal: Literal) -> str:
        """A float32 in the fewest digits that round to it; all else exactly.

        Weakly typed numbers are the user's own, which nothing has rounded yet.
        """
        value: Any = literal.value
        text = self.spell(value)
        if not in_few_digits(value, literal.type):
            return text
        with np.errstate(all="ignore"):
            short = str(np.float32(value))
        return short if rounded(short) == text else f"exact({text})"

    def type(self, type_: Type) -> str:
        text = self._types.get(type_)
        if text is None:
            text = self._types[type_] = spell_type(type_) or self.spell(type_)
        return text

    def tail(self, node: Node) -> str:
        """`  @train.py:12:8-12:20 mlp, scope GPT/h_0, forward`: where a node comes from."""
        where = node.source.where if self.places else None
        said = []
        if where is not None:
            said.append(self._wheres.get(where) or self.where(where))
        if node.scope:
            said.append(f"scope {bare(node.scope)}")
        if node.phase:
            said.append(node.phase if node.phase in PHASES else f"phase {node.phase!r}")
        if node.effects:
            said.append("effects")
        if not said:
            return ""
        return f"  {'' if where else '@ '}{', '.join(said)}"

    def where(self, where: Where) -> str:
        short = self._files.get(where.file)
        if short is None:
            short = self._files[where.file] = self.file(where.file)
        start, end = f"{where.line}:{where.column}", f"{where.end_line}:{where.end_column}"
        text = self._wheres[where] = f"@{short}:{start}-{end} {bare(where.function)}"
        return text

    def file(self, path: str) -> str:
        """A short name for a file, unlike those of all others."""
        base = os.path.basename(path)
        base = base if _FILE.fullmatch(base) else "file"
        taken, name, count = set(self._files.values()), base, 1
        while name in taken:
            count += 1
            name = f"{base}~{count}"
        return name


def in_few_digits(value: Any, type_: Type) -> bool:
    """Whether a literal is written in fewer digits than Python's."""
    return type(value) is float and type_.dtype == "float32" and not type_.weak


def rounded(text: str) -> str:
    """The float32 nearest to a decimal, as Python writes its value."""
    with np.errstate(all="ignore"):
        return repr(float(np.float32(float(text))))


def bare(word: str) -> str:
    """A word as it is if it can stand without quotes."""
    return word if word not in _RESERVED and _BARE.fullmatch(word) else repr(word)


def _key(name: Any) -> str:
    return name if type(name) is str and NAME.fullmatch(name) else repr(str(name))


_CLEAN: Final[Mapping[str, re.Pattern[str]]] = {
    "keys": re.compile(r"""[\['"\]]+"""),
    "rest": re.compile(r"[^\w.\-]+"),
    "op": re.compile(r"[^\w\-]+"),
}


def _clean(hint: str) -> str:
    """`params["h_3"].w` as `params.h_3.w`."""
    text = _CLEAN["rest"].sub("_", _CLEAN["keys"].sub(".", hint))
    return re.sub(r"\.\.+", ".", text).strip(".")


def _clean_op(op: str) -> str:
    return _CLEAN["op"].sub("_", op)
