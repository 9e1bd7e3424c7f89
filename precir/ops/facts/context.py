"""What a rule is given, and what it gives.

A rule says what an op's results hold, in exact arithmetic where that encloses the computed one;
whoever calls it rounds the answer into the results' dtypes. It gets the node for its parameters
and for what made its operands, the operands' facts, and a `Context` for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from precir.domains.fact import Fact
from precir.ir import Graph, Node, Operand, Value


class Context(Protocol):
    """The inference that calls a rule."""

    def of(self, operand: Operand) -> Fact:
        """What is known of an operand in the graph at hand."""

    def infer(self, region: Graph, inputs: Sequence[Fact]) -> list[Fact]:
        """What a sub-program's results hold, given its inputs'; nothing is recorded."""

    def record(self, node: Node, region: Graph, inputs: Sequence[Fact]) -> list[Fact]:
        """The same, and what holds inside is recorded as final."""

    def again(self, value: Value, known: dict[Value, Fact]) -> Fact:
        """What a value holds where more is known of some values that it was made of."""

    def is_argument(self, value: Value) -> bool:
        """Whether a value is one of the arguments of the whole program."""

    def array(self, value: Value) -> Any:
        """The array of a constant; None of anything else."""

    def axis_size(self, name: object) -> int | None:
        """The size of a mesh axis, if it is known."""


Answer = Fact | Sequence[Fact]
Rule = Callable[[Node, Sequence[Fact], Context], Answer]
