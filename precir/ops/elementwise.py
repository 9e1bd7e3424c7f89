"""Ops that work element by element."""

from __future__ import annotations

from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, binary, bind, call, kind, operator, prefix, unary
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
    Op("add", FOLLOW, operator("+", SUM, "lax.add")),
    Op("add_any", FOLLOW, operator("+", SUM, "lax.add", "float int bool other")),
    Op("sub", FOLLOW, operator("-", SUM, "lax.sub")),
    Op("mul", FOLLOW, operator("*", PRODUCT, "lax.mul")),
    Op("div", FOLLOW, operator("/", PRODUCT, "lax.div", "float")),
    binary("rem", FOLLOW),
    Op("max", FOLLOW, _extremum("jnp.maximum", "lax.max")),  # type: ignore[arg-type]
    Op("min", FOLLOW, _extremum("jnp.minimum", "lax.min")),  # type: ignore[arg-type]
    Op("neg", FOLLOW, prefix("-", "lax.neg", "float int")),
    unary("abs", FOLLOW),
    unary("sign", FOLLOW),
    unary("floor", FOLLOW),
    unary("ceil", FOLLOW),
    Op("round", FOLLOW, call("lax.round", positional=("rounding_method",))),
    Op("clamp", FOLLOW, call("lax.clamp")),
    unary("square", FOLLOW),
    unary("one_minus_square", FOLLOW),
    Op("integer_pow", FOLLOW, call("lax.integer_pow", positional=("y",))),
    binary("nextafter", OWN),
    Op("copy", MOVE, call("jnp.copy")),
    unary("stop_gradient", MOVE),
    # transcendental: float32, as torch autocast has it
    unary("exp", WIDE, accuracy=None),
    unary("exp2", WIDE, accuracy=None),
    unary("expm1", WIDE, accuracy=None),
    unary("log", WIDE, accuracy=None),
    unary("log1p", WIDE, accuracy=None),
    unary("log2", WIDE, accuracy=None),
    Op("pow", WIDE, call("lax.pow")),
    unary("sqrt", WIDE, accuracy=None),
    unary("rsqrt", WIDE, accuracy=None),
    unary("cbrt", WIDE, accuracy=None),
    unary("tan", WIDE, accuracy=None),
    unary("sin", WIDE, accuracy=None),
    unary("cos", WIDE, accuracy=None),
    unary("asin", WIDE),
    unary("acos", WIDE),
    unary("atan", WIDE),
    binary("atan2", WIDE),
    unary("sinh", WIDE),
    unary("cosh", WIDE),
    unary("asinh", WIDE),
    unary("acosh", WIDE),
    unary("atanh", WIDE),
    unary("erf_inv", WIDE),
    unary("lgamma", WIDE),
    unary("digamma", WIDE),
    binary("polygamma", WIDE),
    binary("igamma", WIDE),
    binary("igammac", WIDE),
    binary("zeta", WIDE),
    Op("regularized_incomplete_beta", WIDE, call("lax.betainc")),
    unary("bessel_i0e", WIDE),
    unary("bessel_i1e", WIDE),
    unary("tanh", FOLLOW, accuracy=None),
    unary("logistic", FOLLOW, accuracy=None),
    unary("erf", FOLLOW),
    unary("erfc", FOLLOW),
    # comparisons and logic
    Op("eq", FOLLOW, operator("==", COMPARE, "lax.eq", "float int bool")),
    Op("ne", FOLLOW, operator("!=", COMPARE, "lax.ne", "float int bool")),
    Op("lt", FOLLOW, operator("<", COMPARE, "lax.lt")),
    Op("le", FOLLOW, operator("<=", COMPARE, "lax.le")),
    Op("gt", FOLLOW, operator(">", COMPARE, "lax.gt")),
    Op("ge", FOLLOW, operator(">=", COMPARE, "lax.ge")),
    Op("and", OWN, operator("&", BIT_AND, "lax.bitwise_and", "int bool")),
    Op("or", OWN, operator("|", BIT_OR, "lax.bitwise_or", "int bool")),
    Op("xor", OWN, operator("^", BIT_XOR, "lax.bitwise_xor", "int bool")),
    Op("not", OWN, prefix("~", "lax.bitwise_not", "int bool")),
    unary("is_finite", FOLLOW),
    Op("select_n", FOLLOW, _select),
    binary("shift_left", OWN),
    binary("shift_right_logical", OWN),
    binary("shift_right_arithmetic", OWN),
    unary("population_count", OWN),
    unary("clz", OWN),
    # types
    Op("convert_element_type", OWN, _convert),
    Op("bitcast_convert_type", OWN, call("lax.bitcast_convert_type", positional=("new_dtype",))),
    Op("reduce_precision", OWN, call(
        "lax.reduce_precision", keywords={"exponent_bits": REQUIRED, "mantissa_bits": REQUIRED},
    )),
    binary("complex", OWN),
    unary("real", OWN),
    unary("imag", OWN),
    unary("conj", OWN, input_dtype=DROPPED),
)  # fmt: skip
