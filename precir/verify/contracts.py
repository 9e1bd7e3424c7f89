"""What an op asks of its operands, regions and results, where the IR must know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from jax import numpy as jnp

from precir.ir import Node, Operand, Type
from precir.kernels.tap import TAPPED
from precir.ops.rows import row_type
from precir.scaled import full_block, scale_shape
from precir.text.types import SHORT, numpy_dtype

Wrong = Iterator[str]
_SCALAR: Final = Type((), "float32")
OBSERVED: Final = 10  # numbers that `observe` gives beside its histogram


def _agree(what: str, found: Sequence[Operand], expected: Sequence[Operand]) -> Wrong:
    """As many, of the same shapes and dtypes; JAX itself is loose about weak types here."""
    yield from _agree_types(what, [v.type for v in found], [v.type for v in expected])


def _agree_types(what: str, found: Sequence[Type], expected: Sequence[Type]) -> Wrong:
    if len(found) != len(expected):
        yield f"{len(found)} {what}, expected {len(expected)}"
        return
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        if f is not e and _held(f) != _held(e):
            yield f"{what}: number {i} is {show(f)}, expected {show(e)}"


def _held(type_: Type) -> tuple[Any, ...]:
    """Blocks by what they mean: those of a layer may name the axis of the stack that it is of."""
    block = full_block(type_.block, type_.rank) if type_.block else ()
    return type_.shape, type_.dtype, type_.scale, block


def show(type_: Type) -> str:
    scale = "" if type_.scale is None else f" with a scale of {list(type_.scale)}"
    block = f" for blocks of {list(type_.block)}" if type_.block else ""
    return f"{type_.dtype}{list(type_.shape)}{scale}{block}"


def _counts(node: Node, regions: int | None, *names: str) -> Wrong:
    if regions is not None and len(node.regions) != regions:
        yield f"{len(node.regions)} regions, expected {regions}"
    for name in names:
        if type(node.params.get(name)) is not int or node.params[name] < 0:
            yield f"parameter {name} is {node.params.get(name)!r}, expected a count"


def _scan(node: Node) -> Wrong:
    if wrong := list(_counts(node, 1, "num_consts", "num_carry", "length")):
        yield from wrong
        return
    (body,), p = node.regions, node.params
    carry, first = p["num_carry"], p["num_consts"]
    last = first + carry
    if last > len(node.inputs) or carry > min(len(node.outputs), len(body.outputs)):
        yield f"fewer operands or results than {first} constants and {carry} of the carry"
        return
    yield from _agree("inputs of the body", body.inputs[:last], node.inputs[:last])
    yield from _agree("carried results of the body", body.outputs[:carry], body.inputs[first:last])
    yield from _agree("carried results", node.outputs[:carry], body.inputs[first:last])
    slices = [stacked(v.type, p["length"]) for v in body.inputs[last:]]
    yield from _agree_types("scanned operands", [v.type for v in node.inputs[last:]], slices)
    stacks = [stacked(v.type, p["length"]) for v in body.outputs[carry:]]
    yield from _agree_types("stacked results", [v.type for v in node.outputs[carry:]], stacks)


def stacked(type_: Type, length: int) -> Type:
    """The type of what a scan of `length` steps stacks."""
    scale = None if type_.scale is None else (length, *type_.scale)
    return Type((length, *type_.shape), type_.dtype, False, scale, type_.block)


def _while(node: Node) -> Wrong:
    if wrong := list(_counts(node, 2, "cond_nconsts", "body_nconsts")):
        yield from wrong
        return
    cond, body = node.regions
    of_cond, of_body = node.params["cond_nconsts"], node.params["body_nconsts"]
    carry = node.inputs[of_cond + of_body :]
    yield from _agree("inputs of the condition", cond.inputs, (*node.inputs[:of_cond], *carry))
    constants = node.inputs[of_cond : of_cond + of_body]
    yield from _agree("inputs of the body", body.inputs, (*constants, *carry))
    yield from _agree("results of the body", body.outputs, carry)
    yield from _agree("results", node.outputs, carry)
    chosen = [v.type for v in cond.outputs]
    shape = chosen[0].shape if chosen else ()
    if any(v.type.shape[: len(shape)] != shape for v in carry):
        shape = ()  # a batch of loops has a condition for each
    yield from _agree_types("results of the condition", chosen, [Type(shape, "bool")])


def _cond(node: Node) -> Wrong:
    if not node.regions or not node.inputs:
        yield f"{len(node.regions)} branches and {len(node.inputs)} operands"
        return
    index = node.inputs[0].type
    if index.shape != () or index.dtype not in ("bool", "int32"):
        yield f"the branch is chosen by {show(index)}, expected int32[]"
    for i, branch in enumerate(node.regions):
        yield from _agree(f"inputs of branch {i}", branch.inputs, node.inputs[1:])
        yield from _agree(f"results of branch {i}", branch.outputs, node.outputs)


def _call(node: Node) -> Wrong:
    if wrong := list(_counts(node, 1)):
        yield from wrong
        return
    yield from _agree("inputs of the body", node.regions[0].inputs, node.inputs)
    yield from _agree("results of the body", node.regions[0].outputs, node.outputs)


def _shard_map(node: Node) -> Wrong:
    if wrong := list(_counts(node, 1)):
        yield from wrong
        return
    (body,) = node.regions
    for what, inner, outer in (
        ("inputs of the body", body.inputs, node.inputs),
        ("results of the body", body.outputs, node.outputs),
    ):
        dtypes = [Type((), v.type.dtype) for v in inner], [Type((), v.type.dtype) for v in outer]
        yield from _agree_types(what, *dtypes)


# -- precir's own ops ------------------------------------------------------------------------------


def _operands(node: Node, inputs: int, regions: int = 0) -> Wrong:
    if (len(node.inputs), len(node.outputs)) != (inputs, 1):
        found = f"{len(node.inputs)} operands and {len(node.outputs)} results"
        yield f"{found}, expected {inputs} and 1"
    yield from _counts(node, regions)


def _cast(node: Node) -> Wrong:
    if wrong := list(_operands(node, 1)):
        yield from wrong
        return
    expected = Type(node.inputs[0].type.shape, node.params.get("dtype", ""))
    yield from _agree_types("results", [node.outputs[0].type], [expected])


def _quantize(node: Node) -> Wrong:
    p = node.params
    is_given = p.get("scaling") == "given"
    if wrong := list(_operands(node, 1 + is_given)):
        yield from wrong
        return
    given = node.inputs[0].type
    if given.scale is not None:
        yield "the operand is quantised already"
    if not is_float(given.dtype):
        yield f"the operand is {show(given)}, expected a floating-point array"
    block, scales = p.get("block", ()), p.get("scale_format", "float32")
    if scales not in ("float32", "float8_e8m0fnu"):
        yield f"scales in {scales!r}, expected float32 or float8_e8m0fnu"
    if is_given:
        yield from _agree_types("scales", [node.inputs[1].type], [Type((), "float32")])
        if block or scales != "float32":
            yield "a given scale is one for the whole tensor, in float32"
    if not is_block(block, given.rank):
        yield f"the block is {block!r}, expected sizes of some of the last axes"
        return
    scale = scale_shape(given.shape, block)
    expected = Type(given.shape, p.get("dtype", ""), scale=scale, block=block)
    yield from _agree_types("results", [node.outputs[0].type], [expected])


def _dequantize(node: Node) -> Wrong:
    if wrong := list(_operands(node, 1)):
        yield from wrong
        return
    given = node.inputs[0].type
    if given.scale is None:
        yield f"the operand is {show(given)}, expected a quantised array"
    yield from _agree_types("results", [node.outputs[0].type], [Type(given.shape, "float32")])


def is_block(block: Any, rank: int) -> bool:
    sized = type(block) is tuple and all(type(b) is int and b > 0 for b in block)
    return sized and len(block) <= rank


def _observe(node: Node) -> Wrong:
    if wrong := list(_operands(node, 1)):
        yield from wrong
        return
    yield from _wide("operand", node.inputs[0].type)
    expected = Type((OBSERVED + 256 * bool(node.params.get("histogram")),), "int32")
    yield from _agree_types("results", [node.outputs[0].type], [expected])


def _tap(node: Node) -> Wrong:
    if wrong := list(_operands(node, 2)):
        yield from wrong
        return
    given, row = (o.type for o in node.inputs)
    yield from _wide("operand", given)
    roundings = node.params.get("roundings", ())
    if row.dtype != "float32" or row.rank != 2 or row.shape[0] != 1:
        yield f"a row {show(row)}, expected float32[1, n]"
    elif row.shape[1] < TAPPED * len(roundings):
        yield f"{len(roundings)} roundings do not fit {show(row)}"
    yield from _agree_types("results", [node.outputs[0].type], [given])


def _amax(node: Node) -> Wrong:
    if wrong := list(_operands(node, 1)):
        yield from wrong
        return
    yield from _wide("operand", node.inputs[0].type)
    yield from _agree_types("results", [node.outputs[0].type], [Type((), "float32")])


def _element(node: Node) -> Wrong:
    if wrong := list(_operands(node, 1)):
        yield from wrong
        return
    given, index = node.inputs[0].type, node.params.get("index")
    if given.rank != 1 or type(index) is not int or not 0 <= index < given.shape[0]:
        yield f"element {index!r} of {show(given)}"
    yield from _agree_types("results", [node.outputs[0].type], [Type((), given.dtype)])


def _row(node: Node) -> Wrong:
    if wrong := list(_operands(node, 2)):
        yield from wrong
        return
    stack, at = (o.type for o in node.inputs)
    yield from _one_row(stack, node.outputs[0].type, at, "results")


def _put_row(node: Node) -> Wrong:
    if wrong := list(_operands(node, 3)):
        yield from wrong
        return
    stack, new, at = (o.type for o in node.inputs)
    yield from _one_row(stack, new, at, "rows")
    yield from _agree_types("results", [node.outputs[0].type], [stack])


def _one_row(stack: Type, row: Type, at: Type, what: str) -> Wrong:
    yield from _agree_types("places", [at], [Type((), "int32")])
    expected = row_type(stack)
    if expected is None:
        yield f"the operand is {show(stack)}, expected a stack whose rows stand by themselves"
    else:
        yield from _agree_types(what, [row], [expected])


def _delayed_scale(node: Node) -> Wrong:
    if wrong := list(_operands(node, 2)):
        yield from wrong
        return
    yield from _agree_types("operands", [o.type for o in node.inputs], [_SCALAR] * 2)
    yield from _agree_types("results", [node.outputs[0].type], [_SCALAR])


def _recent_amax(node: Node) -> Wrong:
    if wrong := list(_operands(node, 1)):
        yield from wrong
        return
    given = node.inputs[0].type
    if given.rank != 2:
        yield f"the operand is {show(given)}, expected a history"
    yield from _agree_types("results", [node.outputs[0].type], [Type(given.shape[:1], "float32")])


def _record_amax(node: Node) -> Wrong:
    if wrong := list(_operands(node, len(node.inputs) or 1)):
        yield from wrong
        return
    history, *amaxes = [o.type for o in node.inputs]
    yield from _agree_types("operands", amaxes, [_SCALAR] * len(amaxes))
    expected = Type((len(amaxes), *history.shape[1:]), "float32")
    yield from _agree_types("results", [history, node.outputs[0].type], [expected] * 2)


def _wide(what: str, type_: Type) -> Wrong:
    if type_.scale is not None or not is_float(type_.dtype):
        yield f"the {what} is {show(type_)}, expected a floating-point array"


def _merge_stats(node: Node) -> Wrong:
    if wrong := list(_operands(node, 2)):
        yield from wrong
        return
    yield from _agree_types("results", [v.type for v in node.outputs], [node.inputs[0].type])
    yield from _agree("operands", node.inputs[:1], node.inputs[1:])


def is_float(dtype: str) -> bool:
    found = numpy_dtype(SHORT.get(dtype, ""))
    return found is not None and jnp.issubdtype(found, np.floating)


def _multiplied(node: Node) -> Wrong:
    if wrong := list(_operands(node, 2)):
        yield from wrong
        return
    given, factor = (o.type for o in node.inputs)
    yield from _wide("operand", given)
    yield from _agree_types("factor", [Type((), factor.dtype)], [Type((), "float32")])
    expected = Type(given.shape, node.params.get("dtype", ""))
    yield from _agree_types("results", [node.outputs[0].type], [expected])


def _scale(node: Node) -> Wrong:
    if len(node.outputs) != 1:
        yield f"{len(node.outputs)} results, expected 1"
        return
    yield from _agree_types("results", [node.outputs[0].type], [Type((), "float32")])


def _scale_product(node: Node) -> Wrong:
    yield from _scale(node)
    scalars = [Type((), "float32")] * len(node.params.get("powers", ()))
    yield from _agree_types("scales", [o.type for o in node.inputs], scalars)


def _all_finite(node: Node) -> Wrong:
    yield from _agree_types("results", [v.type for v in node.outputs], [Type((), "bool")])


def _next_loss_scale(node: Node) -> Wrong:
    kinds = [Type((), "float32"), Type((), "int32")]
    operands = [o.type for o in node.inputs]
    yield from _agree_types("operands", operands, [*kinds, Type((), "bool")])
    yield from _agree_types("results", [v.type for v in node.outputs], kinds)


CONTRACTS: Final[dict[str, Callable[[Node], Wrong]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "remat": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "jit": _call,
    "shard_map": _shard_map,
    "cast": _cast,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "observe": _observe,
    "amax": _amax,
    "tap": _tap,
    "rescale": _multiplied,
    "unscale": _multiplied,
    "scale_product": _scale_product,
    "scale_max": _scale,
    "scale_root": _scale,
    "rms_scale": _scale,
    "all_finite": _all_finite,
    "next_loss_scale": _next_loss_scale,
    "scale_of": _scale,
    "amax_scale": _scale,
    "element": _element,
    "row": _row,
    "layer": _row,
    "put_row": _put_row,
    "finite_amax": _amax,
    "delayed_scale": _delayed_scale,
    "recent_amax": _recent_amax,
    "record_amax": _record_amax,
    "merge_stats": _merge_stats,
}
