"""An `InferenceReport` as tables."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Final, TypeVar

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from precir.inference.report import InferenceReport, LayerRow, WeightRow
from precir.passes.weights import NO_MATRIX
from precir.report.group import common_scope
from precir.report.units import bytes_text, shape_text

Row = TypeVar("Row")

_COLOURS: Final = {"E4M3": "green", "E5M2": "magenta", "bf16": "cyan", "f16": "cyan"}


def plain(report: InferenceReport) -> str:
    """Tables without colour, 120 columns wide, with a row for everything."""
    to = io.StringIO()
    console = Console(file=to, width=120, color_system=None)
    for part in screen(report, grouped=False):
        console.print(part)
    return "\n".join(line.rstrip() for line in to.getvalue().splitlines()) + "\n"


def screen(report: InferenceReport, *, grouped: bool = True) -> Iterator[RenderableType]:
    """What `rich.print` shows; grouped: alike layers in one row, as `layer_*`."""
    short = _short([w.name for w in report.weights])
    yield Text.assemble((report.name, "bold"), "  recipe ", (report.recipe, "bold"))
    yield Text(_headline(report))
    for line in _sixteen(report, short):
        yield Text(line)
    yield Text()
    yield _weights(report.weights, short, grouped)
    if report.batches:
        yield Text()
        yield Text(f"Errors against the unquantised program, {_batches(report.batches)}", "bold")
        yield _products(report.products, short, grouped)
        yield from _wide(report.products)
        yield Text()
        yield _outputs(report)
        yield from _ranges(report)


def _headline(report: InferenceReport) -> str:
    low = sum(not p.reason for p in report.products)
    sizes = f"{bytes_text(report.before)} of weights become {bytes_text(report.bytes)}"
    return f"{sizes}, {report.ratio:.3f} of them; {low} of {len(report.products)} products in FP8"


def _sixteen(report: InferenceReport, short: Mapping[str, str]) -> Iterator[str]:
    """What the products cost that the recipe keeps out of 8 bits."""
    rows = [w for w in report.weights if w.format in ("bf16", "f16") and w.snr is not None]
    if rows:
        more = sum(w.bytes for w in rows) // 2
        names = ", ".join(short[w.name] for w in rows[:3]) + (
            " and others" if len(rows) > 3 else ""
        )
        yield f"kept in 16 bits: {names}, {bytes_text(more)} more than in 8"


def _batches(count: int) -> str:
    return f"{count} batch{'es' if count > 1 else ''}"


def _weights(rows: Sequence[WeightRow], short: Mapping[str, str], grouped: bool) -> Table:
    table = _table("weight", "shape", "format", "scale for", "before", "stored", "SNR", "why")
    for alike in _alike(rows, _same_weight) if grouped else [[w] for w in rows]:
        w = alike[0]
        reach = "" if w.block is None else shape_text(w.block) if w.block else "tensor"
        name = f"{len(alike)} others" if _is_vector(w) and len(alike) > 1 else _name(alike, short)
        shape = "" if _is_vector(w) and len(alike) > 1 else shape_text(w.shape)
        snrs = [each.snr for each in alike if each.snr is not None]
        table.add_row(
            name, shape, Text(w.format, _COLOURS.get(w.format, "")), reach,
            bytes_text(sum(each.before for each in alike)),
            bytes_text(sum(each.bytes for each in alike)),
            _span([f"{snr:.1f}" for snr in sorted(snrs)], " dB"), Text(w.reason, "dim"),
        )  # fmt: skip
    total = sum(w.before for w in rows), sum(w.bytes for w in rows)
    table.add_row(Text("total", "bold"), "", "", "", *map(bytes_text, total), "", "")
    return table


def _products(rows: Sequence[LayerRow], short: Mapping[str, str], grouped: bool) -> Table:
    table = _table("product", "formats", "error", "weights", "where")
    for alike in _alike(rows, _same_product) if grouped else [[p] for p in rows]:
        p = alike[0]
        errors = [e for each in alike for e in each.layers or (each.error,) if e is not None]
        weights = [common_scope([short[w] for w in ws]) for ws in _columns(alike)]
        table.add_row(
            _name(alike, {}), p.formats, _span([f"{100 * e:.2f}" for e in sorted(errors)], "%"),
            ", ".join(weights), Text(p.where, "dim"),
        )  # fmt: skip
    return table


def _span(numbers: Sequence[str], unit: str) -> str:
    """From the least to the largest."""
    if not numbers:
        return ""
    ends = dict.fromkeys((numbers[0], numbers[-1]))
    return " to ".join(ends) + unit


def _alike(rows: Sequence[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    """Rows that a key tells no difference of, in the order of the first of each."""
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _same_weight(w: WeightRow) -> object:
    if _is_vector(w):
        return w.format, w.reason
    return _starred(w.name), w.shape, w.format, w.block, w.reason


def _same_product(p: LayerRow) -> object:
    return _starred(p.scope), p.op, p.formats, p.where, tuple(map(_starred, p.weights)), p.reason


def _is_vector(w: WeightRow) -> bool:
    return w.reason == NO_MATRIX


def _name(rows: Sequence[WeightRow] | Sequence[LayerRow], short: Mapping[str, str]) -> str:
    names = [r.name if isinstance(r, WeightRow) else r.scope or r.op for r in rows]
    times = f" x{len(rows)}" if len(rows) > 1 else ""
    return common_scope([short.get(n, n) for n in names]) + times


def _columns(rows: Sequence[LayerRow]) -> Iterator[tuple[str, ...]]:
    """The first weight of each of alike products, then the second."""
    return zip(*(p.weights for p in rows), strict=True)


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names as paths, `layer_0/mlp/up` of `params["layer_0"]["mlp"]["up"]`, without what all of
    them begin with.
    """
    paths = {n: re.findall(r"[\w.]+", n) for n in names}
    columns = zip(*paths.values(), strict=False)
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, columns)))
    return {n: "/".join(parts[common:] or parts[-1:]) for n, parts in paths.items()}


def _starred(name: str) -> str:
    """Numbers of layers as stars."""
    return re.sub(r"\d+", "*", name)


def _wide(rows: Sequence[LayerRow]) -> Iterator[RenderableType]:
    """What is not in 8 bits, and why."""
    for reason, count in Counter(p.reason for p in rows if p.reason).items():
        yield Text(f"not in 8 bits: {count} product{'s' * (count > 1)}, {reason}", "dim")


def _outputs(report: InferenceReport) -> Table:
    table = _table("result", "error", "cosine of rows", "at worst")
    for o in report.outputs:
        cosines = ("", "") if o.cosine is None else (f"{o.cosine:.4f}", f"{o.worst:.4f}")
        table.add_row(o.name, _percent(o.error), *cosines)
    return table


def _ranges(report: InferenceReport) -> Iterator[RenderableType]:
    """Where batches went past what was calibrated."""
    rows = [r for r in report.ranges if r.beyond]
    if not report.ranges:
        return
    yield Text()
    if not rows:
        yield Text(f"all {len(report.ranges)} activations stayed within their calibrated ranges")
        return
    yield Text("past the calibrated range, and saturated", "yellow")
    table = _table("activation of", "where", "limit", "elements", "share")
    for r in rows:
        share = f"{r.beyond / max(1, r.elements):.2%}"
        table.add_row(r.scope or "-", r.where, f"{r.limit:.3g}", f"{r.beyond:,}", share)
    yield table


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.2%}"


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    right = ("before", "stored", "SNR", "error", "limit", "elements", "share")
    for name in names:
        table.add_column(
            name, justify="right" if name in right else "left", overflow="fold",
            no_wrap=name in (*right, "format", "formats"), min_width=12 if name == "why" else None,
        )  # fmt: skip
    return table
