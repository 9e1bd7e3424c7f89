"""What a gradient is bounded by for its form: that of softmax."""

from __future__ import annotations

from precir.ir import Node, Operand, Value
from precir.ops.facts.spread_rules import Known
from precir.ops.facts.spreads import Spread, unit

SHOWING = frozenset(["broadcast_in_dim", "reshape", "squeeze", "expand_dims", "neg"])


def softmax_operands(node: Node, s: Known) -> tuple[Value, float] | None:
    """Of e * (g / s - sum(g * e / s**2)), where s is the sum of e: g, and a bound beside |g|.

    With p = e / s it is p * (g - sum(p * g)): each term of the sum beside its own differs from g
    by twice its magnitude at most, and they weigh 1 - p together, so that it is within
    2 * p * (1 - p) times the magnitude of g: half of it. More if e is computed again, otherwise.
    """
    for e, difference in (node.inputs, node.inputs[::-1]):
        if not isinstance(e, Value) or not isinstance(difference, Value):
            continue
        made = difference.node
        if made is None or made.op not in ("add", "add_any") or e.type != difference.type:
            continue
        shares = s.of(e)
        if shares is None or shares.exact or shares.inner or shares.outer != 1:
            continue
        total = shares.base.node
        if total is None or total.op != "reduce_sum" or total.inputs[0] is not e:
            continue
        for quotient, rest in (made.inputs, made.inputs[::-1]):
            g = _numerator(quotient, s, shares)
            if g is not None and _is_mean(rest, g, e, s, shares):
                more = shares.bound - 1 + 64 * unit(node.outputs[0].type.dtype)
                return g, (1 + more) * (2 + more) ** 2 / 8
    return None


def _numerator(quotient: Operand, s: Known, shares: Spread) -> Value | None:
    """G of g / s."""
    node = quotient.node if isinstance(quotient, Value) else None
    if node is None or node.op != "div":
        return None
    g, under = node.inputs
    if not isinstance(g, Value) or g.type.shape != node.outputs[0].type.shape:
        return None
    return g if _is_power(under, 1, s, shares) else None


def _is_power(x: Operand, n: float, s: Known, shares: Spread) -> bool:
    """Whether a value is the n-th power of the sum, beside its terms."""
    found = s.of(x)
    return (
        found is not None
        and found.exact
        and found.base is shares.base
        and found.dims == shares.dims
        and found.inner == 0
        and found.outer == n
        and abs(found.bound - 1) < 0.01
    )


def _is_mean(x: Operand, g: Value, e: Value, s: Known, shares: Spread) -> bool:
    """Whether a value is the negative of the sum of g * e / s**2 along what s was summed along."""
    found = s.of(x)
    if found is None or found.base is not shares.base or found.dims != shares.dims:
        return False
    negative = False
    for _ in range(12):
        node = x.node if isinstance(x, Value) else None
        if node is None:
            return False
        x = node.inputs[0]
        if node.op in SHOWING:
            negative ^= node.op == "neg"
        elif node.op != "reduce_sum":
            return False
        elif any(x.type.shape[i] != 1 for i in node.params["axes"]):
            break
    else:
        return False
    own = s.of(node.outputs[0])
    base = shares.base.node
    assert base is not None
    if own is None or own.dims != tuple(
        i if n != 1 else None for i, n in enumerate(node.outputs[0].type.shape)
    ):
        return False
    if not negative or set(node.params["axes"]) != set(base.params["axes"]):
        return False
    return _factors(x, g, e, s, shares)


def _factors(x: Operand, g: Value, e: Value, s: Known, shares: Spread) -> bool:
    """Whether a value is g * e / s**2 in some order."""
    node = x.node if isinstance(x, Value) else None
    if node is None or node.op != "mul" or x.type.shape != e.type.shape:
        return False
    for one, two in (node.inputs, node.inputs[::-1]):
        inner = one.node if isinstance(one, Value) else None
        if inner is None or inner.op != "mul":
            continue
        three = [*inner.inputs, two]
        rest = [o for o in three if o is not g and o is not e]
        if len(rest) == 1 and g in three and e in three and _is_power(rest[0], -2, s, shares):
            return True
    return False
