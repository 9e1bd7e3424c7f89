"""The op of `precir.kernels.adam_update`: one step of AdamW on what is stored.

Operands are weight, first and second moment and gradient, each plain or data under scales, and then
what is traced of the scalars `SCALARS`, in this order. A parameter has the value of each that is
not, and None for one that is. Results are the new weight and moments, of the types they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from precir.domains.fact import ANYTHING, Fact
from precir.ir import Node, Type
from precir.ops.base import Keeps, Op
from precir.ops.facts.context import Answer, Context
from precir.ops.scales import laws
from precir.ops.writing import Hole, Template, Writer

__all__ = ["ADAM", "OPS", "SCALARS", "TENSORS", "result_types", "role"]

ADAM: Final = "adam_update"
TENSORS: Final = ("weight", "first", "second", "gradient")
SCALARS: Final = (
    "lr", "b1", "b2", "eps", "weight_decay", "gradient_scale", "correction_1", "correction_2",
)  # fmt: skip
_DEFAULTS: Final = {"weight_decay": 0.0, "gradient_scale": 1.0}


def result_types(operands: Sequence[Type]) -> list[Type]:
    """Of the results, from those of the operands."""
    return list(operands[:3])


def role(node: Node, operand: int) -> str:
    """What an operand is to the update; "" for a tensor."""
    traced = [name for name in SCALARS if node.params[name] is None]
    return traced[operand - len(TENSORS)] if operand >= len(TENSORS) else ""


def _fact(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """A step of m / eps is bounded by nothing that is known of a weight."""
    basis = max(f.basis for f in facts)
    return [ANYTHING._replace(basis=basis)] * len(node.outputs)


def _text(node: Node, w: Writer) -> Template:
    pieces: list[str | Hole] = [f"{w.use('precir.kernels', ADAM)}(", Hole(0)]
    for i in range(1, len(TENSORS)):
        pieces += [", ", Hole(i)]
    said: dict[str, str | Hole] = {}
    traced = len(TENSORS)
    for name in SCALARS:
        value = node.params[name]
        if value is None:
            said[name], traced = Hole(traced), traced + 1
        elif value != _DEFAULTS.get(name):
            said[name] = repr(value)
    one, two = said.pop("correction_1"), said.pop("correction_2")
    for name, value in said.items():
        pieces += [f", {name}=", value]
    pieces += [", corrections=(", one, ", ", two, "))"]
    return Template(tuple(pieces), targets="{}, {}, {}, _")


OPS: tuple[Op, ...] = (Op(ADAM, Keeps.OWN, _fact, laws.unscaled, _text),)
