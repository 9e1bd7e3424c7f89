"""What an observation saw: statistics by tensor, kept in a file, shown as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from precir.domains.stats import Stats, one_nan
from precir.errors import DumpError
from precir.formats import E4M3, F16, format_of

ROWS: Final = 30  # on screen
_VERSION: Final = 1


@dataclass(frozen=True)
class Tensor:
    """One tensor of a program, and what it held.

    Attributes:
      scope: the module path it was made in.
      op: the primitive that made it, or "argument".
      phase: "forward", "backward", "update", or "" of an argument.
      line: the user's file and line, "train.py:57", or "".
      path: the ops whose sub-programs it is in, outermost first: ("scan", "cond").
      shape: its shape, in one iteration.
      stats: of all its elements, over all batches, iterations and devices.
      iterations: where asked for, of each iteration of the scans it is in, over all batches; in
        row-major order where `axes` are several.
      axes: the sizes of those scans, and of shard_maps (each device counts), outermost first.
    """

    scope: str
    op: str
    phase: str
    line: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    stats: Stats
    iterations: tuple[Stats, ...] = ()
    axes: tuple[int, ...] = ()

    def merge(self, other: Tensor) -> Tensor:
        """The same tensor, over the batches of both; iterations merge where they are as many."""
        alike = self.axes == other.axes and len(self.iterations) == len(other.iterations)
        pairs = zip(self.iterations, other.iterations, strict=False)
        merged = tuple([a.merge(b) for a, b in pairs]) if alike else ()
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        new = {
            "stats": self.stats.merge(other.stats),
            "iterations": merged,
            "axes": self.axes if alike else (),
        }
        return Tensor(**(own | new))


@dataclass(frozen=True)
class Observation:
    """Statistics of every measured tensor of a function.

    Attributes:
      name: the function's.
      detail: "full", "moments" or "amax".
      batches: how many were seen.
      tensors: by name, in program order. A name says where a tensor is made, and stays the same as
        long as the program does: phase, scope, op, file and line, and a number if that is not
        unique. An argument's is "argument" and its path.
    """

    name: str
    detail: str
    batches: int
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def merge(self, other: Observation) -> Observation:
        """Over the batches of both: of one function, or of its parts.

        Raises ValueError for observations of different detail.
        """
        if self.detail != other.detail:
            raise ValueError(f"observations of detail {self.detail} and {other.detail}")
        tensors = dict(self.tensors)
        for name, tensor in other.tensors.items():
            tensors[name] = tensors[name].merge(tensor) if name in tensors else tensor
        return Observation(self.name, self.detail, self.batches + other.batches, tensors)

    # -- kept ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write as JSON; `load` gives an equal observation.

        Raises DumpError if the file cannot be written.
        """
        written = {
            "precir_observation": _VERSION,
            **{k: getattr(self, k) for k in ("name", "detail", "batches")},
            "tensors": {name: _tensor_json(t) for name, t in self.tensors.items()},
        }
        path = Path(path)
        try:
            path.write_text(json.dumps(written, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise DumpError(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Observation:
        """Read what `save` wrote.

        Raises DumpError if there is no such file or it holds something else.
        """
        try:
            read = json.loads(Path(path).read_text(encoding="utf-8"))
            if read["precir_observation"] != _VERSION:
                raise DumpError(f"{path} is an observation of another version of precir")
            tensors = {name: _tensor_of(t) for name, t in read["tensors"].items()}
            return cls(read["name"], read["detail"], read["batches"], tensors)
        except OSError as error:
            raise DumpError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DumpError):
                raise
            raise DumpError(f"{path} is not an observation that precir saved") from error

    # -- shown ---------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def table(self, rows: int = ROWS) -> Table:
        """The tensors that would suffer most in 8 bits, worst first."""
        title = f"{self.name}: {len(self)} tensors, {self.batches} batches"
        table = Table(title=title, title_justify="left")
        table.add_column("tensor", overflow="fold", ratio=1)
        for heading in ("amax", "rms", "zero", "0 in e4m3", "0 in f16", "inf, NaN"):
            table.add_column(heading, justify="right", no_wrap=True)
        worst = sorted(self.tensors.items(), key=lambda item: _badness(item[1].stats))
        for name, tensor in worst[:rows]:
            table.add_row(Text(name), *_cells(tensor.stats))
        if len(self) > rows:
            table.caption = f"and {len(self) - rows} more"
        return table


def _badness(stats: Stats) -> tuple[float, float]:
    """Least for what is worst: not finite, then most lost in E4M3 under its best scale."""
    lost = 0.0 if stats.bins is None else stats.underflow(E4M3, best_scale(stats))
    broken = stats.count - stats.finite if not stats.partial else not math.isfinite(stats.amax)
    return (-float(broken), -lost if lost or stats.bins else -stats.amax)


def best_scale(stats: Stats) -> int:
    """The power of two under which the largest magnitude just fits E4M3."""
    if not 0 < stats.amax < math.inf:
        return 0
    return -math.ceil(math.log2(stats.amax / E4M3.max))


def _cells(stats: Stats) -> list[str]:
    if stats.partial:
        return [_number(stats.amax), *[""] * 5]
    shares = [stats.fraction(stats.zeros)]
    shares += [stats.underflow(E4M3, best_scale(stats)), stats.underflow(F16)]
    special = stats.count - stats.finite
    shown = [_number(stats.amax), _number(stats.rms), *map(_share, shares)]
    return [*shown, f"{special:,}" if special else ""]


def _number(x: float) -> str:
    return f"{x:.3g}"


def _share(x: float) -> str:
    if math.isnan(x):
        return ""
    return "0" if not x else "<0.1%" if x < 0.001 else f"{x:.1%}"


# -- as JSON ---------------------------------------------------------------------------------------


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    plain = {f.name: getattr(tensor, f.name) for f in fields(tensor)}
    plain["stats"] = _stats_json(tensor.stats)
    plain["iterations"] = [_stats_json(s) for s in tensor.iterations]
    return plain


def _tensor_of(read: dict[str, Any]) -> Tensor:
    lists = {k: tuple(read[k]) for k in ("path", "shape", "axes")}
    iterations = tuple(_stats_of(s) for s in read["iterations"])
    stats = _stats_of(read["stats"])
    return Tensor(**(read | lists | {"stats": stats, "iterations": iterations}))


def _stats_json(stats: Stats) -> dict[str, Any]:
    """Floats as Python writes them, exactly; those that JSON has no number for as strings."""
    plain = {f.name: getattr(stats, f.name) for f in fields(stats)}
    for key, value in plain.items():
        if isinstance(value, float) and not math.isfinite(value):
            plain[key] = str(value)
    plain["format"] = stats.format.name
    plain["bins"] = None if stats.bins is None else [[e, n] for e, n in stats.bins.items()]
    return plain


def _stats_of(read: dict[str, Any]) -> Stats:
    plain = {
        k: one_nan(float(v)) if isinstance(v, str) and k != "format" else v for k, v in read.items()
    }
    bins = None if read["bins"] is None else MappingProxyType(dict(read["bins"]))
    return Stats(**(plain | {"format": format_of(read["format"]), "bins": bins}))
