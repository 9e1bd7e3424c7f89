"""Carry scales through a program: every tensor becomes data and a power of two that multiplies it.

Scalify's idea (Balanca et al., arXiv 2407.17353): where a tensor comes from says how large it is,
so its scale follows from those of what it was made of, each op by its law
(`precir.ops.scales`), and 16 or 8 bits hold the rest. What is known while compiling costs
nothing; what is not is arithmetic on scalars. Where the guess of a magnitude leaves the good band,
the data is multiplied by a power of two and the scale divided by it; where too much has been
guessed, on the way back through a gradient, the magnitude is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from precir.domains.fact import UNKNOWN, Fact
from precir.domains.stats import Stats
from precir.ir import BACKWARD, UPDATE, Graph, Literal, Node, Operand, Type, Value
from precir.ops import Keeps, op_named
from precir.ops.scales.scaled import ONE, Scale, Scaled, is_float
from precir.passes.drift import KNOWN, Drift, Drifts, is_product
from precir.passes.facts import Facts
from precir.passes.sizes import parameter_sizes, size_of_stored

BAND = 1.0  # how far, in powers of two, the guessed typical magnitude may be from one
WIDE_BAND = 30.0  # the same of data in float32
BLIND = 6  # products after which a gradient is measured before the next; so is where it begins
DEGREE = 12  # factors that are multiplied, on the way forward, before some are measured
JOINED = 2  # products that a branch has and what it joins has not: the sum is measured
_SCALAR = Type((), "float32")
_LINEAR = frozenset({
    "mul", "div", "neg", "broadcast_in_dim", "reshape", "convert_element_type", "copy", "select_n",
    "scatter-add", "pad", "dot_general", "reduce_sum", "dynamic_update_slice", "psum", "pvary",
})  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What propagation does beside carrying scales.

    Attributes:
      split: whether a constant is split into a number in [1, 2) and a power of two.
      band: how far, in powers of two, the guessed typical magnitude of data may be from one until
        it is brought back; None for no limit.
      measure: whether gradients are measured where too much has been guessed.
      seen: what was observed of values.
      loss: a scalar that gradients are multiplied by from the beginning; None for none.
    """

    split: bool = True
    band: float | None = BAND
    measure: bool = True
    loss: Value | None = None
    seen: Mapping[Value, Stats] | None = None


@dataclass
class Numbers:
    """Bases are numbered over the whole program, so that scales mean the same in sub-programs."""

    count: int = 0
    typical: dict[int, float] = field(default_factory=dict)
    left: list[Operand] = field(default_factory=list)
    drifts: Drifts = field(default_factory=Drifts)

    def new(self) -> int:
        self.count += 1
        return self.count


def propagate_scales(
    graph: Graph, options: Options = Options(), facts: Facts | None = None
) -> Graph:
    """The same function of the same arguments, computed on scaled data.

    Arguments that are `dequantize`d enter with their scales; others, and all results, have none.
    """
    return propagate(graph, options, facts)[0]


def propagate(graph: Graph, options: Options, facts: Facts | None) -> tuple[Graph, list[Operand]]:
    """The new program, and the true values in it of all that was under the loss scale."""
    numbers = Numbers()
    walk = Walk(graph, options, facts, numbers)
    if options.loss is not None:
        walk.bases[0] = options.loss
    updated = {o for n in graph if n.phase == UPDATE for o in n.inputs}
    guesses = parameter_sizes(graph) if options.band is not None else {}
    for value in graph.inputs:
        drift = numbers.drifts.new() if value.type.rank else KNOWN
        entering = Scaled(value, _scale_of_input(value), guesses.get(value, 0.0), drift=drift)
        known = value in updated or walk.is_known(value)
        raw = not known and options.measure and value.type.rank > 0
        walk.take(value, replace(walk.bounded(value, entering), raw=raw))
        if options.measure and value.hint.startswith("cotangent") and value.type.rank:
            walk.take(value, walk.measured(entering))
    walk.loose.update(guesses)
    walk.run()
    outputs = [walk.leaving(o) for o in graph.outputs]
    return graph.with_(nodes=tuple(walk.nodes), outputs=tuple(outputs)), numbers.left


def _scale_of_input(value: Value) -> Scale | None:
    return ONE if is_float(value.type.dtype) and value.type.scale is None else None


class Walk:
    """Rewrites one graph in program order; `precir.ops.scales.scaled.Builder` for the laws."""

    def __init__(
        self,
        graph: Graph,
        options: Options,
        facts: Facts | None,
        numbers: Numbers,
        parent: Walk | None = None,
    ) -> None:
        self.graph, self.options, self.facts, self.numbers = graph, options, facts, numbers
        self.parent = parent
        self.nodes: list[Node] = []
        self.bases: dict[int, Operand] = {}
        self.captured: dict[int, Value] = {}
        self.backward: set[Value] = set()
        # What is under the loss scale no more.
        self.left: list[Operand] = numbers.left if parent is None else []
        self.loose: set[Operand] = set()  # parameters, brought to a good magnitude where read
        self.stored: dict[Operand, Value] = {}  # the data of those that come with a scale
        self._env: dict[Value, Scaled] = {}
        self._plain: dict[tuple[Operand, Scale], Operand] = {}
        self._under: dict[tuple[Operand, Scale], Operand] = {}
        self._known: dict[Any, Any] = {}
        self._at: Node | None = None

    @property
    def roomy(self) -> bool:
        """Whether data is in a format that holds what is far from one as well."""
        return self.options.band is None or self.options.band >= WIDE_BAND

    # -- the walk ------------------------------------------------------------------------------

    def take(self, value: Value, scaled: Scaled) -> None:
        self._env[value] = scaled

    def run(self) -> None:
        for node in self.graph:
            self._at = node
            results = self.node(node)
            for value, scaled in zip(node.outputs, results, strict=True):
                self._env[value] = self.settled(node, value, scaled)
            if node.phase == BACKWARD:
                self.backward.update(node.outputs)

    def node(self, node: Node) -> Sequence[Scaled]:
        from precir.passes.scale_regions import has_rule, through_regions

        if node.op == "dequantize":
            return [self.entering(node)]
        if node.op == "constant":
            self.nodes.append(node)
            return [self.constant(node)]
        dtypes = [v.type.dtype for v in _operands(node)]
        if (
            node.phase == UPDATE
            or not any(map(is_float, dtypes))
            or any("complex" in d for d in dtypes)
        ):
            return self.unscaled(node)
        if has_rule(node):
            return through_regions(self, node)
        if self.options.measure and node.phase == BACKWARD and _multiplies(node):
            self.look_at(node)
        elif self.options.measure and is_product(node):
            self.look_ahead(node)
        xs = [self.read(o, i) for i, o in enumerate(node.inputs)]
        return op_named(node.op).scale(node, xs, self)

    def settled(self, node: Node, value: Value, x: Scaled) -> Scaled:
        """A result as it is carried on: measured or balanced where it has to be."""
        from precir.passes.scale_regions import has_rule

        floats = is_float(value.type.dtype)
        if not floats:
            return Scaled(x.data, None)
        if node.op == "dequantize":
            self.loose.add(value)
            return x
        if x.scale is None and not any(is_float(o.type.dtype) for o in node.inputs):
            x = replace(x, scale=ONE)
        if node.phase != BACKWARD:
            x = replace(x, blind=0)
            if not has_rule(node):  # a true value is what it is
                known = (x.scale is None or x.scale == ONE) and not x.raw
                x = replace(x, drift=KNOWN if known else self.drift(node))
        elif any(self.begins(o, i) for i, o in enumerate(node.inputs)):
            x = replace(x, blind=BLIND)  # how large a loss makes it is anybody's guess
        if node.phase == UPDATE or x.scale is None or value.type.rank == 0:
            return x
        x = self.bounded(value, x)
        if self.options.measure and self.joins(node):
            readers = self.graph.users.get(value, ())
            if any(n.op != "add_any" for n in readers):
                return self.measured(x)
            least = min(self.of(o).blind for o in node.inputs)
            x = replace(x, blind=least)  # the sum goes on
        return self.balanced(x)

    def read(self, operand: Operand, index: int = 0) -> Scaled:
        """An operand of the model; parameters are brought to a good magnitude where they are read,
        and stay as they came for the update.
        """
        scaled = self.options.loss is not None
        if scaled and self.begins(operand, index):
            begun = Scale(0, ((0, -1),))
            plain = operand.type.dtype == "float32"
            data = self.scalar(0) if plain else self.under(Scaled(operand, ONE), begun)
            return Scaled(data, begun)
        x = self.of(operand)
        if x.raw and not _passes_on(self._at):
            return self.sized_up(operand, x)
        if operand not in self.loose:
            return x
        return self.balanced(x) if self.roomy else self.brought(operand, x)

    def brought(self, operand: Operand, x: Scaled) -> Scaled:
        """A parameter near one: what is stored by its largest element, for it may be anything."""
        data = self.stored.get(operand)
        if data is None or x.scale is None:
            return self.balanced(x)
        if ("stored", operand) not in self._known:
            made = self.made("amax_scale", [data], _SCALAR, {})
            self._known["stored", operand] = self.base(made, x.size)
        found: Scale = self._known["stored", operand]
        near = self.under(Scaled(x.data, ONE), found)
        return Scaled(near, x.scale * found, 0.0, x.blind, drift=x.drift)

    def balanced(self, x: Scaled) -> Scaled:
        """Data brought back to a typical magnitude near one."""
        band = self.options.band
        if band is None or abs(x.size) <= band or x.scale is None or isinstance(x.data, Literal):
            return x
        bits = round(x.size)
        scale = x.scale.shifted(bits)
        return replace(x, data=self.under(x, scale), scale=scale, size=x.size - bits)

    def bounded(self, value: Value, x: Scaled) -> Scaled:
        """What was seen, where the scale is known; a guess no larger than what is proved."""
        seen = self.seen(value)
        if seen is not None and x.scale is not None:
            return replace(x, size=seen - self.typical(x.scale))
        fact = self.facts[value] if self.facts is not None else None
        if fact is None or x.scale is None or not x.scale.static:
            return x
        largest = max(abs(fact.lo), abs(fact.hi))
        if not math.isfinite(largest) or largest == 0:
            return x
        bound = math.log2(largest) - x.scale.exponent
        return replace(x, size=min(x.size, bound), drift=KNOWN if bound <= DEGREE else x.drift)

    def begins(self, operand: Operand, index: int) -> bool:
        """Whether a gradient begins here: with one."""
        node, one = self._at, operand
        if node is None or node.phase != BACKWARD:
            return False
        if isinstance(one, Value) and one.node is not None and one.node.op == "reshard":
            one = one.node.inputs[0]  # where there is a mesh, JAX places constants too
        if not isinstance(one, Literal) or one.value != 1.0 or not is_float(one.type.dtype):
            return False
        if (node.op == "div" and index) or operand in node.inputs[:index]:
            return False
        linear = bool(node.regions) or node.op in _LINEAR
        return linear and not any(o in self.backward for o in node.inputs)

    def seen(self, value: Value) -> float | None:
        """log2 of the magnitude that was observed of a value."""
        stats = self.options.seen.get(value) if self.options.seen else None
        return math.log2(stats.rms) if stats is not None and 0 < stats.rms < math.inf else None

    def typical(self, scale: Scale) -> float:
        """log2 of a scale, as far as it can be guessed of its bases."""
        known = self.numbers.typical
        return scale.exponent + sum(p * known.get(b, 0.0) for b, p in scale.powers)

    def entering(self, node: Node) -> Scaled:
        """An argument that comes with its scale."""
        (source,) = node.inputs
        kind = node.outputs[0].type
        data = self.add(
            node.like(op="data_of", types=[replace(source.type, scale=None)], params={})
        )
        scale = self.add(node.like(op="scale_of", types=[_SCALAR], params={}))
        wide = self.add(
            node.like(op="cast", inputs=[data], types=[kind], params={"dtype": kind.dtype})
        )
        size, seen = size_of_stored(source.type.dtype), self.seen(node.outputs[0])
        base = self.base(scale, None if seen is None else seen - size)
        self.stored[node.outputs[0]] = data
        return Scaled(wide, base, size, drift=self.numbers.drifts.new())

    def constant(self, node: Node) -> Scaled:
        value = node.outputs[0]
        array = self.graph.constants.get(node.params["name"])
        if not is_float(value.type.dtype) or array is None:
            return Scaled(value, None)
        held = np.asarray(array).astype(np.float64)
        finite = held[np.isfinite(held) & (held != 0)]
        if not finite.size:
            return Scaled(value, None)
        return Scaled(value, ONE, 0.5 * math.log2(float(np.mean(finite**2)) or 1.0))

    def unscaled(self, node: Node) -> list[Scaled]:
        made = self.emit(node, [self.plain(self.of(o)) for o in node.inputs])
        return [Scaled(v, _scale_of_input(v)) for v in made.outputs]

    def of(self, operand: Operand) -> Scaled:
        if isinstance(operand, Value):
            return self._env[operand]
        if not is_float(operand.type.dtype):
            return Scaled(operand, None)
        number = float(operand.value.real)
        if number == 0 or not math.isfinite(number):
            return Scaled(operand, None)
        if not self.options.split:
            return Scaled(operand, ONE)
        mantissa, exponent = math.frexp(number)
        return Scaled(
            Literal(2 * mantissa, operand.type), Scale(exponent - 1), math.log2(abs(2 * mantissa))
        )

    def leaving(self, operand: Operand) -> Operand:
        return self.plain(self.of(operand)) if isinstance(operand, Value) else operand

    # -- for the laws ----------------------------------------------------------------------------

    def fact(self, index: int) -> Fact | None:
        assert self._at is not None
        operand = self._at.inputs[index]
        return None if self.facts is None else self.facts[operand]

    def emit(self, node: Node, inputs: Sequence[Operand], **changes: Any) -> Node:
        spread = [self.spread(node, i, o) for i, o in enumerate(inputs)]
        same = all(a is b for a, b in zip(spread, node.inputs, strict=True)) and not changes
        made = node if same else node.like(inputs=spread, **changes)
        self.nodes.append(made)
        return made

    def spread(self, node: Node, index: int, operand: Operand) -> Operand:
        """A scalar that stands for a literal among arrays is made an array."""
        was = node.inputs[index]
        if not isinstance(was, Literal) or isinstance(operand, Literal):
            return operand
        shape = node.outputs[0].type.shape
        if not shape or node.op in ("clamp", "pad", "broadcast_in_dim") or "scatter" in node.op:
            return operand
        params = {"shape": shape, "broadcast_dimensions": (), "sharding": None}
        kind = Type(shape, operand.type.dtype)
        made = Node("broadcast_in_dim", [operand], [kind], params, source=node.source,
                    scope=node.scope, phase=node.phase)  # fmt: skip
        return self.add(made)

    def plain(self, x: Scaled) -> Operand:
        if x.scale is None or x.scale == ONE:
            return x.data
        return self._multiplied("unscale", self._plain, x, x.scale)

    def under(self, x: Scaled, scale: Scale | None) -> Operand:
        if x.scale is None or scale is None or x.scale == scale:
            return x.data
        return self._multiplied("rescale", self._under, x, x.scale / scale)

    def _multiplied(
        self, op: str, known: dict[tuple[Operand, Scale], Operand], x: Scaled, ratio: Scale
    ) -> Operand:
        if isinstance(x.data, Literal) and ratio.static:
            return Literal(float(x.data.value.real) * 2.0**ratio.exponent, x.data.type)
        if (x.data, ratio) not in known:
            factor = self.materialised(ratio)
            kind = replace(x.data.type, weak=False)
            made = self.made(op, [x.data, factor], kind, {"dtype": kind.dtype})
            known[x.data, ratio] = made
            if ratio.powers and ratio.powers[0][0] == 0 and ratio.powers[0][1] < 0:
                self.left.append(made)
        return known[x.data, ratio]

    def common(self, xs: Sequence[Scaled]) -> Scale | None:
        given = [x for x in xs if x.scale is not None]
        scales = {x.scale for x in given}
        if len(scales) <= 1:
            return next(iter(scales), None)
        if len({x.scale.powers for x in given if x.scale}) == 1:
            return max(given, key=lambda x: x.magnitude).scale
        meant = [x.scale.shifted(_whole(x.size)) for x in given if x.scale]
        key = ("max", *sorted(set(meant), key=lambda s: (s.powers, s.exponent)))
        if key not in self._known:
            operands = [self.materialised(s) for s in key[1:] if isinstance(s, Scale)]
            largest = operands[0]
            for other in operands[1:]:
                largest = self.made("scale_max", [largest, other], _SCALAR, {})
            self._known[key] = self.base(largest, max(self.typical(s) for s in meant))
        found: Scale = self._known[key]
        return found

    def named(self, scale: Scale) -> Scale:
        if scale.static or (scale.exponent == 0 and len(scale.powers) == 1):
            return scale
        if ("named", scale) not in self._known:
            self._known["named", scale] = self.base(self.materialised(scale), self.typical(scale))
        found: Scale = self._known["named", scale]
        return found

    def root(self, x: Scaled, n: int) -> tuple[Operand, Scale, float]:
        assert x.scale is not None
        scale = x.scale
        if any(p % n for _, p in scale.powers):
            key = ("root", scale, n)
            if key not in self._known:
                whole = self.materialised(scale)
                self._known[key] = self.base(
                    self.made("scale_root", [whole], _SCALAR, {"n": n}), self.typical(scale) // n
                )
            rooted: Scale = self._known[key]
            return self.under(x, rooted**n), rooted, x.size
        rest = scale.exponent % n
        even = scale.shifted(-rest)
        rooted = Scale(even.exponent // n, tuple((b, p // n) for b, p in even.powers))
        return self.under(x, even), rooted, x.size + rest

    def is_known(self, value: Value) -> bool:
        """Whether something was seen or said of how large an argument is."""
        if self.seen(value) is not None:
            return True
        fact = None if self.facts is None else self.facts[value]
        return fact is not None and fact.basis != UNKNOWN

    def sized_up(self, operand: Operand, x: Scaled) -> Scaled:
        """What is given as it is, brought near one by its largest element."""
        if x.scale is None or not x.type.rank:
            return x
        if ("raw", operand) not in self._known:
            made = self.made("amax_scale", [x.data], _SCALAR, {})
            self._known["raw", operand] = self.base(made, x.size)
        found: Scale = self._known["raw", operand]
        near = self.under(Scaled(x.data, ONE), found)
        return Scaled(near, x.scale * found, drift=x.drift)

    def look_at(self, node: Node) -> None:
        """Measure the gradients that a product reads, where too much of them has been guessed."""
        for o in node.inputs:
            if isinstance(o, Value) and o in self.backward and o not in self.loose:
                x = self.of(o)
                if x.blind >= BLIND and x.scale is not None and x.type.rank:
                    self._env[o] = self.measured(x)

    def drift(self, node: Node) -> Drift:
        given = [self.of(o).drift for o in node.inputs if is_float(o.type.dtype)]
        return self.numbers.drifts.of(node, given)

    def look_ahead(self, node: Node) -> None:
        """Measure factors of a product of too many, those of most factors first."""
        degree = self.numbers.drifts.degree
        operands = [o for o in dict.fromkeys(node.inputs) if isinstance(o, Value)]
        for o in sorted(operands, key=lambda o: -degree(self.of(o).drift)):
            x = self.of(o)
            made = x.scale is not None and x.type.rank and degree(x.drift) > 1
            if made and degree(self.drift(node)) > DEGREE:
                self._env[o] = self.measured(x)

    def joins(self, node: Node) -> bool:
        """Whether a gradient is the sum of one that went through products and one that did not: of
        a layer and of the path around it.
        """
        if node.op != "add_any" or node.phase != BACKWARD or node.outputs[0] not in self.leading:
            return False
        blind = [self.of(o).blind for o in node.inputs]
        return max(blind) - min(blind) >= JOINED

    @cached_property
    def leading(self) -> set[Value]:
        """Values that reach another product of the backward program, or may outside of here."""
        found = {o for o in self.graph.outputs if isinstance(o, Value)} if self.parent else set()
        for node in reversed(self.graph.nodes):
            keeps = op_named(node.op).keeps
            ends = node.phase == UPDATE
            starts = node.phase == BACKWARD and (node.regions or keeps is Keeps.PRODUCT)
            if not ends and (starts or any(v in found for v in node.outputs)):
                found.update(o for o in node.inputs if isinstance(o, Value))
        return found

    def measured(self, x: Scaled) -> Scaled:
        """Under a scale taken from the data itself."""
        assert x.scale is not None
        found = self.base(self.made("rms_scale", [x.data], _SCALAR, {}), x.size)
        data = self.under(Scaled(x.data, ONE), found)
        return Scaled(data, x.scale * found, drift=self.numbers.drifts.new())

    # -- scalars ---------------------------------------------------------------------------------

    def base(self, scalar: Operand, typical: float | None = None) -> Scale:
        """A scalar of the program as a scale, with log2 of what it is guessed to be."""
        number = self.numbers.new()
        self.bases[number] = scalar
        if typical is not None:
            self.numbers.typical[number] = typical
        return Scale(0, ((number, 1),))

    def known_base(self, number: int) -> bool:
        return number in self.bases or (self.parent is not None and self.parent.known_base(number))

    def scalar(self, number: int) -> Operand:
        """The scalar of a base; one of the program around is asked for as an input."""
        if number not in self.bases:
            assert self.parent is not None
            made = Value(_SCALAR, hint="scale")
            self.bases[number] = self.captured[number] = made
        return self.bases[number]

    def materialised(self, scale: Scale) -> Operand:
        """A scale as a scalar of the program."""
        if scale.static:
            return Literal(2.0 ** max(-126, min(126, scale.exponent)), _SCALAR)
        if scale.exponent == 0 and len(scale.powers) == 1 and scale.powers[0][1] == 1:
            return self.scalar(scale.powers[0][0])
        if scale not in self._known:
            inputs = [self.scalar(b) for b, _ in scale.powers]
            params = {"powers": tuple(p for _, p in scale.powers), "exponent": scale.exponent}
            self._known[scale] = self.made("scale_product", inputs, _SCALAR, params)
        found: Operand = self._known[scale]
        return found

    def made(
        self, op: str, inputs: Sequence[Operand], kind: Type, params: Mapping[str, Any]
    ) -> Operand:
        at = self._at or (self.graph.nodes[-1] if self.graph.nodes else None)
        if at is None:
            return self.add(Node(op, inputs, [kind], params))
        return self.add(
            Node(op, inputs, [kind], params, source=at.source, scope=at.scope, phase=at.phase)
        )

    def add(self, node: Node) -> Value:
        self.nodes.append(node)
        return node.outputs[0]


def _passes_on(node: Node | None) -> bool:
    """Whether a node makes nothing of what it is given: it moves it, or hands it in."""
    from precir.passes.scale_regions import has_rule

    return node is not None and (op_named(node.op).keeps is Keeps.MOVE or has_rule(node))


def _multiplies(node: Node) -> bool:
    return op_named(node.op).keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION)


def _operands(node: Node) -> list[Operand]:
    return [*node.inputs, *node.outputs]


def _whole(size: float) -> int:
    return round(size) if abs(size) > BAND else 0
