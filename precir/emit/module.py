"""Write a whole graph as a Python module: imports, constants, functions, and the main one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from precir.emit.function import FunctionWriter, Line
from precir.emit.layout import WIDTH, definition, wrap
from precir.emit.loops import Argument, port_name
from precir.emit.names import Names, identifier, module_part
from precir.emit.plan import Item, plan
from precir.ir import Graph, Node, Value
from precir.ops import op_named
from precir.ops.writing import ATOM, Template
from precir.source import NOWHERE, Source

_STANDARD_IMPORTS = {"numpy": "np", "jax.numpy": "jnp"}


@dataclass(frozen=True)
class Emitted:
    """A module's text and what belongs to it.

    Attributes:
      name: name of its main function.
      text: Python source, the same for the same graph, byte for byte.
      constants: arrays kept beside it in an `.npz`, by key.
      externals: objects with no source text that it refers to; empty if it can stand alone.
      sources: for each line (from 1), the user's place it comes from.
    """

    name: str
    text: str
    constants: Mapping[str, np.ndarray[Any, Any]]
    externals: tuple[Any, ...]
    sources: Mapping[int, Source]


@dataclass
class ModuleWriter:
    """Collects a module: what its functions import, define and keep."""

    comments: bool = True
    names: Names = field(default_factory=Names)
    externals: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    local_names: dict[Value, str] = field(default_factory=dict)  # inside the block that made them
    _constants_used: set[str] = field(default_factory=set)
    _imports: dict[str, dict[str, str]] = field(default_factory=dict)
    _functions: list[list[Line]] = field(default_factory=list)
    _by_text: dict[str, str] = field(default_factory=dict)
    _regions: dict[tuple[Graph, tuple[int, ...], tuple[int, ...]], str] = field(
        default_factory=dict
    )
    _templates: dict[Any, Template] = field(default_factory=dict)
    _keys: dict[str, int] = field(default_factory=dict)
    _hoisted: dict[str, str] = field(default_factory=dict)

    # -- what ops ask for ----------------------------------------------------------------------

    def use(self, module: str, name: str | None = None) -> str:
        if name is None:
            short = _STANDARD_IMPORTS.get(module, module)
            self._imports.setdefault(module, {})
            return short
        known = self._imports.setdefault(f"from {module}", {})
        if name not in known:
            known[name] = name if not self.names.taken(name) else self.names.fresh(name)
            self.names.reserve(known[name])
        return known[name]

    def hoist(self, text: str, wish: str) -> str:
        if text not in self._hoisted:
            words = identifier(wish.removesuffix("DimensionNumbers")).upper()
            self._hoisted[text] = self.names.exact(words)
        return self._hoisted[text]

    def external(self, value: Any) -> str:
        for i, known in enumerate(self.externals):
            if known is value:
                return f"EXTERNALS[{i}]"
        self.externals.append(value)
        return f"EXTERNALS[{len(self.externals) - 1}]"

    def function(
        self, graph: Graph, groups: tuple[int, ...] = (), returns: tuple[int, ...] = ()
    ) -> str:
        key = (graph, groups, returns)
        if key not in self._regions:
            self._regions[key] = self._region(graph, groups, returns)
        return self._regions[key]

    # -- what function writers ask for ---------------------------------------------------------

    def template(self, node: Node) -> Template:
        if node.regions:
            return op_named(node.op).write(node, self)
        try:
            key = (node.op, *node.params.values(), *[
                o.type if type(o) is Value else o for o in node.inputs
            ], node.outputs[0].type if node.outputs else None)  # fmt: skip
            found = self._templates.get(key)
            if found is None:
                found = self._templates[key] = op_named(node.op).write(node, self)
            return found
        except TypeError:  # a parameter that cannot be hashed
            return op_named(node.op).write(node, self)

    def items(self, graph: Graph) -> list[Item]:
        return plan(graph, self._key)

    def _key(self, node: Node) -> int:
        """The same number for nodes that would be written the same."""
        if node.op == "constant":
            text = f"constant {node.params['name']}"
        else:
            template = self.template(node)
            text = template.key
            for i, o in enumerate(node.inputs):
                if type(o) is not Value:
                    text += f"\0{i} {o!r}{'~' * o.type.weak}"
            if len(node.outputs) > 1:
                text += f"\0{len(node.outputs)}{template.targets}"
        return self._keys.setdefault(text, len(self._keys))

    def constant(self, node: Node) -> str:
        name = node.params["name"]
        self._constants_used.add(name)
        return f'constants["{name}"]'

    def block(
        self, loop: Any, base: str, arguments: Sequence[Argument], singles: Sequence[int],
        bundles: Sequence[Sequence[Sequence[int]]],
    ) -> str:  # fmt: skip
        """A jitted function for a loop's body; returns its name."""
        names = Names(self.names)
        writer = FunctionWriter(self, loop.body, names)
        writer.graph_scope = _numbered_prefix(loop.body)
        head: list[Line] = []
        parameters = []
        for a in arguments:
            if a.kind == "tree" and len(a.members) > 1:
                name = names.fresh(_tree_name(a))
                for port, keys in a.members:
                    writer.env[loop.body.inputs[port]] = (name + "".join(map(str, keys)), ATOM)
            elif a.kind == "bundle" and a.size > 1:
                name = names.fresh("saved")
                unpacked = {
                    reach: names.fresh(port_name(loop, port, self)) for port, reach in a.members
                }
                for port, reach in a.members:
                    writer.env[loop.body.inputs[port]] = (unpacked[reach], ATOM)
                head += [
                    (f"    {line}", NOWHERE) for line in _unpacking(name, a.shape, unpacked, names)
                ]
            else:
                port, keys = a.members[0]
                name = names.fresh(port_name(loop, port, self))
                reach = "".join(map(str, keys)) if a.kind == "tree" else ""
                writer.env[loop.body.inputs[port]] = (name + reach, ATOM)
            parameters.append(name)
        writer.lines.extend(head)
        writer.write(self.items(loop.body))
        for r, result in enumerate(loop.results):
            text = writer.ref(loop.body.outputs[r])
            if text.isidentifier():
                self.local_names.update(dict.fromkeys(result.values, text))
        returned = [writer.ref(loop.body.outputs[r]) for r in singles]
        for chunks in bundles:
            groups = [writer.items([loop.body.outputs[r] for r in chunk]) for chunk in chunks]
            if len(groups) == 1:
                inner = groups[0]
                comma = "," if len(inner) == 1 else ""
                alone = len(chunks[0]) == 1
                returned.append(inner[0] if alone else f"({', '.join(inner)}{comma})")
                continue
            made = []
            for chunk, inner in zip(chunks, groups, strict=True):
                made.append(names.fresh(f"saved_{_chunk_name(loop, chunk)}"))
                writer.line(f"{made[-1]} = ({', '.join(inner)}{',' if len(inner) == 1 else ''})")
            returned.append(f"({', '.join(made)})")
        writer.line(f"return {', '.join(returned)}")
        return self._define(base, parameters, writer.lines, jitted=True, about=_about(loop.body))

    # -- functions -----------------------------------------------------------------------------

    def _region(self, graph: Graph, groups: tuple[int, ...], returns: tuple[int, ...]) -> str:
        names = Names(self.names)
        writer = FunctionWriter(self, graph, names)
        parameters: list[str] = []
        alone = len(graph.inputs) - sum(groups)
        for value in graph.inputs[:alone]:
            parameters.append(names.fresh(value.hint if not value.hint.startswith("arg") else "x"))
            writer.bind(value, parameters[-1])
        at = alone
        head: list[Line] = []
        for n, size in enumerate(groups):
            members = graph.inputs[at : at + size]
            at += size
            if size == 0:
                parameters.append(names.fresh("_" if "_" not in parameters else "_unused"))
                continue
            if size == 1:
                parameters.append(names.fresh("carry" if n == 0 else "x"))
                writer.bind(members[0], parameters[-1])
                continue
            group = names.fresh("carry" if n == 0 else "xs")
            parameters.append(group)
            short = "c" if n == 0 else "x"
            hints = [short if v.hint.startswith("arg") else identifier(v.hint) for v in members]
            inner = [names.fresh(hint or short) for hint in hints]
            for value, name in zip(members, inner, strict=True):
                writer.bind(value, name)
            head.append((f"    {', '.join(inner)} = {group}", NOWHERE))
        writer.lines.extend(head)
        writer.write(self.items(graph))
        values = [writer.ref(o) for o in graph.outputs]
        writer.line(f"return {_returned(values, returns)}")
        return self._define(_function_name(graph), parameters, writer.lines, jitted=False, about="")

    def _define(
        self, base: str, parameters: list[str], lines: list[Line], *, jitted: bool, about: str
    ) -> str:
        code = [t for t, _ in lines if not t.lstrip().startswith("#")]
        key = "\n".join([f"{jitted} {parameters}", *code])
        if key in self._by_text:
            return self._by_text[key]
        name = self._by_text[key] = self.names.fresh(base)
        header: list[Line] = []
        if jitted:
            # Traced once for each shape. Inlined while tracing, so that XLA sees the program it
            # would have seen: it inlines calls only after its first passes, and those split
            # reductions by what surrounds them.
            header.append((f"@{self.use('functools', 'partial')}(jax.jit, inline=True)", NOWHERE))
        header.append((definition(name, parameters) + about, NOWHERE))
        self._functions.append(header + lines)
        return name

    def finish(self, main: list[Line], doc: str, name: str) -> Emitted:
        """The module's text: docstring, imports, constants, functions in order of definition."""
        body: list[Line] = []
        for block in [*self._functions, main]:
            body += [("", NOWHERE), ("", NOWHERE)]
            for text, source in block:
                body += [(line, source) for line in wrap(text)]
        used = "\n".join(t for t, _ in body)
        lines: list[Line] = [(line, NOWHERE) for line in doc.splitlines()]
        everything = "\n".join([used, *self._hoisted])
        lines += [("", NOWHERE), *((line, NOWHERE) for line in self._import_lines(everything))]
        arrays: dict[str, Any] = {}
        if self._constants_used:
            lines += [(line, NOWHERE) for line in self._constant_lines(arrays)]
        hoisted = [f"{name} = {text}" for text, name in self._hoisted.items() if name in used]
        if hoisted:
            lines.append(("", NOWHERE))
            lines += [(part, NOWHERE) for line in hoisted for part in wrap(line)]
        if self.externals:
            lines += [
                ("", NOWHERE),
                ("EXTERNALS = ()  # objects with no source text, given at load", NOWHERE),
            ]
        lines += body
        sources = {i: s for i, (_, s) in enumerate(lines, 1) if s is not NOWHERE}
        text = "\n".join(t for t, _ in lines) + "\n"
        return Emitted(name, text, arrays, tuple(self.externals), sources)

    def _import_lines(self, used: str) -> list[str]:
        plain = {m for m in self._imports if not m.startswith("from ")}
        if self._constants_used:
            plain |= {"numpy", "pathlib"}
        if "np." in used:
            plain.add("numpy")
        standard = sorted(m for m in plain if m in ("pathlib", "functools", "math"))
        froms = {
            m[5:]: names for m, names in self._imports.items() if m.startswith("from ") and names
        }
        lines = [f"import {m}" for m in standard]
        lines += [_from(m, froms.pop(m)) for m in ("functools",) if m in froms]
        if lines:
            lines.append("")
        lines.append("import jax")
        if "numpy" in plain:
            lines.append("import numpy as np")
        from_jax = froms.pop("jax", {})
        core = [
            n
            for n, alias in (("lax", "lax."), ("jnp", "jnp."))
            if alias in used or (n == "jnp" and self._constants_used)
        ]
        shown = [*sorted(from_jax), *(("numpy as jnp" if c == "jnp" else c) for c in core)]
        if shown:
            lines.append(f"from jax import {', '.join(shown)}")
        lines += [_from(m, froms[m]) for m in sorted(froms)]
        return "\n".join(lines).split("\n")

    def _constant_lines(self, arrays: dict[str, Any]) -> list[str]:
        """Load the arrays kept beside the module, exactly as they were."""
        lines = [
            "",
            '_path = pathlib.Path(__file__).with_suffix(".npz")',
            "with np.load(_path, allow_pickle=False) as _file:",
        ]
        lines.append("    constants = {key: jnp.asarray(_file[key]) for key in _file.files}")
        for name in sorted(self._constants_used, key=lambda n: (len(n), n)):
            value = self.constants[name]
            dtype = getattr(value, "dtype", None)
            if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):  # type: ignore[attr-defined]
                arrays[name] = np.asarray(jax.random.key_data(value))
                impl = jax.random.key_impl(value)
                wrapped = f'jax.random.wrap_key_data(constants["{name}"], impl="{impl}")'
                lines.append(f'constants["{name}"] = {wrapped}')
                continue
            array = np.asarray(value)
            if array.dtype == jax.dtypes.float0:
                arrays[name] = np.zeros(array.shape, bool)
                lines.append(f'constants["{name}"] = np.zeros({array.shape}, jax.dtypes.float0)')
            elif (wide := _widened(array)) is not None:
                arrays[name] = wide
                dtype_name = array.dtype.name
                lines.append(f'constants["{name}"] = constants["{name}"].astype(jnp.{dtype_name})')
            elif array.dtype.kind == "V" or not hasattr(np, array.dtype.name):
                arrays[name] = (
                    array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize else array
                )
                lines.append(
                    f'constants["{name}"] = constants["{name}"].view(jnp.{array.dtype.name})'
                )
            else:
                arrays[name] = array
        return lines


def _widened(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The same numbers in whole bytes, if the dtype has elements of less than one."""
    if array.dtype.name.startswith(("int2", "int4", "uint2", "uint4")):
        return array.astype(np.int8)
    return array.astype(np.float32) if array.dtype.name.startswith("float4") else None


def _from(module: str, names: Mapping[str, str]) -> str:
    shown = [n if n == alias else f"{n} as {alias}" for n, alias in sorted(names.items())]
    line = f"from {module} import {', '.join(shown)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"from {module} import (", *(f"    {n}," for n in shown), ")"])


def _chunk_name(loop: Any, chunk: Sequence[int]) -> str:
    node = loop.body.outputs[chunk[0]].node
    return (node and module_part(node.scope)) or "rest"


def _unpacking(
    name: str, shape: tuple[int, ...], unpacked: Mapping[str, str], names: Names
) -> list[str]:
    """Statements that take a bundle apart: flat, or group by group."""
    if len(shape) == 1:
        return [f"{', '.join(unpacked.get(f'[{e}]', '_') for e in range(shape[0]))} = {name}"]
    lines, groups = [], []
    for g, size in enumerate(shape):
        items = [unpacked.get(f"[{g}][{e}]", "_") for e in range(size)]
        if all(item == "_" for item in items):
            groups.append("_")
            continue
        groups.append(names.fresh(f"{name}_{g}"))
        comma = "," if size == 1 else ""
        lines.append(f"{', '.join(items)}{comma} = {groups[-1]}")
    return [f"{', '.join(groups)} = {name}", *lines]


def _returned(values: list[str], returns: tuple[int, ...]) -> str:
    if not returns:
        return values[0] if len(values) == 1 else f"({', '.join(values)})" if values else "()"
    groups, at = [], 0
    for size in returns:
        group = values[at : at + size]
        at += size
        if size == 0:
            groups.append("None")
        elif size == 1:
            groups.append(group[0])
        else:
            groups.append(f"({', '.join(group)})" if len(returns) > 1 else ", ".join(group))
    return ", ".join(groups)


def _function_name(graph: Graph) -> str:
    return identifier(graph.name)


def _tree_name(a: Argument) -> str:
    import re

    found = re.search(r'f"([a-zA-Z_]+?)_?\{', a.text)
    return (
        found.group(1) if found and len(found.group(1)) > 1 else "layer" if found is None else "p"
    )


def _numbered_prefix(graph: Graph) -> str:
    """The scope of a repeated block, up to its number: not worth repeating on each line."""
    split = [n.scope.split("/") for n in graph.nodes if n.scope]
    prefix = []
    for column in zip(*split, strict=False):
        if len(set(column)) > 1:
            break
        prefix.append(column[0])
    return "/".join(prefix)


def _about(graph: Graph) -> str:
    scope = _numbered_prefix(graph)
    source = next((n.source for n in graph.nodes if n.source.where), None)
    shown = ", ".join(p for p in (scope, str(source) if source else "") if p)
    return f"  # {shown} and those like it" if shown else ""
