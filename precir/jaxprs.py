"""What lowering asks of a jaxpr before it walks one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax._src import core as src_core
from jax.extend import core as jex_core


def weakness_seen(jaxpr: Any, weak: bool) -> set[Any]:
    """The weakly typed variables whose weakness reaches a result, if the results' own is seen.

    Operands of one equation have one dtype already, so that weakness decides nothing else. That
    lets the many conversions to a weak type that JAX inserts be written as plain ones.
    """
    seen = {v for v in jaxpr.outvars if is_weak(v)} if weak else set()
    for eqn in reversed(jaxpr.eqns) if seen else ():
        if any(v in seen for v in eqn.outvars):
            seen.update(v for v in eqn.invars if is_weak(v))
    return seen


def is_weak(variable: Any) -> bool:
    """Whether this is a variable, not a literal, of a weak type."""
    return type(variable) is not src_core.Literal and bool(
        getattr(variable.aval, "weak_type", False)
    )


def shared_draws(jaxpr: Any) -> set[int]:
    """Ids of the programs that are called more than once and only draw random numbers.

    XLA compiles a program that is called twice apart from what surrounds it. A gamma
    distribution's sampler is a loop, and comes out otherwise, in its last bits, where its
    parameters are constants. No other nested program has been seen to depend on that.
    """
    counts: Counter[int] = Counter()
    callees: dict[int, Any] = {}
    for callee in _callees(jaxpr):
        counts[id(callee)] += 1
        callees[id(callee)] = callee
    return {
        key
        for key, count in counts.items()
        if count > 1 and all(e.primitive.name == "random_gamma" for e in callees[key].jaxpr.eqns)
    }


def _callees(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, jex_core.ClosedJaxpr):
                    if eqn.primitive.name in ("jit", "pjit"):
                        yield inner
                    yield from _callees(inner.jaxpr)
                elif isinstance(inner, jex_core.Jaxpr):
                    yield from _callees(inner)
