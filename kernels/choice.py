"""Which way a product of FP8 operands takes on a GPU: by Triton, by XLA and cuBLASLt, or in bf16.

The numbers are data, ``choice.json``: ceilings of devices, a model of each way, and what was
measured. A measured row corrects the model of its way at the shapes near it; where there is none,
the model stands alone, and `explain` says so.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.errors import PrecirError

Way = Literal["triton", "xla", "bf16"]
WAYS: Final[tuple[Way, ...]] = get_args(Way)
ENVIRONMENT: Final = "PRECIR_SCALED_DOT"

_LANES: Final = 128  # float32 operations of a multiprocessor in a cycle
_PRODUCTS: Final = 4096  # FP8 multiplications of its tensor cores in a cycle, on Hopper
_TIE: Final = 1.05  # within this, the more exact way is taken: bf16, then triton, then xla

_preferred: ContextVar[Way | None] = ContextVar("preferred", default=None)


class Grain(NamedTuple):
    """What a scale of an operand reaches over: so many rows (0 for all), and so much of the axis
    that is summed over (0 for all).
    """

    rows: int = 0
    k: int = 0

    def __str__(self) -> str:
        if not self.k:
            return {0: "tensor", 1: "row"}.get(self.rows, f"{self.rows} rows")
        return f"{self.rows or 'all'}x{self.k}"


class ChoiceError(PrecirError, ValueError):
    """A way of multiplying that does not exist."""


@contextmanager
def prefer(way: Way | None) -> Iterator[None]:
    """Inside, products take this way where they can, whatever the table says; None undoes it.

    It is read when a program is lowered, so a function that was already compiled stays as it is.
    The environment variable PRECIR_SCALED_DOT does the same for a process.
    """
    token = _preferred.set(_checked(way))
    try:
        yield
    finally:
        _preferred.reset(token)


def choose(
    shapes: Sequence[int],
    formats: tuple[str, str],
    granularity: tuple[Grain, Grain],
    out: DTypeLike,
    device: str = "",
    *,
    epilogue: bool = False,
) -> Way:
    """The way of a product of ``shapes`` (batch, M, N, K), all of them at least 1.

    ``formats`` are the names of the operands' dtypes, ``granularity`` what their scales reach
    over, ``out`` the dtype of the result, ``device`` JAX's name of the GPU ("" for the one that is
    compiled for), ``epilogue`` whether a bias, an activation or a scale of the result follows.
    """
    preferred = _preferred.get() or _checked(os.environ.get(ENVIRONMENT) or None)
    times = seconds(shapes, formats, granularity, out, device, epilogue=epilogue)
    return preferred if preferred in times else fastest(times)


def fastest(times: Mapping[Way, float]) -> Way:
    """The way that takes the least of these times; of those that take about as much, the more exact
    one.
    """
    least = min(times.values())
    return next(w for w in ("bf16", "triton", "xla") if times.get(w, math.inf) <= _TIE * least)


def explain(
    shapes: Sequence[int],
    formats: tuple[str, str],
    granularity: tuple[Grain, Grain],
    out: DTypeLike,
    device: str = "",
    *,
    epilogue: bool = False,
) -> str:
    """Why `choose` answers as it does, in a line: the time of each way, and where it is from."""
    device = _known(device)
    way = choose(shapes, formats, granularity, out, device, epilogue=epilogue)
    times = seconds(shapes, formats, granularity, out, device, epilogue=epilogue)
    each = ", ".join(f"{w} {1e6 * t:.1f} us" for w, t in sorted(times.items(), key=lambda x: x[1]))
    source = "measured near it" if _rows(device, granularity) else "by the model"
    missing = [f"no {w}: {why}" for w in WAYS if (why := _refusal(w, formats, granularity))]
    wish = _preferred.get() or os.environ.get(ENVIRONMENT)
    wanted = [f"{wish} was asked for"] if wish else []
    return "; ".join([f"{way}: {each} ({source}, {device})", *missing, *wanted])


def seconds(
    shapes: Sequence[int],
    formats: tuple[str, str],
    granularity: tuple[Grain, Grain],
    out: DTypeLike,
    device: str = "",
    *,
    epilogue: bool = False,
) -> dict[Way, float]:
    """How long each way takes that there is, in seconds: the model, corrected by what was measured.

    The model is the slower of the tensor cores and the memory. The cores work at the device's
    ceiling, in whole rounds of tiles over its multiprocessors; by Triton they wait for each
    addition to the float32 sum. The memory moves the operands once and the result once, and again
    what XLA does in kernels of its own: copies of the operands, in bfloat16 or padded, and the
    scales, bias and rounding after the product. Where that is one round of tiles or less, they are
    taken to be part of the kernels before and after it.
    """
    device = _known(device)
    times: dict[Way, float] = {}
    for way in WAYS:
        if _refusal(way, formats, granularity):
            continue
        times[way] = _modelled(way, tuple(shapes), granularity, np.dtype(out), device, epilogue)
        rows = [r for r in _rows(device, granularity) if r["way"] == way]
        if rows:
            near = min(rows, key=lambda r: _apart(r["shapes"], shapes))
            measured = tuple(near["shapes"]), granularity, np.dtype(near["out"]), device
            times[way] *= near["seconds"] / _modelled(way, *measured, bool(near.get("epilogue")))
    return times


def tuned(
    shapes: Sequence[int], granularity: tuple[Grain, Grain], device: str = ""
) -> dict[str, Any] | None:
    """The tiles that were fastest by Triton at the measured shapes nearest to these, as the fields
    of a `precir.kernels.tiling.Tiling`; None where none were measured.
    """
    rows = [r for r in _rows(_known(device), granularity) if r.get("tiling")]
    near = min(rows, key=lambda r: _apart(r["shapes"], shapes), default=None)
    return near and cast(dict[str, Any], near["tiling"])


def _modelled(
    way: Way,
    shapes: tuple[int, ...],
    granularity: tuple[Grain, Grain],
    out: np.dtype[Any],
    device: str,
    epilogue: bool,
) -> float:
    ceiling, row = table()["devices"][device], table()["ways"][way]
    batch, m, n, k = shapes
    tiles = batch * math.ceil(m / row["tile"][0]) * math.ceil(n / row["tile"][1])
    rounds = math.ceil(tiles / ceiling["cores"]) * ceiling["cores"]
    work = 2.0 * rounds * math.prod(row["tile"]) * k / ceiling[row["rate"]]
    if row["additions"]:
        step = min(128, *(g.k or 128 for g in granularity))
        # Beside the addition, a product of scales for each element, where both differ there.
        each = 2 if all(g.k and 0 < g.rows < row["tile"][0] for g in granularity) else 1
        work *= 1 + each / _LANES / (step / _PRODUCTS)
    read, written = batch * k * (m + n), batch * m * n
    moved, apart, kernels = read + written * out.itemsize, 0, 1
    if tiles > ceiling["cores"]:
        if way != "triton" and epilogue:
            # The product there and back, in float32 unless the result is in bfloat16.
            apart, kernels = 2 * (2 if out == jnp.bfloat16 else 4) * written, 2
        elif way != "triton" and not all(g.k for g in granularity):
            apart, kernels = 2 * out.itemsize * written, 2  # the scales, in a pass of its own
        if way == "bf16":
            apart, kernels = apart + 4 * read, kernels + 2  # the copies, there and back
        elif k % 16 or (way == "xla" and n % 16):
            apart, kernels = apart + 2 * read, kernels + 2
    busy = max(work, moved / ceiling["bytes"]) + apart / ceiling["bytes"]
    return float(busy + kernels * row["launch"])


def _refusal(way: Way, formats: tuple[str, str], granularity: tuple[Grain, Grain]) -> str:
    """Why there is no such way; empty where there is."""
    if way == "bf16":
        return ""
    if any(np.dtype(f).itemsize > 1 for f in formats):
        return "an operand is not FP8"
    steps = [g.k for g in granularity if g.k]
    if way == "xla" and steps:
        return "scales change along what is summed over"
    if any(k % 32 for k in steps):
        return f"blocks of {min(steps)} are no multiple of the 32 that tensor cores take at once"
    return ""


def _rows(device: str, granularity: tuple[Grain, Grain]) -> list[dict[str, Any]]:
    names = [str(g) for g in granularity]
    return [
        row
        for row in table()["measured"]
        if row["device"] == device and list(row["granularity"]) == names
    ]


def _apart(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))


def _known(device: str) -> str:
    """The name in the table of a device: the H100's for what is not in it."""
    device = device or _first_device()
    return next((name for name in table()["devices"] if device.startswith(name)), "NVIDIA H100")


def device(name: str = "") -> dict[str, Any]:
    """The table's row for a GPU by its name; for this machine's, or an H100, without one."""
    return cast(dict[str, Any], table()["devices"][_known(name)])


def multiprocessors() -> int:
    """Those of this machine's GPU; of an H100 where there is none."""
    try:
        return int(jax.devices("cuda")[0].core_count)
    except RuntimeError:
        return int(table()["devices"]["NVIDIA H100"]["cores"])


@lru_cache(maxsize=1)
def _first_device() -> str:
    try:
        return str(jax.devices("cuda")[0].device_kind)
    except RuntimeError:
        return ""


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """``choice.json``."""
    return cast(dict[str, Any], json.loads(Path(__file__).with_name("choice.json").read_text()))


def _checked(way: str | None) -> Way | None:
    if way is not None and way not in WAYS:
        raise ChoiceError(f"a product goes by {', '.join(WAYS)}, not {way!r}")
    return way
