"""Where what computes and quantises in one may be cut, for `precir.kernels.divided`: norms,
activations, updates.

Each device computes what it has; where a largest magnitude is asked for, they agree on it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

from precir.kernels.division import Names, Rule
from precir.kernels.writing import Writing

Shape = tuple[int, ...]

_EXAMPLES: Final = 0
_ROWS: Final = 1
_COLUMNS: Final = 2


def norm(given: Shape, x: Shape, weight: Shape, bias: Shape, *, writing: Writing, **_: Any) -> Rule:
    """Of ``precir_norm_quantize``: rows stay whole."""
    written, pieces = _written(x, writing)
    data = _EXAMPLES, _ROWS, None
    rows = tuple((_EXAMPLES if shape[0] > 1 else None, None) for shape in (weight, bias))
    each = _EXAMPLES, _ROWS
    agreed = (_ROWS,) if writing.amax else ()
    pieces[_COLUMNS] = 1
    return Rule(((_EXAMPLES,), data, *rows), (*written, each, each), pieces, agreed=agreed)


def norm_gradients(
    x: Shape, g: Shape, mean: Shape, rstd: Shape, weight: Shape, *besides: Shape, **_: Any
) -> Rule:
    """Of ``precir_norm_gradients``: rows stay whole, and devices sum what they have of them."""
    data, each = (_EXAMPLES, _ROWS, None), (_EXAMPLES, _ROWS)
    row = (_EXAMPLES if weight[0] > 1 else None, None)
    operands = (data, data, each, each, row, *(data for _ in besides))
    sums = _EXAMPLES, None
    return Rule(operands, (data, sums, sums), dict(enumerate(x[:2])), agreed=(_ROWS,))


def activation(given: Shape, *both: Shape, packed: bool, writing: Writing, **_: Any) -> Rule:
    """Of ``precir_act_quantize``: what is packed has two halves of each row, which stay whole."""
    examples, rows, columns = both[0]
    written, pieces = _written((examples, rows, columns // (1 + packed)), writing)
    if packed:
        pieces[_COLUMNS] = 1
    operands = ((_EXAMPLES,), *(((_EXAMPLES, _ROWS, _COLUMNS),) * len(both)))
    return Rule(operands, written, pieces, agreed=(_ROWS, _COLUMNS) if writing.amax else ())


def activation_gradients(
    given: Shape,
    g: Shape,
    *both: Shape,
    packed: bool,
    writing: Writing,
    alone: bool = False,
    **_: Any,
) -> Rule:
    """Of ``precir_act_gradients``: as ``activation``, of one gradient or two."""
    written, pieces = _written(both[0], writing)
    if packed:
        pieces[_COLUMNS] = 1
    data = _EXAMPLES, _ROWS, _COLUMNS
    operands = ((_EXAMPLES, None), *((data,) * (1 + len(both))))
    agreed = (_ROWS, _COLUMNS) if writing.amax else ()
    return Rule(operands, written * (1 if alone else len(both)), pieces, agreed=agreed)


def adam(*shapes: Shape, sizes: tuple[int, ...]) -> Rule:
    """Of ``precir_adam_update``: blocks stay whole, and what is under one scale agrees on it. The
    new state lies as the old did, though that divides blocks.
    """
    (examples, rows, columns), *_ = shapes
    pieces: dict[Hashable, int] = {_EXAMPLES: examples, _ROWS: rows, _COLUMNS: columns}
    data = _EXAMPLES, _ROWS, _COLUMNS
    grouped = [size for size in sizes if size]
    if grouped:
        pieces[_COLUMNS] = _whole(columns, max(grouped))
    operands: list[Names] = []
    one = False
    for i, size in enumerate(sizes):
        scale = shapes[2 * i + 1]
        operands += [data, _scales(scale)]
        one |= i < 3 and not size and scale != (0,)
    hyper, given = shapes[-2:]
    each = [(_EXAMPLES if shape[0] == examples else None, None) for shape in (hyper, given)]
    results = *operands[:6], (_EXAMPLES, None)
    agreed = (_ROWS, _COLUMNS) if one else ()
    return Rule((*operands, *each), results, pieces, agreed=agreed, loose=(_COLUMNS,))


def _scales(shape: Shape) -> Names:
    if len(shape) < 3:
        return (_EXAMPLES if shape[0] else None,)
    return _EXAMPLES, _ROWS, _COLUMNS if shape[2] > 1 else None


def _written(shape: Shape, writing: Writing) -> tuple[tuple[Names, ...], dict[Hashable, int]]:
    """The factors of what a fused kernel writes of [examples, rows, columns], and their pieces."""
    _, rows, columns = shape
    size, pieces = writing.size, dict[Hashable, int](enumerate(shape))
    names: list[Names] = []
    data = _EXAMPLES, _ROWS, _COLUMNS
    if writing.data is not None:
        names.append(data)
        if size:
            names.append((_EXAMPLES, _ROWS, _COLUMNS if columns > size else None))
            pieces[_COLUMNS] = _whole(columns, size)
        if writing.flip:
            names.append((_EXAMPLES, _COLUMNS, _ROWS))
        if writing.flip and size:
            names.append((_EXAMPLES, _COLUMNS, _ROWS if rows > size else None))
            pieces[_ROWS] = _whole(rows, size)
    names += [data] if writing.plain is not None else []
    names += [(_EXAMPLES,)] if writing.amax else []
    return tuple(names), pieces


def _whole(n: int, size: int) -> int:
    """Pieces of an axis in blocks."""
    return n // size if n % size == 0 else 1
