"""A report as data: rows of products and tensors, and the sums over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from precir.errors import DumpError
from precir.report.units import percent_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from precir.program import Program


@dataclass(frozen=True)
class ProductRow:
    """One matrix product or convolution.

    Attributes:
      low: whether its operands are quantised to 8 bits.
      format: formats of its operands, as "E4M3 x E5M2".
      result: format of its result.
      shape: shapes of operands and result, as "[8,64] x [64,32] -> [8,32]".
      scope: the module it is in, as "GPT/h_0/mlp".
      phase: "forward", "backward" or "update".
      where: the user's file and line, "" if unknown.
      reason: why it runs in this format.
      op: JAX's name of the operation.
      times: how often it runs in one call, None if that depends on the data.
      flops: floating-point operations of one run, None if unknown.
      way: for 8 bits, what computes it on a GPU and the times that decide so
        (`precir.kernels.choice`).
    """

    low: bool
    format: str
    result: str
    shape: str
    scope: str
    phase: str
    where: str
    reason: str
    op: str
    times: int | None
    flops: int | None
    way: str = ""


@dataclass(frozen=True)
class TensorRow:
    """One value that the compiled program makes.

    Attributes:
      name: the name the user gave it, else the operation that makes it.
      op: the operation that makes it.
      shape: as "[8,64]".
      format: as "f32" or "E4M3".
      bytes: of data and scale, once, however often it is made.
      phase, scope, where: as in `ProductRow`.
      times: how often it is made in one call, None if that depends on the data.
      holds: what numbers it may hold, as "[0, 1]" or "[-8, 8] or nan"; "" if nothing is known.
    """

    name: str
    op: str
    shape: str
    format: str
    bytes: int
    phase: str
    scope: str
    where: str
    times: int | None
    holds: str


@dataclass(frozen=True)
class KeptRow:
    """One value that did not get the format that the recipe asks for.

    Attributes:
      op, phase, scope, where: as in `ProductRow`.
      reason: what is known of it that rules the format out.
    """

    op: str
    phase: str
    scope: str
    where: str
    reason: str


@dataclass(frozen=True)
class FormatSum:
    """How many tensors have a format, and their bytes."""

    format: str
    count: int
    bytes: int


@dataclass(frozen=True)
class RescaleRow:
    """How often data is brought under another scale in one layer.

    `known`: by a power of two known while compiling; `free`: of these, within a product, before
    its result is rounded; `computed`: by one made of other scales while running; `measured`: how
    many scales are taken from the data itself.
    """

    layer: str
    known: int
    free: int
    computed: int
    measured: int


@dataclass(frozen=True)
class UpdateRow:
    """What became of the updates of some parameters, where they are to be fused.

    Attributes:
      fused: whether they are in the loop that makes their gradients.
      passes: how often that loop runs; 0 where nothing changed.
      stacks: paths of the parameters and moments updated in place.
      count, bytes: of the stacked gradients: those that are no more, or those that stay.
      where: the loop's line in the user's file.
      op, at: what stands in the way of those left alone, and its line; "" where nothing does.
      reason: why they are left alone, or what is still to say.
    """

    fused: bool
    passes: int
    stacks: str
    count: int
    bytes: int
    where: str
    op: str
    at: str
    reason: str


@dataclass(frozen=True)
class StateRow:
    """State of one class in one format.

    Attributes:
      what: "weight", "first moment", "second moment", "counter" or "other", as seen from how the
        update uses it.
      format: as "f16".
      count: how many arrays.
      bytes: of data and scales.
      names: where they are in the arguments.
    """

    what: str
    format: str
    count: int
    bytes: int
    names: str


@dataclass(frozen=True)
class KernelRow:
    """One value that a kernel computes and quantises in one pass, or could have.

    Attributes:
      kernel: its name, as "norm_quantize"; "cast" for what is stored in 16 bits on the way.
      used: whether it is.
      shape: of the value, as "[8,64]".
      scope, phase, where, times: as in `ProductRow`.
      bytes: that no longer go through memory, in one call, by the model
        (`precir.passes.fused_cost`); negative where it would be more.
      reason: what it computes, or why it is not used.
    """

    kernel: str
    used: bool
    shape: str
    scope: str
    phase: str
    where: str
    times: int | None
    bytes: int
    reason: str


@dataclass(frozen=True)
class Report:
    """Every product and tensor of a compiled program, its format and why.

    Prints as tables with `rich.print`, long ones cut; `str` gives all of it as plain text, always
    the same for the same program, and `to_json` as plain data.

    Attributes:
      name: the function.
      place: where it is defined, as "train.py:88", "" if unknown.
      recipe: the recipe's name.
      numbers: the recipe in words.
      products: every matrix product and convolution in program order, those of sub-programs too.
      tensors: every value made by the final program, largest first.
      residuals: those that forward nodes make and backward nodes read, largest first. Arguments
        and constants are not among them; a loop's are counted as the loop stacks them.
      arguments: the program's inputs, by format.
      kept: values that stayed wide for what is known of them, in program order.
      rescales: changes of scale by layer, where scales are propagated.
      updates: which parameter updates are fused into backward loops, and which are left alone.
      state: what lives between steps, by class and format, where the recipe stores it by class.
      kernels: what is computed and quantised in one kernel, and what could have been.
    """

    name: str
    place: str
    recipe: str
    numbers: str
    products: tuple[ProductRow, ...]
    tensors: tuple[TensorRow, ...]
    residuals: tuple[TensorRow, ...]
    arguments: tuple[FormatSum, ...]
    kept: tuple[KeptRow, ...] = ()
    rescales: tuple[RescaleRow, ...] = ()
    updates: tuple[UpdateRow, ...] = ()
    state: tuple[StateRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()

    @staticmethod
    def of(program: Program) -> Report:
        """The report on a program."""
        from precir.report.gather import gather

        return gather(program)

    @property
    def low(self) -> int:
        """How many products run in 8 bits."""
        return sum(p.low for p in self.products)

    @property
    def residual_bytes(self) -> int:
        """Bytes that the forward program leaves for the backward one."""
        return sum(t.bytes for t in self.residuals)

    @property
    def formats(self) -> tuple[FormatSum, ...]:
        """The tensors by format, most bytes first."""
        return by_format((t.format, t.bytes) for t in self.tensors)

    @property
    def residual_formats(self) -> tuple[FormatSum, ...]:
        """The residuals by format, most bytes first."""
        return by_format((t.format, t.bytes) for t in self.residuals)

    @property
    def wide(self) -> Mapping[str, tuple[ProductRow, ...]]:
        """Products that are not in 8 bits, by reason, in program order."""
        found: dict[str, list[ProductRow]] = {}
        for product in self.products:
            if not product.low:
                found.setdefault(product.reason, []).append(product)
        return {reason: tuple(rows) for reason, rows in found.items()}

    @property
    def headline(self) -> str:
        """`54 of 57 products in FP8, 95.1% of the multiply-adds`."""
        if not self.products:
            return "no matrix products"
        line = f"{self.low} of {len(self.products)} products in FP8"
        if not self.low:
            counts = Counter(p.format.partition(" x ")[0] for p in self.products)
            return f"{line}: {', '.join(f'{n} in {name}' for name, n in counts.items())}"
        work = [((p.flops or 0) * (p.times or 0), p.low) for p in self.products]
        if any(p.flops is None or p.times is None for p in self.products):
            return line
        share = percent_text(sum(n for n, low in work if low), sum(n for n, _ in work))
        return f"{line}, {share} of the multiply-adds"

    def to_json(self) -> dict[str, Any]:
        """The report as dicts, lists, strings, numbers, booleans and None; sums included."""
        data: dict[str, Any] = {"headline": self.headline, "residual_bytes": self.residual_bytes}
        for name, value in asdict(self).items():
            data[name] = list(value) if isinstance(value, tuple) else value
        data["formats"] = [asdict(f) for f in self.formats]
        data["residual_formats"] = [asdict(f) for f in self.residual_formats]
        return data

    @staticmethod
    def from_json(data: Any, where: str = "report.json") -> Report:
        """The report that `to_json` gave. Raises `DumpError` for anything else."""
        words = {k: _field(data, k, where, str) for k in ("name", "place", "recipe", "numbers")}
        return Report(
            **words,
            products=tuple(_rows(ProductRow, data, "products", where)),
            tensors=tuple(_rows(TensorRow, data, "tensors", where)),
            residuals=tuple(_rows(TensorRow, data, "residuals", where)),
            arguments=tuple(_rows(FormatSum, data, "arguments", where)),
            kept=tuple(_rows(KeptRow, data, "kept", where)),
            rescales=tuple(_rows(RescaleRow, data, "rescales", where)),
            updates=tuple(_rows(UpdateRow, data, "updates", where)),
            state=tuple(_rows(StateRow, data, "state", where)),
            kernels=tuple(_rows(KernelRow, data, "kernels", where)),
        )

    def __str__(self) -> str:
        from precir.report.plain import plain

        return plain(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from precir.report.screen import screen

        yield from screen(self, options.max_width)


def by_format(sizes: Iterable[tuple[str, int]]) -> tuple[FormatSum, ...]:
    """Sum (format, bytes) pairs, most bytes first."""
    counts: dict[str, tuple[int, int]] = {}
    for name, size in sizes:
        count, total = counts.get(name, (0, 0))
        counts[name] = count + 1, total + size
    sums = [FormatSum(name, *found) for name, found in counts.items()]
    return tuple(sorted(sums, key=lambda s: (-s.bytes, s.format)))


def _field(data: Any, key: str, where: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        raise _damaged(f"`{key}` is missing or is not a {kind.__name__}", where)
    return value


_KINDS = {"bool": (bool,), "int": (int,), "str": (str,), "int | None": (int, type(None))}


def _rows(row: type[Any], data: Any, key: str, where: str) -> Iterable[Any]:
    kinds = {f.name: _KINDS[str(f.type)] for f in fields(row)}
    for n, given in enumerate(_field(data, key, where, list)):
        if not isinstance(given, dict) or given.keys() != kinds.keys():
            raise _damaged(f"row {n} of `{key}` has not the fields {', '.join(kinds)}", where)
        for name, kind in kinds.items():
            if type(given[name]) not in kind:
                raise _damaged(f"`{name}` in row {n} of `{key}` is {given[name]!r}", where)
        yield row(**given)


def _damaged(what: str, where: str) -> DumpError:
    return DumpError(f"this is no report: {what}", where=where, fix="write the dump again")
