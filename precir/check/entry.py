"""`precir.check`: which lines of a function go wrong in a format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from precir.check.arguments import Ranges, abstract, fact_of, leaves_of
from precir.check.births import GROWS
from precir.check.blame import Blame, Root
from precir.check.carried import carried
from precir.check.confirm import Real
from precir.check.fills import Leaf
from precir.check.hazard import Hazard, Step
from precir.check.literals import true_literals
from precir.check.relabel import relabel
from precir.check.search import Search, Witnessed, search
from precir.check.suppress import suppressed
from precir.check.vanished import vanished
from precir.check.wording import because, mend, message
from precir.domains.fact import UNKNOWN, Basis
from precir.domains.kinds import INF
from precir.formats import FORMATS, Format, format_of
from precir.ir import Graph, Node, Value
from precir.lower import lower_jaxpr
from precir.passes.facts import Facts, infer_facts
from precir.source import Where

LARGE = 2500  # nodes: a program past this is not run for a witness unless asked to
SECONDS = 4.0
COMPARES = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "sort", "top_k"))
OBSERVED = int(Basis.OBSERVED)
# What may be told of without a run: ops that grow numbers, and those with a pole or a domain.
SUSPECT = GROWS | {
    "log", "log2", "log1p", "sqrt", "rsqrt", "div", "acos", "asin", "acosh", "atanh",
    "conv_general_dilated", "cosh", "sinh",
}  # fmt: skip


def check(
    fn: Callable[..., Any],
    *args: Any,
    format: DTypeLike | Format = "float16",
    ranges: Ranges = None,
    notes: bool = False,
    seconds: float | None = None,
    **kwargs: Any,
) -> list[Hazard]:
    """What goes wrong in `fn` where its floating-point arguments are of a format.

    Args:
      fn: any function that JAX can trace: a model, a loss, its gradient, a whole train step.
      args, kwargs: arrays or `jax.ShapeDtypeStruct`s, in any pytrees; floats of 16 bits and more
        become `format`.
      format: "float16", "bfloat16", "float8_e4m3fn", ...; "float32" finds what is wrong in any.
      ranges: one entry per positional argument: a `precir.Range`, a pytree prefix of them, a
        function from an array's path to one, or None: unknown for floats, the example's value for
        integers and booleans. Without `ranges`, floats are as in the example where `args` are
        arrays, and unknown where they are shapes.
      notes: whether to list notes too: what is born and killed, or hangs on something unknown.
      seconds: how long to look for a witness; by default 4, and 0 for a program of more than 2500
        operations, of which only what the facts allow is told, as warnings.

    Returns:
      `Hazard`s, errors first, each cause once.

    Raises:
      RangesError: ranges that do not fit the arguments.
      UnknownFormat: no such format.
      Exception: whatever `jax.jit(fn).trace` raises where the function cannot be traced at all;
        one that only this format makes fail is checked as its float32 trace, without witnesses.
    """
    target = format_of(format)
    fn = getattr(fn, "_fn", fn)
    leaves, structure = leaves_of(args, kwargs, ranges, target)
    program = _trace(fn, leaves, structure, target, seconds)
    found = program.search()
    hazards = program.hazards(found, fn, structure)
    hazards = [h for h in hazards if not suppressed(h)]
    return [h for h in hazards if notes or h.severity != "note"]


@dataclass(frozen=True)
class Checked:
    """A function traced in a format, with what is known of it."""

    graph: Graph
    facts: Facts
    leaves: Sequence[Leaf]
    true: Mapping[tuple[int, int], float]
    format: Format
    results: Sequence[str]
    native: bool
    """Whether JAX traced it in the format; else a float32 trace was taken for it."""
    seconds: float
    """For the search."""

    def search(self) -> Search:
        if not self.seconds:
            return Search()
        return search(self.graph, self.leaves, self.true, carried(self.graph), self.seconds)

    def hazards(self, found: Search, fn: Callable[..., Any], structure: Any) -> list[Hazard]:
        real = Real(fn, structure, self.leaves) if self.native else None
        place = {id(node): i for i, node in enumerate(self.graph.walk())}
        chosen = _one_per_cause(found.found.values(), place)
        made = []
        for w in chosen:
            severity = self._severity(w)
            witness = None
            if severity == "error":
                witness = real.confirms(w) if real is not None else None
                severity = "error" if witness is not None else "warning"
            made.append(self._hazard(w.blame, severity, witness, self._then(w)))
        if not found.runs:  # a constant is what it is, whatever the arguments hold
            for blame in vanished(self.graph, self.facts, self.true):
                made.append(self._hazard(blame, "warning", None))
        for node, symptom in _unreached(self.graph, self.facts, chosen):
            # bounds may be far from what happens: they speak up only where nothing was run
            made.append(self._static(node, symptom, self._unrun(node, found)))
        order = {"error": 0, "warning": 1, "note": 2}
        made.sort(key=lambda h: (order[h.severity], h.file, h.line, h.column))
        return _distinct(made)

    def _unrun(self, node: Node, found: Search) -> str:
        """A note where something was run, or where the facts are of one example's values alone."""
        bases = [self.facts[o].basis for o in node.inputs]
        return "note" if found.runs or max(bases, default=0) >= OBSERVED else "warning"

    def _severity(self, w: Witnessed) -> str:
        """A note where it hangs on arguments of which nothing is known, or shows in no result."""
        blame = w.blame
        unseen = blame.root.kind == "inexact" and all(p.same for p in w.outs)
        if unseen and not self._decides(blame.birth):
            return "note"
        operands = [o for o in blame.birth.inputs if isinstance(o, Value)]
        root = blame.root.node
        if root is not None and root is not blame.birth:
            operands = [o for o in root.inputs if isinstance(o, Value)] or operands
        if operands and any(self.facts[o].basis == UNKNOWN for o in operands):
            return "note"
        return "error"

    def _decides(self, node: Node) -> bool:
        """Whether a comparison hangs on it: the shadow takes its outcome over."""
        if not any(n is node for n in self.graph.nodes):
            return True  # in a sub-program: not looked into
        return any(n.op in COMPARES for n in self.graph.descendants(node))

    def _then(self, w: Witnessed) -> tuple[Step, ...]:
        """What it does to the results."""
        name = self.results[w.blame.output]
        if w.shows:
            return (Step(f"{name} is {w.shows}"),)
        return (Step(f"{name} stands still" if w.blame.symptom == "stuck" else f"{name} is wrong"),)

    def _hazard(
        self, blame: Blame, severity: str, witness: Any, then: tuple[Step, ...] = ()
    ) -> Hazard:
        where = _where(blame.birth)
        paths = self._paths()
        return Hazard(
            kind=blame.root.kind,
            primitive=blame.birth.op,
            root=blame.root.name,
            symptom=blame.symptom,
            severity=severity,
            file=where.file,
            line=where.line,
            column=where.column,
            end_line=where.end_line,
            end_column=where.end_column,
            message=message(blame, self.facts, self.format),
            mend=mend(blame, self.format),
            format=self.format.name,
            because=because(blame, self.facts, paths, self.format),
            then=then,
            witness=witness,
        )

    def _static(self, node: Node, symptom: str, severity: str) -> Hazard:
        exact = self.facts.exact.get(node)
        kind = "overflow" if exact and symptom == "inf" else "invalid"
        return self._hazard(
            Blame(node, symptom, Root(kind, node, node.op, None), 0), severity, None
        )

    def _paths(self) -> dict[Value, str]:
        return {v: leaf.path for v, leaf in zip(self.graph.inputs, self.leaves, strict=False)}


def _trace(
    fn: Callable[..., Any],
    leaves: Sequence[Leaf],
    structure: Any,
    format: Format,
    seconds: float | None,
) -> Checked:
    native = True
    wide = None
    try:
        graph, results = _lowered(fn, leaves, structure, format.name)
    except (TypeError, ValueError):  # JAX, or the function, refuses the format
        native = False
        graph, results = _lowered(fn, leaves, structure, "float32")
        graph = relabel(graph, format.name)
    if seconds is None:
        seconds = SECONDS if len(graph) <= LARGE else 0.0
    if format.name not in ("float32", "float64"):
        try:
            wide, _ = _lowered(fn, leaves, structure, "float32")
        except (TypeError, ValueError):
            wide = None
    example = any(x.value is not None for x in leaves)
    facts = infer_facts(graph, [fact_of(x, example) for x in leaves])
    return Checked(
        graph, facts, leaves, true_literals(graph, wide), format, results, native, seconds
    )


def _result_names(shapes: Any) -> list[str]:
    """What to call each result: "the result", "result[0]['w']"."""
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    return [f"result{jax.tree_util.keystr(p)}" if p else "the result" for p in paths]


def _lowered(
    fn: Callable[..., Any], leaves: Sequence[Leaf], structure: Any, dtype: str
) -> tuple[Graph, list[str]]:
    """The program at that dtype, and names of its results."""
    args, kwargs = jax.tree.unflatten(structure, [abstract(x, _target(x, dtype)) for x in leaves])
    with np.errstate(all="ignore"):  # constants that the format cannot hold are findings
        traced = jax.jit(fn).trace(*args, **kwargs)
    name = getattr(fn, "__name__", "main")
    graph, captured = lower_jaxpr(traced.jaxpr, name=name, labels=[x.path for x in leaves])
    if captured:
        raise TypeError(f"{name} closes over values of an outer trace")
    return graph, _result_names(traced.out_info)


def _target(leaf: Leaf, dtype: str) -> str:
    """What a float argument becomes: the 8-bit ones of the user stay as they are."""
    return dtype if leaf.original in ("float32", "float64", "bfloat16", "float16") else leaf.dtype


def _where(node: Node) -> Where:
    return node.source.where or Where("", 0, 0, 0, 0, "")


def _one_per_cause(found: Iterable[Witnessed], place: Mapping[int, int]) -> list[Witnessed]:
    """Of several symptoms of one cause the worst, and of those the first in the program."""

    def rank(w: Witnessed) -> tuple[bool, int]:
        return w.blame.symptom not in ("nan", "inf"), place.get(id(w.blame.birth), 0)

    chosen: dict[Any, Witnessed] = {}
    for w in sorted(found, key=rank):
        root = w.blame.root
        cause = id(root.node) if root.node is not None else (root.name, _line(w.blame.birth))
        chosen.setdefault((root.kind, cause), w)
    return list(chosen.values())


def _line(node: Node) -> Any:
    where = node.source.where
    return (where.file, where.line) if where else None


def _distinct(hazards: Sequence[Hazard]) -> list[Hazard]:
    """One finding per line and kind."""
    seen: set[Any] = set()
    kept = []
    for h in hazards:
        key = (h.file, h.line, h.kind)
        if key not in seen:
            seen.add(key)
            kept.append(h)
    return kept


def _unreached(graph: Graph, facts: Facts, chosen: Sequence[Witnessed]) -> list[tuple[Node, str]]:
    """Births that the facts allow and no run showed."""
    shown = {id(w.blame.birth) for w in chosen}
    births = []
    for node in graph.walk():
        if id(node) in shown or node.regions or not node.outputs:
            continue
        if node.op not in SUSPECT:
            continue
        f = facts[node.outputs[0]]
        if f.finite or not all(facts[o].finite for o in node.inputs):
            continue
        if node.outputs[0].type.dtype in FORMATS:
            births.append((node, "inf" if f.flags & INF else "nan"))
    return births
