"""What the ops ask that compute and quantise in one kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from precir.ir import Node, Type
from precir.ops import norm_gradients
from precir.ops.fused import operands, result_types
from precir.scaled import scale_shape
from precir.verify.adam import adam
from precir.verify.contracts import CONTRACTS, Wrong, _agree_types, is_block, is_float, show
from precir.verify.products import scaled_dot

_SCALAR: Final = Type((), "float32")
_PLAIN: Final = ("", "float32", "bfloat16", "float16")
_GIVEN: Final = ("given", "turned", "amax")
_ASKED: Final = ("weight", "add", "of_weight", "of_bias")


def _fused(node: Node) -> Wrong:
    """Operands by their names, results as `result_types` says."""
    p = node.params
    for name, known in _KINDS.get(node.op, {}).items():
        if p.get(name) not in known:
            expected = ", ".join(map(str, known))
            yield f"parameter {name} is {p.get(name)!r}, expected one of {expected}"
            return
    if (
        any(type(p.get(k)) is not bool for k in _GIVEN)
        or "dtype" not in p
        or p.get("plain") not in _PLAIN
    ):
        yield f"parameters {dict(p)!r} do not say what is written"
        return
    names = operands(node)
    if len(names) != len(node.inputs):
        yield f"{len(node.inputs)} operands, expected {', '.join(names)}"
        return
    x = node.inputs[0].type
    if x.scale is not None or not is_float(x.dtype) or not x.rank:
        yield f"the operand is {show(x)}, expected a floating-point array"
        return
    if not is_block(p.get("block"), x.rank) or len(p["block"]) not in (0, x.rank):
        yield f"the block is {p.get('block')!r}, expected a size for each axis, or ()"
        return
    if not p["dtype"] and (p["block"] or p["given"] or p["turned"] or not p["amax"]):
        yield "nothing is quantised, and yet it says how"
    elif (
        p["dtype"] and bool(p["block"]) == p["given"] and (p["block"] or node.op != "quantize_both")
    ):
        yield "a scale is given, or there is one for each block"
    for name, operand in zip(names[1:], node.inputs[1:], strict=True):
        shape = {"scale": (), "weight": x.shape[-1:], "bias": x.shape[-1:]}.get(name, x.shape)
        found = operand.type
        if found.shape != shape or found.scale is not None or not is_float(found.dtype):
            yield f"the {name} is {show(found)}, expected {list(shape)}"
    results = result_types(node.op, x, dict(p))
    yield from _agree_types("results", [v.type for v in node.outputs], results)


_KINDS: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "norm_quantize": {"kind": ("layer", "rms"), "weight": (True, False), "bias": (True, False)},
    "act_quantize": {"activation": ("gelu", "gelu_tanh", "silu", "relu"), "gated": (True, False)},
    "act_gradients": {"activation": ("gelu", "gelu_tanh", "silu", "relu"), "gated": (True, False)},
}


def _norm_gradients(node: Node) -> Wrong:
    p = node.params
    kind, dtype = p.get("kind"), p.get("dtype")
    known = kind in ("layer", "rms") and dtype in _PLAIN[1:]
    if not known or any(type(p.get(k)) is not bool for k in _ASKED):
        yield f"parameters {dict(p)!r} do not say which norm, or what is asked"
        return
    names = norm_gradients.operands(p)
    if len(names) != len(node.inputs):
        yield f"{len(node.inputs)} operands, expected {', '.join(names)}"
        return
    x = node.inputs[0].type
    if x.scale is not None or not is_float(x.dtype) or not x.rank:
        yield f"the operand is {show(x)}, expected a floating-point array"
        return
    shapes = {"weight": x.shape[-1:], "mean": x.shape[:-1], "rstd": x.shape[:-1]}
    for name, operand in zip(names[1:], node.inputs[1:], strict=True):
        found, shape = operand.type, shapes.get(name, x.shape)
        if found.shape != shape or found.scale is not None or not is_float(found.dtype):
            yield f"the {name} is {show(found)}, expected {list(shape)}"
    results = norm_gradients.result_types(x, p)
    yield from _agree_types("results", [v.type for v in node.outputs], results)


def _turned_back(node: Node) -> Wrong:
    if (len(node.inputs), len(node.outputs)) != (1, 1):
        yield f"{len(node.inputs)} operands and {len(node.outputs)} results, expected 1 and 1"
        return
    given = node.inputs[0].type
    shape: Any = node.params.get("shape")
    sound = type(shape) is tuple and len(shape) > 1 and given.rank == 2 and given.scale is not None
    if not sound or given.shape != (shape[-1], math.prod(shape[:-1])):
        yield f"the operand is {show(given)}, expected the transpose of {shape!r}, quantised"
        return
    block = given.block and ((1,) * (len(shape) - 2) + given.block[::-1])
    expected = Type(shape, given.dtype, scale=scale_shape(shape, block), block=block)
    yield from _agree_types("results", [node.outputs[0].type], [expected])


def _current_scale(node: Node) -> Wrong:
    yield from _agree_types("operands", [o.type for o in node.inputs], [_SCALAR])
    yield from _agree_types("results", [v.type for v in node.outputs], [_SCALAR])


EVERY_CONTRACT: Final[dict[str, Callable[[Node], Wrong]]] = {
    **CONTRACTS,
    "norm_quantize": _fused,
    "act_quantize": _fused,
    "act_gradients": _fused,
    "quantize_both": _fused,
    "norm_gradients": _norm_gradients,
    "turned_back": _turned_back,
    "current_scale": _current_scale,
    "adam_update": adam,
    "scaled_dot": scaled_dot,
}
"""Those of all ops."""
