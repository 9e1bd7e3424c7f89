"""How a product of scaled tensors is divided among devices.

Each multiplies what it has along the axes of the batch and the free ones; along those that are
summed over it has a part of each sum, and the parts are added. Operands cross in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
from jax import Array

from precir.kernels.divided import Split, collectives
from precir.kernels.division import Names, Rule
from precir.kernels.epilogue import PLAIN, Epilogue, finished
from precir.kernels.primitive import Results
from precir.kernels.scaled_dot_cuda import Blocks, DimensionNumbers, DType, on_cuda
from precir.scaled import full_block

Shape = tuple[int, ...]


def rule(
    a: Shape,
    a_scale: Shape,
    b: Shape,
    b_scale: Shape,
    *extra: Shape,
    dimension_numbers: DimensionNumbers,
    blocks: Blocks,
    epilogue: Epilogue,
    **_: Any,
) -> Rule:
    """The factors of ``precir_scaled_dot``: its batch axes, the free ones of each operand, and the
    contracted ones. Blocks under one scale stay whole.
    """
    (a_contract, b_contract), (a_batch, b_batch) = dimension_numbers
    names: list[dict[int, Hashable]] = [{}, {}]
    for kind, pairs in (
        ("batch", zip(a_batch, b_batch, strict=True)),
        ("sum", zip(a_contract, b_contract, strict=True)),
    ):
        for i, (left, right) in enumerate(pairs):
            names[0][left] = names[1][right] = (kind, i)
    pieces: dict[Hashable, int] = {}
    operands: list[Names] = []
    free: list[Hashable] = []
    for side, (shape, scale, block) in enumerate(
        ((a, a_scale, blocks[0]), (b, b_scale, blocks[1]))
    ):
        for axis in range(len(shape)):
            if axis not in names[side]:
                names[side][axis] = (side, axis)
                free.append((side, axis))
        data = tuple(names[side][axis] for axis in range(len(shape)))
        counts = scale if block else scale + (1,) * (len(shape) - len(scale))
        for name, n, count, size in zip(
            data, shape, counts, full_block(block, len(shape)), strict=True
        ):
            size = size if count > 1 else 1
            whole = n // size if n % size == 0 else 1
            pieces[name] = math.gcd(pieces.get(name, whole), whole)
        own = tuple(d if c > 1 else None for d, c in zip(data, counts, strict=True))
        operands += [data, own[: len(scale)]]
    result = (*(("batch", i) for i in range(len(a_batch))), *free)
    for shape in extra:
        operands.append(tuple(r if n > 1 else None for r, n in zip(result, shape, strict=True)))
    results: tuple[Names, ...] = (result,)
    kept = epilogue.kept
    if kept is not None:
        results = result, tuple(result[axis] for axis in kept)
    return Rule(
        tuple(operands),
        results,
        pieces,
        summed=tuple(("sum", i) for i in range(len(a_contract))),
        agreed=tuple(r for i, r in enumerate(result) if kept is not None and i not in kept),
        scatters=not kept,
    )


def of_one_device(
    split: Split, *operands: Array, out: DType, epilogue: Epilogue, **params: Any
) -> Results:
    """The product of what a device has, summed with those of others; what follows it follows the
    sum.
    """
    if not split.summed:
        results = on_cuda(*operands, out=out, epilogue=epilogue, **params)
    else:
        # In the format of the result, as XLA sums parts of a product, where that has float32's
        # range.
        alike = np.dtype(out).name in ("bfloat16", "float32")
        between = np.dtype(out if alike else np.float32)
        (product,) = on_cuda(*operands[:4], out=between, epilogue=PLAIN, **params)
        total = _sum(product, split).astype(np.float32)
        extra = tuple(_part(x, total, split) for x in operands[4:])
        results = finished(total, extra, epilogue, out)
    agreed = (*split.agreed, *(name for _, names in split.scattered for name in names))
    if epilogue.kept is not None and agreed:
        results = results[0], collectives.pmax(results[1], agreed)
    return results


def _sum(product: Array, split: Split) -> Array:
    rest = list(split.summed)
    for axis, names in split.scattered:
        product = collectives.psum_scatter(product, names, scatter_dimension=axis, tiled=True)
        rest = [name for name in rest if name not in names]
    return collectives.psum(product, tuple(rest)) if rest else product


def _part(operand: Array, total: Array, split: Split) -> Array:
    """What a device needs of a bias for its part of the sum."""
    for axis, names in split.scattered:
        if operand.shape[axis] > 1:
            size = total.shape[axis]
            at = collectives.axis_index(names) * size
            operand = collectives.dynamic_slice_in_dim(operand, at, size, axis)
    return operand
