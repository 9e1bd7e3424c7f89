"""How a product becomes a launch of the Triton kernel: axes merged, layouts, scales, tiles.

Tiles are loaded through pointers, ``cp.async`` 16 bytes at a time, or where the tiling says so by
Hopper's TMA, through descriptors that each program makes first (`precir.kernels.workspace`). TMA
asks for operands contiguous along K: where one is turned in the kernel, both go through pointers.
A result whose rows are no multiples of 16 bytes is stored through pointers.
MX operands, with a scale for every 32, are multiplied in FP8 32 at a time, the sums added in
float32; `precir.kernels.choice` knows that this is slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from precir.kernels.choice import Grain, multiprocessors
from precir.kernels.epilogue import Epilogue, split
from precir.kernels.launch import launch, result
from precir.kernels.primitive import Results
from precir.kernels.tiling import tiles
from precir.scaled import full_block, spread

Axes = tuple[int, ...]
Strides = tuple[int, int, int]
"""Of the batch, of rows and of what is summed over, in elements."""


@dataclass(frozen=True)
class Side:
    """One operand as the kernel reads it: data of three axes in some layout, float32 scales."""

    data: Array
    size: tuple[int, int, int]
    strides: Strides
    scale: Array
    scale_strides: Strides
    block: tuple[int, int]
    """Rows and K to a scale; K is 0 where no scale changes along it."""

    @property
    def grain(self) -> Grain:
        rows = self.block[0] if self.scale_strides[1] else 0
        return Grain(rows, self.block[1])

    @property
    def described(self) -> bool:
        """Whether a tensor descriptor can say where it lies: contiguous along K, the rest in steps
        of 16 bytes.
        """
        return self.strides[2] == 1 and not any(step % 16 for step in self.strides[:2])

    def turned(self) -> Side:
        """The same with K contiguous, in a transposed copy if it was not: XLA makes the copy, as
        part of what writes the operand where it can.
        """
        batch, rows, k = self.size
        if self.strides[2] == 1:
            return self
        data = self.data.reshape(batch, k, rows).swapaxes(1, 2)
        return replace(self, data=data, strides=(rows * k, k, 1))

    def padded(self) -> Side:
        """The same with zeros after K, up to a multiple of the 16 bytes that are loaded at once. No
        scale more is needed, blocks being multiples of 32.
        """
        (batch, rows, k), more = self.size, -self.size[2] % 16
        if not more:
            return self
        along = self.strides[2] == 1
        data = self.data.reshape((batch, rows, k) if along else (batch, k, rows))
        widths = ((0, 0, 0), (0, 0 if along else more, 0), (0, more if along else 0, 0))
        data, k = lax.pad(data, np.zeros((), data.dtype), widths), k + more
        strides = (rows * k, k, 1) if along else (rows * k, 1, rows)
        return replace(self, data=data, size=(batch, rows, k), strides=strides)


def side(data: Array, scale: Array, span: Axes, batch: Axes, contract: Axes) -> Side | None:
    """An operand with its axes merged to batch, rows and K; None if its scales do not allow it."""
    free = tuple(i for i in range(data.ndim) if i not in batch and i not in contract)
    groups = (batch, free, contract)
    counts, blocks = _spans(data.shape, scale, span)
    scale = scale.reshape(counts).astype(np.float32)
    merged: list[tuple[int, int]] = []
    for group in groups:
        sizes = [(data.shape[i], counts[i], blocks[i]) for i in group]
        one = _merged(sizes)
        if group is batch and one is not None and min(one) > 1:
            one = None  # the kernel knows no blocks of a batch
        if one is None and group is contract:
            return None
        if one is None:  # a scale for each, instead of one for blocks that no one size describes
            counts = tuple(data.shape[i] if i in group else c for i, c in enumerate(counts))
            reach = tuple(blocks[i] if i in group else 1 for i in range(data.ndim))
            scale = jnp.broadcast_to(spread(scale, counts, reach), counts)
            one = math.prod(n for n, _, _ in sizes), 1
        merged.append(one)
    (batch_scales, _), (row_scales, row_block), (k_scales, k_block) = merged
    examples, rows, k = (math.prod(data.shape[i] for i in group) for group in groups)
    if k_scales > 1:  # beside each other for neighbouring rows, which load them together
        scale = scale.transpose(*batch, *contract, *free)
        row_stride, k_stride = 1, row_scales
    else:
        scale, row_stride, k_stride = scale.transpose(*batch, *free, *contract), 1, 0
    scale_strides = (
        row_scales * k_scales if batch_scales > 1 else 0,
        row_stride if row_scales > 1 else 0,
        k_stride,
    )
    axes = tuple(range(data.ndim))
    if axes == (*batch, *contract, *free):
        strides = (rows * k, 1, rows)
    else:
        strides = (rows * k, k, 1)
        if axes != (*batch, *free, *contract):
            data = data.transpose(*batch, *free, *contract)
    size, block = (examples, rows, k), (row_block, k_block if k_scales > 1 else 0)
    return Side(data, size, strides, scale, scale_strides, block)


def _spans(shape: Axes, scale: Array, block: Axes) -> tuple[Axes, Axes]:
    """How many scales there are along each axis, and how far each reaches."""
    if block:
        counts, blocks = tuple(scale.shape), full_block(block, len(shape))
    else:
        counts, blocks = scale.shape + (1,) * (len(shape) - scale.ndim), (1,) * len(shape)
    return counts, tuple(n if c == 1 else b for n, c, b in zip(shape, counts, blocks, strict=True))


def _merged(axes: list[tuple[int, int, int]]) -> tuple[int, int] | None:
    """The scales along axes (size, scales, block) seen as one: how many, and the block. None where
    no one size of block says it.
    """
    axes = [axis for axis in axes if axis[0] > 1]
    first = next((i for i, (_, count, block) in enumerate(axes) if count == 1 or block > 1), None)
    if first is None:
        return math.prod(n for n, _, _ in axes), 1
    n, count, block = axes[first]
    if any(c > 1 for _, c, _ in axes[first + 1 :]) or (first and n % block):
        return None
    inner = math.prod(size for size, _, _ in axes[first + 1 :])
    return math.prod(size for size, _, _ in axes[:first]) * count, block * inner


def sides(
    a: Array, a_scale: Array, b: Array, b_scale: Array, dimension_numbers: Any, blocks: Any
) -> tuple[Side, Side] | None:
    """Both operands for the kernel, or None: it takes FP8 data, not empty, whose scales change
    along K in steps of a multiple of 32, if at all.
    """
    ((a_contract, b_contract), (a_batch, b_batch)) = dimension_numbers
    if a.dtype.itemsize > 1 or b.dtype.itemsize > 1 or not a.size or not b.size:
        return None
    order = sorted(range(len(a_contract)), key=lambda i: a_contract[i])
    left = side(a, a_scale, blocks[0], a_batch, tuple(a_contract[i] for i in order))
    right = side(b, b_scale, blocks[1], b_batch, tuple(b_contract[i] for i in order))
    if left is None or right is None or any(x.block[1] % 32 for x in (left, right)):
        return None
    return left, right


def multiply(
    left: Side,
    right: Side,
    shape: tuple[int, ...],
    *extra: Array,
    out: np.dtype[Any],
    shift: int,
    epilogue: Epilogue,
    batch_axes: int,
    right_axes: int,
) -> Results:
    """The product of two sides as the kernel computes it, of ``shape``, the last axes of which are
    b's; see `takes`.
    """
    from precir.kernels.triton.scaled_dot import scaled_dot

    (_, m, _), (_, n, _) = left.size, right.size
    # The tensor cores take FP8 with K contiguous alone. The kernel turns what is not on its way
    # through the registers, each time that it loads it; a copy is turned once.
    if n > 128 or m % 16:
        left = left.turned()
    if m > 128 or n % 16:
        right = right.turned()
    left, right = left.padded(), right.padded()
    batch, _, k = left.size
    tiling = tiles((batch, m, n, k), (left.grain, right.grain), _step(left, right))
    described = left.described and right.described, n * np.dtype(out).itemsize % 16 == 0
    tiling = tiling.possible(*described, batch == 1 and epilogue.kept is None)
    count = math.ceil(m / tiling.m) * math.ceil(n / tiling.n)
    programs = min(batch * count, multiprocessors() * tiling.resident)
    bias, scale = split(extra, epilogue)
    nothing = jnp.zeros(1, np.float32)
    arrays = (
        *(left.data, right.data, left.scale, right.scale),
        nothing if bias is None else _row(bias, shape, right_axes),
        nothing if scale is None else scale.reshape(1),
    )
    largest = result((batch, count) if epilogue.kept is not None else (1, 1), np.float32)
    product, amax = launch(
        scaled_dot,
        arrays,
        (result((batch, m, n), out), largest),
        (programs,),
        warps=4 if tiling.specialize else tiling.warps,  # of which Triton makes eight and four
        stages=tiling.stages,
        descriptors=tiling.descriptors,
        BATCH=batch,
        M=m,
        N=n,
        K=k,
        A_STRIDES=left.strides,
        B_STRIDES=right.strides,
        A_SCALES=left.scale_strides,
        B_SCALES=right.scale_strides,
        A_BLOCK=left.block,
        B_BLOCK=right.block,
        POWER=2.0**shift,
        BIAS=epilogue.bias,
        ACTIVATION=epilogue.activation or "",
        NARROW=epilogue.narrow,
        AMAX=epilogue.kept is not None,
        BLOCK_M=tiling.m,
        BLOCK_N=tiling.n,
        BLOCK_K=tiling.k,
        GROUP=tiling.group,
        PROGRAMS=programs,
        FLATTEN=tiling.flatten,
        TMA=tiling.tma,
        STORE=tiling.store,
        SPECIALIZE=tiling.specialize,
    )
    product = product.reshape(shape)
    if epilogue.kept is None:
        return (product,)
    each = amax.reshape(*shape[:batch_axes], count)
    axes = tuple(i for i in range(each.ndim) if i not in epilogue.kept)
    return product, lax.reduce_max(each, axes)


def _row(bias: Array, shape: tuple[int, ...], right_axes: int) -> Array:
    """What is added to each row of the result: `jax.vmap` over b gives it axes that a bias may be
    one for all of.
    """
    ahead = len(shape) - right_axes
    return jnp.broadcast_to(bias.reshape(bias.shape[ahead:]), shape[ahead:]).reshape(-1)


def takes(extra: tuple[Array, ...], epilogue: Epilogue, batch_axes: int, right_axes: int) -> bool:
    """Whether the kernel has this epilogue: one bias for all rows, one scale for all, and a
    largest for each of a batch at most. ``right_axes`` are the result's last, of b.
    """
    bias, scale = split(extra, epilogue)
    one_bias = bias is None or math.prod(bias.shape[: bias.ndim - right_axes]) == 1
    kept = epilogue.kept is None or all(axis < batch_axes for axis in epilogue.kept)
    return one_bias and kept and (scale is None or scale.size == 1)


def _step(left: Side, right: Side) -> int:
    """How much of K goes into one addition to the sum: 128, or what scales allow."""
    return next(p for p in (128, 64, 32) if all(x.block[1] % p == 0 for x in (left, right)))
