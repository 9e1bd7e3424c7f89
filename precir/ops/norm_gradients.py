"""The gradients of a norm in one kernel, from its input and the rows' statistics.

  kind        "layer" or "rms"
  weight      whether the norm has a weight, and `add` whether a gradient that goes by it is added
  dtype       of the gradient of x
  of_weight, of_bias   whether those gradients, float32 [columns], are results

Operands: x and the gradient of the normalised rows [..., columns]; of LayerNorm the mean, and 1 /
sqrt(variance + eps), float32 [...]; then the weight [columns] and what is added [..., columns].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from precir.domains.fact import ANYTHING, Fact, interval
from precir.domains.kinds import ZERO
from precir.ir import Node, Type
from precir.ops.base import Keeps, Op
from precir.ops.facts.context import Answer, Context
from precir.ops.scales import laws
from precir.ops.writing import Hole, Template, Writer, dtype_source, source

__all__ = ["OPS", "operands", "result_types", "suffixes"]

_LARGEST: Final = 2.0**126  # float32 holds it, and what rounding adds


def operands(params: Mapping[str, Any]) -> list[str]:
    """What each operand is to the kernel."""
    p = params
    means = ["mean"] if p["kind"] == "layer" else []
    return ["x", "gradient", *means, "rstd", *(k for k in ("weight", "add") if p[k])]


def suffixes(params: Mapping[str, Any]) -> list[str]:
    """How each result is told from the others in a name."""
    return ["", *(k for k in ("weight", "bias") if params[f"of_{k}"])]


def result_types(x: Type, params: Mapping[str, Any]) -> list[Type]:
    """The types of the results for an operand of type `x`."""
    row = Type(x.shape[-1:], "float32")
    return [Type(x.shape, params["dtype"]), *(row for _ in suffixes(params)[1:])]


def _facts(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """Of any operands: |rstd (g - u mean(g u) - mean(g))| <= rstd |g| (2 + u^2), u the largest
    normalised element and g with the weight.
    """
    known = dict(zip(operands(node.params), facts, strict=True))
    basis = max(f.basis for f in facts)
    anything = [ANYTHING._replace(basis=basis)] * len(node.outputs)
    if any(f.empty or not f.finite for f in facts):
        return anything
    size = {name: f.magnitude for name, f in known.items()}
    shape = node.inputs[0].type.shape
    rows, columns = math.prod(shape[:-1]), shape[-1]
    unit = (size["x"] + size.get("mean", 0.0)) * size["rstd"]
    g = size["gradient"] * size.get("weight", 1.0)
    of_x = size["rstd"] * g * (2 + unit * unit) + size.get("add", 0.0)
    sums = {"weight": rows * size["gradient"] * unit, "bias": rows * size["gradient"]}
    if max(of_x, columns * g * max(1.0, unit), *sums.values()) > _LARGEST:
        return anything
    bounds = [of_x, *(sums[k] for k in suffixes(node.params)[1:])]
    return [interval(-b * 1.01, b * 1.01, ZERO)._replace(basis=basis) for b in bounds]


def _text(node: Node, w: Writer) -> Template:
    p, named = node.params, dict(zip(operands(node.params), range(len(node.inputs)), strict=True))
    pieces: list[str | Hole] = [f"{w.use('precir.kernels', 'norm_gradients')}(", Hole(0), ", "]
    pieces += [Hole(1), ", ", Hole(named["mean"]) if "mean" in named else "None"]
    pieces += [", ", Hole(named["rstd"]), f", kind={source(p['kind'], w)}".replace("'", '"')]
    for name in ("weight", "add"):
        pieces += [f", {name}=", Hole(named[name])] if p[name] else []
    if p["dtype"] != node.inputs[0].type.dtype:
        pieces.append(f", dtype={dtype_source(p['dtype'], w)}")
    if not (p["of_weight"] or p["of_bias"]):
        return Template((*pieces, ").x"))
    sums = ["{}" if p[k] else "_" for k in ("of_weight", "of_bias")]
    return Template((*pieces, ")"), targets=", ".join(["{}", *sums]))


OPS: tuple[Op, ...] = (Op("norm_gradients", Keeps.OWN, _facts, laws.unscaled, _text),)
