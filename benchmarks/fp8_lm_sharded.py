"""Part `sharded` of fp8_lm.py: O3, the state of O2 divided among devices (see `precir.memory`)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fp8_lm_memory as of_memory
import jax
from fp8_lm_training import waiting

import precir
from precir.target import Memory

SHARDED = (
    "bf16-mixed", "fp8", "fp8-lm-o1", "fp8-lm-o2", "fp8-lm-o3", "fp8-lm-o3 + fused",
    "fp8-lm-block + fused",
)  # fmt: skip
WHOLE = ("fp8-lm-o2",)  # in a row of its own, the state whole on every device
N = 8


def gradients(shape: Any, recipe: Any) -> float:
    """Bytes a parameter of those that wait between the backward pass and the update."""
    step = precir.compile(of_memory.shapes.make_train_step(shape), recipe=recipe)
    args = jax.eval_shape(step.init, *of_memory.shapes.abstract_args(shape))
    return sum(waiting(step.program(*args).graph).values()) / shape.parameters


def crossing(found: Memory, kind: str) -> str:
    """What collectives of a kind move, in GiB by element type."""
    return ", ".join(
        f"{of_memory.gib(c.bytes)} {c.dtype}"
        for c in found.collectives
        if c.kind == kind and c.bytes > of_memory.GIB / 20
    )


def sharded_section(
    names: tuple[str, ...] = SHARDED, shape: Any = of_memory.shapes.SEVEN_B
) -> Iterator[list[str]]:
    """6.6 billion parameters on eight H100, and what crosses them."""
    layout = of_memory.Layout(data=N)
    head = [
        f"{shape.parameters:,} parameters, {shape.layers} layers of {shape.width} in a scan with "
        f"remat, {N} x {shape.batch} x {shape.length} tokens, Adam, state donated; every matrix of "
        "the state divided by rows (ZeRO-3, FSDP), activations by tokens. *State* and *gradients* "
        f"are bytes a parameter on one device, times {N}: with the gradients that wait, O3 has 6, "
        f"and so 6/{N} on each. A matrix is collected for its products, one layer at a time, "
        "forward and backward: *collected* has both, and 2 bytes a parameter in bfloat16 or 1 in "
        "FP8 each time is what they come to. *Scattered* are the sums of gradients.",
        "",
        f"| recipe | state x {N} | gradients x {N} | arguments, GiB | temporaries | peak "
        "| collected, GiB | bytes a parameter, each time | scattered, GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    lines: list[str] = []
    for name in (*names, *WHOLE):
        jax.clear_caches()
        recipe, last = of_memory.named(name), len(lines) == len(names)
        found = (
            whole(shape, recipe) if last else of_memory.measure(shape, recipe, layout, "h100")[0]
        )
        held = (1 if last else N) * found.argument / shape.parameters
        sent = sum(c.bytes for c in found.collectives if c.kind == "all-gather")
        cells = (
            f"{name}, whole on each device" if last else name, f"{held:.3f}",
            f"{gradients(shape, recipe):.3f}",
            *map(of_memory.gib, (found.argument, found.temporary, found.peak)),
            crossing(found, "all-gather"), f"{sent / 2 / shape.parameters:.2f}",
            crossing(found, "reduce-scatter") or f"{crossing(found, 'all-reduce')}, to all",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        yield [*head, *lines]


def whole(shape: Any, recipe: Any) -> Memory:
    """A data parallel step: what FP8-LM's O3 is set against."""
    shape = replace(shape, batch=N * shape.batch)
    train = of_memory.shapes.make_train_step(shape)
    step = precir.compile(train, recipe=recipe, donate_argnums=(0, 1))
    args = jax.eval_shape(step.init, *of_memory.shapes.abstract_args(shape))
    spec = jax.sharding.PartitionSpec
    return step.memory(*args, devices=N, shardings=(spec(), spec(), spec("data")))
