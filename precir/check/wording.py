"""How findings are put: what happened, why, and the way out."""

from __future__ import annotations

from typing import Final

import numpy as np

from precir.check.blame import Blame, Root
from precir.check.hazard import Step
from precir.domains.fact import Basis, Fact
from precir.domains.kinds import NAN, NINF, PINF
from precir.formats import Format
from precir.ir import Literal, Node, Value
from precir.passes.facts import Facts

NOUNS: Final = {
    "reduce_sum": "a sum", "dot_general": "a matrix product", "exp": "an exponential",
    "exp2": "an exponential", "expm1": "an exponential", "mul": "a product", "div": "a quotient",
    "add": "a sum", "sub": "a difference", "integer_pow": "a power", "pow": "a power",
    "square": "a square", "log": "a logarithm", "log1p": "a logarithm", "sqrt": "a square root",
    "rsqrt": "a reciprocal square root", "convert_element_type": "a cast",
    "cumsum": "a cumulative sum",
    "reduce_prod": "a product", "conv_general_dilated": "a convolution", "logistic": "a sigmoid",
    "tanh": "a tanh", "cosh": "a cosh", "sinh": "a sinh", "scatter-add": "a scattered sum",
    "reduce_max": "a maximum", "max": "a maximum", "min": "a minimum", "atanh": "an atanh",
    "asin": "an asin", "acos": "an acos", "sin": "a sine", "cos": "a cosine", "iota": "an index",
    "select_n": "a choice", "gather": "a gathered row", "concatenate": "a concatenation",
    "add_any": "a sum", "neg": "a negation", "abs": "a magnitude", "erf": "an erf",
    "reduce_min": "a minimum", "scan": "a loop's result", "while": "a loop's result",
    "cond": "a branch's result", "custom_jvp_call": "a function", "custom_vjp_call": "a function",
    "remat": "a block", "sort": "a sorted array", "argmax": "an index", "cumprod": "a cumulative "
    "product", "clamp": "a clipped value", "sign": "a sign", "floor": "a floor",
}  # fmt: skip


BASES: Final = {
    Basis.PROVED: "proved", Basis.ASSUMED: "given", Basis.OBSERVED: "seen",
    Basis.UNKNOWN: "unknown",
}  # fmt: skip


SHOWS: Final = frozenset((
    "reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "stop_gradient", "copy",
    "convert_element_type", "slice", "optimization_barrier",
))  # fmt: skip


def noun(op: str) -> str:
    return NOUNS.get(op, op)


def said(value: Value) -> str:
    """What a value is: that which it only shows."""
    for _ in range(8):
        node = value.node
        if node is None:
            return "an argument"
        if node.op not in SHOWS or not isinstance(node.inputs[0], Value):
            break
        value = node.inputs[0]
    return f"{noun(node.op)}{_squared(node)}" if node is not None else "a value"


def number(x: float) -> str:
    return f"{x:.0f}" if abs(x) < 1e6 and x == int(x) else f"{x:.4g}"


def span(f: Fact) -> str:
    if f.empty:
        return str(f)
    return f"[{number(f.lo)}, {number(f.hi)}]" if f.lo != f.hi else number(f.lo)


def message(blame: Blame, facts: Facts, format: Format) -> str:
    """One line: what happens at the birth."""
    root, what, name = blame.root, noun(blame.birth.op), format.name
    cause, least = noun(root.name), number(format.smallest_subnormal)
    match root.kind:
        case "overflow":
            return _overflow(blame, facts, format)
        case "underflow" if root.name == "literal":
            return f"a constant is 0 in {name}: {what} gets what it was to guard against"
        case "underflow" if blame.symptom == "zero":
            return f"{what} vanishes: it is below the least number of {name} ({least})"
        case "underflow" if blame.symptom == "stuck":
            return f"{cause} vanishes in {name}: the state it updates stands still"
        case "underflow":
            return f"{cause} underflows to 0 in {name}, and {what} of it is {blame.symptom}"
        case "invalid":
            return f"{what} is {blame.symptom}: {_invalid(blame, facts)}"
        case "rounds-to-bound":
            bound = f"rounds to a bound that it must not reach in {name}"
            return f"a value {bound}, and {what} of it is {blame.symptom}"
        case "cancellation":
            return f"{cause} cancels: what is left is the rounding error of {name}"
        case "absorption":
            bits = format.mantissa_bits + 1
            return f"{what} loses its small term: {name} holds {bits} significant bits"
    limit = f"2**{format.mantissa_bits + 1}"
    return f"whole numbers or phases past {limit} are not exact in {name}"


def _overflow(blame: Blame, facts: Facts, format: Format) -> str:
    root, limit = blame.root, f"limit {number(format.max)}"
    if root.name == "literal":
        return f"a constant is beyond {format.name} ({limit}) and becomes {_special(format)}"
    if root.name == "input":
        return f"an argument is beyond {format.name} ({limit})"
    exact = facts.exact.get(blame.birth)
    upto = limit
    if exact and not exact[0].empty and np.isfinite(exact[0].magnitude):
        upto = f"up to {number(exact[0].magnitude)}, {limit}"
    return f"{said(blame.birth.outputs[0])} leaves {format.name} ({upto})"


def _special(format: Format) -> str:
    return {"inf": "inf", "nan": "NaN", "saturate": "the largest number"}[format.overflow]


def _squared(node: Node) -> str:
    operand = node.inputs[0] if node.inputs else None
    made = operand.node if isinstance(operand, Value) else None
    for _ in range(3):
        if (
            made is not None
            and made.op in ("convert_element_type", "broadcast_in_dim")
            and made.inputs
        ):
            inner = made.inputs[0]
            made = inner.node if isinstance(inner, Value) else None
    if node.op == "reduce_sum" and made is not None:
        square = made.op in ("square", "integer_pow") or (
            made.op == "mul" and made.inputs[0] is made.inputs[1]
        )
        if square:
            return " of squares"
        if made.op == "exp":
            return " of exponentials"
    return ""


def _invalid(blame: Blame, facts: Facts) -> str:
    node = blame.birth
    operands = [facts[o] for o in node.inputs]
    if node.op in ("log", "log2"):
        return "its operand may be 0" if blame.symptom == "inf" else "its operand may be negative"
    if node.op in ("sqrt", "rsqrt"):
        return "its operand may be negative" if blame.symptom == "nan" else "its operand may be 0"
    if node.op == "div":
        return "0 / 0" if blame.symptom == "nan" else "its divisor may be 0"
    if node.op in ("sub", "add", "reduce_sum"):
        return "inf - inf"
    if node.op in ("mul", "dot_general"):
        return "0 * inf"
    if node.op in ("asin", "acos", "atanh"):
        return f"its operand may pass 1 (it is in {span(operands[0])})" if operands else "past 1"
    if node.op in ("gather", "convert_element_type"):
        return "an index is out of bounds" if node.op == "gather" else "NaN has no integer"
    if node.op in ("pow", "integer_pow"):
        return "a negative base, or 0 to a negative power"
    return "outside its domain"


WAYS_OUT: Final = {
    "literal underflow": "use a constant that {format} holds, at least {normal}, or do this step "
    "in float32",
    "literal overflow": "mask with -jnp.inf or jnp.finfo(x.dtype).min, and leave at least one "
    "element of each row unmasked",
    "literal": "keep this constant and what it multiplies in float32: {format} rounds it",
    "exp overflow": "subtract the maximum first (jax.nn.softmax, jax.nn.logsumexp), or use "
    "jax.nn.softplus or jax.nn.log_sigmoid",
    "overflow": "compute this in float32 (x.astype(jnp.float32)), or scale its operands down first",
    "underflow": "compute this in float32, or scale it up first: {format} has nothing below "
    "{least}",
    "rounds-to-bound": "use a form that does not pass the bound (jnp.log1p(-p), jnp.expm1, "
    "jax.nn.log_sigmoid(-x), jax.nn.log_softmax), or float32",
    "cancellation": "subtract before squaring (two passes: jnp.mean((x - jnp.mean(x))**2)), or "
    "compute this in float32",
    "absorption": "keep this accumulator (counter, average, weight) in float32",
    "inexact": "keep positions, counts and ids in int32, and phases in float32",
    "log": "keep the operand above 0: jnp.log(jnp.maximum(x, eps)), jnp.log1p, "
    "jax.nn.log_softmax or jax.scipy.special.xlogy",
    "sqrt": "add an eps inside the root, and guard the operand with jnp.where before it, not after",
    "div": "guard the operand with jnp.where before the division (a where after it leaves its "
    "gradient NaN), or add an eps to the divisor",
    "sub": "use a finite mask, or leave at least one element of each row unmasked",
    "gather": "keep indices in bounds, or pass mode='clip'",
    "domain": "clip the operand into the function's domain first",
}

_SAME_WAY: Final = {
    "log2": "log", "log": "log", "sqrt": "sqrt", "rsqrt": "sqrt", "div": "div", "mul": "div",
    "pow": "div", "integer_pow": "div", "sub": "sub", "add": "sub", "gather": "gather",
}  # fmt: skip


def mend(blame: Blame, format: Format) -> str:
    """The way out."""
    root, op = blame.root, blame.birth.op
    key = root.kind
    if root.name == "literal":
        key = f"literal {root.kind}" if f"literal {root.kind}" in WAYS_OUT else "literal"
    elif root.kind == "overflow" and root.name in ("exp", "exp2", "expm1", "sinh", "cosh"):
        key = "exp overflow"
    elif root.kind == "invalid":
        key = _SAME_WAY.get(op, "domain")
    return WAYS_OUT[key].format(
        format=format.name,
        normal=number(format.smallest_normal),
        least=number(format.smallest_subnormal),
    )


def _constant(root: Root, format: Format) -> str:
    assert isinstance(root.value, Literal)
    was = root.value.value if root.was is None else root.was
    if isinstance(was, complex):
        return f"the constant {was}"
    with np.errstate(all="ignore"):
        now = float(np.float64(was).astype(format.dtype))
    return f"the constant {was:.6g} is {now:.6g} in {format.name}"


def because(
    blame: Blame, facts: Facts, paths: dict[Value, str], format: Format
) -> tuple[Step, ...]:
    """From the first cause to the birth."""
    steps: list[Step] = []
    root = blame.root
    if root.name == "input" and isinstance(root.value, Value):
        steps.append(Step(_known(root.value, facts, paths)))
    elif root.name == "literal" and isinstance(root.value, Literal):
        steps.append(Step(_constant(root, format)))
    elif root.node is not None and root.node is not blame.birth:
        f, where = facts[root.node.outputs[0]], root.node.source.where
        file, line = (where.file, where.line) if where else ("", 0)
        steps.append(Step(f"{said(root.node.outputs[0])} in {span(f)}", file, line))
    operands = [o for o in blame.birth.inputs if isinstance(o, Value)]
    for operand in operands[:2]:
        step = Step(_known(operand, facts, paths))
        if step not in steps:
            steps.append(step)
    return tuple(steps)


def _known(value: Value, facts: Facts, paths: dict[Value, str]) -> str:
    f = facts[value]
    size = 1
    for n in value.type.shape:
        size *= n
    elements = f", {size:,} elements" if size > 1 else ""
    basis = BASES[Basis(f.basis)]
    if value in paths:
        if f.basis == Basis.UNKNOWN:
            return f"{paths[value]} is unknown{elements}"
        return f"{paths[value]} in {span(f)} ({basis}){elements}"
    name = said(value)
    special = "" if f.finite else f", may be {_kinds(f)}"
    rests = "proved" if f.basis == Basis.PROVED else f"proved from what is {basis}"
    return f"{name} in {span(f)} ({rests}){special}{elements}"


def _kinds(f: Fact) -> str:
    names = ((NAN, "nan"), (PINF, "inf"), (NINF, "-inf"))
    return " or ".join(name for flag, name in names if f.flags & flag)
