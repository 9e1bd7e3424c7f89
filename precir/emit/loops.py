"""Write a `Loop`: a Python `for` over layers or leaves, its body inline or as a jitted function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from precir.emit.names import Names, identifier, module_part, noun
from precir.emit.paths import Family, Leaves, family
from precir.emit.plan import Item, Loop, Port
from precir.emit.sequences import Home, indices, parts
from precir.ir import BACKWARD, UPDATE, Graph, Node, Operand, Value
from precir.ops.writing import ATOM
from precir.source import Source

INDEX = "\0"  # stands for the loop's index in an argument's text
FUNCTION_NODES = 12  # bodies of at least so many nodes become a function


@dataclass
class Argument:
    """One argument of a loop's body. `members` are (port, how to reach it from the name)."""

    kind: str  # "same", "carried", "tree", "bundle" or "list"
    name: str
    text: str = ""  # what the caller passes; INDEX stands for the loop's index
    numbers: tuple[int, ...] | None = None
    members: list[tuple[int, Any]] = field(default_factory=list)
    shape: tuple[int, ...] = (1,)

    @property
    def size(self) -> int:
        return sum(self.shape)


class LoopWriter:
    """The part of a function's writer that knows loops."""

    def __init__(self, module: Any, graph: Graph, names: Names, indent: int) -> None:
        self.module = module
        self.graph = graph
        self.names = names
        self.indent = indent
        self.lines: list[tuple[str, Source]] = []
        self.env: dict[Value, tuple[str, int]] = {}
        self.leaves = Leaves()
        self.homes: dict[Value, Home] = {}
        self.kept: set[Value] = set()
        self.graph_scope = ""
        self.comment: tuple[str, str] = ("", "")  # scope and line of the last comment
        self.result_names: dict[Operand, str] = {}
        self._lists: dict[tuple[Operand, ...], str] = {}
        self._rank: dict[Value, int] = {}
        self._readers: dict[Value, set[int]] = {}

    # what the statement writer provides
    def ref(self, operand: Operand, precedence: int = 0, *, bare: bool = False) -> str:
        raise NotImplementedError

    def line(self, text: str, node: Node | None = None) -> None:
        raise NotImplementedError

    def rank(self, items: Sequence[Item]) -> None:
        """Note in what order, and by which loops, values are read."""
        n = 0
        for at, item in enumerate(items):
            groups = [p.values for p in item.ports] if isinstance(item, Loop) else [item.inputs]
            for values in groups:
                for v in values:
                    if type(v) is Value:
                        self._rank.setdefault(v, n)
                        n += 1
                        if isinstance(item, Loop):
                            self._readers.setdefault(v, set()).add(at)
        for o in self.graph.outputs:
            if type(o) is Value:
                self._rank.setdefault(o, n)
                n += 1

    def lookup(self, value: Value) -> tuple[str, int]:
        found = self.env.get(value)
        if found is not None:
            return found
        home = self.homes.get(value)
        if home is not None:
            return str(home), ATOM
        raise KeyError(f"{value!r} is not written yet")

    def sequence(self, values: Sequence[Operand], hint: str = "") -> str:
        """An expression for a Python list of `values`; long ones are named once and reused."""
        key = tuple(values)
        if key in self._lists:
            return self._lists[key]
        items = self.items(values)
        first = items[0] if items else ""
        text = first[1:] if len(items) == 1 and first.startswith("*") else f"[{', '.join(items)}]"
        if len(text) > 12 and hint and not text.isidentifier():
            name = self.names.fresh(_list_name(text, values, hint))
            if len(items) > 1 and first.startswith("*["):
                self.line(f"{name} = {first[1:]}")
                self.line(f"{name} += [{', '.join(items[1:])}]")
            else:
                self.line(f"{name} = {text}")
            text = name
        self._lists[key] = text
        return text

    def items(self, values: Sequence[Operand]) -> list[str]:
        """What goes between the brackets of a list or tuple of `values`."""
        found = parts(values, self.leaves, self.homes)
        return [i if isinstance(i, str) else self.ref(values[i]) for i in found]

    # -- a loop --------------------------------------------------------------------------------

    def loop(self, loop: Loop, at: int) -> None:
        as_function = len(loop.body) >= FUNCTION_NODES
        base = self._base_name(loop)
        arguments = [self._argument(loop, p, base) for p in range(len(loop.ports))]
        merged = _merge(arguments)
        singles, bundles = self._results(loop)
        numbers = _primary(merged)
        chunks = {
            key: _chunked(loop, members) if as_function else [members]
            for key, members in bundles.items()
        }
        collect = {
            key: self.names.fresh(self._bundle_name(loop, base, ms)) for key, ms in bundles.items()
        }
        in_order = numbers == tuple(range(loop.count))
        several = as_function and len(singles) + len(collect) > 1
        permuted = numbers is not None and sorted(numbers) == list(range(loop.count))
        placed = permuted and (several or not in_order)
        for argument in merged:
            if argument.kind == "carried":
                port = loop.ports[argument.members[0][0]]
                start = self.ref(port.values[0])
                argument.name = self.names.fresh(argument.name)
                if start != argument.name:
                    self.line(f"{argument.name} = {start}")
        for name in collect.values():
            self.line(f"{name} = [None] * {loop.count}" if placed else f"{name} = []")
        if as_function:
            self._call_loop(loop, base, merged, numbers, singles, chunks, collect, placed)
        else:
            self._inline_loop(loop, merged, numbers, singles, bundles, collect, placed)
        for key, members in bundles.items():
            groups = chunks[key]
            shape = tuple(map(len, groups)) if len(groups) > 1 else (len(members),)
            for r, reach in _reaches(groups):
                for c, value in enumerate(loop.results[r].values):
                    index = numbers[c] if placed and numbers is not None else c
                    self.homes[value] = Home(collect[key], shape, loop.count, reach, index)
        del at

    def _base_name(self, loop: Loop) -> str:
        node = loop.body.nodes[0]
        part = _common_scope([n.scope for n in loop.body.nodes])
        base = identifier(
            module_part(part) or (node.phase if node.phase == "update" else "") or "block"
        )
        base = base.rstrip("0123456789").rstrip("_") or "block"
        phases = {n.phase for n in loop.body.nodes}
        return f"{base}_backward" if phases == {"backward"} or "backward" in phases else base

    def _bundle_name(self, loop: Loop, base: str, members: list[int]) -> str:
        """What a list of results is called: after the result it becomes part of (`new_mu`), else
        after what one result is, or the block's gradients or what it saves for them.
        """
        returned = {self.result_names.get(loop.results[members[0]].values[0], "")}
        if len(members) == 1 and "" not in returned:
            return f"new_{returned.pop()}"
        if len(members) == 1:
            return plural(result_name(loop, members[0]))
        backward = any(n.phase == BACKWARD for n in loop.body.nodes)
        return f"{base.removesuffix('_backward')}_grads" if backward else f"{base}_saved"

    def _results(self, loop: Loop) -> tuple[list[int], dict[tuple[int, ...], list[int]]]:
        """Results kept one by one (carried, or the last copy's), and those collected in lists,
        grouped by the loops that read them and in the order in which they are read.
        """
        singles = [
            n for n, r in enumerate(loop.results) if r.carried or (r.last and not r.collected)
        ]
        bundles: dict[tuple[int, ...], list[int]] = {}
        for n, result in enumerate(loop.results):
            if result.collected:
                readers: set[int] = set()
                for v in result.values:
                    readers |= self._readers.get(v, set())
                bundles.setdefault(tuple(sorted(readers)), []).append(n)
        for members in bundles.values():
            members.sort(
                key=lambda n: min(self._rank.get(v, 1 << 30) for v in loop.results[n].values)
            )
        return singles, bundles

    def _argument(self, loop: Loop, p: int, base: str) -> Argument:
        port: Port = loop.ports[p]
        hint = port_name(loop, p, self.module)
        if port.carried is not None:
            return Argument("carried", hint, members=[(p, None)])
        if port.invariant:
            return Argument("same", hint, self.ref(port.values[0]), members=[(p, None)])
        values = port.values
        paths = [self.leaves.paths.get(v) if type(v) is Value else None for v in values]
        if all(path is not None for path in paths):
            found: Family | None = family([path for path in paths if path is not None])
            if found is not None and indices(found.numbers) is not None:
                return Argument("tree", hint, found.stem(INDEX), found.numbers, [(p, found.rest)])
        homes = [self.homes.get(v) if type(v) is Value else None for v in values]
        kept = [h for h in homes if h is not None]
        if len(kept) == len(values):
            numbers = tuple(h.index for h in kept)
            one = len({(h.bundle, h.reach) for h in kept}) == 1
            if one and kept[0].size == 1 and numbers == tuple(range(kept[0].count)):
                return Argument(
                    "list", singular(kept[0].bundle), kept[0].bundle, members=[(p, None)]
                )
            if one and indices(numbers) is not None:
                return Argument(
                    "bundle",
                    hint,
                    f"{kept[0].bundle}[{INDEX}]",
                    numbers,
                    [(p, kept[0].reach)],
                    kept[0].shape,
                )
        text = self.sequence(values, plural(hint))
        return Argument(
            "list", singular(text) if text.isidentifier() else hint, text, members=[(p, None)]
        )

    # -- the two shapes ------------------------------------------------------------------------

    def _call_loop(
        self, loop: Loop, base: str, arguments: list[Argument], numbers: tuple[int, ...] | None,
        singles: list[int], chunks: dict[tuple[int, ...], list[list[int]]],
        collect: dict[tuple[int, ...], str], placed: bool,
    ) -> None:  # fmt: skip
        name = self.module.block(loop, base, arguments, singles, list(chunks.values()))
        self.line(f"for i in {_header(numbers, loop.count)}:")
        inner = [_passed(a, numbers, loop.count) for a in arguments]
        targets = []
        for r in singles:
            targets.append(self._single_name(loop, r, arguments))
        appended = []
        for key, list_name in collect.items():
            if placed:
                targets.append(f"{list_name}[i]")
            else:
                targets.append(self.names.fresh(list_name.rstrip("s")))
                appended.append((list_name, targets[-1]))
            del key
        called = f"{name}({', '.join(inner)})"
        self.indent += 1
        if len(targets) == len(appended) == 1:  # as many lines as where it is `results[i] = ...`
            self.line(f"{appended[0][0]}.append({called})")
        else:
            self.line(f"{', '.join(targets)} = {called}")
            for list_name, value in appended:
                self.line(f"{list_name}.append({value})")
        self._also_carried(loop, arguments)
        self.indent -= 1
        self._after(loop, singles, targets)

    def _also_carried(self, loop: Loop, arguments: list[Argument]) -> None:
        """Hand a result on to all carried arguments it goes to but the first, which has it."""
        names: dict[int | None, str] = {}
        for a in arguments:
            if a.kind == "carried":
                first = names.setdefault(loop.ports[a.members[0][0]].carried, a.name)
                if first != a.name:
                    self.line(f"{a.name} = {first}")

    def _single_name(self, loop: Loop, r: int, arguments: list[Argument]) -> str:
        for a in arguments:
            if a.kind == "carried" and loop.ports[a.members[0][0]].carried == r:
                return a.name
        return self.names.fresh(result_name(loop, r))

    def _after(self, loop: Loop, singles: list[int], targets: list[str]) -> None:
        for r, target in zip(singles, targets, strict=False):
            self.env[loop.results[r].values[-1]] = (target, ATOM)

    def _inline_loop(
        self, loop: Loop, arguments: list[Argument], numbers: tuple[int, ...] | None,
        singles: list[int], bundles: dict[tuple[int, ...], list[int]],
        collect: dict[tuple[int, ...], str], placed: bool,
    ) -> None:  # fmt: skip
        from precir.emit.function import FunctionWriter

        lists = [a for a in arguments if a.kind == "list"]
        plain = all(a.kind in ("list", "same", "carried") for a in arguments)
        body = FunctionWriter(self.module, loop.body, self.names, self.indent + 1)
        body.graph_scope = self.graph_scope
        if plain and lists:
            for a in lists:
                a.name = self.names.fresh(a.name)
            heads, over = ", ".join(a.name for a in lists), ", ".join(a.text for a in lists)
            self.line(
                f"for {heads} in "
                + (f"zip({over}, strict=True):" if len(lists) > 1 else f"{over}:")
            )
        else:
            self.line(f"for i in {_header(numbers, loop.count)}:")
        for a in arguments:
            text = a.name if plain and a.kind == "list" else _passed(a, numbers, loop.count)
            for port, reach in a.members:
                value = loop.body.inputs[port]
                if a.kind == "tree":
                    body.env[value] = (text + "".join(map(str, reach)), ATOM)
                elif a.kind == "bundle" and a.size > 1:
                    body.env[value] = (f"{text}{reach}", ATOM)
                else:
                    body.env[value] = (text, ATOM)
        body.kept = {o for o in loop.body.outputs if type(o) is Value}
        body.comment = self.comment
        body.write(self.module.items(loop.body))
        self.comment = body.comment
        if plain and lists and self._comprehension(loop, body, singles, bundles, collect):
            return
        self.lines.extend(body.lines)
        self.indent += 1
        for key, members in bundles.items():
            items = [body.ref(loop.body.outputs[r]) for r in members]
            text = items[0] if len(items) == 1 else f"({', '.join(items)})"
            self.line(f"{collect[key]}[i] = {text}" if placed else f"{collect[key]}.append({text})")
        moved = [
            (self._single_name(loop, r, arguments), body.ref(loop.body.outputs[r])) for r in singles
        ]
        moved = [(t, s) for t, s in moved if t != s]
        if moved:
            left, right = zip(*moved, strict=True)
            self.line(f"{', '.join(left)} = {', '.join(right)}")
        self._also_carried(loop, arguments)
        self.indent -= 1
        names = [self._carried_or(loop, r, arguments, moved, body) for r in singles]
        self._after(loop, singles, names)

    def _comprehension(
        self, loop: Loop, body: LoopWriter, singles: list[int],
        bundles: dict[tuple[int, ...], list[int]], collect: dict[tuple[int, ...], str],
    ) -> bool:  # fmt: skip
        """Turn a loop that only appends one expression into a list comprehension."""
        code = [(t, s) for t, s in body.lines if not t.lstrip().startswith("#")]
        if singles or len(bundles) != 1 or len(code) != 1:
            return False
        ((key, members),) = bundles.items()
        name, equals, expression = code[0][0].strip().partition(" = ")
        if len(members) != 1 or not equals or body.ref(loop.body.outputs[members[0]]) != name:
            return False
        head = self.lines.pop()[0].strip().removesuffix(":")
        assert self.lines[-1][0].strip() == f"{collect[key]} = []"
        self.lines.pop()
        comments = [t for t, _ in body.lines if t.lstrip().startswith("#")]
        pad = "    " * self.indent
        self.lines += [(pad + c.strip(), code[0][1]) for c in comments[:1]]
        self.lines.append((f"{pad}{collect[key]} = [{expression} {head}]", code[0][1]))
        return True

    def _carried_or(
        self,
        loop: Loop,
        r: int,
        arguments: list[Argument],
        moved: list[tuple[str, str]],
        body: LoopWriter,
    ) -> str:
        for a in arguments:
            if a.kind == "carried" and loop.ports[a.members[0][0]].carried == r:
                return a.name
        source = body.ref(loop.body.outputs[r])
        return next((t for t, s in moved if s == source), source)


_CHUNK = 7  # results that fit on one line


def _chunked(loop: Loop, members: list[int]) -> list[list[int]]:
    """What a forward block saves, by the module that made it, a line each; what a block of the
    backward program or of the update makes stays in one row, which the optimizer's loops walk.
    """
    if len(members) <= _CHUNK or any(n.phase in (BACKWARD, UPDATE) for n in loop.body.nodes):
        return [members]
    by_module: dict[str, list[int]] = {}
    for r in members:
        output = loop.body.outputs[r]
        scope = output.node.scope if isinstance(output, Value) and output.node else ""
        by_module.setdefault(module_part(scope), []).append(r)
    return [
        group[i : i + _CHUNK] for group in by_module.values() for i in range(0, len(group), _CHUNK)
    ]


def _reaches(groups: list[list[int]]) -> list[tuple[int, str]]:
    if len(groups) == 1:
        single = len(groups[0]) == 1
        return [(r, "" if single else f"[{e}]") for e, r in enumerate(groups[0])]
    return [(r, f"[{g}][{e}]") for g, group in enumerate(groups) for e, r in enumerate(group)]


def _merge(arguments: list[Argument]) -> list[Argument]:
    """One argument for all ports that the same subtree or bundle holds."""
    merged: list[Argument] = []
    for a in arguments:
        same = next(
            (m for m in merged if m.kind == a.kind and a.kind in ("tree", "bundle")
             and m.text == a.text and m.numbers == a.numbers),
            None,
        )  # fmt: skip
        if same is None:
            merged.append(a)
        else:
            same.members += a.members
    return merged


def _primary(arguments: list[Argument]) -> tuple[int, ...] | None:
    """The numbers the loop runs over: those of the first numbered argument, trees first."""
    for kind in ("tree", "bundle"):
        for a in arguments:
            if a.kind == kind and a.numbers is not None:
                return a.numbers
    return None


def _header(numbers: tuple[int, ...] | None, count: int) -> str:
    return (indices(numbers) if numbers is not None else None) or f"range({count})"


def _passed(a: Argument, numbers: tuple[int, ...] | None, count: int) -> str:
    """What the loop passes for an argument, in terms of `i`."""
    if a.kind in ("same",):
        return a.text
    if a.kind == "carried":
        return a.name
    over = numbers if numbers is not None else tuple(range(count))
    if a.kind == "list":
        return f"{a.text}[{_relative(tuple(range(count)), over)}]"
    assert a.numbers is not None
    return a.text.replace(INDEX, _relative(a.numbers, over))


def _relative(wanted: tuple[int, ...], over: tuple[int, ...]) -> str:
    """`wanted[c]` in terms of i = over[c]."""
    if wanted == over:
        return "i"
    differences = {w - o for w, o in zip(wanted, over, strict=True)}
    if len(differences) == 1:
        d = differences.pop()
        return f"i + {d}" if d > 0 else f"i - {-d}"
    sums = {w + o for w, o in zip(wanted, over, strict=True)}
    if len(sums) == 1:
        return f"{sums.pop()} - i"
    return (
        f"{list(wanted)}[{_relative(tuple(range(len(over))), over)}]"
        if over == tuple(sorted(over))
        else f"{dict(zip(over, wanted, strict=True))}[i]"
    )


def _common_scope(scopes: Sequence[str]) -> str:
    split = [s.split("/") for s in scopes]
    common = []
    for column in zip(*split, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return "/".join(common)


def port_name(loop: Loop, p: int, module: Any) -> str:
    """What a body calls one of its inputs: as its maker does, as the argument it comes from, or
    after the op that makes it.
    """
    value, source = loop.body.inputs[p], loop.ports[p].values[0]
    known = module.local_names.get(source) if type(source) is Value else None
    if known is not None:
        return str(known)
    if type(source) is Value and source.node is not None:
        part = module_part(source.node.scope)
        if part and source.node.op in ("dot_general", "scaled_dot", "conv_general_dilated"):
            return identifier(part)
        if loop.ports[p].carried is not None:
            return "d_x" if source.node.phase == BACKWARD else "x"
        return noun(source.node.op)
    words = re.findall(r"[A-Za-z_]\w*", value.hint)
    return identifier(words[-1]) if words and not value.hint.startswith("arg") else "x"


def result_name(loop: Loop, r: int) -> str:
    output = loop.body.outputs[r]
    return noun(output.node.op) if isinstance(output, Value) and output.node else "out"


def plural(word: str) -> str:
    return word if word.endswith("s") else f"{word}s"


def singular(word: str) -> str:
    base = word.removeprefix("new_").rstrip("0123456789").rstrip("_")
    return (
        base[:-1]
        if base.endswith("s") and not base.endswith("ss") and len(base) > 2
        else f"{base}_i"
    )


def _list_name(text: str, values: Sequence[Operand], hint: str) -> str:
    """A list of leaves is called as the subtree is; of gradients, gradients."""
    if text.startswith("jax.tree.leaves("):
        words = re.findall(r"[A-Za-z_]\w*", text.removeprefix("jax.tree.leaves("))
        return words[-1] if words else hint
    first = values[0]
    backward = type(first) is Value and first.node is not None and first.node.phase == BACKWARD
    return "grads" if backward else hint
