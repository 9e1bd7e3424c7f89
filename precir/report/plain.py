"""A report as plain text: all of it, the same on every terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from precir.report.data import FormatSum, KernelRow, Report, TensorRow, UpdateRow
from precir.report.units import bytes_text

Cells = Sequence[str]


def plain(report: Report) -> str:
    """The whole report."""
    at = f", {report.place}" if report.place else ""
    sections = [
        f"precir report: {report.name}{at}",
        f"recipe {report.recipe}: {report.numbers}\n{report.headline}\n{residual_line(report)}",
        _titled("Formats of the arguments", _sums(report.arguments)),
        _titled("Formats of the tensors between operations", _sums(report.formats)),
        _titled("Formats of the residuals", _sums(report.residual_formats)),
        _titled("Products in program order", _products(report)),
        *_wide(report),
        _titled("Products in FP8 on a GPU", _ways(report)),
        _titled("Computed and quantised in one kernel", _kernels(report)),
        _titled("Kept wide for what they hold", _kept(report)),
        _titled("Changes of scale, by layer", _rescales(report)),
        _titled("State between steps", _state(report)),
        _titled("Updates in backward loops", _updates(report)),
        _titled("Residuals, largest first", _tensors(report.residuals)),
        _titled("Tensors, largest first", _tensors(report.tensors)),
    ]
    return "\n\n".join(s for s in sections if s) + "\n"


def residual_line(report: Report) -> str:
    """What the forward program leaves for the backward one, in one line."""
    if not report.residuals:
        return "nothing is kept from forward to backward"
    count = len(report.residuals)
    tensors = f"{count} tensor{'s' * (count > 1)}"
    return f"{bytes_text(report.residual_bytes)} kept from forward to backward, {tensors}"


def times_text(times: int | None) -> str:
    """How often a node runs: nothing to say of once."""
    return "?" if times is None else "" if times == 1 else f"{times}"


def _titled(title: str, lines: list[str]) -> str:
    return "\n".join([title, "-" * len(title), *lines]) if lines else ""


def _sums(sums: Iterable[FormatSum]) -> list[str]:
    rows = [(s.format, f"{s.count}", bytes_text(s.bytes), f"{s.bytes}") for s in sums]
    return table(("format", "tensors", "size", "bytes"), rows, right=(1, 2, 3))


def _rescales(report: Report) -> list[str]:
    head = ("layer", "known", "in products", "computed", "measured")
    rows = [
        (r.layer or "-", f"{r.known}", f"{r.free}", f"{r.computed}", f"{r.measured}")
        for r in report.rescales
    ]
    return table(head, rows, right=(1, 2, 3, 4))


def _state(report: Report) -> list[str]:
    rows = [(r.what, r.format, f"{r.count}", f"{r.bytes}", r.names) for r in report.state]
    return table(("state", "format", "arrays", "bytes", "names"), rows, right=(2, 3))


def _updates(report: Report) -> list[str]:
    rows = [
        (
            "fused" if u.fused else "left alone", f"{u.passes or ''}", f"{u.count}", f"{u.bytes}",
            u.where, u.stacks, update_words(u),
        )
        for u in report.updates
    ]  # fmt: skip
    head = ("update", "passes", "gradients", "bytes", "loop", "in place", "because")
    return table(head, rows, right=(1, 2, 3))


def update_words(row: UpdateRow) -> str:
    """`div at train.py:31 reads them whole, not row by row`."""
    return " ".join(filter(None, [row.op, f"at {row.at}" if row.at else "", row.reason]))


def _products(report: Report) -> list[str]:
    head = ("format", "result", "shape", "scope", "phase", "where", "times", "reason")
    return table(
        head,
        [
            (p.format, p.result, p.shape, p.scope, p.phase, p.where, times_text(p.times), p.reason)
            for p in report.products
        ],
        right=(6,),
    )


def _ways(report: Report) -> list[str]:
    """Alike ones together."""
    alike = Counter((p.format, p.shape, p.way) for p in report.products if p.way)
    rows = [(f"{count}", *key) for key, count in alike.items()]
    return table(("products", "format", "shape", "way, and why"), rows, right=(0,))


def _kernels(report: Report) -> list[str]:
    """Alike ones together, those most is saved by first."""
    head = ("count", "kernel", "shape", "times", "bytes saved", "scope", "phase", "where", "what")
    rows = [
        (f"{n}", k.kernel if k.used else f"(no {k.kernel})", k.shape, times_text(k.times),
         f"{size}", k.scope, k.phase, k.where, k.reason)
        for k, n, size in alike_kernels(report.kernels)
    ]  # fmt: skip
    return table(head, rows, right=(0, 3, 4))


def alike_kernels(kernels: Iterable[KernelRow]) -> list[tuple[KernelRow, int, int]]:
    """(row, how many such, bytes of all of them): of one kernel, shape, place and reason."""
    found: dict[tuple[object, ...], list[KernelRow]] = {}
    for k in kernels:
        found.setdefault((k.kernel, k.used, k.shape, k.phase, k.where, k.reason), []).append(k)
    sums = [(rows[0], len(rows), sum(k.bytes for k in rows)) for rows in found.values()]
    return sorted(sums, key=lambda s: (not s[0].used, -s[2]))


def _wide(report: Report) -> Iterable[str]:
    """Only where some are not: a recipe without 8 bits has nothing to explain."""
    if report.low:
        lines = []
        for reason, rows in report.wide.items():
            lines.append(f"{len(rows)}: {reason}")
            places = (f"{p.format}, {p.scope or p.op}, {p.phase} {p.where}" for p in rows)
            lines += [f"  {place}".rstrip() for place in places]
        yield _titled("Products not in FP8, by reason", lines)


def _tensors(tensors: Iterable[TensorRow]) -> list[str]:
    head = ("bytes", "format", "shape", "name", "phase", "scope", "where", "times", "holds")
    return table(head, [_cells(t) for t in tensors], right=(0, 7))


def _kept(report: Report) -> list[str]:
    rows = [(k.op, k.phase, k.scope, k.where, k.reason) for k in report.kept]
    return table(("made by", "phase", "scope", "where", "reason"), rows)


def _cells(t: TensorRow) -> Cells:
    times = times_text(t.times)
    return f"{t.bytes}", t.format, t.shape, t.name, t.phase, t.scope, t.where, times, t.holds


def table(head: Cells, rows: Sequence[Cells], right: tuple[int, ...] = ()) -> list[str]:
    """Lines of aligned columns; empty ones are left out. No rows, no lines."""
    if not rows:
        return []
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [head, *rows]
    widths = {i: max(len(line[i]) for line in lines) for i in kept}

    def line(cells: Cells) -> str:
        padded = [
            cells[i].rjust(widths[i]) if i in right else cells[i].ljust(widths[i]) for i in kept
        ]
        return "  ".join(padded).rstrip()

    return [line(cells) for cells in lines]
