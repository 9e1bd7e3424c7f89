"""Whether what a program returns is as its facts say, over many fills of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from precir.domains.fact import Fact, contains, join, of_array
from precir.formats import FORMATS, Format
from precir.ir import Graph
from precir.passes.facts import infer_facts

Fill = Callable[[np.random.RandomState, np.ndarray, Format], np.ndarray]

SMALL = frozenset({"random", "mixed", "all exponents"})
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
            yield f"output {i} ({operand.type.dtype}) is {tuple(of_array(x))}, not {tuple(facts[operand])}"


def violations(
    graph: Graph,
    call: Callable[..., Any],
    draw: Callable[[int], Any],
    fills: Sequence[str] = tuple(FILLS),
    draws: int = 2,
) -> Iterator[tuple[int, str]]:
    """Over all fills: the number of checks made, and what was found outside of its facts."""
    before: list[Fact | None] | None = None
    plan = [("random", i) for i in range(draws)] + [(f, 0) for f in fills if f != "random"]
    for n, (name, seed) in enumerate(plan):
        args = filled(name, np.random.RandomState(n), draw(seed))
        leaves = jax.tree.leaves(args)
        outputs = [np.asarray(x) if number(x) else x for x in jax.tree.leaves(call(*args))]
        inputs = facts_of(leaves)
        ways = [("", inputs)]
        if before is not None:
            ways.append((" widened", widened(inputs, before)))
        for how, given in ways:
            found = list(outside(graph, given, outputs))
            yield 1, "".join(f"{name}{how}: {f}; inputs {given}\n" for f in found)
        before = inputs
