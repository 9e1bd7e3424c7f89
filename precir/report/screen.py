"""A report on screen: repeated layers in one row, long tables cut, formats in colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from precir.report.data import FormatSum, ProductRow, Report, TensorRow
from precir.report.group import Grouped, group
from precir.report.plain import residual_line, times_text, update_words
from precir.report.units import bytes_text, percent_text

ROWS: Final = 12  # of tensors on screen
PRODUCT_ROWS: Final = 40
_BAR: Final = 28
_ROOMY: Final = 110  # columns from which on tables say more
_COLOURS: Final = {
    "E4M3": "green",
    "E5M2": "magenta",
    "bf16": "cyan",
    "f16": "cyan",
    "f32": "yellow",
    "f64": "red",
}


def screen(report: Report, width: int) -> Iterator[RenderableType]:
    """What `rich.print` shows."""
    roomy = width >= _ROOMY
    yield Panel(_head(report), box=box.ROUNDED, border_style="dim", padding=(0, 1))
    if report.products:
        yield from _section("Products", "in program order, by phase")
        yield from _products(report, roomy)
    if report.low and report.wide:
        yield from _section("Not in FP8", "and why")
        yield _wide(report)
    if report.low:
        yield from _section(
            "On a GPU", "what computes products in 8 bits; the whole report says why"
        )
        yield _ways(report)
    if report.kernels:
        yield from _section("In one kernel", "computed and quantised; what it saves by the model")
        yield _kernels(report)
    if report.kept:
        yield from _section("Kept wide", "for what they hold")
        yield _kept(report)
    if report.rescales:
        yield from _section("Changes of scale", "by layer")
        yield _rescales(report)
    if report.state:
        yield from _section("State", "between steps; the whole report names each")
        yield _state(report)
    if report.updates:
        yield from _section("Updates", "in the loops that make their gradients")
        yield _updates(report)
    if report.residuals:
        yield from _section("Residuals", "made by the forward program, kept for the backward one")
        yield _sums(report.residual_formats)
        yield Text()
        yield from _tensors(report.residuals, roomy)
    if report.tensors:
        yield from _section("Tensors", "between the operations of the final program")
        yield _sums(report.formats)
        yield Text()
        yield from _tensors(report.tensors, roomy)


def _section(title: str, more: str) -> Iterator[RenderableType]:
    yield Text()
    yield Rule(Text.assemble((title, "bold"), "  ", (more, "dim")), align="left", style="dim")


def _head(report: Report) -> RenderableType:
    name = Text.assemble((report.name, "bold"), "  ", (report.place, "dim"))
    recipe = Text.assemble("recipe ", (report.recipe, "bold"), "  ", (report.numbers, "dim"))
    lines = [name, recipe, Text.assemble(_share(report), report.headline)]
    if report.residuals:
        bar = _stacked(report.residual_formats, report.residual_bytes)
        lines.append(Text.assemble(bar, residual_line(report)))
    return Group(*lines)


def _share(report: Report) -> Text:
    """How many products are in 8 bits, as a bar."""
    if not report.low:
        return Text()
    full = round(_BAR * report.low / len(report.products)) or 1
    if report.low < len(report.products):
        full = min(full, _BAR - 1)
    return Text.assemble(("━" * full, "green"), ("━" * (_BAR - full), "yellow"), "  ")


def _kernels(report: Report) -> Table:
    """By kernel, and those not used by the reason."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for justify in ("right", "left", "right", "left"):
        table.add_column(justify=justify)
    alike: dict[tuple[str, str], list[int]] = {}
    for k in report.kernels:
        name = k.kernel if k.used else f"no {k.kernel}"
        alike.setdefault((name, k.reason), []).append(k.bytes)
    for (name, reason), sizes in sorted(alike.items(), key=lambda a: -sum(a[1])):
        saved = bytes_text(sum(sizes)) if sum(sizes) > 0 else ""
        table.add_row(f"{len(sizes)}", Text(name, "bold"), saved, Text(reason, "dim"))
    return table


def _stacked(sums: Sequence[FormatSum], total: int) -> Text:
    """Shares of formats as one bar of their colours."""
    bar, drawn, seen = Text(), 0, 0
    for each in sums:
        seen += each.bytes
        until = round(_BAR * seen / max(1, total))
        bar.append("━" * (until - drawn), _COLOURS.get(each.format, "bright_black"))
        drawn = until
    return bar.append("  ")


# -- formats ---------------------------------------------------------------------------------------


def _format(text: str) -> Text:
    """Format names in their colours, as `E4M3 × E5M2`."""
    words = [(w, _COLOURS.get(w, "")) for w in text.split(" x ")]
    joined = [part for word in words for part in ((" × ", "dim"), word)]
    return Text.assemble(*joined[1:])


def _sums(sums: Sequence[FormatSum]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for justify in ("left", "right", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    total = sum(s.bytes for s in sums)
    for s in sums:
        bar = Text("━" * round(_BAR * s.bytes / max(1, total)), _COLOURS.get(s.format, ""))
        share = percent_text(s.bytes, total)
        count = Text(f"{s.count} tensor{'s' if s.count != 1 else ' '}", "dim")
        table.add_row(_format(s.format), bytes_text(s.bytes), share, count, bar)
    return table


def _ways(report: Report) -> Table:
    """How many products take each way, and the way of the largest."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    ways: dict[str, list[ProductRow]] = {}
    for p in report.products:
        if p.way:
            ways.setdefault(p.way.partition(":")[0], []).append(p)
    for way, rows in sorted(ways.items(), key=lambda item: -len(item[1])):
        largest = max(rows, key=lambda p: p.flops or 0)
        table.add_row(
            way, Text(f"{len(rows)}", "dim"), Text(f"{largest.shape}: {largest.way}", "dim")
        )
    return table


def _rescales(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in ("layer", "known", "in products", "computed", "measured"):
        table.add_column(head, justify="left" if head == "layer" else "right")
    for r in report.rescales:
        table.add_row(r.layer or "-", *map(str, (r.known, r.free, r.computed, r.measured)))
    return table


def _state(report: Report) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for r in report.state:
        count = f"{r.count} array{'s' * (r.count > 1)}"
        table.add_row(r.what, _format(r.format), bytes_text(r.bytes), Text(count, "dim"))
    return table


def _updates(report: Report) -> Table:
    """Gradients that are no more, and those that stay, with the reason."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for u in report.updates:
        passes = f"in {u.passes} passes" if u.passes > 1 else "in one pass"
        said = Text(f"fused {passes}", "green") if u.fused else Text("left alone", "yellow")
        stacks = f"{u.count} stacks of gradients, {bytes_text(u.bytes)}" if u.count else ""
        table.add_row(said, stacks, Text(u.where, "dim"))
        in_place = f"in place: {u.stacks}" if u.stacks else ""
        for line in filter(None, [in_place, update_words(u)]):
            table.add_row("", Text(line, "dim"), "")
    return table


# -- products --------------------------------------------------------------------------------------


def _products(report: Report, roomy: bool) -> Iterator[RenderableType]:
    grouped = group(report.products, lambda p: p.scope, _alike)
    results = ("result",) if roomy else ()
    table = _table("formats", *results, "shapes", "scope", "where", "")
    phase = None
    for g in grouped[:PRODUCT_ROWS]:
        if g.row.phase != phase:
            phase = g.row.phase
            table.add_row(Text(phase or "no phase", "dim italic"))
        operands, _, result = g.row.shape.replace(" x ", " × ").partition(" -> ")
        shapes = f"{operands} → {result}" if roomy else operands
        table.add_row(
            _format(g.row.format), *(_format(g.row.result) for _ in results), shapes,
            _scope(g.scope or g.row.op, roomy), Text(g.row.where, "dim"), _count(g, g.row.times),
        )  # fmt: skip
    yield table
    yield from _rest(sum(g.count for g in grouped[PRODUCT_ROWS:]))


def _alike(p: ProductRow) -> tuple[object, ...]:
    return p.low, p.format, p.result, p.shape, p.phase, p.where, p.reason, p.times


def _wide(report: Report) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for reason, rows in report.wide.items():
        table.add_row(Text(f"{len(rows)}", "bold"), Text(reason))
        grouped = group(rows, lambda p: p.scope, _alike)
        for g in grouped[:ROWS]:
            place = f"{g.scope or g.row.op}  {g.row.phase}  {g.row.where}"
            times = f"  ×{g.count}" if g.count > 1 else ""
            table.add_row("", Text.assemble(_format(g.row.format), "  ", (place + times, "dim")))
        if len(grouped) > ROWS:
            table.add_row("", next(_rest(sum(g.count for g in grouped[ROWS:]))))
    return table


# -- tensors ---------------------------------------------------------------------------------------


def _tensors(tensors: Sequence[TensorRow], roomy: bool) -> Iterator[RenderableType]:
    def alike(t: TensorRow) -> tuple[object, ...]:
        phase = t.phase if roomy else ""
        return t.name, t.op, t.shape, t.format, t.bytes, phase, t.where, t.times, t.holds

    grouped = group(tensors, lambda t: t.scope, alike)
    grouped.sort(key=lambda g: -g.row.bytes * g.count)
    columns: tuple[str, ...] = ("made by", "place", "")
    if roomy:
        columns = ("made by", "phase", "scope", "where", "holds", "")
    table = _table("size", "format", "shape", *columns)
    table.columns[0].justify = "right"
    for g in grouped[:ROWS]:
        row, scope = g.row, _scope(g.scope, roomy)
        where = Text(row.where, "dim")
        holds = Text(row.holds, "dim")
        place = (row.phase, scope, where, holds) if roomy else (scope or where,)
        size, count = bytes_text(row.bytes * g.count), _count(g, row.times)
        table.add_row(size, _format(row.format), row.shape, row.name, *place, count)
    yield table
    yield from _rest(sum(g.count for g in grouped[ROWS:]))


def _kept(report: Report) -> Table:
    table = _table("made by", "where", "reason", "")
    counts = Counter((k.op, k.where, k.reason) for k in report.kept)
    for (op, where, reason), count in list(counts.items())[:ROWS]:
        table.add_row(op, Text(where, "dim"), reason, f"×{count}" if count > 1 else "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.columns[-1].justify = "right"
    return table


def _scope(scope: str, roomy: bool) -> str:
    """The end of a scope says most."""
    limit = 40 if roomy else 18
    return scope if len(scope) <= limit else f"…{scope[1 - limit :]}"


def _count(grouped: Grouped[ProductRow] | Grouped[TensorRow], times: int | None) -> Text:
    """`×12` for twelve alike, `in a loop of 8` beside it."""
    said = f"×{grouped.count}" if grouped.count > 1 else ""
    loop = times_text(times)
    return Text(f"{said} ↻{loop}".strip() if loop else said, "bold")


def _rest(more: int) -> Iterator[Text]:
    if more:
        yield Text(f"... and {more} more (report.txt has all)", "dim italic")
