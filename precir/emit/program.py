"""A Graph and its signature in, a module out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey

from precir.emit.function import FunctionWriter, Line
from precir.emit.layout import definition
from precir.emit.module import Emitted, ModuleWriter
from precir.emit.names import Names
from precir.emit.paths import quote
from precir.emit.signature import Signature, Structures, bind_inputs
from precir.ir import Graph, Operand
from precir.ops.writing import Opaque, source
from precir.packed import Packed
from precir.source import NOWHERE as _NO


def emit(
    graph: Graph,
    signature: Signature,
    *,
    doc: str = "",
    jit: str = "@jax.jit",
    comments: bool = True,
) -> Emitted:
    """Write `graph` as a module whose main function is called as `signature` says.

    Args:
      graph: what to write; its inputs are the signature's leaves, then captured values.
      signature: names and pytrees of parameters and result.
      doc: the module's docstring, without quotes.
      jit: decorator of the main function ("" for none).
      comments: whether to write scopes and the user's lines above the statements.
    """
    module = _module(graph, [signature], comments)
    return module.finish(_main(module, graph, signature, jit), _quoted(doc), signature.name)


def emit_with_gradient(
    name: str, forward: tuple[Graph, Signature], backward: tuple[Graph, Signature], *, doc: str = ""
) -> Emitted:
    """Write a function and its gradient as one module: a `jax.custom_vjp` called `name`, whose
    forward half also returns residuals and whose backward half takes them and cotangents.
    """
    (first, first_signature), (second, second_signature) = forward, backward
    module = _module(first, [first_signature, second_signature], comments=True)
    module.names.reserve(name)
    lines = [*_main(module, first, first_signature, ""), ("", _NO), ("", _NO)]
    lines += [*_main(module, second, second_signature, ""), ("", _NO), ("", _NO)]
    parameters = [p.name for p in first_signature.parameters]
    passed = ", ".join(parameters)
    tail = [
        "@jax.custom_vjp",
        definition(name, parameters),
        f"    return {first_signature.name}({passed})[0]",
        "",
        "",
        f"{name}.defvjp({first_signature.name}, {second_signature.name})",
    ]
    return module.finish([*lines, *((line, _NO) for line in tail)], _quoted(doc), name)


def _module(graph: Graph, signatures: Sequence[Signature], comments: bool) -> ModuleWriter:
    module = ModuleWriter(comments=comments, constants=dict(graph.constants))
    for reserved in ("constants", "EXTERNALS", *(s.name for s in signatures)):
        module.names.reserve(reserved)
    return module


def _quoted(doc: str) -> str:
    return f'"""{doc}"""' if doc else '"""Emitted by precir."""'


def _main(module: ModuleWriter, graph: Graph, signature: Signature, jit: str) -> list[Line]:
    """The lines of a function that is called as its signature says."""
    names = Names(module.names)
    leaves, unpacking = bind_inputs(
        graph, signature, names, lambda: module.use("precir.packed", "is_scaled")
    )
    writer = FunctionWriter(module, graph, names)
    writer.inputs_from(leaves)
    for line in unpacking:
        writer.line(line)
    writer.result_names = _result_names(signature, graph.outputs)
    writer.write(module.items(graph))
    structures = Structures(signature, graph.inputs)
    result = _Result(writer, module, structures).write(signature.result, graph.outputs)
    writer.line(f"return {result}")
    parameters = [p.name for p in signature.parameters if not p.keyword]
    keywords = [p.name for p in signature.parameters if p.keyword]
    leaf_count = sum(p.tree.num_leaves for p in signature.parameters)
    captured = [f"captured_{i}" for i in range(len(graph.inputs) - leaf_count)]
    star = ["*"] if keywords or captured else []
    head = definition(signature.name, [*parameters, *star, *keywords, *captured])
    if jit.startswith("@functools"):
        module.use("functools")
    return [*([(jit, _NO)] if jit else []), (head, _NO), *writer.lines]


def _result_names(signature: Signature, outputs: Sequence[Operand]) -> dict[Operand, str]:
    """For each result that is part of a larger named one (`mu`, `params`), the name of that."""
    tree = jax.tree.unflatten(signature.result, range(signature.result.num_leaves))
    found: dict[Operand, str] = {}
    for keys, number in jax.tree_util.tree_flatten_with_path(tree)[0]:
        words = [k.name for k in keys if isinstance(k, GetAttrKey)]
        if words:
            found[outputs[number]] = words[-1]
    return found


class _Result:
    """Spells the returned pytree, from the arguments' own structure where it is the same."""

    def __init__(
        self, writer: FunctionWriter, module: ModuleWriter, structures: Structures
    ) -> None:
        self.writer, self.module, self.structures = writer, module, structures

    def write(self, tree: Any, values: Sequence[Operand]) -> str:
        if tree.num_nodes == 1 and tree.num_leaves == 1:
            return self.writer.ref(values[0])
        same = self.structures.matching(tree)
        for text, leaves in same:
            if (
                leaves
                and len(leaves) == len(values)
                and all(a is b for a, b in zip(leaves, values, strict=True))
            ):
                return text
        kind, data = tree.node_data() if tree.node_data() is not None else (type(None), None)
        children = self._split(tree, values)
        if kind is type(None):
            return "None"
        if kind is Packed:
            inner = [self.write(t, v) for t, v in children]
            return f"{self.module.use('precir.packed', 'Packed')}({', '.join(inner)})"
        if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return self._namedtuple(kind, same, children)
        simple = kind in (tuple, list, dict)
        if same and values and (not simple or (len(values) > 3 and kind is dict)):
            rebuilt = self.writer.sequence(values)
            text, leaves = same[0]
            if any(v.type.scale is not None for v in leaves):
                text += f", is_leaf={self.module.use('precir.packed', 'is_scaled')}"
            return f"jax.tree.unflatten(jax.tree.structure({text}), {rebuilt})"
        if kind is tuple:
            inner = [self.write(t, v) for t, v in children]
            return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
        if kind is list:
            return f"[{', '.join(self.write(t, v) for t, v in children)}]"
        if kind is dict:
            items = [
                (self._key(k), self.write(t, v))
                for k, (t, v) in zip(data or (), children, strict=True)
            ]
            return "{" + ", ".join(f"{k}: {v}" for k, v in items) + "}"
        if same:
            return same[0][0]
        return f"jax.tree.unflatten({self.module.external(tree)}, {self.writer.sequence(values)})"

    def _namedtuple(
        self, kind: Any, same: Any, children: list[tuple[Any, Sequence[Operand]]]
    ) -> str:
        shown = [(f, self.write(t, v)) for f, (t, v) in zip(kind._fields, children, strict=True)]
        if same:
            text = same[0][0]
            changed = [f"{f}={v}" for f, v in shown if v != f"{text}.{f}"]
            return f"{text}._replace({', '.join(changed)})" if changed else text
        try:
            name = source(kind, self.module)
        except Opaque:
            name = self.module.external(kind)
        return f"{name}({', '.join(f'{f}={v}' for f, v in shown)})"

    def _key(self, key: Any) -> str:
        try:
            return quote(key) if isinstance(key, str) else source(key, self.module)
        except Opaque:
            return self.module.external(key)

    @staticmethod
    def _split(tree: Any, values: Sequence[Operand]) -> list[tuple[Any, Sequence[Operand]]]:
        at, found = 0, []
        for child in tree.children():
            found.append((child, values[at : at + child.num_leaves]))
            at += child.num_leaves
        return found
