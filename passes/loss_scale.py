"""Dynamic loss scaling: gradients begin under a scale, and a step that overflows is skipped.

The scale is carried through the backward program by the same laws as any other
(`precir.passes.scales`), so that whatever a gradient goes through, its value is right; it is gone
where the update begins. The user's code is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from precir.errors import RecipeError
from precir.ir import UPDATE, Graph, Node, Operand, Type, Value
from precir.passes.facts import Facts
from precir.passes.scales import Options, propagate

SCALE, STEPS = "loss_scale", "good_steps"


def scale_loss(graph: Graph, carried: Sequence[tuple[int, int]], facts: Facts | None) -> Graph:
    """The program that takes the loss scale (float32[]) and the number of good steps so far
    (int32[]) as its last inputs and returns the next as its last results.

    `carried` pairs the numbers of inputs and of the results that replace them: where a gradient is
    not finite, each result is its input. Raises `RecipeError` where no gradient begins, or none
    reaches the update.
    """
    scale = Value(Type((), "float32"), hint=SCALE)
    steps = Value(Type((), "int32"), hint=STEPS)
    options = Options(split=False, band=None, measure=False, loss=scale)
    scaled, gradients = propagate(graph, options, facts)
    if not gradients:
        raise RecipeError(
            f"{graph.name} computes no gradient that its update reads: there is no loss to scale",
            fix="compile the whole train step, one step at a time; for a model function use a "
            'recipe without state, as "bf16-mixed" or "scaled-16"',
        )
    finite = Node("all_finite", gradients, [Type((), "bool")], phase=UPDATE)
    after = Node(
        "next_loss_scale", [scale, steps, finite.outputs[0]], [scale.type, steps.type],
        phase=UPDATE,
    )  # fmt: skip
    nodes, outputs = [*scaled.nodes, finite, after], list(scaled.outputs)
    chosen: dict[tuple[Operand, Operand], Operand] = {}
    for old, new in carried:
        before, now = scaled.inputs[old], outputs[new]
        if now is before:
            continue
        if (before, now) not in chosen:
            inputs = [finite.outputs[0], before, now]
            node = Node("select_n", inputs, [now.type], phase=UPDATE)
            nodes.append(node)
            chosen[before, now] = node.outputs[0]
        outputs[new] = chosen[before, now]
    return scaled.with_(
        inputs=(*scaled.inputs, scale, steps),
        nodes=tuple(nodes),
        outputs=(*outputs, *after.outputs),
    )
