"""Two runs of a program side by side: in its formats, and in float64 beside it.

Every op is computed in float64 from what the run in formats gave it, then rounded into its dtype:
that run is what the device does, up to the order of sums. The shadow is the same op on the
shadow's operands, never rounded. Branches, loops and masks follow the run in formats, so that the
two stay comparable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from precir.check.evaluate import NotEvaluated, evaluate, scattered
from precir.formats import FORMATS
from precir.ir import Graph, Literal, Node, Operand, Value

Array = Any
MOST_TURNS: Final = 3000  # of one loop
SMALL: Final = frozenset({"float16", "bfloat16"} | {f for f in FORMATS if f.startswith("float8")})


class Pair(NamedTuple):
    """One value in both runs: `low` as its dtype holds it, `wide` as the shadow does."""

    low: Array
    wide: Array

    @property
    def same(self) -> bool:
        return self.low is self.wide


class Kept(NamedTuple):
    """The values of a graph, and of the sub-programs in it; and its results before rounding."""

    env: dict[Value, Pair]
    exact: dict[Node, list[Array]]

    def take(self, inner: Kept) -> None:
        self.env.update(inner.env)
        self.exact.update(inner.exact)


class TooLong(Exception):
    """The time given to a run is over."""


@dataclass
class Run:
    """Both runs of one program on one input.

    Attributes:
      env: every value of the program, and of its sub-programs as of the iteration in which
        something first went wrong (the last one otherwise).
      exact: of each node, its float64 results before rounding.
      outer: of each input of a sub-program, what it was in the program around it.
      endless: loops that were stopped.
    """

    true: Mapping[tuple[int, int], float]
    deadline: float
    env: dict[Value, Pair] = field(default_factory=dict)
    exact: dict[Node, list[Array]] = field(default_factory=dict)
    outer: dict[Value, tuple[Node, Operand | None, Value | None]] = field(default_factory=dict)
    endless: list[Node] = field(default_factory=list)

    def read(self, env: Mapping[Value, Pair], node: Node, i: int) -> Pair:
        operand = node.inputs[i]
        if isinstance(operand, Value):
            return env[operand]
        low = literal_array(operand)
        true = self.true.get((id(node), i))
        return Pair(low, low if true is None else np.float64(true))

    def graph(self, graph: Graph, inputs: Sequence[Pair]) -> tuple[list[Pair], Kept]:
        """Run one graph; the caller decides whether to keep its values."""
        env: dict[Value, Pair] = dict(zip(graph.inputs, inputs, strict=True))
        kept = Kept(env, {})
        for node in graph.nodes:
            if time.monotonic() > self.deadline:
                raise TooLong
            if node.op == "constant":
                array = graph.constants[node.params["name"]]
                value = _given(array, node.outputs[0].type.dtype)
                env[node.outputs[0]] = Pair(value, value)
                continue
            operands = [self.read(env, node, i) for i in range(len(node.inputs))]
            if node.regions and not node.op.startswith("scatter"):
                results = self.regions(node, operands, kept)
            else:
                results = self.plain(node, operands, kept)
            env.update(zip(node.outputs, results, strict=True))
        outs = []
        for o in graph.outputs:
            if isinstance(o, Value):
                outs.append(env[o])
            else:
                outs.append(Pair(literal_array(o), literal_array(o)))
        return outs, kept

    def plain(self, node: Node, operands: Sequence[Pair], kept: Kept) -> list[Pair]:
        exact = evaluate(node, [p.low for p in operands])
        kept.exact[node] = exact
        lows = [rounded(x, v.type.dtype) for x, v in zip(exact, node.outputs, strict=True)]
        if node.op == "cumsum" and node.outputs[0].type.dtype in SMALL:
            lows = [_step_by_step(node, operands[0].low)]
        if node.op == "scatter-add" and node.outputs[0].type.dtype in SMALL:
            lows = [scattered(node, [p.low for p in operands])]
        if node.op == "div" and node.outputs[0].type.dtype in FORMATS and _repeated(node.inputs[1]):
            lows = [_by_reciprocal(lows[0], operands, node.outputs[0].type.dtype)]
        if all(p.same for p in operands):
            # one computation serves both, but for the rounding
            wides = exact
        else:
            wides = evaluate(node, [p.wide for p in operands])
        pairs = []
        for low, wide, v in zip(lows, wides, node.outputs, strict=True):
            if v.type.dtype.startswith("key"):
                pairs.append(Pair(low, low))
            elif v.type.dtype in FORMATS:
                pairs.append(Pair(low, low if low is wide or _equal(low, wide) else wide))
            elif v.type.dtype == "bool":
                pairs.append(Pair(low, low))
            else:
                pairs.append(Pair(low, low if _equal(low, wide) else wide))
        return pairs

    # -- sub-programs ------------------------------------------------------------------------------

    def regions(self, node: Node, operands: Sequence[Pair], kept: Kept) -> list[Pair]:
        if node.op == "scan":
            return self._scan(node, operands, kept)
        if node.op == "while":
            return self._while(node, operands, kept)
        if node.op == "cond":
            index = int(np.clip(int(operands[0].low), 0, len(node.regions) - 1))
            return self._call(node, node.regions[index], operands[1:], 1, kept)
        if node.op in ("remat", "jit", "custom_jvp_call", "custom_vjp_call"):
            return self._call(node, node.regions[0], operands, 0, kept)
        raise NotEvaluated(node.op)

    def _call(
        self, node: Node, region: Graph, operands: Sequence[Pair], first: int, kept: Kept
    ) -> list[Pair]:
        outs, inner = self.graph(region, operands)
        kept.take(inner)
        for i, v in enumerate(region.inputs):
            self.outer[v] = (node, node.inputs[first + i], None)
        return outs

    def _scan(self, node: Node, operands: Sequence[Pair], kept: Kept) -> list[Pair]:
        p, body = node.params, node.regions[0]
        consts = list(operands[: p["num_consts"]])
        carry = list(operands[p["num_consts"] : p["num_consts"] + p["num_carry"]])
        xs = operands[p["num_consts"] + p["num_carry"] :]
        count = len(carry)
        order = range(p["length"])
        if p["length"] > MOST_TURNS:
            raise TooLong
        ys: list[list[Pair]] = []
        found = False
        for i in reversed(order) if p["reverse"] else order:
            slices = [Pair(x.low[i], x.low[i] if x.same else x.wide[i]) for x in xs]
            outs, inner = self.graph(body, [*consts, *carry, *slices])
            if not found:
                kept.take(inner)
                found = any(spoiled(o) for o in outs)
            carry = outs[:count]
            ys.append(outs[count:])
        if p["reverse"]:
            ys.reverse()
        for i, v in enumerate(body.inputs):
            looped = (
                body.outputs[i - p["num_consts"]]
                if p["num_consts"] <= i < p["num_consts"] + count
                else None
            )
            self.outer[v] = (node, node.inputs[i], looped if isinstance(looped, Value) else None)
        stacked = []
        for j, v in enumerate(node.outputs[count:]):
            if not ys:
                empty = np.zeros(v.type.shape)
                stacked.append(Pair(empty, empty))
                continue
            low = np.stack([y[j].low for y in ys])
            same = all(y[j].same for y in ys)
            stacked.append(
                Pair(low, low if same else np.stack([np.asarray(y[j].wide) for y in ys]))
            )
        return [*carry, *stacked]

    def _while(self, node: Node, operands: Sequence[Pair], kept: Kept) -> list[Pair]:
        cond, body = node.regions
        n_cond, n_body = node.params["cond_nconsts"], node.params["body_nconsts"]
        of_cond, consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
        carry = list(operands[n_cond + n_body :])
        found, turns = False, 0
        while True:
            outs, _ = self.graph(cond, [*of_cond, *carry])
            going = np.asarray(outs[0].low)
            if going.ndim:
                raise NotEvaluated("while")
            if not going:
                break
            turns += 1
            if turns > MOST_TURNS:
                self.endless.append(node)
                break
            results, inner = self.graph(body, [*consts, *carry])
            if not found:
                kept.take(inner)
                found = any(spoiled(o) for o in results)
            stuck = all(_equal(a.low, b.low) for a, b in zip(results, carry, strict=True))
            carry = results
            if stuck:
                self.endless.append(node)
                break
        for i, v in enumerate(body.inputs):
            looped = body.outputs[i - n_body] if i >= n_body else None
            self.outer[v] = (
                node,
                node.inputs[n_cond + i],
                looped if isinstance(looped, Value) else None,
            )
        return carry


def run(
    graph: Graph,
    inputs: Sequence[Pair],
    true: Mapping[tuple[int, int], float],
    seconds: float,
) -> tuple[Run, list[Pair]]:
    """Run a program both ways.

    Args:
      graph: the program.
      inputs: a pair for each of its inputs.
      true: by (id of a node, operand index), what a literal was before it was rounded.
      seconds: the time it may take.

    Raises:
      TooLong: it takes longer.
      NotEvaluated: an op cannot be run on its own.
    """
    made = Run(true, time.monotonic() + seconds)
    with np.errstate(all="ignore"):
        outs, kept = made.graph(graph, inputs)
    made.env, made.exact = kept.env, kept.exact
    return made, outs


# -- numbers -----------------------------------------------------------------------------------


def rounded(x: Array, dtype: str) -> Array:
    """As the dtype holds it, subnormals flushed where XLA:CPU does; floats stay float64 arrays."""
    format_ = FORMATS.get(dtype)
    if format_ is None or dtype == "float64":
        return x
    x = np.asarray(x, np.float64)
    y = x.astype(np.float32) if dtype == "float32" else x.astype(format_.dtype)
    y = y.astype(np.float64)
    if format_.flushes_subnormals:
        y = np.where(np.abs(y) < format_.smallest_normal, np.copysign(0.0, y), y)
    return y


def numbers(x: Array) -> Array:
    """As a NumPy array; an empty one of integers for PRNG keys."""
    if str(getattr(x, "dtype", "")).startswith("key"):
        return np.zeros(0, np.int32)
    return np.asarray(x)


def literal_array(literal: Literal) -> Array:
    dtype = literal.type.dtype
    if dtype in FORMATS:
        return np.asarray(literal.value, np.float64)
    return np.asarray(literal.value, dtype=dtype)


def _given(array: Any, dtype: str) -> Array:
    if dtype.startswith("key"):
        return array
    return np.asarray(array).astype(np.float64) if dtype in FORMATS else np.asarray(array)


def _equal(a: Array, b: Array) -> bool:
    return a is b or (
        np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=_is_float(a)))
    )


def _is_float(a: Array) -> bool:
    return getattr(a, "dtype", np.dtype(object)).kind == "f"


def spoiled(pair: Pair) -> bool:
    """Whether the run in formats holds an inf or NaN that the shadow does not, or a new NaN."""
    low = numbers(pair.low)
    if low.dtype.kind != "f":
        return False
    bad = ~np.isfinite(low)
    if not bad.any():
        return False
    wide = np.broadcast_to(np.asarray(pair.wide, np.float64), low.shape)
    return bool((bad & np.isfinite(wide)).any() or np.isnan(low).any())


def _repeated(operand: Operand) -> bool:
    """Whether many elements of an operand are one number, broadcast."""
    node = operand.node if isinstance(operand, Value) else None
    return node is not None and node.op == "broadcast_in_dim"


def _by_reciprocal(low: Array, operands: Sequence[Pair], dtype: str) -> Array:
    """XLA divides by a broadcast number by multiplying with its reciprocal, which may overflow."""
    x, y = (np.asarray(p.low, np.float64) for p in operands)
    product = rounded(x * rounded(1 / y, dtype), dtype)
    return np.where(np.isfinite(low) & ~np.isfinite(product), product, low)


def _step_by_step(node: Node, x: Array) -> Array:
    """A cumulative sum in a small format rounds at every step."""
    axis, dtype = node.params["axis"], node.outputs[0].type.dtype
    moved = np.moveaxis(np.asarray(x), axis, 0)
    moved = moved[::-1] if node.params.get("reverse") else moved
    out = np.array(moved)
    for i in range(1, len(out)):
        out[i] = rounded(out[i - 1] + moved[i], dtype)
    out = out[::-1] if node.params.get("reverse") else out
    return np.moveaxis(out, 0, axis)
