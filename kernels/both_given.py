"""A matrix, and its transpose, under a scale that is given; and their amax from the same read."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp

from precir.kernels import cuts, quantize_cuda
from precir.kernels.delayed import finite_amax
from precir.kernels.divided import Parts, Split, collectives
from precir.kernels.launch import launch, result
from precir.kernels.layer import as_array, batch_size, in_front, of_layers, pointers, source, step
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import quantize_given_reference

TALL: Final = 128  # a tile of a program, where scales do not say
WIDE: Final = 64


def flipped(x: Array) -> Array:
    """The transpose of each matrix."""
    return jnp.swapaxes(x, -1, -2)


def tiles(matrices: int, m: int, n: int) -> int:
    """How many programs have a tile each."""
    return matrices * -(-m // TALL) * -(-n // WIDE)


# The axes of a scale are the leading ones of x.


def _amax_reference(x: Array, scale: Array, *index: Array, dtype: np.dtype[Any]) -> Results:
    x = as_array(source(x, index))
    (data,) = quantize_given_reference(x, scale, dtype=dtype)
    return data, _amax_of_examples(x, scale)


def _amax_of_examples(x: Array, scale: Array) -> Array:
    amax = finite_amax
    for _ in range(scale.ndim):
        amax = jax.vmap(amax)
    found = amax(x)
    return jnp.where(found < np.float32(2.0**-126), np.float32(0), found)


def _amax_on_cuda(x: Array, scale: Array, *index: Array, dtype: np.dtype[Any]) -> Results:
    found = quantize_cuda.quantized_given_amax(source(x, index), scale, dtype=dtype)
    return found if found is not None else _amax_reference(x, scale, *index, dtype=dtype)


def _both_given_reference(
    x: Array, scale: Array, *index: Array, dtype: np.dtype[Any], amax: bool
) -> Results:
    x = as_array(source(x, index))
    (data,) = quantize_given_reference(x, scale, dtype=dtype)
    both = data, flipped(data)
    return (*both, _amax_of_examples(x, scale)) if amax else both


def _both_given_on_cuda(
    stack: Array, scale: Array, *index: Array, dtype: np.dtype[Any], amax: bool
) -> Results:
    x = source(stack, index)
    if not quantize_cuda.serves(x, dtype) or scale.ndim != x.ndim - 2:
        return _both_given_reference(stack, scale, *index, dtype=dtype, amax=amax)
    from precir.kernels.triton import quantize_both as raw

    (m, n), matrices = x.shape[-2:], math.prod(x.shape[:-2])
    count = tiles(matrices, m, n)
    outs = [result((*x.shape[:-2], *shape), dtype) for shape in ((m, n), (n, m))]
    if amax:
        outs.append(result((matrices, count // matrices), np.int32))
    data, turned, *parts = launch(
        raw.both_given_amax if amax else raw.both_given,
        [*pointers(x), scale],
        outs,
        (count,),
        warps=quantize_cuda.warps(TALL * WIDE),
        LAYER=step(x),
        M=m,
        N=n,
        TALL=TALL,
        WIDE=WIDE,
    )
    return data, turned, *(quantize_cuda.largest(p, scale.shape) for p in parts)


def _batch_given(given: tuple[Array, ...], dims: Dims) -> tuple[Array, ...]:
    """Each example with a scale, which its amax needs a place beside."""
    (x, scale, *index), (x_dim, scale_dim, *index_dim) = given, dims
    size = batch_size(given, dims)
    x, *index = in_front(x, x_dim, index, index_dim, size)
    if scale_dim is not None:
        scale = jnp.moveaxis(scale, scale_dim, 0)
    else:
        scale = jnp.broadcast_to(scale, (size, *scale.shape))
    return x, scale, *index


def _batch_amax(operands: tuple[Array, ...], dims: Dims, **params: Any) -> tuple[Results, Dims]:
    return quantize_amax_p.bind(*_batch_given(operands, dims), **params), (0, 0)


def _batch_both_given(
    operands: tuple[Array, ...], dims: Dims, **params: Any
) -> tuple[Results, Dims]:
    results = quantize_both_given_p.bind(*_batch_given(operands, dims), **params)
    return results, (0,) * len(results)


def _amax_of_one_device(split: Split, *operands: Array, **params: Any) -> Results:
    data, amax = _amax_on_cuda(*operands, **params)
    return data, collectives.pmax(amax, split.agreed) if split.agreed else amax


def _both_given_of_one_device(split: Split, *operands: Array, **params: Any) -> Results:
    data, turned, *amax = _both_given_on_cuda(*operands, **params)
    if split.agreed:
        amax = [collectives.pmax(a, split.agreed) for a in amax]
    return data, turned, *amax


quantize_amax_p = kernel_primitive(
    "precir_quantize_amax",
    _amax_reference,
    platforms={"cuda": _amax_on_cuda},
    batch=_batch_amax,
    parts=Parts(of_layers(cuts.given_scale_and_amax, 2), _amax_of_one_device),
)
quantize_both_given_p = kernel_primitive(
    "precir_quantize_both_given",
    _both_given_reference,
    platforms={"cuda": _both_given_on_cuda},
    batch=_batch_both_given,
    parts=Parts(of_layers(cuts.both_ways_given, 2), _both_given_of_one_device),
)
