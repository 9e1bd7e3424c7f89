"""What the emitted module says of itself."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from precir.version import __version__

if TYPE_CHECKING:
    from precir.program import Program


def module_doc(program: Program) -> str:
    """The docstring of an emitted module: what it is, where from, what runs in which format."""
    recipe, name = program.recipe, program.signature.name
    lines = [f"{name}, compiled by precir {__version__} with recipe {recipe.name}."]
    code = getattr(inspect.unwrap(program.source), "__code__", None)
    if code is not None:
        place = f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
        about = f"From {place}. {products_line(program)}".rstrip()
        lines += ["", *textwrap.wrap(about, 98)]
    for line in state_lines(program):
        lines += ["", *textwrap.wrap(line, 98)]
    for line in update_lines(program):
        lines += ["", *textwrap.wrap(line, 98)]
    return "\n".join(lines) + ("\n" if len(lines) > 1 else "")


def state_lines(program: Program) -> list[str]:
    """What travels from step to step beside the user's own, and in which form."""
    state, lines = program.state, []
    if state.extras and state.at is not None:
        held = "; ".join(
            f"{e.name}, {e.initial.dtype.name}{list(e.initial.shape)}, {e.about}".rstrip(", ")
            + f" (all {e.initial.flat[0]:g} before the first step)"
            for e in state.extras
        )
        name = program.signature.parameters[state.at].name
        lines.append(f"State: {name} is a Packed(tree, state), whose state holds {held}.")
    if state.stored:
        kinds = Counter(t.dtype for t in state.stored.inputs.values())
        shown = ", ".join(f"{n} in {k}" for k, n in kinds.items())
        lines.append(f"Stored as ScaledArrays, data times scales: {shown}.")
    return lines


def update_lines(program: Program) -> list[str]:
    """What is updated where its gradient is made."""
    lines = []
    for u in program.updates:
        if u.passes and u.stacks:
            passes = "one backward pass" if u.passes == 1 else f"{u.passes} backward passes"
            held = f"the gradients of {len(u.gradients)} stacks never exist as such"
            stacks = ", ".join(u.stacks)
            lines.append(f"Updated in the backward loop, in {passes}: {stacks}; {held}.")
    return lines


def products_line(program: Program) -> str:
    """How many products run in 8 bits, and why the others do not."""
    products = program.assignment.products
    if not products:
        return "It has no matrix products."
    low = sum(p.low for p in products)
    if not low:
        kinds = Counter(p.operands[0] for p in products)
        return f"Matrix products: {', '.join(f'{n} in {k}' for k, n in kinds.items())}."
    reasons = Counter(p.reason for p in products if not p.low)
    wide = "; ".join(f"{n}, {r}" for r, n in reasons.items())
    return f"{low} of {len(products)} products in FP8." + (f" Wide: {wide}." if wide else "")
