"""Ops that work element by element."""

from __future__ import annotations

import math

from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, binary, bind, call, kind, operator, prefix, unary
from precir.ops.facts import arithmetic, functions, pointwise
from precir.ops.writing import (
    ATOM,
    BIT_AND,
    BIT_OR,
    BIT_XOR,
    COMPARE,
    DROPPED,
    PRODUCT,
    REQUIRED,
    SUM,
    Hole,
    Template,
    Writer,
    bare_scalars,
    dtype_source,
)  # fmt: skip

FOLLOW, WIDE, MOVE, OWN = Keeps.FOLLOW, Keeps.WIDE, Keeps.MOVE, Keeps.OWN


def _select(node: Node, w: Writer) -> Template:
    pred = node.inputs[0].type
    if len(node.inputs) == 3 and pred.dtype == "bool" and pred.shape == node.outputs[0].type.shape:
        bare = bare_scalars(node.inputs[1:])
        pieces = ("jnp.where(", Hole(0), ", ", Hole(2, bare=bare), ", ", Hole(1, bare=bare), ")")
        return Template(pieces)
    return call("lax.select_n")(node, w)


def _convert(node: Node, w: Writer) -> Template:
    """`astype` where it is the primitive: of complex numbers it warns, or compares with zero."""
    operand, result = node.inputs[0], node.outputs[0].type
    if node.params["weak_type"] or node.params["sharding"] is not None:
        return bind(node, w)
    if {kind(operand.type.dtype), kind(result.dtype)} <= {"float", "int", "bool"}:
        if isinstance(operand, Literal):
            return _convert_plain(node, w)
        return Template((Hole(0, ATOM), f".astype({dtype_source(result.dtype, w)})"))
    return bind(node, w) if "complex" in operand.type.dtype else _convert_plain(node, w)


_convert_plain = call(
    "lax.convert_element_type",
    positional=("new_dtype",),
    keywords={"weak_type": DROPPED, "sharding": None},
)


def _extremum(function: str, plain: str) -> object:
    pretty, exact = call(function, bare=True), call(plain)

    def write(node: Node, w: Writer) -> Template:
        floats = node.inputs[0].type.dtype in ("float32", "bfloat16", "float16", "float64", "int32")
        return (pretty if floats else exact)(node, w)

    return write


OPS: tuple[Op, ...] = (
    # arithmetic
    Op("add", FOLLOW, arithmetic.add, operator("+", SUM, "lax.add")),
    Op("add_any", FOLLOW, arithmetic.add, operator("+", SUM, "lax.add", "float int bool other")),
    Op("sub", FOLLOW, arithmetic.sub, operator("-", SUM, "lax.sub")),
    Op("mul", FOLLOW, arithmetic.mul, operator("*", PRODUCT, "lax.mul")),
    Op("div", FOLLOW, arithmetic.div, operator("/", PRODUCT, "lax.div", "float")),
    binary("rem", FOLLOW, arithmetic.rem),
    Op("max", FOLLOW, pointwise.extremum(largest=True), _extremum("jnp.maximum", "lax.max")),  # type: ignore[arg-type]
    Op("min", FOLLOW, pointwise.extremum(largest=False), _extremum("jnp.minimum", "lax.min")),  # type: ignore[arg-type]
    Op("neg", FOLLOW, arithmetic.neg, prefix("-", "lax.neg", "float int")),
    unary("abs", FOLLOW, pointwise.absolute),
    unary("sign", FOLLOW, pointwise.sign),
    unary("floor", FOLLOW, pointwise.rounded(math.floor)),
    unary("ceil", FOLLOW, pointwise.rounded(math.ceil)),
    Op("round", FOLLOW, pointwise.rounded(pointwise.nearest), call(
        "lax.round", positional=("rounding_method",),
    )),
    Op("clamp", FOLLOW, pointwise.clamp, call("lax.clamp")),
    unary("square", FOLLOW, arithmetic.square),
    unary("one_minus_square", FOLLOW, arithmetic.one_minus_square),
    Op("integer_pow", FOLLOW, arithmetic.integer_pow, call("lax.integer_pow", positional=("y",))),
    binary("nextafter", OWN, pointwise.nextafter),
    Op("copy", MOVE, pointwise.same_as_operand, call("jnp.copy")),
    unary("stop_gradient", MOVE, pointwise.same_as_operand),
    # transcendental: float32, as torch autocast has it
    unary("exp", WIDE, functions.exp, accuracy=None),
    unary("exp2", WIDE, functions.exp2, accuracy=None),
    unary("expm1", WIDE, functions.expm1, accuracy=None),
    unary("log", WIDE, functions.log, accuracy=None),
    unary("log1p", WIDE, functions.log1p, accuracy=None),
    unary("log2", WIDE, functions.log2, accuracy=None),
    Op("pow", WIDE, arithmetic.power, call("lax.pow")),
    unary("sqrt", WIDE, functions.sqrt, accuracy=None),
    unary("rsqrt", WIDE, functions.rsqrt, accuracy=None),
    unary("cbrt", WIDE, functions.cbrt, accuracy=None),
    unary("tan", WIDE, functions.tan, accuracy=None),
    unary("sin", WIDE, functions.sin, accuracy=None),
    unary("cos", WIDE, functions.cos, accuracy=None),
    unary("asin", WIDE, functions.asin),
    unary("acos", WIDE, functions.acos),
    unary("atan", WIDE, functions.atan),
    binary("atan2", WIDE, functions.atan2),
    unary("sinh", WIDE, functions.sinh),
    unary("cosh", WIDE, functions.cosh),
    unary("asinh", WIDE, functions.asinh),
    unary("acosh", WIDE, functions.acosh),
    unary("atanh", WIDE, functions.atanh),
    unary("erf_inv", WIDE, functions.erf_inv),
    unary("lgamma", WIDE, functions.lgamma),
    unary("digamma", WIDE, functions.digamma),
    binary("polygamma", WIDE, functions.anything),
    binary("igamma", WIDE, functions.unit_or_nan),
    binary("igammac", WIDE, functions.unit_or_nan),
    binary("zeta", WIDE, functions.anything),
    Op("regularized_incomplete_beta", WIDE, functions.unit_or_nan, call("lax.betainc")),
    unary("bessel_i0e", WIDE, functions.bessel_i0e),
    unary("bessel_i1e", WIDE, functions.bessel_i1e),
    unary("tanh", FOLLOW, functions.tanh, accuracy=None),
    unary("logistic", FOLLOW, functions.logistic, accuracy=None),
    unary("erf", FOLLOW, functions.erf),
    unary("erfc", FOLLOW, functions.erfc),
    # comparisons and logic
    Op("eq", FOLLOW, pointwise.equal, operator("==", COMPARE, "lax.eq", "float int bool")),
    Op("ne", FOLLOW, pointwise.unequal, operator("!=", COMPARE, "lax.ne", "float int bool")),
    Op("lt", FOLLOW, pointwise.less, operator("<", COMPARE, "lax.lt")),
    Op("le", FOLLOW, pointwise.less_equal, operator("<=", COMPARE, "lax.le")),
    Op("gt", FOLLOW, pointwise.greater, operator(">", COMPARE, "lax.gt")),
    Op("ge", FOLLOW, pointwise.greater_equal, operator(">=", COMPARE, "lax.ge")),
    Op("and", OWN, pointwise.bits("and"), operator("&", BIT_AND, "lax.bitwise_and", "int bool")),
    Op("or", OWN, pointwise.bits("or"), operator("|", BIT_OR, "lax.bitwise_or", "int bool")),
    Op("xor", OWN, pointwise.bits("xor"), operator("^", BIT_XOR, "lax.bitwise_xor", "int bool")),
    Op("not", OWN, pointwise.invert, prefix("~", "lax.bitwise_not", "int bool")),
    unary("is_finite", FOLLOW, pointwise.is_finite),
    Op("select_n", FOLLOW, pointwise.select, _select),
    binary("shift_left", OWN, pointwise.shift_left),
    binary("shift_right_logical", OWN, pointwise.shift_right(logical=True)),
    binary("shift_right_arithmetic", OWN, pointwise.shift_right(logical=False)),
    unary("population_count", OWN, pointwise.bit_count),
    unary("clz", OWN, pointwise.bit_count),
    # types
    Op("convert_element_type", OWN, pointwise.convert, _convert),
    Op("bitcast_convert_type", OWN, pointwise.bitcast, call(
        "lax.bitcast_convert_type", positional=("new_dtype",),
    )),
    Op("reduce_precision", OWN, pointwise.reduce_precision, call(
        "lax.reduce_precision", keywords={"exponent_bits": REQUIRED, "mantissa_bits": REQUIRED},
    )),
    binary("complex", OWN, pointwise.complex_parts),
    unary("real", OWN, pointwise.same_as_operand),
    unary("imag", OWN, pointwise.same_as_operand),
    unary("conj", OWN, pointwise.conjugate, input_dtype=DROPPED),
)  # fmt: skip
