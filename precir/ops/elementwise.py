"""Ops that work element by element."""

from __future__ import annotations

import math

from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, binary, bind, call, kind, operator, prefix, unary
from precir.ops.facts import arithmetic, functions, pointwise
from precir.ops.scales import laws, products
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
UNSCALED, ALIGNED, COMPARED = laws.unscaled, laws.aligned(), laws.compared()
SUMMED = laws.aligned(grows=True)


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
    Op("add", FOLLOW, arithmetic.add, SUMMED, operator("+", SUM, "lax.add")),
    Op(
        "add_any", FOLLOW, arithmetic.add, SUMMED,
        operator("+", SUM, "lax.add", "float int bool other"),
    ),
    Op("sub", FOLLOW, arithmetic.sub, SUMMED, operator("-", SUM, "lax.sub")),
    Op("mul", FOLLOW, arithmetic.mul, products.mul, operator("*", PRODUCT, "lax.mul")),
    Op("div", FOLLOW, arithmetic.div, products.div, operator("/", PRODUCT, "lax.div", "float")),
    binary("rem", FOLLOW, arithmetic.rem, ALIGNED),
    Op(
        "max", FOLLOW, pointwise.extremum(largest=True), ALIGNED,
        _extremum("jnp.maximum", "lax.max"),  # type: ignore[arg-type]
    ),
    Op(
        "min", FOLLOW, pointwise.extremum(largest=False), ALIGNED,
        _extremum("jnp.minimum", "lax.min"),  # type: ignore[arg-type]
    ),
    Op("neg", FOLLOW, arithmetic.neg, laws.through, prefix("-", "lax.neg", "float int")),
    unary("abs", FOLLOW, pointwise.absolute, laws.through),
    unary("sign", FOLLOW, pointwise.sign, laws.reads),
    unary("floor", FOLLOW, pointwise.rounded(math.floor), UNSCALED),
    unary("ceil", FOLLOW, pointwise.rounded(math.ceil), UNSCALED),
    Op("round", FOLLOW, pointwise.rounded(pointwise.nearest), UNSCALED, call(
        "lax.round", positional=("rounding_method",),
    )),
    Op("clamp", FOLLOW, pointwise.clamp, ALIGNED, call("lax.clamp")),
    unary("square", FOLLOW, arithmetic.square, products.square),
    unary("one_minus_square", FOLLOW, arithmetic.one_minus_square, UNSCALED),
    Op(
        "integer_pow", FOLLOW, arithmetic.integer_pow, products.integer_pow,
        call("lax.integer_pow", positional=("y",)),
    ),
    binary("nextafter", OWN, pointwise.nextafter, UNSCALED),
    Op("copy", MOVE, pointwise.same_as_operand, laws.through, call("jnp.copy")),
    unary("stop_gradient", MOVE, pointwise.same_as_operand, laws.through),
    # transcendental: float32, as torch autocast has it
    unary("exp", WIDE, functions.exp, laws.exponential, accuracy=None),
    unary("exp2", WIDE, functions.exp2, UNSCALED, accuracy=None),
    unary("expm1", WIDE, functions.expm1, UNSCALED, accuracy=None),
    unary("log", WIDE, functions.log, UNSCALED, accuracy=None),
    unary("log1p", WIDE, functions.log1p, UNSCALED, accuracy=None),
    unary("log2", WIDE, functions.log2, UNSCALED, accuracy=None),
    Op("pow", WIDE, arithmetic.power, UNSCALED, call("lax.pow")),
    unary("sqrt", WIDE, functions.sqrt, laws.root(2), accuracy=None),
    unary("rsqrt", WIDE, functions.rsqrt, laws.root(2, inverse=True), accuracy=None),
    unary("cbrt", WIDE, functions.cbrt, laws.root(3), accuracy=None),
    unary("tan", WIDE, functions.tan, UNSCALED, accuracy=None),
    unary("sin", WIDE, functions.sin, UNSCALED, accuracy=None),
    unary("cos", WIDE, functions.cos, UNSCALED, accuracy=None),
    unary("asin", WIDE, functions.asin, UNSCALED),
    unary("acos", WIDE, functions.acos, UNSCALED),
    unary("atan", WIDE, functions.atan, UNSCALED),
    binary("atan2", WIDE, functions.atan2, COMPARED),
    unary("sinh", WIDE, functions.sinh, UNSCALED),
    unary("cosh", WIDE, functions.cosh, UNSCALED),
    unary("asinh", WIDE, functions.asinh, UNSCALED),
    unary("acosh", WIDE, functions.acosh, UNSCALED),
    unary("atanh", WIDE, functions.atanh, UNSCALED),
    unary("erf_inv", WIDE, functions.erf_inv, UNSCALED),
    unary("lgamma", WIDE, functions.lgamma, UNSCALED),
    unary("digamma", WIDE, functions.digamma, UNSCALED),
    binary("polygamma", WIDE, functions.anything, UNSCALED),
    binary("igamma", WIDE, functions.unit_or_nan, UNSCALED),
    binary("igammac", WIDE, functions.unit_or_nan, UNSCALED),
    binary("zeta", WIDE, functions.anything, UNSCALED),
    Op("regularized_incomplete_beta", WIDE, functions.unit_or_nan, UNSCALED, call("lax.betainc")),
    unary("bessel_i0e", WIDE, functions.bessel_i0e, UNSCALED),
    unary("bessel_i1e", WIDE, functions.bessel_i1e, UNSCALED),
    unary("tanh", FOLLOW, functions.tanh, UNSCALED, accuracy=None),
    unary("logistic", FOLLOW, functions.logistic, UNSCALED, accuracy=None),
    unary("erf", FOLLOW, functions.erf, UNSCALED),
    unary("erfc", FOLLOW, functions.erfc, UNSCALED),
    # comparisons and logic
    Op(
        "eq", FOLLOW, pointwise.equal, COMPARED,
        operator("==", COMPARE, "lax.eq", "float int bool"),
    ),
    Op(
        "ne", FOLLOW, pointwise.unequal, COMPARED,
        operator("!=", COMPARE, "lax.ne", "float int bool"),
    ),
    Op("lt", FOLLOW, pointwise.less, COMPARED, operator("<", COMPARE, "lax.lt")),
    Op("le", FOLLOW, pointwise.less_equal, COMPARED, operator("<=", COMPARE, "lax.le")),
    Op("gt", FOLLOW, pointwise.greater, COMPARED, operator(">", COMPARE, "lax.gt")),
    Op("ge", FOLLOW, pointwise.greater_equal, COMPARED, operator(">=", COMPARE, "lax.ge")),
    Op(
        "and", OWN, pointwise.bits("and"), UNSCALED,
        operator("&", BIT_AND, "lax.bitwise_and", "int bool"),
    ),
    Op(
        "or", OWN, pointwise.bits("or"), UNSCALED,
        operator("|", BIT_OR, "lax.bitwise_or", "int bool"),
    ),
    Op(
        "xor", OWN, pointwise.bits("xor"), UNSCALED,
        operator("^", BIT_XOR, "lax.bitwise_xor", "int bool"),
    ),
    Op("not", OWN, pointwise.invert, UNSCALED, prefix("~", "lax.bitwise_not", "int bool")),
    unary("is_finite", FOLLOW, pointwise.is_finite, laws.reads),
    Op("select_n", FOLLOW, pointwise.select, laws.select, _select),
    binary("shift_left", OWN, pointwise.shift_left, UNSCALED),
    binary("shift_right_logical", OWN, pointwise.shift_right(logical=True), UNSCALED),
    binary("shift_right_arithmetic", OWN, pointwise.shift_right(logical=False), UNSCALED),
    unary("population_count", OWN, pointwise.bit_count, UNSCALED),
    unary("clz", OWN, pointwise.bit_count, UNSCALED),
    # types
    Op("convert_element_type", OWN, pointwise.convert, laws.converted, _convert),
    Op("bitcast_convert_type", OWN, pointwise.bitcast, UNSCALED, call(
        "lax.bitcast_convert_type", positional=("new_dtype",),
    )),
    Op("reduce_precision", OWN, pointwise.reduce_precision, UNSCALED, call(
        "lax.reduce_precision", keywords={"exponent_bits": REQUIRED, "mantissa_bits": REQUIRED},
    )),
    binary("complex", OWN, pointwise.complex_parts, UNSCALED),
    unary("real", OWN, pointwise.same_as_operand, UNSCALED),
    unary("imag", OWN, pointwise.same_as_operand, UNSCALED),
    unary("conj", OWN, pointwise.conjugate, UNSCALED, input_dtype=DROPPED),
)  # fmt: skip
