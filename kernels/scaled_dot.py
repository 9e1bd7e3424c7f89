"""The product of two scaled tensors, accumulated in float32, and what follows it.

On CUDA it is one of three (`precir.kernels.choice`): a Triton kernel; XLA's FP8 path, which gets
the product of the data itself, the scales multiplying its result; or a product in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.errors import PrecirError
from precir.formats import BF16, E4M3, E5M2, F16, F32, Format
from precir.kernels import scaled_dot_parts
from precir.kernels.divided import Parts
from precir.kernels.epilogue import ACTIVATIONS, PLAIN, Epilogue, finished
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import checked_scale
from precir.kernels.scaled_dot_cuda import Axes, Blocks, DimensionNumbers, DType, on_cuda
from precir.kernels.scaled_dot_cuda import _scaled as _scaled
from precir.scaled import ScaledArray

_DATA: tuple[Format, ...] = (E4M3, E5M2, F16, BF16)
_PLAIN: tuple[Format, ...] = (F16, BF16, F32)
_Pairs = Sequence[Sequence[Sequence[int]]]


class ScaledDotError(PrecirError, TypeError):
    """Operands that no scaled product takes."""


Operand = ScaledArray | Array


@overload
def scaled_dot(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    *,
    out: DTypeLike = ...,
    shift: int = ...,
    bias: ArrayLike | None = ...,
    activation: str | None = ...,
) -> Array: ...


@overload
def scaled_dot(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    *,
    out: DTypeLike = ...,
    shift: int = ...,
    bias: ArrayLike | None = ...,
    activation: str | None = ...,
    out_scale: ArrayLike | None = ...,
    amax: bool = ...,
) -> Any: ...


def scaled_dot(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    *,
    out: DTypeLike = jnp.float32,
    shift: int = 0,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    out_scale: ArrayLike | None = None,
    amax: bool = False,
) -> Any:
    """The product of two tensors times 2^shift: ``lax.dot_general`` of their values, as ``out``.

    An operand is a ``ScaledArray`` of any granularity, its data float8_e4m3fn, float8_e5m2,
    float16 or bfloat16, or a plain float16, bfloat16 or float32 array, which counts as scaled by
    1. Two float8_e5m2 operands are refused, as by cuBLASLt. ``dimension_numbers`` and the shape
    of the result are those of ``lax.dot_general``.

    The result is the float32 product of the float32 values, multiplied by 2^shift (from 2^-126 to
    2^126) in float32 and only then rounded to ``out``: a float16 result overflows only if it does
    not fit float16 itself. Scales are finite, not subnormal, and powers of two if scaling is to
    be exact. Scales that are the same along all of the contracted axes may be large on one side
    and small on the other: no step multiplies the two where that could overflow and the result
    would not. Scales that change along a contracted axis multiply the data before the product;
    on CUDA also the product of one block, where the scales of the two blocks meet first.

    Before it is rounded, the product gets ``bias`` added (of the free axes of ``b``, any floating
    dtype) and goes through ``activation``: "relu", "gelu" (the exact one), "gelu_tanh" or "silu".
    With ``out_scale`` (as the ``scale`` of ``quantize``) the result is a ``ScaledArray`` of that
    scale, its data in ``out``, an FP8 format, in which what leaves the range saturates. With
    ``amax`` it is a pair, the second being the largest finite magnitude before the rounding,
    float32[], one for each example under ``jax.vmap``. Where XLA multiplies on CUDA, and where
    devices have parts of a sum, the product of a bfloat16 result is rounded to it before that too.

    Not differentiable. Raises ``ScaledDotError`` (a ``TypeError``) on other operands, shifts and
    options, and what ``lax.dot_general`` raises on shapes that do not match.
    """
    operands, params = _prepared(
        a, b, dimension_numbers, out, shift, bias, activation, out_scale, amax
    )
    results: Results = scaled_dot_p.bind(*operands, **params)
    return _answer(results, out_scale, amax)


def scaled_dot_reference(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    *,
    out: DTypeLike = jnp.float32,
    shift: int = 0,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    out_scale: ArrayLike | None = None,
    amax: bool = False,
) -> Any:
    """What ``scaled_dot`` returns, in plain JAX: the float32 product of the float32 values."""
    operands, params = _prepared(
        a, b, dimension_numbers, out, shift, bias, activation, out_scale, amax
    )
    return _answer(_reference(*operands, **params), out_scale, amax)


def _answer(results: Results, out_scale: ArrayLike | None, amax: bool) -> Any:
    result = results[0] if out_scale is None else ScaledArray(results[0], checked_scale(out_scale))
    return (result, results[1]) if amax else result


# Each scale multiplies its own operand, which costs nothing beside widening it. A power of two
# is exact there, and the terms of the sum have their true sizes: what overflows or vanishes does
# so in a float32 product of the values too.
def _reference(
    a: Array,
    a_scale: Array,
    b: Array,
    b_scale: Array,
    *extra: Array,
    dimension_numbers: DimensionNumbers,
    out: DType,
    blocks: Blocks = ((), ()),
    shift: int = 0,
    epilogue: Epilogue = PLAIN,
) -> Results:
    values = (
        ScaledArray(a, a_scale, blocks[0]).unscale(np.float32),
        ScaledArray(b, b_scale, blocks[1]).unscale(np.float32),
    )
    product = lax.dot_general(*values, dimension_numbers, preferred_element_type=np.float32)
    shifted = product * np.float32(2.0**shift) if shift else product
    return finished(shifted, extra, epilogue, out)


def _batch(
    operands: tuple[Array, ...],
    dims: Dims,
    *,
    dimension_numbers: DimensionNumbers,
    out: DType,
    blocks: Blocks,
    shift: int,
    epilogue: Epilogue,
) -> tuple[Results, Dims]:
    """One more axis in front of each batched operand: of the product's batch if both have it."""
    (a, a_scale, b, b_scale, *extra), (a_dim, a_scale_dim, b_dim, b_scale_dim, *rest) = (
        operands,
        dims,
    )
    if all(dim is None for dim in dims[:4]):  # one product for all, and what follows it differs
        size = next(x.shape[d] for x, d in zip(extra, rest, strict=True) if d is not None)
        a, a_dim = jnp.broadcast_to(a, (size, *a.shape)), 0
    a, a_scale, a_batched = _in_front(a, a_scale, a_dim, a_scale_dim)
    b, b_scale, b_batched = _in_front(b, b_scale, b_dim, b_scale_dim)
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    if a_batched:
        a_contract, a_batch = _shifted(a_contract), _shifted(a_batch)
    if b_batched:
        b_contract, b_batch = _shifted(b_contract), _shifted(b_batch)
    # The result's axes: batch, then a's free axes, then b's.
    if a_batched and b_batched:
        a_batch, b_batch, at = (0, *a_batch), (0, *b_batch), 0
    elif a_batched:
        at = len(a_batch)
    else:
        at = a.ndim - len(a_contract)
    extra = [
        jnp.expand_dims(x, at) if dim is None else jnp.moveaxis(x, dim, at)
        for x, dim in zip(extra, rest, strict=True)
    ]
    amax: Dims = ()
    if epilogue.kept is not None:
        kept = tuple(sorted([at, *(axis + (axis >= at) for axis in epilogue.kept)]))
        epilogue, amax = replace(epilogue, kept=kept), (kept.index(at),)
    operands, axes = (a, a_scale, b, b_scale), ((a_contract, b_contract), (a_batch, b_batch))
    results = scaled_dot_p.bind(
        *operands,
        *extra,
        dimension_numbers=axes,
        out=out,
        blocks=blocks,
        shift=shift,
        epilogue=epilogue,
    )
    return results, (at, *amax)


def _in_front(
    data: Array, scale: Array, data_dim: int | None, scale_dim: int | None
) -> tuple[Array, Array, bool]:
    """One operand with its batch axis first, in its scale too unless that is one for all."""
    if data_dim is None and scale_dim is None:
        return data, scale, False
    if data_dim is not None:
        data = jnp.moveaxis(data, data_dim, 0)
    else:
        assert scale_dim is not None
        data = jnp.broadcast_to(data, (scale.shape[scale_dim], *data.shape))
    if scale_dim is not None:
        scale = jnp.moveaxis(scale, scale_dim, 0)
    elif scale.ndim:  # the scale's axes are the leading ones of the data
        scale = jnp.broadcast_to(scale, (data.shape[0], *scale.shape))
    return data, scale, True


def _shifted(axes: Axes) -> Axes:
    return tuple(axis + 1 for axis in axes)


scaled_dot_p = kernel_primitive(
    "precir_scaled_dot",
    _reference,
    platforms={"cuda": on_cuda},
    batch=_batch,
    parts=Parts(scaled_dot_parts.rule, scaled_dot_parts.of_one_device),
)


def _prepared(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    out: DTypeLike,
    shift: int,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    out_scale: ArrayLike | None = None,
    amax: bool = False,
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Operands and parameters of the primitive."""
    left, right = _scaled_array(a), _scaled_array(b)
    if left.dtype == right.dtype == E5M2.dtype:
        raise ScaledDotError(
            f"no FP8 product takes two {E5M2.name} operands: cuBLASLt refuses it",
            fix=f"quantize one of them to {E4M3.name}",
        )
    if shift != int(shift) or not -126 <= shift <= 126:
        raise ScaledDotError(f"shift is a whole number from -126 to 126, not {shift!r}")
    if activation is not None and activation not in ACTIVATIONS:
        raise ScaledDotError(f"an activation is {', '.join(ACTIVATIONS)}, not {activation!r}")
    dtype = np.dtype(out)
    if out_scale is not None and dtype not in (E4M3.dtype, E5M2.dtype):
        raise ScaledDotError(
            f"out_scale is for a result in {E4M3.name} or {E5M2.name}, not {dtype}",
            fix="name the format: out=jnp.float8_e4m3fn",
        )
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    dims = (_ints(a_contract), _ints(b_contract)), (_ints(a_batch), _ints(b_batch))
    rank = left.ndim + right.ndim - 2 * len(dims[0][0]) - len(dims[1][0])
    extra = []
    if bias is not None:
        free = tuple(n for i, n in enumerate(right.shape) if i not in dims[0][1] + dims[1][1])
        extra.append(_bias(bias, free).reshape((1,) * (rank - len(free)) + free))
    if out_scale is not None:
        extra.append(checked_scale(out_scale).reshape((1,) * rank))
    params = {
        "dimension_numbers": dims,
        "out": dtype,
        "blocks": (tuple(left.block), tuple(right.block)),
        "shift": int(shift),
        "epilogue": Epilogue(
            bias is not None, activation, () if amax else None, out_scale is not None
        ),
    }
    return (left.data, left.scale, right.data, right.scale, *extra), params


def _bias(bias: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = jnp.asarray(bias)
    if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ScaledDotError(
            f"a bias has the free axes of b, here {shape}, in a floating dtype; "
            f"not {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.float32)


def _ints(axes: Sequence[int]) -> Axes:
    return tuple(int(axis) for axis in axes)


def _scaled_array(operand: Operand) -> ScaledArray:
    if isinstance(operand, ScaledArray):
        known, what = _DATA, operand
    elif isinstance(operand, (jax.Array, np.ndarray)):
        known, what = _PLAIN, ScaledArray(jnp.asarray(operand), jnp.ones((), np.float32))
    else:
        raise ScaledDotError(
            f"scaled_dot multiplies ScaledArrays and plain arrays, not {type(operand).__name__}"
        )
    if what.dtype not in [f.dtype for f in known]:
        kind = "ScaledArrays" if known is _DATA else "plain arrays"
        raise ScaledDotError(
            f"scaled_dot takes {kind} of {', '.join(f.name for f in known)}, not {what.dtype}",
            fix="quantize the operand first",
        )
    return what
