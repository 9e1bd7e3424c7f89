"""Choose the format every tensor is computed and kept in, and how each product runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from precir.domains.stats import Stats
from precir.ir import BACKWARD, UPDATE, Graph, Literal, Node, Operand, Value
from precir.ops import Keeps, op_named
from precir.passes.facts import Facts
from precir.passes.fitting import misfit, unfit
from precir.passes.grains import (
    Grain,
    data_of,
    grain,
    moves_or_casts,
    stored_inputs,
    updated_inputs,
)
from precir.passes.products import Tail, find_tail
from precir.recipe import KEEP, TRUE, Chosen, Recipe

_BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class Product:
    """How one matrix product runs, and why.

    `operands` are the formats of its two operands, `result` that of its result; `low` if the
    operands are quantised to 8 bits, under scales of these `grains`.
    """

    node: Node
    low: bool
    operands: tuple[str, str]
    result: str
    reason: str
    grains: tuple[Grain, Grain] = (Grain(), Grain())


@dataclass
class Assignment:
    """What `assign_formats` decided.

    Attributes:
      compute: dtype in which a node's float operands arrive; absent: as traced.
      result: dtype of a value in the new program, where it is not the traced one.
      products: one entry for each matrix product, sub-programs' included, in program order.
      kept: values that did not get the format the recipe asks for, and why.
    """

    compute: dict[Node, str] = field(default_factory=dict)
    result: dict[Value, str] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    kept: dict[Value, str] = field(default_factory=dict)

    def dtype(self, operand: Operand) -> str:
        if isinstance(operand, Literal):
            return operand.type.dtype
        return self.result.get(operand, operand.type.dtype)


def assign_formats(
    graph: Graph,
    recipe: Recipe,
    facts: Facts | None = None,
    seen: Mapping[Value, Stats] | None = None,
    chosen: Mapping[Node, Chosen] | None = None,
) -> Assignment:
    """The formats a recipe asks for, from op classes, phases and overrides; what is known not to
    fit a format, or was seen not to (`precir.passes.fitting`), does not get it. A node that is
    `chosen` a format gets that instead.

    Arguments and results of the program keep their dtypes.
    """
    assignment = Assignment()
    if recipe.mode == KEEP and not recipe.overrides:
        _Walk(recipe, assignment, Tail()).note_products(graph)
        return assignment
    walk = _Walk(recipe, assignment, find_tail(graph), facts, seen)
    walk.chosen = chosen or {}
    updated = updated_inputs(graph) | stored_inputs(graph)
    walk.knows_weights = bool(updated)
    weights = [v in updated or not updated for v in graph.inputs]
    soft = [True] * len(graph.inputs)
    walk.inputs(graph, [v.type.dtype for v in graph.inputs], soft, None, weights)
    walk.graph(graph)
    return assignment


class _Walk:
    """One forward walk; sub-programs take the formats of what they are given."""

    def __init__(
        self,
        recipe: Recipe,
        assignment: Assignment,
        tail: Tail,
        facts: Facts | None = None,
        seen: Mapping[Value, Stats] | None = None,
    ) -> None:
        self.recipe, self.assignment, self.tail, self.facts = recipe, assignment, tail, facts
        self.seen = seen or {}
        self.soft: set[Value] = set()  # float32 only because it was given so
        self.gradients: set[Value] = set()
        self.weights: set[Value] = set()  # given to the program, and at most moved or cast
        self.counted: set[Value] = set()  # scalars made of whole numbers and constants alone
        self.in_scan = False
        self.chosen: Mapping[Node, Chosen] = {}
        self.knows_weights = True  # from the update; else data counts as one till a product tells

    def inputs(
        self,
        graph: Graph,
        dtypes: Sequence[str],
        soft: Sequence[bool],
        gradients: Sequence[bool] | None,
        weights: Sequence[bool],
    ) -> None:
        for i, value in enumerate(graph.inputs):
            if dtypes[i] != value.type.dtype:
                self.assignment.result[value] = dtypes[i]
            if soft[i]:
                self.soft.add(value)
            is_gradient = value.hint.startswith("cotangent") if gradients is None else gradients[i]
            if is_gradient:
                self.gradients.add(value)
            if weights[i] and not is_gradient:
                self.weights.add(value)

    def graph(self, graph: Graph) -> None:
        users: Mapping[Value, tuple[Node, ...]] = graph.users
        outputs = {o for o in graph.outputs if isinstance(o, Value)}
        for node in graph:
            self.node(node, users, outputs)
            if self._makes_gradient(node):
                self.gradients.update(node.outputs)
            elif self._moves_weight(node):
                self.weights.update(node.outputs)

    def _makes_gradient(self, node: Node) -> bool:
        values = [o for o in node.inputs if isinstance(o, Value)]
        if node.regions:
            return node.phase == BACKWARD
        if values and op_named(node.op).keeps in (Keeps.MOVE, Keeps.OWN):
            return any(v in self.gradients for v in values)
        return node.phase == BACKWARD

    def _moves_weight(self, node: Node) -> bool:
        if not node.inputs or node.regions or node.op == "gather":  # an embedding is no weight
            return False
        return moves_or_casts(node) and node.inputs[0] in self.weights

    def node(
        self, node: Node, users: Mapping[Value, tuple[Node, ...]], outputs: set[Value]
    ) -> None:
        keeps = op_named(node.op).keeps
        if node.regions:
            self.regions(node)
            return
        if keeps is Keeps.PRODUCT:
            self.product(node, users, outputs)
            return
        if not any(_is_wide(o.type.dtype) for o in (*node.inputs, *node.outputs)):
            return
        if self.recipe.mode == TRUE:
            self.uniform(node, keeps)
            return
        override = self.recipe.override(node.scope)
        pick = self.chosen.get(node) if override is None else None
        if keeps is Keeps.MOVE and node.op != "gather":
            pick = None
        if keeps is Keeps.RESCALE:
            self.rescale(node)
        elif keeps is Keeps.OWN:
            if node.op == "convert_element_type" and not _is_float(node.inputs[0].type.dtype):
                self.soft.update(node.outputs)  # a mask or a count: small whole numbers
            if node.op == "cast":
                self.soft.update(node.outputs)  # stored in fewer bits
            elif node.op == "dequantize" and node.inputs[0] in self.soft:
                self.soft.update(node.outputs)
            self.settle(node, None)
        elif pick is not None:
            self.settle(node, pick.dtype)
        elif keeps is Keeps.MOVE:
            self.move(node)
        elif override is not None:
            self.settle(node, override)
        elif self.recipe.mode == KEEP:
            self.settle(node, None)
        elif keeps is Keeps.WIDE or node.phase == UPDATE or node in self.tail.loss:
            self.settle(node, self.recipe.wide)
        elif keeps is Keeps.CONVOLUTION:
            self.settle(node, self.recipe.compute)
        else:
            self.follow(node)

    def settle(self, node: Node, compute: str | None) -> None:
        if compute is None:
            if any(self.assignment.dtype(o) != o.type.dtype for o in node.inputs):
                self.assignment.compute[node] = "traced"
            return
        compute = self.fitting(node, compute)
        self.assignment.compute[node] = compute
        for value in node.outputs:
            if _is_wide(value.type.dtype) and value.type.dtype != compute:
                self.assignment.result[value] = compute

    def fitting(self, node: Node, compute: str) -> str:
        """The dtype asked for, or float32 where a value at hand is known not to fit it."""
        if self.facts is None or _BITS.get(compute, 32) >= 32:
            return compute
        values = [v for v in (*node.outputs, *node.inputs) if isinstance(v, Value)]
        for value in values:
            if not _is_wide(value.type.dtype):
                continue
            reason = misfit(self.facts[value], compute)
            if not reason and value in self.seen:
                reason = unfit(self.seen[value], compute)
            if reason:
                self.assignment.kept[value] = reason
                return "float32"
        return compute

    def move(self, node: Node) -> None:
        source = node.inputs[0]
        if node.op == "gather" and source in self.soft and node.phase != UPDATE:
            self.settle(node, self.recipe.compute)  # an embedding: an activation from here on
            return
        self.settle(node, self.assignment.dtype(source) if _is_wide(source.type.dtype) else None)
        if source in self.soft or isinstance(source, Literal):
            self.soft.update(node.outputs)

    def rescale(self, node: Node) -> None:
        """What it reads is read as it is, so that neither it nor the factor leaves a format."""
        source = node.inputs[0]
        wide = _is_wide(node.outputs[0].type.dtype)
        if source in self.soft:
            self.soft.update(node.outputs)  # wide readers get all of its digits
        elif wide and self.assignment.dtype(source) != "float32":
            self.assignment.result[node.outputs[0]] = self.recipe.compute
        self.assignment.compute[node] = "natural"

    def follow(self, node: Node) -> None:
        """The widest of the operands that are wide for a reason of their own."""
        floats = [o for o in node.inputs if isinstance(o, Value) and _is_wide(o.type.dtype)]
        hard = [self.assignment.dtype(o) for o in floats if o not in self.soft]
        if hard:
            self.settle(node, max(hard, key=lambda d: _BITS.get(d, 0)))
        else:  # of parameters and data alone: an activation from here on
            self.settle(node, self.recipe.compute if floats else None)

    def uniform(self, node: Node, keeps: Keeps) -> None:
        """Mode "true": everything in one dtype but what keeps its own, and what no array went into:
        a program traced with its arrays in that dtype has those scalars in float32 too.
        """
        if self._counts(node):
            self.counted.update(node.outputs)
            self.settle(node, None)
        elif node.op == "convert_element_type" and _is_wide(node.outputs[0].type.dtype):
            dtype = self.fitting(node, self.recipe.compute)
            for value in node.outputs:
                if value.type.dtype != dtype:
                    self.assignment.result[value] = dtype
            self.assignment.compute[node] = (
                "traced" if not _is_float(node.inputs[0].type.dtype) else dtype
            )
        elif keeps is Keeps.OWN:
            self.settle(node, None)
        else:
            self.settle(node, self.recipe.override(node.scope) or self.recipe.compute)

    def _counts(self, node: Node) -> bool:
        """Whether it makes scalars of whole numbers and constants: a step size, Adam's 1 - b2^t."""
        if _BITS.get(self.recipe.compute, 32) >= 32 or self.recipe.override(node.scope) is not None:
            return False
        return not any(v.type.rank for v in node.outputs) and all(
            isinstance(o, Literal) or not _is_float(o.type.dtype) or o in self.counted
            for o in node.inputs
        )

    # -- products ------------------------------------------------------------------------------

    def product(
        self, node: Node, users: Mapping[Value, tuple[Node, ...]], outputs: set[Value]
    ) -> None:
        a, b = node.inputs
        if not (_is_float(a.type.dtype) and _is_float(b.type.dtype)):
            self.note(node, "not floating point")
            return
        override = self.recipe.override(node.scope)
        low, dtype, reason = self._choose(node, override)
        traced = node.outputs[0].type.dtype
        if not low and not (_is_wide(a.type.dtype) and _is_wide(b.type.dtype)):
            written = b.type.dtype if _is_wide(a.type.dtype) else a.type.dtype
            both = not (_is_wide(a.type.dtype) or _is_wide(b.type.dtype))
            if both or dtype != written:  # one alone would make the product float32 unnoticed
                dtype, reason = None, f"written in {written} by the user"
        if dtype is None:
            self.settle(node, None)
            self.note(node, reason)
            return
        result = dtype if _is_wide(traced) else traced
        if low and _is_wide(traced) and self._only_wide_readers(node, users, outputs):
            # Accumulated in float32 anyway: nothing is gained by rounding. Not for plain 16-bit
            # products, whose float32 result XLA:CPU cannot always compute (DotThunk).
            result = self.recipe.wide
        self.assignment.compute[node] = dtype
        if result != traced:
            self.assignment.result[node.outputs[0]] = result
        operands = self._formats(node) if low else (dtype, dtype)
        if low and a in self.gradients and b in self.gradients and node not in self.chosen:
            reason = "both operands are gradients, and E5M2 x E5M2 has no hardware path"
        if not self.knows_weights and a in self.weights and b in self.weights:
            self.weights.discard(data_of(node))
        grains = (self._grain(node, 0), self._grain(node, 1)) if low else (Grain(), Grain())
        self.assignment.products.append(Product(node, low, operands, result, reason, grains))

    def _grain(self, node: Node, i: int) -> Grain:
        pick, operand = self.chosen.get(node), node.inputs[i]
        recipe = self.recipe if pick is None else pick.like(self.recipe)
        if operand in self.gradients:
            return grain(node, i, recipe.gradient_scales)
        given = operand in self.weights
        return grain(node, i, recipe.weight_scales if given else recipe.activation_scales)

    def _choose(self, node: Node, override: str | None) -> tuple[bool, str | None, str]:
        recipe = self.recipe
        if override is not None:
            return False, override, f"{override} by override at {node.scope}"
        pick = self.chosen.get(node)
        if pick is not None:
            return pick.low, recipe.compute if pick.low else pick.format, pick.why or "chosen"
        if recipe.mode == KEEP:
            return False, None, f"recipe {recipe.name} changes nothing"
        if recipe.mode == TRUE:
            return False, recipe.compute, f"recipe {recipe.name}"
        if node.phase == UPDATE:
            return False, recipe.wide, f"part of the update: {recipe.wide}"
        if recipe.forward is None:
            return False, recipe.compute, f"recipe {recipe.name}"
        if node.op != "dot_general":
            return False, recipe.compute, f"no 8-bit kernel for {node.op}"
        if node.params.get("out_sharding") is not None:
            return False, recipe.compute, "the product is sharded explicitly"
        if node in self.tail.products and recipe.last_product is not None:
            reason = "its result reaches the loss through no other product"
            if node.phase == BACKWARD:
                reason = "a gradient of a product that reaches the loss through no other"
            return False, recipe.last_product, reason
        return True, recipe.compute, f"recipe {recipe.name}"

    def _formats(self, node: Node) -> tuple[str, str]:
        (a, b), pick = node.inputs, self.chosen.get(node)
        recipe = self.recipe if pick is None else pick.like(self.recipe)
        forward, gradient = recipe.forward, recipe.gradient
        assert forward is not None
        assert gradient is not None
        first = gradient if a in self.gradients else forward
        second = gradient if b in self.gradients else forward
        if first == second == "float8_e5m2":
            second = forward  # E5M2 times E5M2 has no hardware path
        return first, second

    def _only_wide_readers(
        self, node: Node, users: Mapping[Value, tuple[Node, ...]], outputs: set[Value]
    ) -> bool:
        """Whether all that reads a product, through whatever only moves it, computes in the wide
        dtype anyway: rounding the float32 sum to 16 bits would then only lose digits.
        """
        waiting, seen = list(node.outputs), False
        while waiting:
            value = waiting.pop()
            if value in outputs:
                if self.in_scan:  # stacked, for each layer: that is what memory goes to
                    return False
                seen = True
            for reader in users.get(value, ()):
                seen = True
                keeps = op_named(reader.op).keeps
                if reader.regions:
                    return False
                if keeps in (Keeps.MOVE, Keeps.RESCALE) and reader.phase != UPDATE:
                    waiting.extend(reader.outputs)
                elif (
                    keeps is not Keeps.WIDE
                    and reader.phase != UPDATE
                    and reader not in self.tail.loss
                ):
                    return False
        return seen

    def note(self, node: Node, reason: str) -> None:
        a, b = node.inputs[:2]
        dtypes = (self.assignment.dtype(a), self.assignment.dtype(b))
        result = node.outputs[0].type.dtype
        self.assignment.products.append(Product(node, False, dtypes, result, reason))

    def note_products(self, graph: Graph) -> None:
        for node in graph.walk():
            if op_named(node.op).keeps is Keeps.PRODUCT:
                self.note(node, f"recipe {self.recipe.name} changes nothing")

    # -- sub-programs --------------------------------------------------------------------------

    def regions(self, node: Node) -> None:
        """Sub-programs see their operands in the formats these have, except carried values and
        what a primitive of no known form holds, which stay as traced.
        """
        operands_of = region_operands(node)
        if operands_of is None:
            self.assignment.compute[node] = "traced"
            for region in node.regions:
                for inner in region.walk():
                    if op_named(inner.op).keeps is Keeps.PRODUCT:
                        self.note(inner, f"inside {node.op}, which keeps its own precision")
            return
        fixed = fixed_inputs(node)
        for region, indices in zip(node.regions, operands_of, strict=True):
            operands = [node.inputs[i] for i in indices]
            held = [fixed[i] for i in indices]
            dtypes = [
                v.type.dtype if keep else self.assignment.dtype(o)
                for v, o, keep in zip(region.inputs, operands, held, strict=True)
            ]
            soft = [o in self.soft and not keep for o, keep in zip(operands, held, strict=True)]
            gradients = [
                o in self.gradients or (keep and node.phase == BACKWARD and node.op == "scan")
                for o, keep in zip(operands, held, strict=True)
            ]
            weights = [
                o in self.weights and not keep for o, keep in zip(operands, held, strict=True)
            ]
            self.inputs(region, dtypes, soft, gradients, weights)
            around, self.in_scan = self.in_scan, self.in_scan or node.op == "scan"
            self.graph(region)
            self.in_scan = around
        self.outputs(node)

    def outputs(self, node: Node) -> None:
        """Results in the dtype the sub-program made them in: stacks of a scan, results of remat."""
        for i, value in enumerate(node.outputs):
            if i in fixed_outputs(node):
                continue
            made = node.regions[-1].outputs[i]
            dtype = self.assignment.dtype(made)
            if dtype != value.type.dtype:
                self.assignment.result[value] = dtype


def region_operands(node: Node) -> list[range | list[int]] | None:
    """For each sub-program, the indices of the operands it takes; None if not known."""
    count = len(node.inputs)
    if node.op in ("scan", "remat", "custom_jvp_call", "custom_vjp_call", "shard_map"):
        return [range(count)]
    if node.op == "cond":
        return [range(1, count)] * len(node.regions)
    if node.op == "while":
        n, m = node.params["cond_nconsts"], node.params["body_nconsts"]
        return [[*range(n), *range(n + m, count)], range(n, count)]
    return None


def fixed_inputs(node: Node) -> list[bool]:
    """Operands of a sub-program that keep their traced dtype: carried values."""
    count = len(node.inputs)
    if node.op == "scan":
        consts, carry = node.params["num_consts"], node.params["num_carry"]
        return [consts <= i < consts + carry for i in range(count)]
    if node.op == "while":
        consts = node.params["cond_nconsts"] + node.params["body_nconsts"]
        return [i >= consts for i in range(count)]
    return [False] * count


def fixed_outputs(node: Node) -> range:
    """Results of a node with sub-programs that keep their traced dtype."""
    if node.op == "scan":
        return range(node.params["num_carry"])
    if node.op in ("cond", "while"):
        return range(len(node.outputs))
    return range(0)


def _is_float(dtype: str) -> bool:
    return dtype in _BITS


def _is_wide(dtype: str) -> bool:
    """A dtype that recipes may change: what JAX gives when nobody asks."""
    return dtype == "float32"
