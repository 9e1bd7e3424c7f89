"""The text of a compiled XLA program, as far as it must be read: what runs, and how often."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_ARRAY: Final = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_NAME: Final = re.compile(r"%([\w.\-]+)")
_HEAD: Final = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE: Final = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_TRIPS: Final = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED: Final = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES: Final = re.compile(r"branch_computations=\{([^}]*)\}")
_BRANCH: Final = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """The type of an array: an element type as HLO writes it, and its sizes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of its elements, those below a byte packed."""
        return (self.size * bits(self.dtype) + 7) // 8


@dataclass(frozen=True)
class Instruction:
    """One line: `name = types op(operands), rest`."""

    name: str
    types: tuple[Array, ...]
    op: str
    operands: tuple[str, ...]
    rest: str


Computation = Mapping[str, Instruction]  # by name, in program order


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that runs."""

    computations: Mapping[str, Computation]
    entry: str

    def types(self, computation: str, name: str) -> tuple[Array, ...]:
        """The types of a value of a computation; none if it is not there."""
        found = self.computations[computation].get(name)
        return found.types if found else ()


@dataclass(frozen=True)
class Step:
    """An instruction that runs, in which computation, and how often in one run of the program.

    `exact` is False in the body of a loop whose length the compiler does not know, counted once,
    and in a branch, counted as if it is always taken.
    """

    instruction: Instruction
    computation: str
    times: int
    exact: bool


def bits(dtype: str) -> int:
    """The bits of an element: 8 of `f8e4m3fn`, 16 of `bf16`, 8 of `pred`."""
    if dtype == "pred":
        return 8
    if dtype in ("token", "opaque"):
        return 0
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def parse(text: str) -> Module:
    """Read a module; lines that are not instructions are passed over."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, here = "", None
    for line in text.splitlines():
        if here is None:
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                here = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            here = None
        else:
            found = _instruction(line)
            if found is not None:
                here[found.name] = found
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    head = _LINE.match(line)
    if head is None:
        return None
    at = head.end()
    end = _closing(line, at) if line[at] == "(" else line.find(" ", at)
    opening = line.find("(", end)
    if end < 0 or opening < 0:
        return None
    closing = _closing(line, opening)
    return Instruction(
        head[1],
        arrays(line[at:end]),
        line[end:opening].strip(),
        tuple(_NAME.findall(line[opening:closing])),
        line[closing:],
    )


def _closing(line: str, at: int) -> int:
    """Past the parenthesis that closes the one at `at`."""
    depth = 0
    for i in range(at, len(line)):
        if line[i] == "(":
            depth += 1
        elif line[i] == ")":
            depth -= 1
            if not depth:
                return i + 1
    return len(line)


def arrays(text: str) -> tuple[Array, ...]:
    """The array types in a type: one, or all of a tuple's."""
    return tuple(
        Array(dtype, tuple(int(n) for n in re.findall(r"\d+", sizes)))
        for dtype, sizes in _ARRAY.findall(text)
    )


def steps(module: Module) -> Iterator[Step]:
    """Every instruction that runs, loops and calls followed; a fusion is one instruction."""
    yield from _steps(module, module.entry, 1, True)


def _steps(module: Module, name: str, times: int, exact: bool) -> Iterator[Step]:
    for each in module.computations.get(name, {}).values():
        yield Step(each, name, times, exact)
        if each.op == "while":
            found = _TRIPS.search(each.rest)
            count, known = (int(found[1]), exact) if found else (1, False)
            for body in _CALLED.findall(each.rest):
                yield from _steps(module, body, times * count, known)
        elif each.op in ("call", "async-start"):
            for body in _CALLED.findall(each.rest):
                yield from _steps(module, body, times, exact)
        elif each.op == "conditional":
            listed = _BRANCHES.search(each.rest)
            names = _NAME.findall(listed[1]) if listed else _BRANCH.findall(each.rest)
            for body in names:
                yield from _steps(module, body, times, False)


def fused(module: Module, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
    """What a fusion computes, with the computation that each instruction is in."""
    for name in _CALLED.findall(instruction.rest):
        for each in module.computations.get(name, {}).values():
            yield name, each
            if each.op == "fusion":
                yield from fused(module, each)
