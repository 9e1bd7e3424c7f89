"""How a fused kernel writes what it computes: in FP8, as it is, or both, in the same pass.

What it computes is float32 [examples, rows, columns]. Each example has one scale that is given, or
the elements of each row are under a scale for every so many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.formats import E4M3, E5M2, F32, Format, format_of
from precir.kernels.divided import Split, collectives
from precir.kernels.launch import fp8_gpu, result
from precir.kernels.powers import power_of_two_carry
from precir.kernels.quantize import (
    QuantizeError,
    checked_block,
    checked_format,
    checked_scale,
    checked_scale_format,
    quantize_given_reference,
    quantize_p_reference,
)
from precir.kernels.quantize_cuda import as_scales, largest, power
from precir.scaled import ScaledArray, full_block, scale_shape

ELEMENTS: Final = 4096  # of a program, where scales do not say
LONGEST: Final = 16384  # elements of a program at most

_PLAIN: Final = frozenset({"float32", "bfloat16", "float16"})


class Written(NamedTuple):
    """What a fused kernel has written; None for what it was not asked for."""

    quantized: ScaledArray | None
    """Of the shape of what was computed."""
    transposed: ScaledArray | None = None
    """The transpose of its matrix, to which the axes before the last are one."""
    plain: Array | None = None
    amax: Array | None = None
    """float32[]: the largest finite magnitude, before rounding."""


@dataclass(frozen=True)
class Writing:
    """A parameter of the primitives."""

    data: np.dtype[Any] | None
    """FP8, or None for none."""
    size: int = 0
    """How many elements of a row have a scale of their own; 0 where one is given."""
    scales: np.dtype[Any] = F32.dtype
    flip: bool = False
    """Whether the transpose is written too."""
    plain: np.dtype[Any] | None = None
    amax: bool = False

    def reference(self, y: Array, given: Array) -> list[Array]:
        """What is written of ``y``, float32 [examples, rows, columns], ``given`` [examples]:
        data, scales, the transpose, its scales, the plain array, its amax; each where it is
        asked for.
        """
        results: list[Array] = []
        if self.data is not None:
            flipped = jnp.swapaxes(y, 1, 2)
            results += self._quantized(y, given)
            results += self._quantized(flipped, given) if self.flip else []
        results += [] if self.plain is None else [y.astype(self.plain)]
        return [*results, finite_amaxes(y)] if self.amax else results

    def _quantized(self, y: Array, given: Array) -> tuple[Array, ...]:
        if not self.size:
            return quantize_given_reference(y, given, dtype=self.data)  # type: ignore[arg-type]
        return quantize_p_reference(
            y,
            dtype=self.data,  # type: ignore[arg-type]
            batch_ndim=0,
            block=(1, self.size),
            scales=self.scales,
        )

    def tile(self, columns: int) -> tuple[int, int] | None:
        """Rows and columns of a program's tile, powers of two; None where no kernel serves."""
        wide = power(columns)
        if self.data is None or not self.size:
            wide = min(wide, 64 if self.flip else 1024)
            return 128 if self.flip else ELEMENTS // wide, wide
        if self.flip:
            return (self.size, self.size) if self.size in (16, 32, 64, 128) else None
        if self.size < columns:
            wide = self.size
        if wide > LONGEST or wide != power(wide):
            return None
        return max(1, ELEMENTS // wide), wide

    def constants(self, columns: int, wide: int) -> dict[str, Any]:
        """Of the kernel's, what this says."""
        return {
            "DATA": self.data is not None,
            "SIZE": max(self.size, wide) if self.size >= columns else self.size,
            "FLIP": self.flip,
            "PLAIN": self.plain is not None,
            "AMAX": self.amax,
            "CARRY": power_of_two_carry(self.data) if self.data is not None else 0,
        }

    def slots(
        self, examples: int, rows: int, columns: int, programs: int
    ) -> list[jax.ShapeDtypeStruct]:
        """The six results of a kernel; of one element where they are not asked for."""
        stored = np.float32 if self.scales == F32.dtype else np.uint8
        shape, turned = (examples, rows, columns), (examples, columns, rows)
        groups, turned_groups = ((*s[:2], -(-s[2] // max(1, self.size))) for s in (shape, turned))
        nothing = (1,)
        data, flip = self.data or np.dtype(np.int8), self.flip
        return [
            result(shape if self.data is not None else nothing, data),
            result(groups if self.size else nothing, stored),
            result(turned if flip else nothing, data),
            result(turned_groups if flip and self.size else nothing, stored),
            result(shape if self.plain is not None else nothing, self.plain or np.int8),
            result((examples, programs // examples) if self.amax else nothing, np.int32),
        ]

    def asked_for(self, slots: Sequence[Array]) -> list[Array]:
        """Of a kernel's six results those of ``reference``."""
        data, scales, flipped, flipped_scales, plain, parts = slots
        results = []
        if self.data is not None:
            results += [data, *([as_scales(scales, self.scales)] if self.size else [])]
            if self.flip:
                sized = [as_scales(flipped_scales, self.scales)] if self.size else []
                results += [flipped, *sized]
        results += [] if self.plain is None else [plain]
        return [*results, largest(parts, parts.shape[:1])] if self.amax else results

    def count(self) -> int:
        """How many results there are."""
        quantized = (1 + bool(self.size)) * (1 + self.flip) if self.data is not None else 0
        return quantized + (self.plain is not None) + self.amax

    def written(self, results: Sequence[Array], given: Array, shape: tuple[int, ...]) -> Written:
        """The results of one example, of ``shape``, as users get them."""
        left = [r[0] for r in results]
        quantized = transposed = plain = amax = None
        if self.data is not None:
            block = (1,) * (len(shape) - 1) + (self.size,) if self.size else ()
            data = left.pop(0).reshape(shape)
            scale = left.pop(0).reshape(scale_shape(shape, block)) if self.size else given
            quantized = ScaledArray(data, scale, block)
            if self.flip:
                data = left.pop(0)
                scale = left.pop(0) if self.size else given
                transposed = ScaledArray(data, scale, (1, self.size) if self.size else ())
        if self.plain is not None:
            plain = left.pop(0).reshape(shape)
        if self.amax:
            amax = left.pop(0)
        return Written(quantized, transposed, plain, amax)


def writing_of(
    shape: tuple[int, ...],
    format: DTypeLike | Format | None,
    *,
    scale: ArrayLike | None,
    block: tuple[int, ...],
    scale_format: DTypeLike | Format,
    transposed: bool,
    plain: DTypeLike | None,
    amax: bool,
) -> tuple[Writing, Array]:
    """The parameter, and the given scale (1 where there is none), for a result of ``shape``.

    Raises ``QuantizeError`` for what cannot be written in one read.
    """
    if not shape:
        raise QuantizeError("a fused kernel takes a tensor of one axis or more, not a number")
    name = None if plain is None else np.dtype(plain)
    if name is not None and name.name not in _PLAIN:
        raise QuantizeError(f"the plain result is float32, bfloat16 or float16, not {name}")
    if format is None:
        if scale is not None or block or transposed:
            raise QuantizeError("a scale, a block and a transpose are of an FP8 result")
        return Writing(None, plain=name, amax=amax), jnp.float32(1)
    dtype = checked_format(format)
    if format_of(dtype) not in (E4M3, E5M2):
        raise QuantizeError(f"a fused kernel writes E4M3 or E5M2, not {dtype}")
    sizes = full_block(checked_block(block, len(shape)), len(shape))
    scales, given, size = checked_scale_format(scale_format), jnp.float32(1), 0
    if scale is not None:
        if block or scales != F32.dtype:
            raise QuantizeError(
                "a given scale is one float32 scalar for the whole tensor",
                fix="leave out block and scale_format, or the scale",
            )
        given = checked_scale(scale)
    elif not block or any(b > 1 and n > 1 for b, n in zip(sizes[:-1], shape, strict=False)):
        raise QuantizeError(
            "one scale for the whole tensor, or for blocks of rows, is not known before it is read",
            fix="give a scale, or a block along the last axis, or quantize the plain result",
        )
    else:
        size = sizes[-1]
    return Writing(dtype, size, scales, transposed, name, amax), given


def finite_amaxes(y: Array) -> Array:
    """float32[examples]: the largest finite magnitude of each, 0 for what is subnormal."""
    magnitude = lax.abs(y)
    usual = (magnitude >= F32.smallest_normal) & (magnitude < np.inf)
    axes = tuple(range(1, y.ndim))
    return jnp.max(jnp.where(usual, magnitude, 0), axes, initial=0).astype(np.float32)


def agreed(split: Split, writing: Writing, results: Sequence[Array]) -> list[Array]:
    """The results of one device, the amax of which is that of all."""
    if not writing.amax or not split.agreed or not results:
        return list(results)
    return [*results[:-1], collectives.pmax(results[-1], split.agreed)]


def kernels_serve(x: Array, *others: Array) -> bool:
    """Whether there are Triton kernels for these dtypes, and for more than nothing."""
    return x.size > 0 and all(a.dtype.name in _PLAIN for a in (x, *others)) and fp8_gpu()


def matrix(x: Array) -> Array:
    """``x`` as [1, rows, columns]."""
    columns = x.shape[-1]
    return x.reshape(1, math.prod(x.shape[:-1]), columns)
