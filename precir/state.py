"""Which arguments of a program are state: they come back, in the next step's form, as results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import PyTreeDef, default_registry

from precir.emit.signature import Parameter, Signature, same_structure
from precir.ir import BACKWARD, UPDATE, Graph, Operand, Type, Value
from precir.kernels import quantize
from precir.packed import PLAIN, Layout, Packed, StateError
from precir.passes.pipeline import Extra
from precir.passes.storage import Stored, by_class, in_one
from precir.recipe import Recipe
from precir.scaled import scale_shape


@dataclass(frozen=True)
class Carried:
    """An argument that comes back: parameter number `parameter`, whose leaves are the inputs from
    `first` on, is `count` results from `back` on.
    """

    parameter: int
    first: int
    back: int
    count: int

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The number of each input, and that of the result it comes back as."""
        return [(self.first + i, self.back + i) for i in range(self.count)]


def find_state(graph: Graph, signature: Signature) -> list[Carried]:
    """Every argument that comes back, in the order of the arguments.

    It comes back as a part of the result with its structure, shapes and dtypes that depends on it;
    where several do, as the one with the most results that a gradient updated, then the first.
    Updated is what depends on a gradient and, not only through it, on the argument. Larger
    arguments choose first, so that the moments are not taken for the parameters. An argument that
    is one bare array counts only if it is no scalar and, where the program has gradients at all,
    comes back updated: else it may as well be data.
    """
    results = list(_subtrees(signature.result, 0))
    backward = [v for n in graph.nodes if n.phase == BACKWARD for v in n.outputs]
    from_gradients = _reached(graph, backward)
    choices = []
    at = 0
    for number, p in enumerate(signature.parameters):
        first, count = at, p.tree.num_leaves
        at += count
        inputs = graph.inputs[first:at]
        bare = p.tree.num_nodes == 1
        if not inputs or (bare and not inputs[0].type.shape):
            continue
        reached, updated = _reached(graph, inputs), set[Operand]()
        if backward:
            updated = from_gradients & _reached(graph, inputs, updating=True)
        fits = []
        for order, (tree, back) in enumerate(results):
            outputs = graph.outputs[back : back + count]
            if (
                tree.num_leaves != count
                or tree.num_nodes != p.tree.num_nodes
                or not _same_types(inputs, outputs)
                or not same_structure(tree, p.tree)
                or not any(o in reached for o in outputs if isinstance(o, Value))
            ):
                continue
            moved = sum(o in updated for o in outputs)
            if bare and backward and not moved:
                continue
            fits.append((-moved, order, back))
        if fits:
            choices.append((-count, len(fits), number, first, sorted(fits)))
    taken: set[int] = set()
    found = []
    for size, _, number, first, fits in sorted(choices):
        count = -size
        free = (b for _, _, b in fits if taken.isdisjoint(range(b, b + count)))
        for back in itertools.islice(free, 1):
            taken.update(range(back, back + count))
            found.append(Carried(number, first, back, count))
    return sorted(found, key=lambda c: c.parameter)


def _subtrees(tree: Any, start: int) -> Iterator[tuple[Any, int]]:
    yield tree, start
    for child in tree.children():
        yield from _subtrees(child, start)
        start += child.num_leaves


def _reached(graph: Graph, inputs: Sequence[Value], *, updating: bool = False) -> set[Operand]:
    """What depends on one of the inputs; with `updating`, by way of the update alone (and loops,
    which may hold it).
    """
    reached: set[Operand] = set(inputs)
    for node in graph.nodes:
        passes = not updating or node.phase == UPDATE or node.regions
        if passes and any(o in reached for o in node.inputs):
            reached.update(node.outputs)
    return reached


def _same_types(inputs: Sequence[Value], outputs: Sequence[Operand]) -> bool:
    return all(
        (i.type.shape, i.type.dtype) == (o.type.shape, o.type.dtype)
        for i, o in zip(inputs, outputs, strict=True)
    )


@dataclass(frozen=True)
class ProgramState:
    """What a program carries from step to step.

    Attributes:
      stored: which inputs and results are `ScaledArray`s.
      extras: the program's last inputs and results, precir's own.
      carrier: the argument that is a `Packed`, if it comes back as one; None if none does.
      at: the number of the argument that is a `Packed`.
      unused: names of state given that the program has no use for.
    """

    stored: Stored = field(default_factory=Stored)
    extras: tuple[Extra, ...] = ()
    carrier: Carried | None = None
    at: int | None = None
    unused: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stored or self.extras)

    @property
    def names(self) -> list[str]:
        """What the `Packed` argument holds, in the order of its leaves."""
        return sorted([*(e.name for e in self.extras), *self.unused])

    def called(self, signature: Signature) -> Signature:
        """How the program is called from outside."""
        back = sorted(e.name for e in self.extras)
        return packed_signature(signature, self.carrier, self.at, self.names, back)

    def inside(self, graph: Graph, signature: Signature) -> Graph:
        """The program with its inputs and results in the order of the leaves of `called`."""
        if self.at is None:
            return graph
        count = len(self.extras)
        cut, end = len(graph.inputs) - count, len(graph.outputs) - count
        given = dict(zip((e.name for e in self.extras), graph.inputs[cut:], strict=True))
        made = dict(zip((e.name for e in self.extras), graph.outputs[end:], strict=True))
        given |= {n: Value(Type((), "float32"), hint=n) for n in self.unused}
        inputs, outputs = list(graph.inputs[:cut]), list(graph.outputs[:end])
        after = sum(p.tree.num_leaves for p in signature.parameters[: self.at + 1])
        inputs[after:after] = [given[n] for n in self.names]
        if self.carrier is not None:
            back = self.carrier.back + self.carrier.count
            outputs[back:back] = [made[n] for n in sorted(made)]
        return graph.with_(inputs=tuple(inputs), outputs=tuple(outputs))


def wrapped(state: ProgramState, arguments: Sequence[Any]) -> list[Any]:
    """Arguments of the first step: scaled, and with the first state beside the first of them."""
    made, at = [], 0
    for number, argument in enumerate(arguments):
        leaves, tree = jax.tree.flatten(argument)
        here = [i for i in range(len(leaves)) if at + i in state.stored.inputs]
        for i in here:
            kind = state.stored.inputs[at + i]
            leaves[i] = quantize(leaves[i], kind.dtype, block=kind.block)
        at += len(leaves)
        new = jax.tree.unflatten(tree, leaves) if here else argument
        if number == state.at:
            new = Packed(new, {e.name: jnp.asarray(e.initial) for e in state.extras})
        made.append(new)
    return made


# -- what is stored --------------------------------------------------------------------------------


def stored_by_recipe(graph: Graph, carried: Sequence[Carried], recipe: Recipe) -> Stored:
    """What of the state lives in the recipe's formats: nothing of a function that computes no
    gradient, since what comes back of it need not be a weight.
    """
    pairs = [pair for c in carried for pair in c.pairs]
    if not pairs or not any(n.phase == BACKWARD for n in graph.walk()):
        return Stored()
    types = by_class(graph, pairs, recipe) if recipe.state is None else in_one(graph, pairs, recipe)
    return Stored(types, {back: types[i] for i, back in pairs if i in types})


def stored_as_given(graph: Graph, carried: Sequence[Carried], layout: Layout) -> Stored:
    """What came as a `ScaledArray`; as such it goes back, if it is state."""
    inputs = {
        i: Type(graph.inputs[i].type.shape, dtype, scale=scale, block=block)
        for i, dtype, scale, block in layout.scaled
    }
    back = dict(pair for c in carried for pair in c.pairs)
    made = {i: t for i, t in inputs.items() if t.scale == scale_shape(t.shape, t.block)}
    return Stored(inputs, {back[i]: t for i, t in made.items() if i in back})


def check_given(layout: Layout, extras: Sequence[Extra], recipe: Recipe) -> None:
    """Raises `StateError` unless arguments of this layout carry what the program carries."""
    fix = "params, opt, batch = step.init(params, opt, batch), once, before the first step"
    given = {name: (shape, dtype) for name, shape, dtype in layout.state}
    for e in extras:
        kind = (e.initial.shape, e.initial.dtype.name)
        if e.name not in given:
            raise StateError(
                f"recipe {recipe.name} carries {e.name} from step to step, and no argument has it",
                fix=fix,
            )
        if given[e.name] != kind:
            raise StateError(
                f"the {e.name} given is {_kind(*given[e.name])}, and that of this program is "
                f"{_kind(*kind)}: it was made by another program",
                fix="step.init with arguments like these",
            )


def _kind(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}{list(shape)}"


def not_begun(state: ProgramState, recipe: Recipe) -> StateError:
    """A step that was called on the user's own arguments."""
    what = [e.name for e in state.extras]
    return StateError(
        f"recipe {recipe.name} carries {' and '.join(what)} from step to step, and these "
        "arguments have none yet",
        fix="params, opt, batch = step.init(params, opt, batch), once, before the first step",
    )


def no_state(recipe: Recipe, name: str, what: str) -> StateError:
    """No argument of the function `name` comes back, and the recipe needs one that does."""
    return StateError(
        f"recipe {recipe.name} carries {what} from step to step, and no argument of {name} comes "
        "back among its results",
        fix="compile the whole train step, which returns the parameters and optimizer state that "
        'it is given; for a model function, use a recipe without state, as "fp8"',
    )


class StateFinder:
    """What one program carries: found once, where the recipe or the arguments ask for it."""

    def __init__(self, graph: Graph, signature: Signature, recipe: Recipe, layout: Layout) -> None:
        self.graph, self.signature = graph, signature
        self.recipe, self.layout = recipe, layout

    @cached_property
    def carried(self) -> list[Carried]:
        return find_state(self.graph, self.signature)

    def stored(self) -> Stored:
        """What the passes are to take and return as `ScaledArray`s: what is given as such, and of
        plain arguments what `init` makes; nothing of a function that has no state.
        """
        recipe, layout = self.recipe, self.layout
        if layout == PLAIN:
            if not recipe.stores:
                return Stored()
            return stored_by_recipe(self.graph, self.carried, recipe)
        return stored_as_given(self.graph, self.carried, layout) if layout.scaled else Stored()

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The number of each input that comes back, and that of the result it comes back as."""
        return tuple(pair for c in self.carried for pair in c.pairs)

    def state(self, stored: Stored, extras: tuple[Extra, ...]) -> ProgramState:
        """What is carried, now that the passes have said what they carry."""
        recipe, layout, name = self.recipe, self.layout, self.signature.name
        if not extras:
            unused = tuple(n for n, _, _ in layout.state)
            return ProgramState(stored, at=layout.packed, unused=unused)
        if not self.carried:
            raise no_state(recipe, name, ", ".join(e.name for e in extras))
        if layout == PLAIN:
            return ProgramState(stored, extras, self.carried[0], self.carried[0].parameter)
        check_given(layout, extras, recipe)
        carrier = next((c for c in self.carried if c.parameter == layout.packed), None)
        if carrier is None:
            raise no_state(recipe, name, ", ".join(e.name for e in extras))
        known = {e.name for e in extras}
        unused = tuple(n for n, _, _ in layout.state if n not in known)
        return ProgramState(stored, extras, carrier, layout.packed, unused)


# -- how it is called ------------------------------------------------------------------------------


def packed_signature(
    signature: Signature, carried: Carried | None, at: int | None, names: Sequence[str],
    back: Sequence[str],
) -> Signature:  # fmt: skip
    """The signature with a `Packed` in the place of parameter `at`, which holds the state `names`,
    and of the result that it comes back as, which holds the state `back`.
    """
    if at is None:
        return signature
    parameters = list(signature.parameters)
    p = parameters[at]
    parameters[at] = Parameter(p.name, _packed(p.tree, names), p.keyword)
    result = signature.result
    if carried is not None and back:
        result = _around(result, carried.back, carried.count, p.tree, back)
    return Signature(signature.name, tuple(parameters), result)


def _packed(tree: Any, names: Sequence[str]) -> Any:
    leaves = jax.tree.unflatten(tree, range(tree.num_leaves))
    return jax.tree.structure(Packed(leaves, dict.fromkeys(names, 0)))


def _around(tree: Any, back: int, count: int, target: Any, names: Sequence[str]) -> Any:
    """The structure of a result, its part at leaf `back` in a `Packed`."""
    if back == 0 and tree.num_leaves == count and tree.num_nodes == target.num_nodes:
        return _packed(tree, names)
    children, at = [], 0
    for child in tree.children():
        inside = at <= back and back + count <= at + child.num_leaves
        children.append(_around(child, back - at, count, target, names) if inside else child)
        at += child.num_leaves
    make: Any = PyTreeDef.from_node_data_and_children
    return make(default_registry, tree.node_data(), children)
