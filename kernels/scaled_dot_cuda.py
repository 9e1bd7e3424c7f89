"""The product of scaled tensors on CUDA: by XLA's FP8 path, by Triton, or in bfloat16."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from precir.kernels import choice, scaled_dot_triton
from precir.kernels.epilogue import PLAIN, Epilogue, finished
from precir.kernels.launch import compute_capability, fp8_gpu
from precir.kernels.primitive import Results
from precir.scaled import ScaledArray, spread

Axes = tuple[int, ...]
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]
"""((a's contracting axes, b's), (a's batch axes, b's)), as in ``lax.dot_general``."""
HOPPER = 90
DType = np.dtype[np.generic]
Blocks = tuple[Axes, Axes]
"""The blocks of the operands' scales, as `ScaledArray.block`."""


def on_cuda(
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
    """The CUDA rule: the way that `precir.kernels.choice` says, of those that there are."""
    operands = (a, a_scale, b, b_scale, *extra)
    params: dict[str, Any] = {
        "dimension_numbers": dimension_numbers,
        "out": out,
        "blocks": blocks,
        "shift": shift,
        "epilogue": epilogue,
    }
    both = scaled_dot_triton.sides(a, a_scale, b, b_scale, dimension_numbers, blocks)
    ((_, b_contract), (a_batch, _)) = dimension_numbers
    if both is None or not _hopper() or np.dtype(out).itemsize > 4:
        return by_xla(*operands, **params)
    (batch, m, k), (_, n, _) = both[0].size, both[1].size
    way = choice.choose(
        (batch, m, n, k),
        (a.dtype.name, b.dtype.name),
        (both[0].grain, both[1].grain),
        out,
        epilogue=bool(epilogue),
    )
    right_axes = b.ndim - len(b_contract) - len(a_batch)
    if way != "triton" or not scaled_dot_triton.takes(extra, epilogue, len(a_batch), right_axes):
        return by_xla(*operands, **params, wide=way == "bf16")
    shape = jax.eval_shape(
        lambda a, b: lax.dot_general(a, b, dimension_numbers, preferred_element_type=np.float32),
        a,
        b,
    ).shape
    return scaled_dot_triton.multiply(
        *both,
        shape,
        *extra,
        out=out,
        shift=shift,
        epilogue=epilogue,
        batch_axes=len(a_batch),
        right_axes=right_axes,
    )


def _hopper() -> bool:
    """Whether the kernel is for the GPU that is compiled for: it needs Hopper's shared memory, and
    has not been tried on what came after.
    """
    return fp8_gpu() and compute_capability() == HOPPER


def by_xla(
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
    wide: bool = False,
) -> Results:
    """A product of the data itself, scaled after: XLA:GPU keeps it in FP8, by cuBLASLt or Triton.

    With the scales before the product, as in the reference, XLA's Triton path multiplies in
    bfloat16 instead; which is what is done where scales change along a contracted axis, and with
    ``wide`` for all FP8 data, which bfloat16 holds exactly.
    """
    ((a_contract, b_contract), (a_batch, b_batch)) = dimension_numbers
    (a_block, b_block), one = blocks, jnp.ones((), np.float32)
    if not _same_along(a_contract, a.shape, a_scale.shape, a_block):
        a, a_scale, a_block = _value(a, a_scale, a_block), one, ()
    if not _same_along(b_contract, b.shape, b_scale.shape, b_block):
        b, b_scale, b_block = _value(b, b_scale, b_block), one, ()
    if wide:  # without the barrier XLA sees through the conversion, and multiplies in FP8
        barrier: Any = lax.optimization_barrier
        a, b = barrier([x.astype(jnp.bfloat16) if x.dtype.itemsize == 1 else x for x in (a, b)])
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
    scaled = _scaled(product.astype(np.float32), left, right, shift)
    return finished(scaled, extra, epilogue, out)


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
