"""What `adam_update` asks."""

from __future__ import annotations

from typing import Final

from precir.ir import Node, Type
from precir.ops.adam import SCALARS, TENSORS, result_types
from precir.verify.contracts import Wrong, _agree_types, is_float, show

_SCALAR: Final = Type((), "float32")


def adam(node: Node) -> Wrong:
    """Four tensors of one shape, float32 numbers, and the results as the first three."""
    p = node.params
    if set(p) != set(SCALARS) or any(type(v) not in (float, type(None)) for v in p.values()):
        yield f"parameters {dict(p)!r}, expected a number or None for each of {', '.join(SCALARS)}"
        return
    traced = [name for name in SCALARS if p[name] is None]
    names = (*TENSORS, *traced)
    if len(node.inputs) != len(names):
        yield f"{len(node.inputs)} operands, expected {', '.join(names)}"
        return
    types = [o.type for o in node.inputs]
    for name, type_ in zip(TENSORS, types, strict=False):
        plain = is_float(type_.dtype) if name == "gradient" else type_.dtype == "float32"
        if type_.shape != types[0].shape or not (plain or type_.scale is not None):
            yield f"the {name} is {show(type_)}, expected {list(types[0].shape)}, plain or scaled"
    count = len(TENSORS)
    yield from _agree_types("scalars", types[count:], [_SCALAR] * len(traced))
    yield from _agree_types("results", [v.type for v in node.outputs], result_types(types))
