"""The product of two quantised tensors, accumulated in float32, as XLA's FP8 path wants it."""

from __future__ import annotations

from typing import Any

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


class ScaledDotError(PrecirError, TypeError):
    """Operands that no FP8 product takes."""


def scaled_dot(
    a: ScaledArray, b: ScaledArray, dimension_numbers: Any, *, out: DTypeLike = jnp.float32
) -> Array:
    """The product of two quantised tensors: ``lax.dot_general`` of the data, times both scales.

    The data is float8_e4m3fn or float8_e5m2, in any mix except e5m2 with e5m2, which cuBLASLt
    refuses. ``dimension_numbers`` and the shape of the result are those of ``lax.dot_general``.
    Products are accumulated in float32; the result has dtype ``out``. The scales must be powers
    of two for scaling to be exact, and each scalar.

    Not differentiable. Raises ``ScaledDotError`` (a ``TypeError``) on other operands.
    """
    _check(a, b)
    dims = _canonical(dimension_numbers)
    operands = (a.data, a.scale, b.data, b.scale)
    results: Results = scaled_dot_p.bind(*operands, dimension_numbers=dims, out=np.dtype(out))
    return results[0]


def scaled_dot_reference(
    a: ScaledArray, b: ScaledArray, dimension_numbers: Any, *, out: DTypeLike = jnp.float32
) -> Array:
    """What ``scaled_dot`` returns, in plain JAX: a float32 product of the data."""
    _check(a, b)
    dims = _canonical(dimension_numbers)
    operands = (a.data, a.scale, b.data, b.scale)
    return _reference(*operands, dimension_numbers=dims, out=np.dtype(out))[0]


def _reference(
    a: Array,
    a_scale: Array,
    b: Array,
    b_scale: Array,
    *,
    dimension_numbers: DimensionNumbers,
    out: np.dtype[Any],
) -> tuple[Array]:
    product = lax.dot_general(
        lax.convert_element_type(a, np.float32),
        lax.convert_element_type(b, np.float32),
        dimension_numbers,
        preferred_element_type=np.float32,
    )
    return (_scaled(product, a_scale, b_scale).astype(out),)


def _direct(
    a: Array,
    a_scale: Array,
    b: Array,
    b_scale: Array,
    *,
    dimension_numbers: DimensionNumbers,
    out: np.dtype[Any],
) -> tuple[Array]:
    # The form that XLA:GPU turns into one cuBLASLt FP8 call. bfloat16 has float32's exponents, so
    # the unscaled product may leave the call in it; that of float16 could overflow.
    leaves = np.dtype(out) if out == jnp.bfloat16 else np.dtype(np.float32)
    product = lax.dot_general(a, b, dimension_numbers, preferred_element_type=leaves)
    wide = product.astype(np.float32)
    return (_scaled(wide, a_scale, b_scale).astype(out),)


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
    operands: tuple[Array, Array, Array, Array],
    dims: Dims,
    *,
    dimension_numbers: DimensionNumbers,
    out: np.dtype[Any],
) -> tuple[Results, Dims]:
    """One more axis in front of the batched operands: a batch axis of the product if both have it.

    Scales get the rank of the result, so that each example keeps its own.
    """
    (a, a_scale, b, b_scale), (a_dim, a_scale_dim, b_dim, b_scale_dim) = operands, dims
    if a_dim is None and b_dim is None:  # only a scale is batched
        batched, dim = (b_scale, b_scale_dim) if a_scale_dim is None else (a_scale, a_scale_dim)
        count = batched.shape[dim or 0]
        a, a_dim = jnp.broadcast_to(a, (count, *a.shape)), 0
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    if a_dim is not None:
        a = jnp.moveaxis(a, a_dim, 0)
        a_contract, a_batch = _shifted(a_contract), _shifted(a_batch)
    if b_dim is not None:
        b = jnp.moveaxis(b, b_dim, 0)
        b_contract, b_batch = _shifted(b_contract), _shifted(b_batch)
    # The result's axes: batch, then a's free axes, then b's.
    if a_dim is not None and b_dim is not None:
        a_batch, b_batch, at = (0, *a_batch), (0, *b_batch), 0
    elif a_dim is not None:
        at = len(a_batch)
    else:
        at = a.ndim - len(a_contract)
    ndim = a.ndim + b.ndim - 2 * len(a_contract) - len(a_batch)
    results = scaled_dot_p.bind(
        a,
        _aligned(a_scale, a_scale_dim, at, ndim),
        b,
        _aligned(b_scale, b_scale_dim, at, ndim),
        dimension_numbers=((a_contract, b_contract), (a_batch, b_batch)),
        out=out,
    )
    return results, (at,)


def _shifted(axes: Axes) -> Axes:
    return tuple(axis + 1 for axis in axes)


def _aligned(scale: Array, dim: int | None, at: int, ndim: int) -> Array:
    """``scale`` as a scalar, or of rank ``ndim`` with its batch axis, if any, at ``at``."""
    if dim is None:
        return scale if scale.ndim == 0 else jnp.expand_dims(scale, at)
    if scale.ndim == 1:
        return scale.reshape((1,) * at + (-1,) + (1,) * (ndim - at - 1))
    return jnp.moveaxis(scale, dim, at)


scaled_dot_p = kernel_primitive("precir_scaled_dot", _reference, cuda=_direct, batch=_batch)


def _canonical(dimension_numbers: Any) -> DimensionNumbers:
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    return (_ints(a_contract), _ints(b_contract)), (_ints(a_batch), _ints(b_batch))


def _ints(axes: Any) -> Axes:
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
