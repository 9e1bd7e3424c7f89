"""Ops that compute and quantise in one kernel: norms, activations, a matrix and its transpose.

What they write is said by the same parameters for all of them:

  dtype, block, scale_format   of the result, as of `quantize`, block as long as the shape; with a
            dtype of "" nothing is quantised: what is asked is the amax
  given     whether the last operand is the scale of the whole tensor
  turned    whether the transpose, [columns, rows], is written too
  plain     dtype of a copy that is not quantised, "" for none
  amax      whether the largest finite magnitude is a result

The results are those, in the order quantised, turned, plain, amax; and then what the op adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from precir.domains.fact import ANYTHING, Fact, interval
from precir.domains.kinds import ZERO
from precir.ir import Node, Type
from precir.ops.base import Keeps, Op
from precir.ops.facts.context import Answer, Context
from precir.ops.formats import format_source, scale_source
from precir.ops.scales import laws
from precir.ops.writing import Hole, Template, Writer, dtype_source, source
from precir.scaled import scale_shape

__all__ = ["FUSED", "OPS", "operands", "result_types", "suffixes"]

FUSED: Final = ("norm_quantize", "act_quantize", "act_gradients", "quantize_both")
_LARGEST: Final = 2.0**127  # float32 holds it
_SLOPE: Final = 1.2  # no activation's slope is beyond this: gelu's is 1.13


def operands(node: Node) -> list[str]:
    """What each operand is to the kernel."""
    p = node.params
    names = {
        "norm_quantize": ["x", *(k for k in ("weight", "bias") if p.get(k))],
        "act_quantize": ["x", *(["up"] if p.get("gated") else [])],
        "act_gradients": ["x", "gradient", *(["up"] if p.get("gated") else [])],
        "quantize_both": ["x"],
    }[node.op]
    return [*names, *(["scale"] if p.get("given") else [])]


def suffixes(node: Node) -> list[str]:
    """How each result is told from the others in a name."""
    p = node.params
    names = [
        *(["q"] if p["dtype"] else []),
        *(["t"] if p["turned"] else []),
        *([""] if p["plain"] else []),
    ]
    names += ["amax"] if p["amax"] else []
    if node.op == "norm_quantize":
        names += [*(["mean"] if p["kind"] == "layer" else []), "rstd"]
    return names


def result_types(op: str, x: Type, params: dict[str, Any]) -> list[Type]:
    """The types of the results for an operand of type `x`."""
    p, shape, block = params, x.shape, params["block"]
    kinds = []
    if p["dtype"]:
        kinds.append(Type(shape, p["dtype"], scale=scale_shape(shape, block), block=block))
    if p["turned"]:
        kinds.append(turned_type(kinds[0]))
    if p["plain"]:
        kinds.append(Type(shape, p["plain"]))
    if p["amax"]:
        kinds.append(Type((), "float32"))
    if op == "norm_quantize":
        each = Type(shape[:-1], "float32")
        kinds += [each, each] if p["kind"] == "layer" else [each]
    return kinds


def turned_type(lying: Type) -> Type:
    """Of the transpose of a quantised matrix, in blocks along its own rows."""
    *rows, columns = lying.shape
    block = lying.block and (lying.block[-2:] if _square(lying.block) else (1, lying.block[-1]))
    shape = columns, math.prod(rows)
    return Type(shape, lying.dtype, scale=scale_shape(shape, block), block=block)


def _square(block: tuple[int, ...]) -> bool:
    return len(block) > 1 and block[-2] > 1


# --- what the results hold ------------------------------------------------------------------------


def _results(node: Node, value: Fact, more: Sequence[Fact] = ()) -> list[Fact]:
    """The facts of all results: `value` is that of what is computed, before it is rounded."""
    rounded = value
    if not value.empty and value.finite:
        # Under a scale that is not its own all of it may be subnormal, where rounding doubles.
        most = 2.0 if node.params["given"] else 1.13
        rounded = interval(min(value.lo * most, 0.0), max(value.hi * most, 0.0), ZERO)
    p = node.params
    facts = [
        *([rounded] if p["dtype"] else []),
        *([rounded] if p["turned"] else []),
        *([value] if p["plain"] else []),
    ]
    facts += [interval(0.0, value.magnitude, ZERO)] if p["amax"] else []
    return [f._replace(basis=value.basis) for f in (*facts, *more)]


def _finite(*facts: Fact) -> bool:
    return all(f.finite and not f.empty for f in facts)


def _norm(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """|norm(x)| <= sqrt(n), times the largest weight, plus the largest bias."""
    known = dict(zip(operands(node), facts, strict=True))
    x, columns = known["x"], node.inputs[0].type.shape[-1]
    extra = [f for k, f in known.items() if k in ("weight", "bias")]
    means = [x] if node.params["kind"] == "layer" else []
    squares = 4.0 * columns * x.magnitude * x.magnitude if _finite(x) else math.inf
    if not _finite(x, *extra) or squares > _LARGEST or node.params["eps"] < 2.0**-126:
        every = ANYTHING._replace(basis=x.basis)
        return _results(node, every, [every] * (len(means) + 1))
    most = math.sqrt(columns) * (1 + 2.0**-10)
    if "weight" in known:
        most *= known["weight"].magnitude
    if "bias" in known:
        most += known["bias"].magnitude
    rstd = interval(0.0, (1 + 2.0**-10) / math.sqrt(node.params["eps"]), ZERO)
    value = interval(-most, most, ZERO)._replace(basis=max(f.basis for f in (x, *extra)))
    return _results(node, value, [*means, rstd])


def _activation(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """|act(x)| <= |x|, and the sign is that of x but for a little below zero."""
    known = dict(zip(operands(node), facts, strict=True))
    x = known["x"]
    basis = max(f.basis for f in facts)
    if not _finite(*facts):
        return _results(node, ANYTHING._replace(basis=basis))
    lo, hi = min(0.0, max(x.lo, -0.3)), max(0.0, x.hi)
    if "up" in known:
        most = max(-lo, hi) * known["up"].magnitude
        lo, hi = -most, most
    return _results(node, interval(lo, hi * (1 + 2.0**-10), ZERO)._replace(basis=basis))


def _gradient(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    known = dict(zip(operands(node), facts, strict=True))
    basis = max(f.basis for f in facts)
    if not _finite(*facts):
        return _results(node, ANYTHING._replace(basis=basis))
    most = _SLOPE * known["gradient"].magnitude
    if "up" in known:
        most *= known["up"].magnitude
    return _results(node, interval(-most, most, ZERO)._replace(basis=basis))


def _both(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return _results(node, facts[0])


def _same(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    del node
    return facts[0]


def _scale(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """A power of two between 2^-126 and 2^126."""
    del node, facts
    return Fact(2.0**-126, 2.0**126, 2.0**-126, 0)


# --- as source ------------------------------------------------------------------------------------


def _writing(node: Node, w: Writer) -> list[str | Hole]:
    """The arguments that say how it is written."""
    p = node.params
    pieces: list[str | Hole] = []
    if p["given"]:
        pieces += [", scale=", scale_source(node, len(node.inputs) - 1)]
    if p["block"]:
        pieces.append(f", block={source(p['block'], w)}")
    if p["scale_format"] != "float32":
        pieces.append(f", scale_format={format_source(p['scale_format'], w)}")
    if node.op == "quantize_both":
        return pieces
    if p["turned"]:
        pieces.append(", transposed=True")
    if p["plain"]:
        pieces.append(f", plain={dtype_source(p['plain'], w)}")
    if p["amax"]:
        pieces.append(", amax=True")
    return pieces


def _targets(node: Node) -> str:
    """What `Written` is taken apart to."""
    p = node.params
    return ", ".join("{}" if p[k] else "_" for k in ("dtype", "turned", "plain", "amax"))


def _format(node: Node, w: Writer) -> str:
    dtype = node.params["dtype"]
    return format_source(dtype, w) if dtype else "None"


def _norm_text(node: Node, w: Writer) -> Template:
    function, p = w.use("precir.kernels", "norm_quantize"), node.params
    pieces: list[str | Hole] = [f"{function}(", Hole(0), f", {_format(node, w)}"]
    pieces.append(f", kind={source(p['kind'], w)}".replace("'", '"'))
    for i, name in enumerate(operands(node)):
        if name in ("weight", "bias"):
            pieces += [f", {name}=", Hole(i)]
    pieces.append(f", eps={np.float32(p['eps'])!s}")
    mean = "{}" if p["kind"] == "layer" else "_"
    return Template((*pieces, *_writing(node, w), ")"), targets=f"({_targets(node)}), {mean}, {{}}")


def _act_text(node: Node, w: Writer) -> Template:
    p = node.params
    backward = node.op == "act_gradients"
    if backward and not p["dtype"]:
        function = w.use("precir.kernels", "act_gradients_amax")
        gate: list[str | Hole] = [", up=", Hole(2)] if p["gated"] else []
        act = f', activation="{p["activation"]}"'
        return Template((f"{function}(", Hole(0), ", ", Hole(1), act, *gate, ")"))
    pieces: list[str | Hole] = [f"{w.use('precir.kernels', node.op)}(", Hole(0)]
    pieces += [", ", Hole(1)] if backward else []
    pieces.append(f', {_format(node, w)}, activation="{p["activation"]}"')
    if p["gated"]:
        pieces += [", up=", Hole(1 + backward)]
        pieces += [", of_up=False"] if backward else []
    pieces += _writing(node, w)
    if not p["dtype"] and not p["plain"]:
        return Template((*pieces, ").amax"))
    if not any(p[k] for k in ("turned", "plain", "amax")):
        return Template((*pieces, ")[0].quantized" if backward else ").quantized"))
    return Template((*pieces, ")[0]" if backward else ")"), targets=_targets(node))


def _both_text(node: Node, w: Writer) -> Template:
    function = w.use("precir.kernels", "quantize_both")
    format_ = format_source(node.params["dtype"], w)
    return Template((f"{function}(", Hole(0), f", {format_}", *_writing(node, w), ")"))


def _turned_back(node: Node, w: Writer) -> Template:
    function = w.use("precir.kernels", "turned_back")
    return Template((f"{function}(", Hole(0), f", {source(node.params['shape'], w)})"))


def _current_scale(node: Node, w: Writer) -> Template:
    function = w.use("precir.kernels", "current_scale")
    return Template((f"{function}(", Hole(0), f", {format_source(node.params['dtype'], w)})"))


_TABLE: Final[tuple[tuple[str, Callable[..., Answer], Callable[..., Template]], ...]] = (
    ("norm_quantize", _norm, _norm_text),
    ("act_quantize", _activation, _act_text),
    ("act_gradients", _gradient, _act_text),
    ("quantize_both", _both, _both_text),
    ("turned_back", _same, _turned_back),
    ("current_scale", _scale, _current_scale),
)
OPS: tuple[Op, ...] = tuple(
    Op(name, Keeps.OWN, fact, laws.unscaled, write) for name, fact, write in _TABLE
)
