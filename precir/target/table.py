"""A `Memory` as tables."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from precir.target.memory import Memory

_GIB = 1 << 30


def gib(count: int) -> str:
    """Bytes in units of 2^30, as memory is sold and reported by GPUs; small ones in 2^20."""
    if count >= _GIB / 10 or not count:
        return f"{count / _GIB:.2f} GiB"
    return f"{count / (1 << 20):.2f} MiB"


def plain(memory: Memory) -> str:
    """Tables without colour, 100 columns wide."""
    to = io.StringIO()
    console = Console(file=to, width=100, color_system=None)
    for part in screen(memory):
        console.print(part)
    return "\n".join(line.rstrip() for line in to.getvalue().splitlines()) + "\n"


def screen(memory: Memory) -> Iterator[RenderableType]:
    """What `rich.print` shows."""
    yield Text.assemble((memory.name, "bold"), _heading(memory))
    yield Text(_headline(memory), "" if memory.fits else "bold red")
    yield Text()
    yield _sizes(memory)
    if memory.products:
        yield Text()
        yield _products(memory)
    if memory.collectives:
        yield Text()
        yield _collectives(memory)
    if memory.kernels:
        yield Text()
        calls = ", ".join(f"{k.count:,} {k.name}" for k in memory.kernels)
        yield Text(f"other kernels called by name: {calls}", "dim")
    if not memory.exact:
        line = "loops of unknown length are counted once, branches as if all are taken"
        yield Text(line, "yellow")


def _heading(memory: Memory) -> str:
    recipe = f"  recipe {memory.recipe}" if memory.recipe else ""
    if memory.devices == 1:
        return f"{recipe}  on one {memory.card}"
    axes = ", ".join(f"{k}={v}" for k, v in memory.mesh.items())
    return f"{recipe}  on {memory.devices} {memory.card} ({axes}), each"


def _headline(memory: Memory) -> str:
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    line = f"peak {gib(memory.peak)} of {gib(memory.capacity)}: {verdict}"
    total = sum(p.count for p in memory.products)
    if total:
        share = f"{100 * memory.low_share:.1f}% of the multiply-adds"
        line += f"; {memory.low:,} of {total:,} products in FP8, {share}"
    return line


def _sizes(memory: Memory) -> Table:
    table = _table("memory", "bytes")
    table.add_row("arguments", gib(memory.argument))
    table.add_row("outputs", gib(memory.output))
    table.add_row("  in the place of donated arguments", gib(memory.alias))
    table.add_row("temporaries", gib(memory.temporary))
    table.add_row("code", gib(memory.code))
    return table


def _products(memory: Memory) -> Table:
    table = _table("products", "count", "multiply-adds", "share")
    whole = sum(p.flops for p in memory.products) or 1
    for p in memory.products:
        name = f"{p.kernel}: {p.operands} -> {p.out}"
        share = f"{100 * p.flops / whole:.1f}%"
        style = "green" if p.low else ""
        table.add_row(Text(name, style), f"{p.count:,}", f"{p.flops / 2:.3g}", share)
    return table


def _collectives(memory: Memory) -> Table:
    table = _table("collectives", "count", "bytes")
    for c in memory.collectives:
        table.add_row(f"{c.kind} of {c.dtype}", f"{c.count:,}", gib(c.bytes))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True, min_width=44)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
