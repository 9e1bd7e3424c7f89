"""Read a report off a program's graphs and decisions."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from precir.domains.fact import UNKNOWN, Fact, top
from precir.ir import BACKWARD, FORWARD, UPDATE, Graph, Literal, Node, Value
from precir.ops import Keeps, op_named
from precir.passes.assign import Assignment, Product
from precir.passes.classes import classify_state
from precir.passes.facts import Facts
from precir.passes.fused_cost import Fused
from precir.passes.grains import Grain, reach_in_words
from precir.passes.update import Update
from precir.recipe import KEEP, TRUE, Recipe
from precir.report.data import (
    KeptRow,
    KernelRow,
    ProductRow,
    Report,
    RescaleRow,
    StateRow,
    TensorRow,
    UpdateRow,
    by_format,
)
from precir.report.units import format_name, shape_text, type_bytes
from precir.report.ways import way_of
from precir.state import find_state

if TYPE_CHECKING:
    from precir.program import Program

# Products that have no rule of their own yet and stay as traced.
_OTHER_PRODUCTS = ("ragged_dot", "ragged_dot_general", "scaled_matmul")


def gather(program: Program) -> Report:
    """The report on a program."""
    final, facts = program.graph, program.facts
    return Report(
        name=program.signature.name,
        place=_place(program.source),
        recipe=program.recipe.name,
        numbers=recipe_in_words(program.recipe),
        products=tuple(_products(program)),
        tensors=_largest_first(_tensor(v, times, facts) for v, times in _made(final)),
        residuals=_largest_first(_tensor(v, times, facts) for v, times in _residuals(final, 1)),
        arguments=by_format((format_name(v.type.dtype), type_bytes(v.type)) for v in final.inputs),
        kept=tuple(_kept(program)),
        rescales=tuple(_rescales(final)),
        updates=tuple(map(_update, program.updates)),
        state=tuple(_state(program)),
        kernels=tuple(map(_kernel, program.fused)),
    )


def _state(program: Program) -> Iterator[StateRow]:
    """What the recipe stores by its class, and what it leaves alone."""
    if not program.recipe.by_class:
        return
    graph, labels = program.stages[0].graph, program.signature.labels()
    pairs = [pair for c in find_state(graph, program.signature) for pair in c.pairs]
    alike: dict[tuple[str, str], list[int]] = {}
    types = {i: program.state.stored.inputs.get(i, graph.inputs[i].type) for i, _ in pairs}
    for i, what in classify_state(graph, pairs).items():
        alike.setdefault((what, format_name(types[i].dtype)), []).append(i)
    for (kind, format_), members in alike.items():
        size = sum(type_bytes(types[i]) for i in members)
        yield StateRow(kind, format_, len(members), size, ", ".join(labels[i] for i in members))


def _update(update: Update) -> UpdateRow:
    return UpdateRow(
        fused=update.passes > 0,
        passes=update.passes,
        stacks=", ".join(update.stacks),
        count=len(update.gradients),
        bytes=sum(type_bytes(v.type) for v in update.gradients),
        where=_where(update.scan),
        op=update.blocker.op if update.blocker is not None else "",
        at=_where(update.blocker),
        reason=update.reason,
    )


def _kernel(fused: Fused) -> KernelRow:
    node = fused.node
    return KernelRow(
        kernel=fused.kernel,
        used=fused.used,
        shape=shape_text(node.outputs[0].type.shape),
        scope=node.scope,
        phase=node.phase,
        where=_where(node),
        times=fused.times,
        bytes=fused.saved.bytes * (fused.times or 1),
        reason=fused.reason,
    )


def _kept(program: Program) -> Iterator[KeptRow]:
    for value, reason in program.assignment.kept.items():
        node = value.node
        if node is not None:
            yield KeptRow(node.op, node.phase, node.scope, _where(node), reason)


def _rescales(graph: Graph) -> Iterator[RescaleRow]:
    layers: dict[str, Counter[str]] = {}
    for node in graph.walk():
        kind = _change_of_scale(node)
        if kind:
            layers.setdefault(layer_of(node.scope), Counter())[kind] += 1
    for layer, counts in layers.items():
        known, free = counts["known"] + counts["free"], counts["free"]
        yield RescaleRow(layer, known, free, counts["computed"], counts["measured"])


def _change_of_scale(node: Node) -> str:
    if node.op == "scaled_dot" and node.params.get("shift"):
        return "free"
    if node.op == "rms_scale":
        return "measured"
    if node.op == "rescale" and node.phase != UPDATE:
        return "known" if isinstance(node.inputs[1], Literal) else "computed"
    return ""


def layer_of(scope: str) -> str:
    """The part of a scope down to the first numbered module: `GPT/h_0` of `GPT/h_0/attn/qkv`."""
    parts = scope.split("/")
    for n, part in enumerate(parts):
        if any(c.isdigit() for c in part):
            return "/".join(parts[: n + 1])
    return parts[0]


def recipe_in_words(recipe: Recipe) -> str:
    """`E4M3 forward, E5M2 gradients, current scaling; bf16 products, f32 sums and updates`."""
    if recipe.mode == KEEP:
        words = "every number as written"
    elif recipe.mode == TRUE:
        words = f"everything in {format_name(recipe.compute)}"
    else:
        compute, wide = format_name(recipe.compute), format_name(recipe.wide)
        words = f"{compute} products, {wide} sums, norms, losses and updates"
        if recipe.forward is not None and recipe.gradient is not None:
            forward, gradient = format_name(recipe.forward), format_name(recipe.gradient)
            scaling = f"{recipe.scaling} scaling"
            if recipe.scaling == "delayed":
                scaling += f", {recipe.history} steps"
            low = f"{forward} forward, {gradient} gradients, {scaling}"
            reaches = recipe.activation_scales, recipe.weight_scales, recipe.gradient_scales
            low = ", ".join(filter(None, [low, reach_in_words(reaches)]))
            words = f"{low}; {compute} activations, {wide} sums, norms, losses and updates"
        elif recipe.scaling == "propagated":
            words += ", propagated scales"
    if recipe.stored is not None:
        words += f"; for inference, weights in {recipe.stored}"
    if recipe.loss_scaling:
        words += ", dynamic loss scaling"
    if recipe.state is not None:
        words += f"; weights and moments in {format_name(recipe.state)} between steps"
    stores = [
        f"{what} in {format_name(store.format)}" + f", blocks of {store.block}" * bool(store.block)
        for what, store in recipe.by_class.items()
    ]
    if stores:
        words += f"; between steps {'; '.join(stores)}"
    if recipe.kernels == "plain" and recipe.forward is not None:
        words += "; no fused kernels"
    if recipe.residuals is not None:
        words += f"; residuals in {format_name(recipe.residuals)}"
    if recipe.update == "fused":
        words += "; updates in the loops that make their gradients"
    kept = [f"{format_name(o.keep)} at {o.scope}" for o in recipe.overrides]
    return "; ".join([words, *kept])


def _place(fn: Callable[..., Any]) -> str:
    code = getattr(fn, "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else ""


def walk(graph: Graph, times: int | None = 1) -> Iterator[tuple[Node, int | None]]:
    """Every node, those of sub-programs too, and how often it runs in one call."""
    for node in graph:
        yield node, times
        for region in node.regions:
            yield from walk(region, _inside(node, times))


def _inside(node: Node, times: int | None) -> int | None:
    if times is None or node.op == "while":
        return None
    return times * int(node.params["length"]) if node.op == "scan" else times


# -- products --------------------------------------------------------------------------------------


def _products(program: Program) -> Iterator[ProductRow]:
    """The products of the program that formats were chosen for."""
    assignment = program.assignment
    chosen = {p.node: p for p in assignment.products}
    for node, times in walk(_assigned(program)):
        product = chosen.get(node) or _other_product(node, assignment, program.recipe)
        if product is not None:
            yield _product(product, times)


def _assigned(program: Program) -> Graph:
    """The graph whose nodes the assignment speaks of."""
    graphs = {stage.name: stage.graph for stage in program.stages}
    return graphs.get("assign", program.graph)


def _other_product(node: Node, assignment: Assignment, recipe: Recipe) -> Product | None:
    """A product that is none of the matrix products that recipes choose formats for."""
    keeps = op_named(node.op).keeps
    if keeps not in (Keeps.PRODUCT, Keeps.CONVOLUTION) and node.op not in _OTHER_PRODUCTS:
        return None
    compute = assignment.compute.get(node, "traced")
    dtypes = [o.type.dtype if compute == "traced" else compute for o in node.inputs[:2]]
    result, reason = assignment.dtype(node.outputs[0]), _other_reason(node, recipe, compute)
    return Product(node, False, (dtypes[0], dtypes[1]), result, reason)


def _other_reason(node: Node, recipe: Recipe, compute: str) -> str:
    if recipe.override(node.scope) is not None:
        return f"{recipe.override(node.scope)} by override at {node.scope}"
    if recipe.mode == KEEP:
        return f"recipe {recipe.name} changes nothing"
    if op_named(node.op).keeps is not Keeps.CONVOLUTION:
        return f"{node.op} keeps its own precision"
    if compute == recipe.wide != recipe.compute:
        return f"no matrix product stands between it and the loss: {compute}"
    return f"no 8-bit kernel for {node.op}" if recipe.forward else f"recipe {recipe.name}"


def _product(product: Product, times: int | None) -> ProductRow:
    node = product.node
    a, b = (shape_text(o.type.shape) for o in node.inputs[:2])
    return ProductRow(
        low=product.low,
        format=" x ".join(map(_operand_format, product.operands, product.grains)),
        result=format_name(product.result),
        shape=f"{a} x {b} -> {shape_text(node.outputs[0].type.shape)}",
        scope=node.scope,
        phase=node.phase,
        where=_where(node),
        reason=product.reason,
        op=node.op,
        times=times,
        flops=_flops(node),
        way=way_of(product),
    )


def _operand_format(dtype: str, grain: Grain) -> str:
    """`E4M3`, `E4M3/1x128`."""
    reach = "" if grain.reach == "tensor" else f"/{grain.reach}"
    return f"{format_name(dtype)}{reach}"


def _flops(node: Node) -> int | None:
    """Two for each multiply-add."""
    numbers: Any = node.params.get("dimension_numbers")
    size = math.prod(node.outputs[0].type.shape)
    if node.op == "dot_general":
        summed: Iterable[int] = numbers[0][0]
        return 2 * size * math.prod(node.inputs[0].type.shape[i] for i in summed)
    if node.op == "conv_general_dilated":
        kernel = node.inputs[1].type.shape
        features: int = numbers.rhs_spec[0]
        return 2 * size * math.prod(kernel) // max(1, kernel[features])
    return None


def _where(node: Node | None) -> str:
    where = node.source.where if node is not None else None
    return str(where) if where is not None else ""


# -- tensors ---------------------------------------------------------------------------------------


def _made(graph: Graph) -> Iterator[tuple[Value, int | None]]:
    for node, times in walk(graph):
        for value in node.outputs:
            yield value, times


def _tensor(value: Value, times: int | None, facts: Facts) -> TensorRow:
    node = value.node
    assert node is not None
    return TensorRow(
        name=value.hint or node.op,
        op=node.op,
        shape=shape_text(value.type.shape),
        format=format_name(value.type.dtype),
        bytes=type_bytes(value.type),
        phase=node.phase,
        scope=node.scope,
        where=_where(node),
        times=times,
        holds=_holds(facts[value], value.type.dtype),
    )


def _holds(fact: Fact, dtype: str) -> str:
    """Nothing where it may hold all that its dtype does."""
    whole = top(dtype)
    everything = fact.lo <= whole.lo and fact.hi >= whole.hi and not whole.flags & ~fact.flags
    return "" if everything or fact.basis == UNKNOWN else str(fact)


def _largest_first(rows: Iterator[TensorRow]) -> tuple[TensorRow, ...]:
    """Equal ones in program order."""
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def _residuals(graph: Graph, times: int | None) -> Iterator[tuple[Value, int | None]]:
    """Values that a forward node makes and a backward node of the same graph reads.

    What a rematerialised block computes again for its gradients is not kept, and not counted.
    """
    users: Mapping[Value, tuple[Node, ...]] = graph.users
    for node in graph:
        if node.phase == FORWARD and node.op != "constant":
            for value in node.outputs:
                if any(user.phase == BACKWARD for user in users.get(value, ())):
                    yield value, times
        if node.op == "remat" and node.phase == BACKWARD:
            continue
        for region in node.regions:
            yield from _residuals(region, _inside(node, times))
