"""`precir inspect`: what is in a dump, whole or by pass, scope and op."""

from __future__ import annotations

import argparse
import ast
import pydoc
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from precir.cli.trouble import UsageError
from precir.dump import Dump, read_dump
from precir.ir import Graph, Node
from precir.report import Report
from precir.report.units import format_name

_OP: Final = re.compile(r"^\s*(?:%[^=]*? = )?('[^']*'|[\w.\-<>/]+)\(")
_SCOPE: Final = re.compile(r"(?:,|  @) scope ('(?:[^'\\]|\\.)*'|[^\s,]+)")
_PRODUCTS: Final = ("dot_general", "scaled_dot", "conv_general_dilated", "ragged_dot")


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "inspect", parents=[common], help="show a dump: its report, its passes, its texts"
    )
    parser.add_argument("folder", metavar="DIR", help="a folder that precir compile wrote")
    parser.add_argument("--pass", dest="stage", metavar="NAME", help="print the text after a pass")
    parser.add_argument("--scope", metavar="GLOB", help="only what is in there, as '*/attn'")
    parser.add_argument("--op", metavar="NAME", help="only this operation, as dot_general")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    dump = read_dump(options.folder)
    keep = Filter(options.scope, options.op)
    _check_matches(dump, keep)
    if options.stage is not None:
        text = dump.file(find_stage(dump, options.stage)).read_text(encoding="utf-8")
        _print(keep.text(text), console)
        return 0
    console.print(keep.report(dump.report))
    console.print(passes_table(dump, keep))
    return 0


def _check_matches(dump: Dump, keep: Filter) -> None:
    """Raises `UsageError` that says what there is if the filter keeps nothing."""
    graphs = [stage.graph for stage in dump.stages]
    if any(next(keep.nodes(graph), None) is not None for graph in graphs):
        return
    in_scope = Filter(keep.scope, None)
    ops = sorted({n.op for graph in graphs for n in in_scope.nodes(graph)})
    scopes = sorted({n.scope for graph in graphs for n in graph.walk() if n.scope})
    asked = " ".join(
        f"{name} {value!r}" for name, value in (("--scope", keep.scope), ("--op", keep.op)) if value
    )
    known = f"operations there: {', '.join(ops)}" if ops else f"scopes: {', '.join(scopes[:12])}"
    raise UsageError(f"nothing matches {asked}", where=str(dump.folder), fix=known)


class Filter:
    """Keeps what is in a scope and of an op; what is not asked for is not looked at."""

    def __init__(self, scope: str | None, op: str | None) -> None:
        self.scope, self.op = scope, op

    def __call__(self, op: str, scope: str) -> bool:
        return (self.op is None or op == self.op) and (
            self.scope is None
            or fnmatchcase(scope, self.scope)
            or fnmatchcase(scope, f"{self.scope}/*")
        )

    @property
    def everything(self) -> bool:
        return self.scope is None and self.op is None

    def nodes(self, graph: Graph) -> Iterator[Node]:
        return (n for n in graph.walk() if self(n.op, n.scope))

    def text(self, text: str) -> str:
        """The lines of those nodes, sub-programs' as well."""
        if self.everything:
            return text
        return "".join(f"{line.strip()}\n" for line in text.splitlines() if self._line(line))

    def _line(self, line: str) -> bool:
        op, scope = _OP.match(line), _SCOPE.search(line)
        if op is None or line.lstrip().startswith(("graph ", "return ", "file ")):
            return False
        return self(_word(op[1]), _word(scope[1]) if scope else "")

    def report(self, report: Report) -> Report:
        if self.everything:
            return report
        return replace(
            report,
            products=tuple(p for p in report.products if self(p.op, p.scope)),
            tensors=tuple(t for t in report.tensors if self(t.op, t.scope)),
            residuals=tuple(t for t in report.residuals if self(t.op, t.scope)),
        )


def _word(text: str) -> str:
    return str(ast.literal_eval(text)) if text.startswith("'") else text


def find_stage(dump: Dump, name: str) -> str:
    """The stage of that name, or of that file."""
    for stage, entry in zip(dump.stages, dump.index["stages"], strict=True):
        if name in (stage.name, entry["file"], entry["file"].removesuffix(".ir")):
            return stage.name
    known = ", ".join(stage.name for stage in dump.stages)
    raise UsageError(f"there is no pass {name!r}", where=str(dump.folder), fix=f"one of {known}")


def passes_table(dump: Dump, keep: Filter) -> Table:
    """One row for each pass: how many nodes, what it added and removed, products by format."""
    table = Table(title="Passes", title_justify="left", title_style="bold")
    table.box, table.pad_edge = None, False
    table.add_column("pass", style="bold")
    table.add_column("nodes", justify="right")
    table.add_column("added and removed")
    table.add_column("products by format")
    before: Counter[str] | None = None
    for stage in dump.stages:
        nodes = list(keep.nodes(stage.graph))
        ops = Counter(n.op for n in nodes)
        change = Text(_most(ops), "dim") if before is None else changes(before, ops)
        table.add_row(stage.name, f"{len(nodes)}", change, _most(_products(nodes)))
        before = ops
    return table


def changes(before: Counter[str], after: Counter[str]) -> Text:
    """`+54 quantize  -54 dot_general`."""
    said = Text()
    ops = sorted(before.keys() | after.keys(), key=lambda o: (before[o] - after[o], o))
    for op in ops:
        more = after[op] - before[op]
        if more:
            said.append(f"{more:+} {op}  ", "green" if more > 0 else "red")
    return said if said else Text("nothing", "dim")


def _products(nodes: Iterable[Node]) -> Counter[str]:
    formats = (
        [format_name(o.type.dtype) for o in n.inputs[:2]] for n in nodes if n.op in _PRODUCTS
    )
    return Counter(" x ".join(pair) for pair in formats)


def _most(counts: Counter[str], limit: int = 6) -> str:
    said = ", ".join(f"{n} {name}" for name, n in counts.most_common(limit))
    return f"{said}, ..." if len(counts) > limit else said


def _print(text: str, console: Console) -> None:
    """In a pager if it is longer than the terminal is high."""
    if console.is_terminal and text.count("\n") > console.height:
        pydoc.pager(text)
    else:
        sys.stdout.write(text)
