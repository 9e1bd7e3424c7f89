"""The product of two scaled tensors, accumulated in float32.

Where both are 8-bit and no scale changes along the axes that are summed over, XLA's FP8 path on
CUDA gets the product of the data itself, and the scales multiply its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.errors import PrecirError
from precir.formats import BF16, E4M3, E5M2, F16, F32, Format
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.scaled import ScaledArray, spread

Axes = tuple[int, ...]
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]
"""((a's contracting axes, b's), (a's batch axes, b's)), as in ``lax.dot_general``."""
DType = np.dtype[np.generic]
Blocks = tuple[Axes, Axes]
"""The blocks of the operands' scales, as `ScaledArray.block`."""
_DATA: tuple[Format, ...] = (E4M3, E5M2, F16, BF16)
_PLAIN: tuple[Format, ...] = (F16, BF16, F32)
_Pairs = Sequence[Sequence[Sequence[int]]]


class ScaledDotError(PrecirError, TypeError):
    """Operands that no scaled product takes."""


Operand = ScaledArray | Array


def scaled_dot(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    *,
    out: DTypeLike = jnp.float32,
    shift: int = 0,
) -> Array:
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
    would not. Scales that change along a contracted axis multiply the data before the product.

    Not differentiable. Raises ``ScaledDotError`` (a ``TypeError``) on other operands and shifts,
    and what ``lax.dot_general`` raises on shapes that do not match.
    """
    operands, params = _prepared(a, b, dimension_numbers, out, shift)
    results: Results = scaled_dot_p.bind(*operands, **params)
    return results[0]


def scaled_dot_reference(
    a: Operand,
    b: Operand,
    dimension_numbers: _Pairs,
    *,
    out: DTypeLike = jnp.float32,
    shift: int = 0,
) -> Array:
    """What ``scaled_dot`` returns, in plain JAX: the float32 product of the float32 values."""
    operands, params = _prepared(a, b, dimension_numbers, out, shift)
    return _reference(*operands, **params)[0]


# Each scale multiplies its own operand, which costs nothing beside widening it. A power of two
# is exact there, and the terms of the sum have their true sizes: what overflows or vanishes does
# so in a float32 product of the values too.
def _reference(
    a: Array,
    a_scale: Array,
    b: Array,
    b_scale: Array,
    *,
    dimension_numbers: DimensionNumbers,
    out: DType,
    blocks: Blocks = ((), ()),
    shift: int = 0,
) -> Results:
    values = (
        ScaledArray(a, a_scale, blocks[0]).unscale(np.float32),
        ScaledArray(b, b_scale, blocks[1]).unscale(np.float32),
    )
    product = lax.dot_general(*values, dimension_numbers, preferred_element_type=np.float32)
    return ((product * np.float32(2.0**shift) if shift else product).astype(out),)


def _on_cuda(
    a: Array,
    a_scale: Array,
    b: Array,
    b_scale: Array,
    *,
    dimension_numbers: DimensionNumbers,
    out: DType,
    blocks: Blocks = ((), ()),
    shift: int = 0,
) -> Results:
    """A product of the data itself, scaled after: XLA:GPU keeps it in FP8, by cuBLASLt or Triton.

    With the scales before the product, as in the reference, XLA's Triton path multiplies in
    bfloat16 instead; which is what is done where scales change along a contracted axis.
    """
    ((a_contract, b_contract), (a_batch, b_batch)) = dimension_numbers
    (a_block, b_block), one = blocks, jnp.ones((), np.float32)
    if not _same_along(a_contract, a.shape, a_scale.shape, a_block):
        a, a_scale, a_block = _value(a, a_scale, a_block), one, ()
    if not _same_along(b_contract, b.shape, b_scale.shape, b_block):
        b, b_scale, b_block = _value(b, b_scale, b_block), one, ()
    a, b = _alike(a, b)
    # bfloat16 has float32's exponents, so the unscaled product may leave the call in it; float16
    # would overflow.
    fits = out == jnp.bfloat16 and (a.dtype.itemsize == 1 or a.dtype == jnp.bfloat16)
    leaves = np.dtype(out if fits else np.float32)
    product = lax.dot_general(a, b, dimension_numbers, preferred_element_type=leaves)
    left = _of_result(a_scale, a.shape, a_block, a_batch, a_contract)
    right = _of_result(b_scale, b.shape, b_block, b_batch, b_contract)
    if left.ndim:  # the result's axes: batch, then a's free axes, then b's
        left = left.reshape(left.shape + (1,) * (product.ndim - left.ndim))
    if right.ndim:
        at, free = len(b_batch), product.ndim - right.ndim
        right = right.reshape(*right.shape[:at], *(1,) * free, *right.shape[at:])
    return (_scaled(product.astype(np.float32), left, right, shift).astype(out),)


def _same_along(axes: Axes, shape: tuple[int, ...], scales: tuple[int, ...], block: Axes) -> bool:
    """Whether an operand's scale is one for all that is summed over."""
    counts = scales if block else scales + (1,) * (len(shape) - len(scales))
    return all(counts[axis] == 1 for axis in axes)


def _value(data: Array, scale: Array, block: Axes) -> Array:
    """In bfloat16, which holds every FP8 value times a power of two."""
    return ScaledArray(data, scale, block).unscale(
        jnp.bfloat16 if data.dtype.itemsize == 1 else np.float32
    )


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Two FP8 operands as they are; others in the narrowest format that holds both exactly."""
    wide = [x.dtype for x in (a, b) if x.dtype.itemsize > 1]
    if not wide:
        return a, b
    both = jnp.promote_types(wide[0], wide[-1])
    return a.astype(both), b.astype(both)


def _of_result(
    scale: Array, shape: tuple[int, ...], block: Axes, batch: Axes, contract: Axes
) -> Array:
    """An operand's scales along its batch axes, then its free axes; a scalar stays one."""
    if not scale.ndim:
        return scale.astype(np.float32)
    each = spread(scale.astype(np.float32), shape, block)
    free = [i for i in range(len(shape)) if i not in batch and i not in contract]
    return lax.squeeze(
        each.transpose(*batch, *free, *contract), range(len(batch) + len(free), each.ndim)
    )


def _scaled(product: Array, a_scale: Array, b_scale: Array, shift: int = 0) -> Array:
    """The product times both scales and 2^shift, right wherever the result is a normal float32.

    Powers of two multiply exactly unless they leave float32's range, which a_scale * b_scale can
    although the result does not. With one factor below 1 and another not, their product lies
    between them, so it is formed first. When all that is left pulls the same way, each product
    lies between the one before and the result.
    """
    first, second = _opposed_first(a_scale, b_scale)
    if not shift:
        return product * first * second
    first, third = _opposed_first(first, jnp.full_like(first, 2.0**shift))
    first, second = _opposed_first(first, second)
    return product * first * second * third


def _opposed_first(a: Array, b: Array) -> tuple[Array, Array]:
    opposed = (a < 1) != (b < 1)
    return jnp.where(opposed, a * b, a), jnp.where(opposed, 1, b)


def _batch(
    operands: tuple[Array, ...],
    dims: Dims,
    *,
    dimension_numbers: DimensionNumbers,
    out: DType,
    blocks: Blocks,
    shift: int,
) -> tuple[Results, Dims]:
    """One more axis in front of each batched operand: of the product's batch if both have it."""
    (a, a_scale, b, b_scale), (a_dim, a_scale_dim, b_dim, b_scale_dim) = operands, dims
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
    operands, axes = (a, a_scale, b, b_scale), ((a_contract, b_contract), (a_batch, b_batch))
    results = scaled_dot_p.bind(
        *operands, dimension_numbers=axes, out=out, blocks=blocks, shift=shift
    )
    return results, (at,)


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
    "precir_scaled_dot", _reference, platforms={"cuda": _on_cuda}, batch=_batch
)


def _prepared(
    a: Operand, b: Operand, dimension_numbers: _Pairs, out: DTypeLike, shift: int
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
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    dims = (_ints(a_contract), _ints(b_contract)), (_ints(a_batch), _ints(b_batch))
    params = {
        "dimension_numbers": dims,
        "out": np.dtype(out),
        "blocks": (tuple(left.block), tuple(right.block)),
        "shift": int(shift),
    }
    return (left.data, left.scale, right.data, right.scale), params


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
