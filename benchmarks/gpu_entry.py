"""What an entry of gpu_kernels.py is made of: a kernel, how it is judged, and numbers for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from precir.kernels import E4M3
from precir.kernels.tiling import USUAL, Tiling
from precir.scaled import ScaledArray

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Judge:
    """How far a result may be from what it must be: ``differ`` of both, at most ``limit``."""

    differ: Callable[[Any, Any], Any]
    limit: float
    text: str

    def verdict(self, found: float) -> str:
        """In words."""
        return self.text.format(found) if found <= self.limit else f"WRONG: {found:.3g}"


@dataclass(frozen=True)
class Kernel:
    """A function with what it takes and what it may cost.

    ``arguments`` makes them from a key, sizes, and whether to mix in special values. ``work`` are
    its multiplications and additions in the format ``rate``. ``way`` and ``tiling`` are as
    `gpu_clock.taking` has them. ``aim`` is what to reach: a share of the floor ("share"),
    operations in a second ("rate"), or so many times as fast as the group's base ("over").
    """

    name: str
    function: Callable[..., Any]
    arguments: Callable[[jax.Array, Sizes, bool], tuple[Any, ...]]
    judge: Judge
    checked: tuple[Sizes, ...]
    tiny: Sizes
    reads: int = 1
    work: Callable[[Sizes], float] | None = None
    rate: Literal["fp8", "bf16"] = "fp8"
    expected: Callable[..., Any] | None = None
    way: str | None = None
    tiling: Tiling | None = None
    aim: tuple[str, float] | None = None


@dataclass(frozen=True)
class Group:
    """Kernels that are timed in turns at one size; ``base`` is what the others are compared to.
    The lower the ``rank``, the earlier.
    """

    name: str
    sizes: Sizes
    kernels: tuple[Kernel, ...]
    base: str
    rank: float


def said(tiling: Tiling) -> str:
    """A tiling in words: what is not as usual."""
    differ = [n for n, v in tiling._asdict().items() if v != getattr(USUAL, n)]
    words = [n.upper() if v is True else f"{v} {n}" if v else f"no {n}"
             for n, v in tiling._asdict().items() if n in differ and n not in "mn"]  # fmt: skip
    tile = [f"{tiling.m}x{tiling.n}"] if {"m", "n"} & set(differ) else []
    return " ".join([*tile, *words]) or "usual tiles"


# --- how results are judged -----------------------------------------------------------------------


def count_different(actual: Any, expected: Any) -> Any:
    """How many elements have other bits; NaNs are alike."""
    total = jnp.zeros((), np.int32)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape), (a.dtype, a.shape, e.dtype, e.shape)
        kind = f"u{a.dtype.itemsize}"
        different = lax.bitcast_convert_type(a, kind) != lax.bitcast_convert_type(e, kind)
        if jnp.issubdtype(a.dtype, jnp.floating):
            different &= ~(jnp.isnan(a) & jnp.isnan(e))
        total += jnp.sum(different, dtype=np.int32)
    return total


UNITS = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "float8_e4m3fn": 2**-4}


def share_of_bound(actual: Any, expected: Any) -> Any:
    """The largest error over what is allowed: 1e-5 of the product of magnitudes, and where it is
    rounded a unit in the last place.
    """
    value, magnitude, *largest = expected
    result, *amax = actual if isinstance(actual, tuple) else (actual,)
    unit, least = UNITS[result.dtype.name], 0.0
    if isinstance(result, ScaledArray):
        least = E4M3.smallest_subnormal * result.scale
        result = result.unscale()
    error = jnp.abs(result.astype(value.dtype) - value)
    share = jnp.max(error / (1e-5 * magnitude + unit * jnp.abs(value) + least))
    for a, e in zip(amax, largest, strict=True):
        share = jnp.maximum(share, jnp.abs(a - e) / (1e-5 * e))
    return share


def share_apart(actual: Any, expected: Any) -> Any:
    """How far results are apart that may differ in the last bits of an exponential, a root or a
    sum, over how far they may be: of 8-bit data one in a thousand by one code, of 16 bits all by a
    unit in the last place, float32 by 1e-5 of itself and 1e-6 of the largest.
    """
    most = jnp.zeros((), np.float32)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape), (a.dtype, a.shape, e.dtype, e.shape)
        wide = [x.astype(np.float32) for x in (a, e)]
        alike = (wide[0] == wide[1]) | (jnp.isnan(wide[0]) & jnp.isnan(wide[1]))
        usual = jnp.isfinite(wide[0]) & jnp.isfinite(wide[1])
        most = jnp.where(jnp.any(~usual & ~alike), np.inf, most)
        if a.dtype.itemsize == 1:
            codes = [_in_order(x) for x in (a, e)]
            off = jnp.where(usual, jnp.abs(codes[0] - codes[1]), 0)
            share = jnp.sum(off, dtype=np.float32) / max(1.0, 1e-3 * a.size)
            share = jnp.where(jnp.max(off, initial=0) > 1, np.inf, share)
        else:
            last = 2.0**-7 if a.dtype.itemsize == 2 else 0.0
            sizes = jnp.where(usual, jnp.abs(wide[1]), 0)
            allowed = (1e-5 + last) * sizes + 1e-6 * jnp.max(sizes, initial=0)
            apart = jnp.where(usual & ~alike, jnp.abs(wide[0] - wide[1]), 0)
            share = jnp.max(jnp.where(apart > 0, apart / allowed, 0), initial=0)
        most = jnp.maximum(most, share)
    return most


def _in_order(x: Any) -> Any:
    """8-bit floats as integers in the order of the numbers, both zeros being one."""
    bits = lax.bitcast_convert_type(x, np.uint8).astype(np.int32)
    return jnp.where(bits < 128, bits, 128 - bits)


SAME = Judge(count_different, 0, "equal")
NEAR = Judge(share_apart, 1, "near, {:.2f} of what it may be apart")
WITHIN = Judge(share_of_bound, 1, "{:.2f} of 1e-5 and a last place")


# --- numbers --------------------------------------------------------------------------------------

SPECIAL = (
    *(0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-126, 1e-40, 448, 449, 464, 480, -57344, 61440),
    *(65504, 2.0**-9, 1.5 * 2.0**-10, 2.0**-10, 2.0**-16),
)


def numbers(key: jax.Array, shape: Sizes, dtype: Any = jnp.bfloat16, special: bool = False) -> Any:
    """Gaussian ones; or of many magnitudes, every tenth special, some rows of zeros and of NaN."""
    x = jax.random.normal(key, shape, np.float32)
    if special:
        one, other, third = jax.random.split(jax.random.fold_in(key, 1), 3)
        x = x * 2.0 ** jax.random.randint(one, shape, -20, 12)
        odd = jax.random.choice(other, np.array(SPECIAL, np.float32), shape)
        x = jnp.where(jax.random.uniform(third, shape) < 0.1, odd, x)
        row = lax.broadcasted_iota(np.int32, shape, 0)
        x = jnp.where(row == 1, 0, jnp.where(row == 2, np.nan, x))
    return x.astype(dtype)
