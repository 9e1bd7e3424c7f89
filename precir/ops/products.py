"""The product of quantised tensors, and what follows it in the same kernel.

Parameters of `scaled_dot`, all but the first two left out where they ask for nothing:

  dimension_numbers, dtype   as of `dot_general`, and the dtype of the result
  shift       the product is multiplied by 2^shift
  bias        whether an operand is added, of the free axes of the second one
  activation  what the sum goes through: "relu", "gelu", "gelu_tanh" or "silu"
  narrow      whether the last operand is the scale under which the result is quantised
  amax        whether the largest finite magnitude, before rounding, is a second result
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from precir.domains.fact import ANYTHING, Fact, interval
from precir.domains.kinds import ZERO
from precir.ir import Node, Type
from precir.ops.base import Keeps, Op
from precir.ops.facts import folds
from precir.ops.facts.context import Answer, Context
from precir.ops.formats import scale_source
from precir.ops.scales import laws
from precir.ops.writing import Hole, Template, Writer, dtype_source, source

__all__ = ["OPS", "free_shape", "operands", "result_types", "suffixes"]

_LARGEST: Final = 2.0**127  # float32 holds it
_ROUNDED: Final = 1 + 2.0**-10  # more than what an activation is rounded by


def operands(params: Mapping[str, Any]) -> list[str]:
    """What each operand is."""
    more = {"bias": params.get("bias"), "scale": params.get("narrow")}
    return ["a", "b", *(name for name, asked in more.items() if asked)]


def result_types(shape: tuple[int, ...], params: Mapping[str, Any]) -> list[Type]:
    """The types of the results of a product of that shape."""
    scale = () if params.get("narrow") else None
    amax = [Type((), "float32")] if params.get("amax") else []
    return [Type(shape, params["dtype"], scale=scale), *amax]


def suffixes(node: Node) -> list[str]:
    """How each result is told from the others in a name."""
    return ["q" if node.params.get("narrow") else "", *["amax"] * (len(node.outputs) - 1)]


def free_shape(node: Node) -> tuple[int, ...]:
    """The shape of a bias: the axes of the second operand that are the last ones of the result."""
    (_, summed), (_, batch) = node.params["dimension_numbers"]
    shape = node.inputs[1].type.shape
    return tuple(n for i, n in enumerate(shape) if i not in (*summed, *batch))


# --- what the results hold ------------------------------------------------------------------------


def _facts(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    p = node.params
    if not any(p.get(k) for k in ("bias", "activation", "narrow", "amax")):
        return folds.scaled_dot(node, facts[:2], ctx)
    wide = Type(node.outputs[0].type.shape, "float32")
    product = node.like(inputs=node.inputs[:2], types=[wide])
    value = _followed(p, folds.scaled_dot(product, facts[:2], ctx), facts)
    value = value._replace(basis=max(f.basis for f in facts))
    results = [value]
    if p.get("narrow") and value.finite and not value.empty:
        # Under a scale that is not its own all of it may be subnormal, where rounding doubles.
        bounds = min(2.0 * value.lo, 0.0), max(2.0 * value.hi, 0.0)
        results = [interval(*bounds, ZERO)._replace(basis=value.basis)]
    if p.get("amax"):
        results.append(interval(0.0, value.magnitude, ZERO)._replace(basis=value.basis))
    return results


def _followed(p: Mapping[str, Any], product: Answer, facts: Sequence[Fact]) -> Fact:
    """A product that its bias is added to, through its activation: |act(x)| <= |x|, and the sign is
    that of x but for a little below zero.
    """
    assert isinstance(product, Fact)
    terms = [product, *([facts[2]] if p.get("bias") else [])]
    most = sum(f.magnitude for f in terms)
    if not all(f.finite and not f.empty for f in terms) or most > _LARGEST:
        return ANYTHING
    lo, hi = (sum(f.lo for f in terms), sum(f.hi for f in terms))
    if p.get("activation"):
        lo, hi = min(0.0, max(lo, -0.3)), max(0.0, hi)
    return interval(min(lo, 0.0) * _ROUNDED, max(hi, 0.0) * _ROUNDED, ZERO)


# --- as source ------------------------------------------------------------------------------------


def _text(node: Node, w: Writer) -> Template:
    p, function = node.params, w.use("precir.kernels", "scaled_dot")
    dims, out = source(p["dimension_numbers"], w), dtype_source(p["dtype"], w)
    pieces: list[str | Hole] = [f"{function}(", Hole(0), ", ", Hole(1), f", {dims}, out={out}"]
    if p.get("shift"):
        pieces.append(f", shift={p['shift']}")
    if p.get("bias"):
        pieces += [", bias=", Hole(2, array=True)]
    if p.get("activation"):
        pieces.append(f', activation="{p["activation"]}"')
    if p.get("narrow"):
        pieces += [", out_scale=", scale_source(node, len(node.inputs) - 1)]
    if p.get("amax"):
        pieces.append(", amax=True")
    return Template((*pieces, ")"))


OPS: tuple[Op, ...] = (Op("scaled_dot", Keeps.OWN, _facts, laws.unscaled, _text),)
