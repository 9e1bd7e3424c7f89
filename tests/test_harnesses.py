"""Every JAX primitive: the emitted program against plain jax.jit, bit for bit, and what it returns
against its facts.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import precir
from precir.text import externals_of, parse, print_graph
from tests.cases import CASES, Case
from tests.cases.compare import assert_same
from tests.soundness import fills_for, violations

CHUNKS = 64
QUICK_STRIDE = 60
# Scatters are 57% of all and differ in dimension numbers: every third, or all if that is asked for.
SCATTER_STRIDE = 1 if "EVERY_SCATTER" in os.environ else 3
# What JAX 0.10.2's table calls unimplemented on a CPU: linear algebra in 16 bits, sums and
# products of masks. 111 of its 5,594 harnesses, which leaves 5,483.
UNIMPLEMENTED = {
    "svd": 40, "eig": 24, "qr": 20, "eigh": 12, "lu": 6, "cholesky": 5, "clamp": 2,
    "scatter_add": 1, "scatter_mul": 1,
}  # fmt: skip


@functools.cache
def every_harness() -> tuple[Any, ...]:
    """JAX's own harnesses. Importing them parses the command line, which is not theirs."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        from jax._src.internal_test_util.test_harnesses import all_harnesses
    finally:
        sys.argv = kept
    return tuple(all_harnesses)


@functools.cache
def harnesses() -> tuple[Case, ...]:
    """Those that JAX itself runs on a CPU."""
    return tuple(
        Case(h.fullname, h.group_name, h.dyn_fun, h.dyn_args_maker)
        for h in every_harness()
        if h.filter("cpu")
    )


def check(case: Case, seed: int) -> None:
    """The program precir emits of `case` gives what `jax.jit` gives, and does so alone: the
    original is gone once it is traced. Its text reads back as the same graph. What `jax.jit` gives
    is as the facts say, on many fills of the arguments.
    """
    jitted = jax.jit(case.function, **case.options)
    expected = jitted(*arguments(case, seed))
    held = [case.function]

    @functools.wraps(case.function)
    def function(*args: Any) -> Any:
        return held[0](*args)

    compiled = precir.compile(function, **case.options)
    given = arguments(case, seed)
    graph = compiled.program(*given).stages[0].graph
    held[0] = gone
    assert_same(compiled(*given), expected)
    read = parse(print_graph(graph), graph.constants, externals_of(graph))
    assert read == graph, "the text form reads back as another graph"

    def draw(n: int) -> tuple[Any, ...]:
        return arguments(case, seed + 7919 * n)

    static = case.options.get("static_argnums", ())
    outside = violations(graph, jitted, draw, fills_for(case.group, graph), static=static)
    assert not any(found := list(outside)), "\n".join(filter(None, found))


def gone(*args: Any) -> Any:
    raise AssertionError("the original function ran again")


def arguments(case: Case, seed: int) -> tuple[Any, ...]:
    return tuple(case.arguments(np.random.RandomState(seed)))


def failures(cases: Iterable[tuple[int, Case]]) -> Iterator[str]:
    for n, (seed, case) in enumerate(cases):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # harnesses overflow and truncate on purpose
                check(case, seed)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            yield f"{case.name}: {type(error).__name__}: {reason}"
        if n % 40 == 39:
            jax.clear_caches()  # one process compiles thousands of programs


def assert_none_fails(cases: Iterable[tuple[int, Case]]) -> None:
    found = list(failures(cases))
    assert not found, f"{len(found)} differ:\n" + "\n".join(found)


def sample() -> list[tuple[int, Case]]:
    """Every sixtieth harness, and the first of each group."""
    seen: set[str] = set()
    found = []
    for seed, case in enumerate(harnesses()):
        if seed % QUICK_STRIDE == 0 or case.group not in seen:
            found.append((seed, case))
        seen.add(case.group)
    return found


@pytest.mark.parametrize("part", range(8))
def test_sample(part: int) -> None:
    assert_none_fails(sample()[part::8])


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(CHUNKS))
def test_every_harness(part: int) -> None:
    swept = [
        (seed, case)
        for seed, case in enumerate(harnesses())
        if not case.group.startswith("scatter") or seed % SCATTER_STRIDE == 0
    ]
    assert_none_fails(swept[part::CHUNKS])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    assert_none_fails([(0, case)])


def test_what_is_left_out() -> None:
    """Only what JAX's own table calls unimplemented on a CPU; precir leaves out nothing."""
    excluded = Counter(h.group_name for h in every_harness() if not h.filter("cpu"))
    assert len(every_harness()) - excluded.total() == len(harnesses())
    assert set(excluded) <= set(UNIMPLEMENTED)
    if jax.__version__ == "0.10.2":
        assert excluded == UNIMPLEMENTED
        assert (len(every_harness()), len(harnesses())) == (5594, 5483)
