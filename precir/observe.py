"""Run a program on real batches and see what its tensors hold."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from precir.domains.stats import Stats, merge_all, one_nan
from precir.emit import emit, load
from precir.errors import PrecirError
from precir.ir import Graph
from precir.kernels.observe import amax_each, merge_stats, observe_each
from precir.passes.expose import RAW, Choose, Exposed, Probe, expose
from precir.passes.observe import DETAILS, Detail, Observed, observe_values
from precir.program import Program
from precir.report.observed import Observation, Tensor

__all__ = ["Instrumented", "Observation", "Runner", "Tensor", "instrument", "observe"]


class ObserveError(PrecirError, ValueError):
    """An observation that cannot be made."""


def observe(
    fn: Callable[..., Any],
    batches: Iterable[tuple[Any, ...]],
    *,
    detail: Detail = "full",
    per_iteration: bool = False,
    exact: bool = True,
) -> Observation:
    """Run a function on batches and measure every floating-point tensor in it.

    What runs is emitted code under one jit, which measures on the device; only statistics come to
    the host, at the end. Nothing is donated. A train step needs each state to make the next: give a
    generator, which gets the results of each batch as the value of its `yield`.

        def batches(state):
            for batch in data:
                state, loss = yield state, batch

        precir.observe(train_step, batches(state))

    Args:
      fn: a function, measured as it is (recipe "float32"), or what `precir.compile` returned,
        measured as its recipe has it. Traced once for each signature that the batches have.
      batches: tuples of positional arguments.
      detail: "full"; "moments", all but the histograms of exponents, at about a third of the
        cost; or "amax", largest magnitudes alone, at less (benchmarks/results/observe_cost.md).
      per_iteration: whether tensors in a scan also keep the statistics of each iteration.
      exact: whether a generator gets the results of the program itself, run beside (and its side
        effects twice). Measuring changes what XLA fuses and thereby, within rounding, what comes
        out: without `exact` a generator gets that, which saves the second run.

    Raises:
      ObserveError (a ValueError): no batches, an unknown detail, or a recipe that carries state.
    """
    from precir.compile import Compiled, compile

    if detail not in DETAILS:
        raise ObserveError(f"detail {detail!r} is not known", fix=f"one of {', '.join(DETAILS)}")
    compiled = fn if isinstance(fn, Compiled) else compile(fn)
    runners: dict[int, Runner] = {}
    count = 0
    for args, answer in threaded(batches):
        count += 1
        program = compiled.program(*args)
        if program.state or program.state.at is not None:
            raise ObserveError(
                f"recipe {compiled.recipe.name} carries state between steps, which is not observed",
                fix='observe the same function under recipe "float32": precir.observe(fn, batches)',
            )
        runner = runners.get(id(program))
        if runner is None:
            runner = runners[id(program)] = Runner(program, detail, per_iteration=per_iteration)
        dynamic = (compiled._dynamic(args, {})[0], program.captured)
        results = runner.run(*dynamic)
        if answer is not None:
            answer(runner.plain(*dynamic) if exact else results)
    if not count:
        raise ObserveError("there were no batches to observe", fix="give at least one")
    tensors: dict[str, Tensor] = {}
    for runner in runners.values():
        for name, tensor in runner.tensors().items():
            tensors[name] = tensors[name].merge(tensor) if name in tensors else tensor
    name = getattr(compiled, "__name__", type(fn).__name__)
    return Observation(name, detail, count, tensors)


_DRAINED = 2**29  # elements after which counts leave the device, where they are int32
Threaded = Iterator[tuple[tuple[Any, ...], Callable[[Any], None] | None]]


def threaded(batches: Iterable[tuple[Any, ...]]) -> Threaded:
    """Each tuple of arguments, and how to answer it if somebody is there to be answered."""
    if not isinstance(batches, Generator):
        for args in batches:
            yield tuple(args), None
        return
    given: list[Any] = []
    answer: Any = None
    while True:
        try:
            args = batches.send(answer)
        except StopIteration:
            return
        given.clear()
        yield tuple(args), given.append
        answer = given[0] if given else None


class Runner:
    """One program with measurements, and what they have said so far, on the device."""

    def __init__(self, program: Program, detail: Detail, *, per_iteration: bool = False) -> None:
        self.program, self.detail = program, detail
        self.per_iteration = per_iteration
        graph, self.observed = observe_values(program.graph, detail, per_iteration=per_iteration)
        self.main = emitted_with(program, graph)
        self.groups = _groups(self.observed)
        self.seen: list[jax.Array] | None = None
        self._since = 0  # batches in `seen`
        self._host: dict[str, Tensor] = {}
        self._largest = max((_elements(o) for o in self.observed), default=0)
        self._step: Any = jax.jit(self._stepped)
        self._plain: Any = jax.jit(self._plainly)

    def run(self, args: list[Any], captured: tuple[Any, ...]) -> Any:
        results, self.seen = self._step(self.seen, args, captured)
        self._since += 1
        if self._since * self._largest >= _DRAINED:
            self._drain()
        return results

    def plain(self, args: list[Any], captured: tuple[Any, ...]) -> Any:
        return self._plain(args, captured)

    def _plainly(self, args: list[Any], captured: tuple[Any, ...]) -> Any:
        return self.program.main(*args, **_named(captured))

    def _stepped(
        self, seen: list[jax.Array] | None, args: list[Any], captured: tuple[Any, ...]
    ) -> tuple[Any, list[jax.Array]]:
        results, values = self.main(*args, **_named(captured))
        new = [self._measured(group, [values[i] for i in group.members]) for group in self.groups]
        if seen is not None:
            merge = jnp.maximum if self.detail == "amax" else merge_stats
            new = [merge(a, b) for a, b in zip(seen, new, strict=True)]
        return results, new

    def _measured(self, group: _Group, values: list[jax.Array]) -> jax.Array:
        stacked = jnp.stack([v.reshape(-1) for v in values] if group.raw else values)
        if not group.raw:
            return stacked
        if self.detail == "amax":
            measured: jax.Array = amax_each(stacked)
            return measured
        measured = observe_each(stacked, histogram=self.detail == "full")
        return measured

    def tensors(self) -> dict[str, Tensor]:
        """What was seen, by name."""
        self._drain()
        return self._host

    def _drain(self) -> None:
        """Bring what was seen to the host, before a count on the device is too large for it."""
        found = dict(self._tensors()) if self.seen is not None else {}
        for name, tensor in found.items():
            known = self._host.get(name)
            self._host[name] = tensor if known is None else known.merge(tensor)
        self.seen, self._since = None, 0

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        assert self.seen is not None
        held: dict[int, np.ndarray[Any, Any]] = {}
        for group, rows in zip(self.groups, jax.device_get(self.seen), strict=True):
            held.update(zip(group.members, rows, strict=True))
        for i, observed in enumerate(self.observed):
            yield observed.name, _tensor(observed, held[i], self.detail, self.per_iteration)


def _elements(observed: Observed) -> int:
    """How many a batch has, save the iterations of a while."""
    scans: list[int] = [n.params["length"] for n, _ in observed.exposed.inside if n.op == "scan"]
    return prod(observed.exposed.value.type.shape) * prod(scans)


@dataclass(frozen=True)
class _Group:
    """Values of one shape and dtype, measured or merged together."""

    raw: bool
    members: list[int]


def _groups(observed: tuple[Observed, ...]) -> list[_Group]:
    found: dict[Any, _Group] = {}
    for i, o in enumerate(observed):
        type_ = o.exposed.value.type
        key = (o.raw, (prod(type_.shape), type_.dtype) if o.raw else o.exposed.leading)
        found.setdefault(key, _Group(o.raw, [])).members.append(i)
    return list(found.values())


def _tensor(
    observed: Observed, held: np.ndarray[Any, Any], detail: Detail, per_iteration: bool
) -> Tensor:
    exposed = observed.exposed
    type_, node = exposed.value.type, exposed.value.node
    leading = () if observed.raw else exposed.leading
    apart = per_iteration and any(n.op == "scan" for n, _ in exposed.inside)
    rows = held.reshape(prod(leading), *held.shape[len(leading) :])
    if detail == "amax":
        stats = [Stats.of_amax(one_nan(float(row)), type_.dtype) for row in rows]
    else:
        stats = [Stats.of_vector(row, type_.dtype) for row in rows]
    return Tensor(
        scope=node.scope if node else "",
        op=node.op if node else "argument",
        phase=node.phase if node else "",
        line=str(node.source) if node and node.source.where else "",
        path=tuple(n.op for n, _ in exposed.inside),
        shape=type_.shape,
        stats=merge_all(stats),
        iterations=tuple(stats) if apart else (),
        axes=leading if apart else (),
    )


def _named(captured: tuple[Any, ...]) -> dict[str, Any]:
    return {f"captured_{i}": v for i, v in enumerate(captured)}


# -- any probe -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instrumented:
    """A program that also returns what a probe takes of its values.

    Attributes:
      graph: the program with more results.
      exposed: what they are, in order.
      call: takes the dynamic arguments of the program; gives its result, and the list of its
        results as a graph: what `Exposed.output` and `Exposed.made` count in.
    """

    graph: Graph
    exposed: tuple[Exposed, ...]
    call: Callable[..., tuple[Any, list[jax.Array]]]


def instrument(
    program: Program, chosen: Choose, probe: Probe = RAW, *, graph: Graph | None = None
) -> Instrumented:
    """Emit and load `program`, or another graph of it, with more results."""
    exposing, exposed = expose(program.graph if graph is None else graph, chosen, probe)
    main = emitted_with(program, exposing)

    def call(*args: Any, **kwargs: Any) -> tuple[Any, list[jax.Array]]:
        out, more = main(*args, **kwargs)
        return out, [*jax.tree.leaves(out), *more]

    return Instrumented(exposing, exposed, call)


def emitted_with(program: Program, graph: Graph) -> Callable[..., tuple[Any, list[jax.Array]]]:
    """`graph`, which is `program`'s with more results, as a function that returns the program's
    result and the list of the others.
    """
    result = program.signature.result
    own = jax.tree.unflatten(result, range(result.num_leaves))
    more = list(range(len(graph.outputs) - result.num_leaves))
    signature = replace(program.signature, result=jax.tree.structure((own, more)))
    emitted = emit(graph, signature, jit="@jax.jit", doc="Observed by precir.")
    main: Callable[..., tuple[Any, list[jax.Array]]] = getattr(load(emitted), signature.name)
    return main
