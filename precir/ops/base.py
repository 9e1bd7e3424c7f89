"""The shape of an op's entry, and the families that carry its defaults."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from precir.ir import Literal, Node
from precir.ops.facts.context import Rule
from precir.ops.scales.scaled import Law
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
    UNARY,
    Hole,
    Template,
    Writer,
    arguments,
    bare_scalars,
    source,
)  # fmt: skip

__all__ = ["Keeps", "Op", "Write", "binary", "call", "operator", "unary"]


class Keeps(enum.Enum):
    """How an op treats precision: what a recipe decides by (torch autocast's lists, by op)."""

    PRODUCT = "product"  # a matrix product: the recipe's low format
    CONVOLUTION = "convolution"  # the recipe's 16-bit format
    WIDE = "wide"  # exp, log, sums, norms, losses: float32
    FOLLOW = "follow"  # runs in the widest of its floating operands
    MOVE = "move"  # moves numbers, makes none: the format of operand 0
    RESCALE = "rescale"  # its operand as it is, its result in the format that follows
    OWN = "own"  # its own precision: operands and results as traced


Write = Callable[[Node, Writer], Template]


@dataclass(frozen=True)
class Op:
    """All that precir knows of an op. Every field is required: a missing rule is a type error.

    Attributes:
      keeps: how a recipe treats its precision.
      fact: what its results hold, from what its operands hold (`precir.ops.facts`).
      scale: how scales move through it (`precir.ops.scales`).
      write: how it is written as source.
    """

    name: str
    keeps: Keeps
    fact: Rule
    scale: Law
    write: Write


def call(
    function: str,
    *,
    keywords: Mapping[str, Any] | None = None,
    positional: tuple[str, ...] = (),
    bare: bool = False,
    packed: bool = False,
    order: tuple[int, ...] | None = None,
    targets: str | None = None,
) -> Write:
    """Write `function(operands, positional parameters, keyword=value)`.

    Args:
      function: dotted public JAX name, rooted at `lax`, `jnp` or `jax`.
      keywords: each parameter's default (left out when equal), REQUIRED, or DROPPED.
      positional: parameters that follow the operands in order.
      bare: Python scalars need no dtype here.
      packed: the operands are one tuple argument.
      order: operand indices in the function's order, if it is not the primitive's.
      targets: a pattern for the results.
    """
    known = {**dict.fromkeys(positional, DROPPED), **(keywords or {})}

    def write(node: Node, w: Writer) -> Template:
        written = arguments(node, known, w)
        if written is None:
            return bind(node, w)
        indices = order if order is not None else tuple(range(len(node.inputs)))
        pieces: list[str | Hole] = [f"{function}("]
        scalar_ok = bare and bare_scalars(node.inputs)
        if packed:
            pieces.append("(" if len(indices) != 1 else "[")
        for n, i in enumerate(indices):
            pieces += [", "] * (n > 0) + [Hole(i, bare=scalar_ok)]
        if packed:
            pieces.append(")" if len(indices) != 1 else "]")
        rest = [source(node.params[p], w) for p in positional] + written
        if rest:
            pieces.append((", " if indices else "") + ", ".join(rest))
        pieces.append(")")
        return Template(tuple(pieces), ATOM, targets)

    return write


def operator(symbol: str, precedence: int, function: str, dtypes: str = "float int") -> Write:
    """Write `a symbol b` where both are plain numbers of the kinds in `dtypes`, else a call."""
    plain = call(function, keywords={"out_dtype": None})

    def write(node: Node, w: Writer) -> Template:
        operands = kind(node.inputs[0].type.dtype)
        literals = [isinstance(o, Literal) for o in node.inputs]
        if (
            operands not in dtypes.split()
            or all(literals)
            or node.params.get("out_dtype") is not None
        ):
            return plain(node, w)
        bare = bare_scalars(node.inputs)
        left = Hole(0, precedence + (precedence == COMPARE), bare=bare)
        return Template((left, f" {symbol} ", Hole(1, precedence + 1, bare=bare)), precedence)

    return write


def prefix(symbol: str, function: str, dtypes: str) -> Write:
    plain = call(function)

    def write(node: Node, w: Writer) -> Template:
        if kind(node.inputs[0].type.dtype) not in dtypes.split() or isinstance(
            node.inputs[0], Literal
        ):
            return plain(node, w)
        return Template((symbol, Hole(0, UNARY)), UNARY)

    return write


def kind(dtype: str) -> str:
    if dtype == "bool":
        return "bool"
    if dtype in ("float32", "float64", "bfloat16", "float16"):
        return "float"
    if dtype.startswith(("int", "uint")) and dtype[-1] not in "24":
        return "int"
    return "int" if dtype in ("int32", "int64", "uint32", "uint64") else "other"


def unary(
    name: str, keeps: Keeps, fact: Rule, scale: Law, *, function: str | None = None, **keywords: Any
) -> Op:
    return Op(name, keeps, fact, scale, call(function or f"lax.{name}", keywords=keywords))


def binary(
    name: str, keeps: Keeps, fact: Rule, scale: Law, *, function: str | None = None, **keywords: Any
) -> Op:
    return Op(name, keeps, fact, scale, call(function or f"lax.{name}", keywords=keywords))


def bind(node: Node, w: Writer) -> Template:
    """Bind the primitive itself: always right, never pretty."""
    from precir.ops.special import bind_template

    return bind_template(node, w)


_ = (BIT_AND, BIT_OR, BIT_XOR, PRODUCT, SUM, REQUIRED)  # re-exported to the families
