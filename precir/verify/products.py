"""What the product of quantised tensors asks, and what follows it."""

from __future__ import annotations

from typing import Any, Final

from precir.ir import Node, Type
from precir.kernels.epilogue import ACTIVATIONS
from precir.ops.products import free_shape, operands, result_types
from precir.verify.contracts import Wrong, _agree_types, is_float, show

MOST_SHIFT: Final = 126  # so that 2^shift is normal in float32
_PLAIN: Final = ("float16", "bfloat16", "float32")
_EIGHT: Final = ("float8_e4m3fn", "float8_e5m2")


def scaled_dot(node: Node) -> Wrong:
    """Two operands that fit, those of what follows, and results as `result_types` says."""
    p, names = node.params, operands(node.params)
    if len(node.inputs) != len(names):
        yield f"{len(node.inputs)} operands, expected {len(names)}: {', '.join(names)}"
        return
    left, right = (o.type for o in node.inputs[:2])
    if not all(t.scale is not None or t.dtype in _PLAIN for t in (left, right)):
        found = f"operands {show(left)} and {show(right)}"
        yield f"{found}, expected quantised ones, or float16, bfloat16 or float32"
    shift = p.get("shift", 0)
    if type(shift) is not int or abs(shift) > MOST_SHIFT:
        yield f"the shift is {shift!r}, expected a whole number up to {MOST_SHIFT}"
    try:
        shape = _product_shape(left.shape, right.shape, p.get("dimension_numbers"))
    except (TypeError, ValueError, IndexError):
        yield f"dimension_numbers {p.get('dimension_numbers')!r} do not fit the operands"
        return
    yield from _followed(node)
    results = result_types(shape, {**p, "dtype": p.get("dtype", "")})
    yield from _agree_types("results", [v.type for v in node.outputs], results)


def _followed(node: Node) -> Wrong:
    """What the epilogue asks."""
    p, known = node.params, dict(zip(operands(node.params), node.inputs, strict=True))
    if p.get("activation") not in (None, *ACTIVATIONS):
        yield f"the activation is {p['activation']!r}, expected one of {', '.join(ACTIVATIONS)}"
    if p.get("narrow"):
        yield from _agree_types("scales", [known["scale"].type], [Type((), "float32")])
        if p.get("dtype") not in _EIGHT:
            yield f"the result is {p.get('dtype')!r}, expected one of {', '.join(_EIGHT)}"
    if p.get("bias"):
        bias, shape = known["bias"].type, free_shape(node)
        if bias.shape != shape or bias.scale is not None or not is_float(bias.dtype):
            yield f"the bias is {show(bias)}, expected {list(shape)}"


def _product_shape(left: tuple[int, ...], right: tuple[int, ...], numbers: Any) -> tuple[int, ...]:
    ((summed, its), (batch, its_batch)) = numbers
    for a, b in (*zip(summed, its, strict=True), *zip(batch, its_batch, strict=True)):
        if left[a] != right[b]:
            raise ValueError("sizes differ")
    rest = [left[i] for i in range(len(left)) if i not in (*summed, *batch)]
    rest += [right[i] for i in range(len(right)) if i not in (*its, *its_batch)]
    return (*(left[i] for i in batch), *rest)
