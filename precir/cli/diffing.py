"""`precir diff`: what differs between two programs, in words and as a unified diff of texts."""

from __future__ import annotations

import argparse
import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from precir.cli.inspecting import changes, find_stage
from precir.cli.trouble import UsageError
from precir.dump import read_dump
from precir.ir import Graph
from precir.report.units import format_name
from precir.text import load_graph, print_graph

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True)
class Side:
    """One of the two: a program, or all stages of a dump, by name."""

    label: str
    programs: dict[str, Graph]
    is_dump: bool


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "diff",
        parents=[common],
        help="compare two programs, or two dumps pass by pass",
        description="Compare two .ir files, two dumps, or one pass of a dump (DIR:PASS). The exit "
        "status is 0 if they are the same, 1 if they differ, 2 if something is wrong.",
    )
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="FILE.ir, DIR or DIR:PASS")
    parser.add_argument(
        "--places", action="store_true", help="compare files, lines and columns as well"
    )
    parser.add_argument("--context", type=int, default=2, metavar="N", help="lines around (2)")
    parser.add_argument("--brief", action="store_true", help="only the summary")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    a, b = find_side(options.a), find_side(options.b)
    if a.is_dump != b.is_dump:
        raise UsageError(
            "one of these is a whole dump and the other one program",
            where=f"{options.a}, {options.b}",
            fix="name a pass of the dump, as DIR:casts",
        )
    differs = False
    for title in dict.fromkeys([*a.programs, *b.programs]):
        differs |= _compare(title, a, b, options, console)
    return int(differs)


def find_side(text: str) -> Side:
    """What A or B names."""
    path = Path(text)
    if path.is_dir():
        return Side(text, {s.name: s.graph for s in read_dump(path).stages}, True)
    folder, colon, stage = text.rpartition(":")
    if colon and Path(folder).is_dir():
        dump = read_dump(folder)
        name = find_stage(dump, stage)
        return Side(text, {"": next(s.graph for s in dump.stages if s.name == name)}, False)
    if not path.is_file():
        raise UsageError(
            "there is no such file or folder", where=text, fix="give FILE.ir, DIR or DIR:PASS"
        )
    return Side(text, {"": load_graph(path)}, False)


def _compare(title: str, a: Side, b: Side, options: Any, console: Console) -> bool:
    """Print how two programs differ; whether they do."""
    head = f"{title}: " if title else ""
    if title not in a.programs or title not in b.programs:
        console.print(Text(f"{head}only in {a.label if title in a.programs else b.label}", "bold"))
        return True
    old, new = a.programs[title], b.programs[title]
    before, after = _text(old, options.places), _text(new, options.places)
    if before == after:
        console.print(Text(f"{head}the same, {_count(old)} nodes"))
        return False
    _summary(head, old, new, console)
    if not options.brief:
        first, second = (f"{s.label}:{title}" if title else s.label for s in (a, b))
        lines = difflib.unified_diff(before, after, first, second, "", "", options.context, "")
        for line in lines:
            console.print(Text(line, _STYLES.get(line[:1], "")), soft_wrap=True)
    return True


def _summary(head: str, old: Graph, new: Graph, console: Console) -> None:
    console.print(Text(f"{head}{_count(old)} nodes, then {_count(new)}", "bold"))
    for title, before, after in (
        ("nodes  ", _ops(old), _ops(new)),
        ("formats", _formats(old), _formats(new)),
    ):
        console.print(Text.assemble((f"  {title}  ", "dim"), changes(before, after)))


def _text(graph: Graph, places: bool) -> list[str]:
    return print_graph(graph, places=places).splitlines()


def _count(graph: Graph) -> int:
    return sum(1 for _ in graph.walk())


def _ops(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.walk())


def _formats(graph: Graph) -> Counter[str]:
    """The values that nodes make, by format."""
    return Counter(format_name(v.type.dtype) for n in graph.walk() for v in n.outputs)
