"""LayerNorm and RMSNorm, written in FP8 as they are computed; and their gradients.

    LayerNorm   (x - mean) / sqrt(variance + eps) * weight + bias    Ba et al., arXiv 1607.06450
    RMSNorm     x / sqrt(mean(x^2) + eps) * weight + bias            Zhang et al., arXiv 1910.07467

over the last axis, in float32, the variance from the distances to the mean. Fused, what is read is
the residual stream, and what is written is the next product's operand.

A norm has the bound that a scale wants: |x_i - mean| <= sqrt(n variance) for n elements, so none is
beyond sqrt(n) max|weight| + max|bias| whatever ``x`` is, and ``scale="proved"`` needs no look at
it. Reads and writes, in bytes for each element of bfloat16 input: 2 + 1, one more with the
transpose; for the gradients 4 + 2.

On NVIDIA GPUs from Ada on these are Triton kernels, elsewhere XLA's code. Sums are taken in another
order and the root differs in its last bits, so that a number between two of FP8 may go either way.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.formats import F32, Format
from precir.kernels import fused_cuts
from precir.kernels.delayed import finite_amax
from precir.kernels.divided import Parts, Split, collectives
from precir.kernels.folding import fold, unfold
from precir.kernels.launch import launch, result
from precir.kernels.powers import power_of_two_scale
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import QuantizeError, checked_array
from precir.kernels.quantize_cuda import power, warps
from precir.kernels.writing import (
    LONGEST,
    Writing,
    Written,
    agreed,
    kernels_serve,
    matrix,
    writing_of,
)

ROWS: Final = 8192  # elements of the rows that a program holds
TALL: Final = 32  # rows of a program that writes the transpose: a sector of memory
PARTS: Final = 264  # programs that sum a weight's gradient: two for each of Hopper's 132
KINDS: Final = ("layer", "rms")


class Normalised(NamedTuple):
    """What ``norm_quantize`` returns; ``mean`` is None for RMSNorm."""

    written: Written
    mean: Array | None
    """float32 [...]: of each row."""
    rstd: Array
    """float32 [...]: 1 / sqrt(variance + eps), or of the mean square."""


class NormGradients(NamedTuple):
    """What ``norm_gradients`` returns."""

    x: Array
    weight: Array
    bias: Array


def norm_quantize(
    x: ArrayLike,
    format: DTypeLike | Format | None,
    *,
    kind: str = "layer",
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    scale: ArrayLike | str | None = None,
    block: tuple[int, ...] = (),
    scale_format: DTypeLike | Format = F32,
    transposed: bool = False,
    plain: DTypeLike | None = None,
    amax: bool = False,
) -> Normalised:
    """``quantize`` of the normalised rows of ``x`` [..., columns], float16, bfloat16 or float32,
    and what their gradients need.

    ``kind`` is "layer" or "rms", ``weight`` and ``bias`` are [columns] or left out. The result is
    E4M3 or E5M2, under ``scale``, one float32 power of two, or "proved", that of ``norm_scale``; or
    in blocks along the last axis: ``block=(1, 128)``, with ``scale_format`` as in ``quantize``, or
    ``(1, columns)``. ``transposed`` adds the transpose, under the same scale or in blocks along its
    own rows, which a backward product needs, ``plain`` a copy in that dtype, and ``amax`` the
    largest finite magnitude, which the next steps' scales need. Without a format only these two are
    written.

    Not differentiable: ``norm_gradients`` is what its backward pass calls. Under ``jax.vmap`` each
    example has its own scales. Raises ``QuantizeError`` (a ``TypeError``) for what it does not
    take, one current scale for the whole tensor among it: that takes a second read.
    """
    x = checked_array(x)
    w, b = (_row(name, v, x) for name, v in (("weight", weight), ("bias", bias)))
    if isinstance(scale, str):
        if scale != "proved":
            raise QuantizeError(f'a scale is a power of two or "proved", not {scale!r}')
        if format is None:
            raise QuantizeError("a scale is of an FP8 result")
        scale = norm_scale(x.shape[-1], format, weight=weight, bias=bias)
    writing, given = writing_of(
        x.shape, format, scale=scale, block=block, scale_format=scale_format,
        transposed=transposed, plain=plain, amax=amax,
    )  # fmt: skip
    params = {"kind": _known(kind), "eps": float(eps), "writing": writing}
    *results, mean, rstd = norm_p.bind(given.reshape(1), matrix(x), w, b, **params)
    written = writing.written(results, given, x.shape)
    each = x.shape[:-1]
    return Normalised(written, mean.reshape(each) if kind == "layer" else None, rstd.reshape(each))


def norm_gradients(
    x: ArrayLike,
    gradient: ArrayLike,
    mean: Array | None,
    rstd: Array,
    *,
    kind: str = "layer",
    weight: ArrayLike | None = None,
    add: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> NormGradients:
    """The gradients of ``x`` (in ``dtype``, by default that of ``x``), of the weight and of the
    bias (float32 [columns], whether the norm had them or not) from the ``gradient`` of the
    normalised rows, [..., columns], and from what ``norm_quantize`` returned.

    ``add`` is added to the gradient of ``x`` before it is rounded: what goes by the norm, where its
    input is a residual stream.

    What was rounded on the way forward has a derivative of 1: the gradient is that of the unrounded
    norm. Raises ``QuantizeError`` (a ``TypeError``) for shapes and dtypes that do not fit.
    """
    x, g = checked_array(x), checked_array(gradient)
    if g.shape != x.shape or np.shape(rstd) != x.shape[:-1]:
        raise QuantizeError(
            f"x has shape {x.shape}, its gradient {g.shape}, and rstd {np.shape(rstd)}"
        )
    if (mean is None) != (_known(kind) == "rms"):
        raise QuantizeError("LayerNorm has a mean, and RMSNorm none")
    besides = [] if add is None else [matrix(checked_array(add))]
    if add is not None and np.shape(add) != x.shape:
        raise QuantizeError(f"x has shape {x.shape}, and what is added {np.shape(add)}")
    rows = rstd.reshape(1, -1)
    means = rows if mean is None else mean.reshape(1, -1)
    out = np.dtype(x.dtype if dtype is None else dtype)
    w = _row("weight", weight, x)
    operands = matrix(x), matrix(g), means, rows, w, *besides
    dx, dw, db = norm_gradients_p.bind(*operands, kind=kind, dtype=out)
    return NormGradients(dx.reshape(x.shape), dw[0], db[0])


def norm_scale(
    columns: int,
    format: DTypeLike | Format,
    *,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
) -> Array:
    """A scale under which no normalised row of so many columns overflows; float32[].

    That of sqrt(columns) max|weight| + max|bias|, of their finite elements.
    """
    most = jnp.float32(1) if weight is None else finite_amax(weight)
    bound = np.float32(math.sqrt(columns)) * most
    if bias is not None:
        bound += finite_amax(bias)
    # What rounding adds, in sums of many as in a root, is far below one in a thousand.
    return power_of_two_scale(jnp.minimum(bound * np.float32(1 + 2.0**-10), F32.max), format)


def _row(name: str, row: ArrayLike | None, x: Array) -> Array:
    columns = x.shape[-1] if x.ndim else 0
    if row is None:
        return jnp.zeros((0, columns), np.float32)
    row = checked_array(row)
    if row.shape != (columns,):
        raise QuantizeError(f"the {name} of {columns} columns has shape {row.shape}")
    return row.reshape(1, columns)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise QuantizeError(f'a norm is "layer" or "rms", not {kind!r}')
    return kind


# --- on [examples, rows, columns], with given scales [examples]; weight and bias [0, columns] for
# none, [1, columns] for all examples, or [examples, columns]


def _reference(
    given: Array, x: Array, weight: Array, bias: Array, *, kind: str, eps: float, writing: Writing
) -> Results:
    wide, n = x.astype(np.float32), max(1, x.shape[2])
    mean = jnp.zeros((*x.shape[:2], 1), np.float32)
    if kind == "layer":
        mean = jnp.sum(wide, 2, keepdims=True) / n
    apart = wide - mean
    rstd = lax.rsqrt(jnp.sum(apart * apart, 2, keepdims=True) / n + np.float32(eps))
    y = apart * rstd
    if weight.shape[0]:
        y *= weight.astype(np.float32)[:, None]
    if bias.shape[0]:
        y += bias.astype(np.float32)[:, None]
    return *writing.reference(y, given), mean[..., 0], rstd[..., 0]


def _on_cuda(
    given: Array, x: Array, weight: Array, bias: Array, *, kind: str, eps: float, writing: Writing
) -> Results:
    examples, rows, columns = x.shape
    tile = _tile(writing, columns) if kernels_serve(x, weight, bias) else None
    if tile is None:
        return _reference(given, x, weight, bias, kind=kind, eps=eps, writing=writing)
    from precir.kernels.triton.norm_quantize import norm_forward

    tall, wide = tile
    programs = examples * -(-rows // tall)
    each = result((examples, rows), np.float32)
    *slots, mean, rstd = launch(
        norm_forward,
        [x, weight if weight.size else x, bias if bias.size else x, given],
        [
            *writing.slots(examples, rows, columns, programs * -(-columns // wide)),
            *(each if kind == "layer" else result((1,), np.float32), each),
        ],
        (programs,),
        warps=warps(tall * wide),
        M=rows,
        N=columns,
        TALL=tall,
        WIDE=wide,
        LAYER=kind == "layer",
        EPS=eps,
        WEIGHTS=weight.shape[0],
        BIASES=bias.shape[0],
        **writing.constants(columns, wide),
    )
    if kind == "rms":
        mean = jnp.zeros((examples, rows), np.float32)
    return *writing.asked_for(slots), mean, rstd


def _tile(writing: Writing, columns: int) -> tuple[int, int] | None:
    """Rows of a program, and columns that it has at once; None where no kernel serves."""
    wide, size = power(columns), writing.size
    if writing.flip:
        if size:
            return (size, size) if size in (16, 32, 64, 128) else None
        return TALL, min(wide, 128)
    if size < columns and size != power(size or 1) and size:
        return None
    if wide <= LONGEST:
        return max(1, ROWS // wide), wide
    return None if size > ROWS else (1, ROWS)


def _gradients_reference(
    x: Array,
    g: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    *besides: Array,
    kind: str,
    dtype: np.dtype[Any],
) -> Results:
    wide, g, n = x.astype(np.float32), g.astype(np.float32), max(1, x.shape[2])
    unit = (wide - mean[..., None] if kind == "layer" else wide) * rstd[..., None]
    of_weight, of_bias = jnp.sum(g * unit, 1), jnp.sum(g, 1)
    if weight.shape[0]:
        g *= weight.astype(np.float32)[:, None]
    rest = g - unit * (jnp.sum(g * unit, 2, keepdims=True) / n)
    if kind == "layer":
        rest -= jnp.sum(g, 2, keepdims=True) / n
    rest *= rstd[..., None]
    for b in besides:
        rest += b.astype(np.float32)
    return rest.astype(dtype), of_weight, of_bias


def _gradients_on_cuda(
    x: Array,
    g: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    *besides: Array,
    kind: str,
    dtype: np.dtype[Any],
) -> Results:
    examples, rows, columns = x.shape
    wide = power(max(1, columns))
    written = dtype.name in ("float32", "bfloat16", "float16")
    if wide > ROWS or not written or not kernels_serve(x, g, weight, *besides):
        return _gradients_reference(x, g, mean, rstd, weight, *besides, kind=kind, dtype=dtype)
    from precir.kernels.triton.norm_quantize import norm_backward

    tall = _tall(columns)
    parts = gradient_parts(rows, columns, examples)
    sums = result((examples, parts, columns), np.float32)
    dx, of_weight, of_bias = launch(
        norm_backward,
        [x, g, mean, rstd, weight if weight.size else x, *(besides or [x])],
        [result(x.shape, dtype), sums, sums],
        (examples * parts,),
        warps=max(4, tall * wide // 512),
        M=rows,
        N=columns,
        TALL=tall,
        WIDE=wide,
        PARTS=parts,
        LAYER=kind == "layer",
        WEIGHTS=weight.shape[0],
        ADD=bool(besides),
    )
    return dx, jnp.sum(of_weight, 1), jnp.sum(of_bias, 1)


def _tall(columns: int) -> int:
    """Rows that a program of the gradients has at once."""
    return max(1, ROWS // 2 // power(max(1, columns)))


def gradient_parts(rows: int, columns: int, examples: int = 1) -> int:
    """In how many parts the kernel sums the gradient of a weight."""
    return min(-(-rows // _tall(columns)), max(1, PARTS // examples))


def _batch(operands: tuple[Array, ...], dims: Dims, **params: Any) -> tuple[Results, Dims]:
    folded, size = fold(operands, dims, shared=(False, False, True, True))
    return unfold(norm_p.bind(*folded, **params), size)


def _batch_gradients(
    operands: tuple[Array, ...], dims: Dims, **params: Any
) -> tuple[Results, Dims]:
    besides = len(operands) - 5
    folded, size = fold(operands, dims, shared=(*(False,) * 4, True, *(False,) * besides))
    return unfold(norm_gradients_p.bind(*folded, **params), size)


def _of_one_device(split: Split, *operands: Array, writing: Writing, **params: Any) -> Results:
    *results, mean, rstd = _on_cuda(*operands, writing=writing, **params)
    return *agreed(split, writing, results), mean, rstd


def _gradients_of_one_device(split: Split, *operands: Array, **params: Any) -> Results:
    dx, *sums = _gradients_on_cuda(*operands, **params)
    if split.agreed:
        sums = [collectives.psum(s, split.agreed) for s in sums]
    return dx, *sums


norm_p = kernel_primitive(
    "precir_norm_quantize",
    _reference,
    platforms={"cuda": _on_cuda},
    batch=_batch,
    parts=Parts(fused_cuts.norm, _of_one_device),
)
norm_gradients_p = kernel_primitive(
    "precir_norm_gradients",
    _gradients_reference,
    platforms={"cuda": _gradients_on_cuda},
    batch=_batch_gradients,
    parts=Parts(fused_cuts.norm_gradients, _gradients_of_one_device),
)
