"""The product of two quantised tensors, accumulated in float32, as XLA's FP8 path wants it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.errors import PrecirError
from precir.formats import E4M3, E5M2
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.scaled import ScaledArray

Axes = tuple[int, ...]
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]
"""((a's contracting axes, b's), (a's batch axes, b's)), as in ``lax.dot_general``."""
DType = np.dtype[np.generic]
_Pairs = Sequence[Sequence[Sequence[int]]]


class ScaledDotError(PrecirError, TypeError):
    """Operands that no FP8 product takes."""


def scaled_dot(
    a: ScaledArray, b: ScaledArray, dimension_numbers: _Pairs, *, out: DTypeLike = jnp.float32
) -> Array:
    """The product of two quantised tensors, ``lax.dot_general`` of their values, as ``out``.

    The data is float8_e4m3fn or float8_e5m2, in any mix except e5m2 with e5m2, which cuBLASLt
    refuses. ``dimension_numbers`` and the shape of the result are those of ``lax.dot_general``;
    products are accumulated in float32. The scales are finite, not subnormal, and powers of two
    if scaling is to be exact. Either may be large and the other small: no step multiplies the
    two where that could overflow and the result would not.

    Not differentiable. Raises ``ScaledDotError`` (a ``TypeError``) on other operands, and what
    ``lax.dot_general`` raises on shapes that do not match.
    """
    _check(a, b)
    operands, dims = (a.data, a.scale, b.data, b.scale), _canonical(dimension_numbers)
    results: Results = scaled_dot_p.bind(*operands, dimension_numbers=dims, out=np.dtype(out))
    return results[0]


def scaled_dot_reference(
    a: ScaledArray, b: ScaledArray, dimension_numbers: _Pairs, *, out: DTypeLike = jnp.float32
) -> Array:
    """What ``scaled_dot`` returns, in plain JAX: the float32 product of the float32 values."""
    _check(a, b)
    operands, dims = (a.data, a.scale, b.data, b.scale), _canonical(dimension_numbers)
    return _reference(*operands, dimension_numbers=dims, out=np.dtype(out))[0]


# Each scale multiplies its own operand, which costs nothing beside widening it. A power of two
# is exact there, and the terms of the sum have their true sizes: what overflows or vanishes does
# so in a float32 product of the values too.
def _reference(*operands: Array, dimension_numbers: DimensionNumbers, out: DType) -> Results:
    values = _values(operands, np.float32)
    product = lax.dot_general(*values, dimension_numbers, preferred_element_type=np.float32)
    return (product.astype(out),)


def _on_cuda(*operands: Array, dimension_numbers: DimensionNumbers, out: DType) -> Results:
    """A product of the data itself, scaled after: XLA:GPU keeps it in FP8, by cuBLASLt or Triton.

    With the scales before the product, as in the reference, XLA's Triton path multiplies in
    bfloat16 instead.
    """
    # bfloat16 has float32's exponents, so the unscaled product may leave the call in it; float16
    # would overflow.
    leaves = np.dtype(out if out == jnp.bfloat16 else np.float32)
    a, a_scale, b, b_scale = operands
    if a_scale.ndim or b_scale.ndim:  # one scale per example, under vmap: no FP8 call takes them
        values = _values(operands, leaves)
        product = lax.dot_general(*values, dimension_numbers, preferred_element_type=leaves)
        return (product.astype(out),)
    product = lax.dot_general(a, b, dimension_numbers, preferred_element_type=leaves)
    return (_scaled(product.astype(np.float32), a_scale, b_scale).astype(out),)


def _values(operands: Sequence[Array], dtype: DTypeLike) -> tuple[Array, Array]:
    a, a_scale, b, b_scale = operands
    return ScaledArray(a, a_scale).unscale(dtype), ScaledArray(b, b_scale).unscale(dtype)


def _scaled(product: Array, a_scale: Array, b_scale: Array) -> Array:
    """The product times both scales, right wherever the result is a normal float32.

    Powers of two multiply exactly unless they leave float32's range, which a_scale * b_scale can
    although the result does not. With one scale below 1 and the other not, their product lies
    between them, so it is formed first. Otherwise both pull the same way, so the product after
    the first lies between the product before and the result.
    """
    opposed = (a_scale < 1) != (b_scale < 1)
    first = jnp.where(opposed, a_scale * b_scale, a_scale)
    second = jnp.where(opposed, 1, b_scale)
    return product * first * second


def _batch(
    operands: tuple[Array, ...], dims: Dims, *, dimension_numbers: DimensionNumbers, out: DType
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
    results = scaled_dot_p.bind(*operands, dimension_numbers=axes, out=out)
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


def _canonical(dimension_numbers: _Pairs) -> DimensionNumbers:
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    return (_ints(a_contract), _ints(b_contract)), (_ints(a_batch), _ints(b_batch))


def _ints(axes: Sequence[int]) -> Axes:
    return tuple(int(axis) for axis in axes)


def _check(a: ScaledArray, b: ScaledArray) -> None:
    for operand in (a, b):
        if not isinstance(operand, ScaledArray):
            raise ScaledDotError(
                f"scaled_dot multiplies ScaledArrays, not {type(operand).__name__}",
                fix="quantize the operand first",
            )
        if operand.dtype not in (E4M3.dtype, E5M2.dtype):
            raise ScaledDotError(
                f"scaled_dot takes {E4M3.name} and {E5M2.name}, not {operand.dtype}"
            )
    if a.dtype == b.dtype == E5M2.dtype:
        raise ScaledDotError(
            f"no FP8 product takes two {E5M2.name} operands: cuBLASLt refuses it",
            fix=f"quantize one of them to {E4M3.name}",
        )
