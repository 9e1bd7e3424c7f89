"""Where quantisation and measuring may be cut, for `precir.kernels.divided`.

Each device quantises what it has of a tensor, before any of it is sent; where a scale reaches
further, the largest magnitudes cross. The factor of an axis is its number.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from precir.kernels.division import Names, Rule
from precir.scaled import full_block

Shape = tuple[int, ...]


def own_scales(x: Shape, *, batch_ndim: int, block: tuple[int, ...], **_: Any) -> Rule:
    """Of ``precir_quantize``: devices agree on the scales of blocks that reach over all of an axis;
    other blocks stay whole.
    """
    data, scales, pieces = _blocks(x, x[:batch_ndim], block)
    if block:
        sizes = full_block(block, len(x))
        reached = tuple(i for i, (n, b) in enumerate(zip(x, sizes, strict=True)) if b >= n)
    else:
        reached = tuple(range(batch_ndim, len(x)))
    return Rule((data,), (data, scales), pieces, agreed=reached)


def given_scale(x: Shape, scale: Shape, **_: Any) -> Rule:
    """Of ``precir_quantize_given``."""
    data, scales, pieces = _blocks(x, scale, ())
    return Rule((data, scales), (data,), pieces)


def given_scale_and_amax(x: Shape, scale: Shape, **_: Any) -> Rule:
    """Of ``precir_quantize_amax``."""
    data, scales, pieces = _blocks(x, scale, ())
    return Rule((data, scales), (data, scales), pieces, agreed=data[len(scale) :])


def both_ways(x: Shape, *, block: tuple[int, ...], **_: Any) -> Rule:
    """Of ``precir_quantize_both``: the matrix is the last two axes, and the transpose has blocks
    along its own rows, which stay whole too.
    """
    data, scales, pieces = _blocks(x, x[:-2], block)
    *ahead, down, across = data
    turned = (*ahead, across, down)
    if not block:
        return Rule((data,), (data, scales, turned, scales), pieces, agreed=(down, across))
    # The same factors, by the axes of the transpose.
    own = {len(x) - 2: across, len(x) - 1: down}
    _data, its, _pieces = _blocks((*x[:-2], x[-1], x[-2]), (), block)
    its = tuple(own.get(i, i) if i is not None else None for i in its)  # type: ignore[call-overload]
    size = max(block)
    for axis in own:
        pieces[axis] = max(1, x[axis] // size) if x[axis] % size == 0 else 1
    return Rule((data,), (data, scales, turned, its), pieces)


def both_ways_given(x: Shape, scale: Shape, *, amax: bool, **_: Any) -> Rule:
    """Of ``precir_quantize_both_given``."""
    data, scales, pieces = _blocks(x, scale, ())
    *ahead, down, across = data
    results = (data, (*ahead, across, down), *([scales] if amax else []))
    return Rule((data, scales), results, pieces, agreed=(down, across) if amax else ())


def statistics(x: Shape, **_: Any) -> Rule:
    """Of ``precir_observe``: all of the last axis is one tensor."""
    axes, last = tuple(range(len(x))), len(x) - 1
    return Rule((axes,), ((*axes[:-1], None),), dict(enumerate(x)), agreed=(last,))


def with_scales(data: Shape, scale: Shape, *, block: tuple[int, ...], **_: Any) -> Rule:
    """Of ``precir_dequantize``."""
    names, scales, pieces = _blocks(data, scale, block)
    return Rule((names, scales), (names,), pieces)


def _blocks(
    shape: Shape, scale: Shape, block: tuple[int, ...]
) -> tuple[Names, Names, dict[Hashable, int]]:
    """The factors of data and of scales, and the pieces of each factor."""
    pieces: dict[Hashable, int] = dict(enumerate(shape))
    if not block:  # the scales' axes are the leading ones of the data
        return tuple(pieces), tuple(range(len(scale))), pieces
    sizes = full_block(block, len(shape))
    for axis, (n, b) in enumerate(zip(shape, sizes, strict=True)):
        if 1 < b < n:
            pieces[axis] = n // b if n % b == 0 else 1
    return (
        tuple(pieces),
        tuple(i if n > b else None for i, (n, b) in enumerate(zip(shape, sizes, strict=True))),
        pieces,
    )
