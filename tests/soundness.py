"""Whether what a program returns is as its facts say, over many fills of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from precir.domains.fact import Fact, contains, join, of_array
from precir.formats import FORMATS, Format
from precir.ir import Graph, Value
from precir.observe import instrument
from precir.passes.facts import infer_facts
from precir.program import Program

Fill = Callable[[np.random.RandomState, np.ndarray, Format], np.ndarray]

SMALL = ("random", "mixed", "all exponents")
"""The fills of what there is very much of."""


def _of(*values: Callable[[Format], float]) -> Fill:
    """Elements drawn from a few numbers of the format."""

    def fill(rng: np.random.RandomState, x: np.ndarray, f: Format) -> np.ndarray:
        return rng.choice([v(f) for v in values], x.shape)

    return fill


def _exponents(rng: np.random.RandomState, x: np.ndarray, f: Format) -> np.ndarray:
    """Numbers of all magnitudes that the format holds."""
    low, high = np.log2(f.smallest_subnormal), np.log2(f.max)
    return rng.choice([-1.0, 1.0], x.shape) * 2.0 ** rng.uniform(low, high, x.shape)


def _mixed(rng: np.random.RandomState, x: np.ndarray, f: Format) -> np.ndarray:
    """The given numbers, special ones among them."""
    special = [0.0, -0.0, f.smallest_subnormal, -f.smallest_normal, f.max, -f.max, 1.0, -1.0]
    special += [np.inf, -np.inf, np.nan]
    return np.where(rng.rand(*x.shape) < 0.3, rng.choice(special, x.shape), x)


def _beside_zero(rng: np.random.RandomState, x: np.ndarray, f: Format) -> np.ndarray:
    """The given numbers, zeros and ones among them."""
    return np.where(rng.rand(*x.shape) < 0.4, rng.choice([0.0, -0.0, 1.0, -1.0], x.shape), x)


def _near_one(rng: np.random.RandomState, x: np.ndarray, f: Format) -> np.ndarray:
    return rng.choice([-1.0, 1.0], x.shape) * (1 + f.epsilon * rng.randint(-3, 4, x.shape))


FILLS: dict[str, Fill] = {
    "random": lambda rng, x, f: x,
    "zeros": _of(lambda f: 0.0, lambda f: -0.0),
    "negative zero": _of(lambda f: -0.0),
    "subnormal": _of(
        lambda f: f.smallest_subnormal,
        lambda f: -f.smallest_subnormal,
        lambda f: f.smallest_normal - f.smallest_subnormal,
    ),
    "tiny": _of(
        lambda f: f.smallest_normal,
        lambda f: -f.smallest_normal,
        lambda f: f.smallest_normal * (1 + f.epsilon),
    ),
    "huge": _of(lambda f: f.max, lambda f: f.max / 2, lambda f: f.max * (1 - f.epsilon)),
    "huge of both signs": _of(lambda f: f.max, lambda f: -f.max, lambda f: f.max / 4),
    "infinite": _of(lambda f: np.inf, lambda f: -np.inf),
    "nan": _of(lambda f: np.nan),
    "mixed": _mixed,
    "all exponents": _exponents,
    "zeros and ones": _beside_zero,
    "near one": _near_one,
}


def filled(name: str, rng: np.random.RandomState, args: Any) -> Any:
    """The arguments with every float (and part of a complex number) filled anew."""

    def one(x: Any) -> Any:
        if not number(x):
            return x
        array = np.asarray(x)
        if array.dtype.kind == "c":
            part = array.real.dtype
            return (one(array.real) + 1j * one(array.imag).astype(part)).astype(array.dtype)
        if array.dtype.name not in FORMATS:
            return x
        if name == "random":
            return x
        with np.errstate(all="ignore"):
            new = FILLS[name](rng, array.astype(np.float64), FORMATS[array.dtype.name])
            return new.astype(array.dtype)

    return jax.tree.map(one, args)


def number(x: Any) -> bool:
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) and dtype != jax.dtypes.float0


def facts_of(leaves: Sequence[Any]) -> list[Fact | None]:
    return [of_array(x) if number(x) else None for x in leaves]


def widened(facts: Sequence[Fact | None], others: Sequence[Fact | None]) -> list[Fact | None]:
    return [
        None if f is None or g is None else join(f, g) for f, g in zip(facts, others, strict=True)
    ]


def outside(graph: Graph, inputs: Sequence[Fact | None], outputs: Sequence[Any]) -> Iterator[str]:
    """Each output that is not as its fact says."""
    facts = infer_facts(graph, inputs, keep_exact=False)
    for i, (operand, x) in enumerate(zip(graph.outputs, outputs, strict=True)):
        if number(x) and not contains(facts[operand], x):
            is_, fact = tuple(of_array(x)), tuple(facts[operand])
            yield f"output {i} ({operand.type.dtype}) is {is_}, not {fact}"


def fills_for(group: str, graph: Graph) -> tuple[str, ...]:
    """The fills that a program is tried on: few where there are thousands of the group, and none
    that keeps a loop from ending.
    """
    if "while" in ops(graph):
        return ("random",)
    return SMALL if group.startswith("scatter") else tuple(FILLS)


def ops(graph: Graph) -> set[str]:
    """The names of all ops of a program."""
    found = {node.op for node in graph.nodes}
    return found.union(*(ops(region) for node in graph.nodes for region in node.regions))


def violations(
    graph: Graph,
    call: Callable[..., Any],
    draw: Callable[[int], Sequence[Any]],
    fills: Sequence[str] = tuple(FILLS),
    draws: int = 2,
    static: Sequence[int] = (),
) -> Iterator[str]:
    """What a call returns outside of its facts, on every fill of its arguments; "" where nothing.

    Args:
      graph: the program.
      call: runs it, compiled by JAX.
      draw: random arguments of a seed.
      fills: what they are filled with, by name.
      draws: how many random draws are taken as they are.
      static: which arguments are no inputs of the graph.
    """
    before: list[Fact | None] | None = None
    plan = [("random", i) for i in range(draws)] + [(f, 0) for f in fills if f != "random"]
    for n, (name, seed) in enumerate(plan):
        args = list(draw(seed))
        given = [i for i in range(len(args)) if i not in static]
        changed = filled(name, np.random.RandomState(n), [args[i] for i in given])
        for i, x in zip(given, changed, strict=True):
            args[i] = x
        inputs = facts_of(jax.tree.leaves(changed))  # before the call, which may donate them
        outputs = jax.tree.leaves(call(*args))
        ways = [("", inputs)]
        if before is not None:
            ways.append((", facts widened", widened(inputs, before)))
        for how, facts in ways:
            found = list(outside(graph, facts, outputs))
            yield "; ".join(f"{name}{how}: {f}, of {facts}" for f in found)
        before = inputs


class Opened:
    """A program that returns all values in it, on all its levels."""

    def __init__(self, program: Program) -> None:
        self.graph = program.graph
        self.made = instrument(program, lambda value, inside: True)

    def outside(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        """Each value that is not as its fact says, when run on dynamic arguments; "" if it is."""
        facts = infer_facts(self.graph, facts_of(jax.tree.leaves((args, kwargs))))
        _, flat = self.made.call(*args, **kwargs)
        for e in self.made.exposed:
            array, fact = np.asarray(flat[e.output]), facts.of_value.get(e.value)
            if e.made is not None:
                array = array[np.asarray(flat[e.made])]
            if fact is None and array.size:  # what cannot be reached has none
                yield f"{described(e.value)} has no fact"
            elif fact is None or contains(fact, array):
                yield ""
            else:
                yield f"{described(e.value)} is {tuple(of_array(array))}, not {tuple(fact)}"


def described(value: Value) -> str:
    node = value.node
    if node is None:
        return f"an input of type {value.type}"
    of = [o.node.op if isinstance(o, Value) and o.node else o for o in node.inputs]
    return f"{node.op} ({value.type.dtype} {value.type.shape}, at {node.source}, of {of})"
