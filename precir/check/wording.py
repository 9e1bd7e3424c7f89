"""How findings are put: what happened, why, and the way out."""

from __future__ import annotations

from typing import Any, Final

from precir.check.blame import Blame, Root
from precir.check.hazard import Step
from precir.domains.fact import Basis, Fact
from precir.formats import Format
from precir.ir import Literal, Node, Value
from precir.passes.facts import Facts

NOUNS: Final = {
    "reduce_sum": "a sum", "dot_general": "a matrix product", "exp": "an exponential",
    "exp2": "an exponential", "expm1": "an exponential", "mul": "a product", "div": "a quotient",
    "add": "a sum", "sub": "a difference", "integer_pow": "a power", "pow": "a power",
    "square": "a square", "log": "a logarithm", "log1p": "a logarithm", "sqrt": "a square root",
    "rsqrt": "a reciprocal square root", "convert_element_type": "a cast", "cumsum": "a cumulative sum",
    "reduce_prod": "a product", "conv_general_dilated": "a convolution", "logistic": "a sigmoid",
    "tanh": "a tanh", "cosh": "a cosh", "sinh": "a sinh", "scatter-add": "a scattered sum",
    "reduce_max": "a maximum", "max": "a maximum", "min": "a minimum", "atanh": "an atanh",
    "asin": "an asin", "acos": "an acos", "sin": "a sine", "cos": "a cosine", "iota": "an index",
}  # fmt: skip


def noun(op: str) -> str:
    return NOUNS.get(op, op)


def number(x: float) -> str:
    return f"{x:.4g}"


def span(f: Fact) -> str:
    if f.empty:
        return str(f)
    return f"[{number(f.lo)}, {number(f.hi)}]" if f.lo != f.hi else number(f.lo)


def message(blame: Blame, facts: Facts, format: Format) -> str:
    """One line: what happens at the birth."""
    root, op = blame.root, blame.birth.op
    what = noun(op)
    if root.kind == "overflow":
        if root.name == "literal" and isinstance(root.value, Literal):
            return f"a constant is beyond {format.name} (limit {number(format.max)}) and becomes {_special(format)}"
        if root.name == "input":
            return f"an argument is beyond {format.name} (limit {number(format.max)})"
        exact = facts.exact.get(blame.birth)
        upto = ""
        if exact and not exact[0].empty:
            upto = f" (up to {number(exact[0].magnitude)}, limit {number(format.max)})"
        squared = _squared(blame.birth)
        return f"{what}{squared} leaves {format.name}{upto}"
    if root.kind == "underflow":
        if root.name == "literal":
            return f"a constant is 0 in {format.name}: {what} gets what it was to guard against"
        if blame.symptom == "zero":
            return f"{what} vanishes: it is below the least number of {format.name} ({number(format.smallest_subnormal)})"
        if blame.symptom == "stuck":
            return f"{noun(root.name)} vanishes in {format.name}: the state it updates stands still"
        return f"{noun(root.name)} underflows to 0 in {format.name}, and {what} of it is {blame.symptom}"
    if root.kind == "invalid":
        return f"{what} is {blame.symptom}: {_invalid(blame, facts)}"
    if root.kind == "rounds-to-bound":
        return f"a value rounds to the bound that it must not reach in {format.name}, and {what} of it is {blame.symptom}"
    if root.kind == "cancellation":
        return f"{noun(root.name)} cancels: what is left is the rounding error of {format.name}"
    if root.kind == "absorption":
        return f"{what} loses its small term: {format.name} holds {format.mantissa_bits + 1} significant bits"
    return f"whole numbers or phases past 2**{format.mantissa_bits + 1} are not exact in {format.name}"


def _special(format: Format) -> str:
    return {"inf": "inf", "nan": "NaN", "saturate": "the largest number"}[format.overflow]


def _squared(node: Node) -> str:
    operand = node.inputs[0] if node.inputs else None
    made = operand.node if isinstance(operand, Value) else None
    for _ in range(3):
        if made is not None and made.op in ("convert_element_type", "broadcast_in_dim") and made.inputs:
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


def mend(blame: Blame, format: Format) -> str:
    """The way out."""
    root, op = blame.root, blame.birth.op
    if root.name == "literal":
        if root.kind == "underflow":
            return f"use a constant that {format.name} holds: at least {number(format.smallest_normal)}, or do this step in float32"
        if root.kind == "overflow":
            return "mask with -jnp.inf or jnp.finfo(x.dtype).min instead, where at least one element is left"
        return f"keep this constant and what it multiplies in float32: {format.name} rounds it"
    if root.kind == "overflow":
        if root.name in ("exp", "exp2", "expm1", "sinh", "cosh"):
            return "subtract the maximum first (jax.nn.softmax, jax.nn.logsumexp), or use jax.nn.softplus / log_sigmoid"
        if root.name in ("reduce_sum", "cumsum", "dot_general", "square", "integer_pow", "mul"):
            return "compute this in float32 (x.astype(jnp.float32)), or scale its operands down first"
        return "compute this in float32, or scale its operand down first"
    if root.kind == "underflow":
        return f"compute this in float32, or scale it up first: {format.name} has nothing below {number(format.smallest_subnormal)}"
    if root.kind == "invalid":
        return _mend_invalid(op)
    if root.kind == "rounds-to-bound":
        return "use a form that does not pass the bound: jnp.log1p(-p), jnp.expm1, jax.nn.log_sigmoid(-x), log_softmax; or float32"
    if root.kind == "cancellation":
        return "subtract before squaring (two passes: jnp.mean((x - jnp.mean(x))**2)), or compute this in float32"
    if root.kind == "absorption":
        return "keep this accumulator (counter, average, weight) in float32"
    return "keep positions, counts and ids in int32, and phases in float32"


def _mend_invalid(op: str) -> str:
    if op in ("log", "log2"):
        return "keep the operand above 0: jnp.log(jnp.maximum(x, eps)), jnp.log1p, jax.nn.log_softmax or jax.scipy.special.xlogy"
    if op in ("sqrt", "rsqrt"):
        return "add an eps inside the root, and guard the operand with jnp.where before it, not after"
    if op in ("div", "mul", "pow", "integer_pow"):
        return "guard the operand with jnp.where before the division (a where after it leaves its gradient NaN), or add an eps to the divisor"
    if op in ("sub", "add"):
        return "use a finite mask, or leave at least one element of each row unmasked"
    if op == "gather":
        return "keep indices in bounds, or pass mode='clip'"
    return "clip the operand into the function's domain first"


def because(blame: Blame, facts: Facts, paths: dict[Value, str]) -> tuple[Step, ...]:
    """From the first cause to the birth."""
    steps: list[Step] = []
    root = blame.root
    if root.name == "input" and isinstance(root.value, Value):
        steps.append(Step(_known(root.value, facts, paths)))
    elif root.name == "literal" and isinstance(root.value, Literal):
        steps.append(Step(f"the constant is {root.value.value!r} in {root.value.type.dtype}"))
    elif root.node is not None and root.node is not blame.birth:
        f = facts[root.node.outputs[0]]
        where = root.node.source.where
        steps.append(
            Step(f"{noun(root.node.op)} in {span(f)}", where.file if where else "", where.line if where else 0)
        )
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
    basis = {
        Basis.PROVED: "proved", Basis.ASSUMED: "given", Basis.OBSERVED: "seen", Basis.UNKNOWN: "unknown",
    }[Basis(f.basis)]  # fmt: skip
    if value in paths:
        if f.basis == Basis.UNKNOWN:
            return f"{paths[value]} is unknown{elements}"
        return f"{paths[value]} in {span(f)} ({basis}){elements}"
    name = noun(value.node.op) if value.node is not None else "a value"
    special = "" if f.finite else f", may be {_kinds(f)}"
    return f"{name} in {span(f)} ({'proved' if f.basis == Basis.PROVED else f'proved from what is {basis}'}){special}{elements}"


def _kinds(f: Fact) -> str:
    text = str(f)
    return " or ".join(k for k in ("nan", "inf", "-inf") if k in text.replace("[", " ").split(" or ") or k in text.split())


def root_text(root: Root) -> str:
    return root.name


_: Any = None
