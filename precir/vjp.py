"""Derivatives of a compiled function: forward and backward compiled together.

`jax.vjp` of the user's function is traced, so that JAX itself applies its custom rules; the two
halves become one graph, the passes run over it, and the cut between them decides the residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax._src.effects import custom_derivatives_allowed_effects
from jax.custom_derivatives import SymbolicZero

from precir.emit import Emitted, Parameter, Signature, emit, emit_with_gradient, load
from precir.errors import DerivativeError
from precir.ir import BACKWARD, FORWARD, Graph, Node, Operand, Type, Value
from precir.lower import lower_jaxpr
from precir.passes.pipeline import run_passes
from precir.program import Program
from precir.recipe import KEEP
from precir.source import own_lines

Call = Callable[[Sequence[Any], dict[str, Any]], Any]


@partial(jax.tree_util.register_dataclass, data_fields=["leaves"], meta_fields=["pair"])
@dataclass(frozen=True)
class Residuals:
    """What the forward program leaves for the backward one, and which programs these are."""

    leaves: Any
    pair: Any


def differentiable(
    fn: Call, program: Program, call: Call, positional: Sequence[Any], keywords: dict[str, Any]
) -> Any:
    """`call(positional, keywords)`, with the compiled backward program as its derivative."""
    leaves, tree = jax.tree.flatten((list(positional), keywords))
    if not any(_inexact(x) for x in leaves) or not _may_have_rules(program):
        return call(positional, keywords)
    pairs: dict[tuple[bool, ...], Pair] = {}
    read = _read_inputs(program.stages[0].graph)
    # What nothing reads is no argument of the rule, so that jax.jit drops it as it always does.
    used = [i for i, value in enumerate(program.graph.inputs) if value in read]
    unread: list[Any] = [_abstract(jax.typeof(x)) for x in leaves]

    def complete(values: Sequence[Any]) -> list[Any]:
        full = list(unread)
        for i, value in zip(used, values, strict=True):
            full[i] = value
        return full

    @jax.custom_vjp
    def flat(*values: Any) -> Any:
        args, kwargs = jax.tree.unflatten(tree, complete(values))
        return call(args, kwargs)

    def forward(*primals: Any) -> tuple[Any, Residuals]:
        moving = {
            i for i, p in zip(used, primals, strict=True) if p.perturbed and _inexact(p.value)
        }
        values = complete([p.value for p in primals])
        perturbed = tuple(i in moving for i in range(len(values)))
        pair = pairs.get(perturbed)
        if pair is None:
            pair = pairs[perturbed] = make_pair(fn, program, tree, values, perturbed)
        out, residuals = _once(pair, pair.forward)(*values)
        return out, Residuals(residuals, pair)

    def backward(residuals: Residuals, cotangents: Any) -> tuple[Any, ...]:
        pair = residuals.pair
        kept = [
            c for c, float_ in zip(_zeros(cotangents), pair.float_outputs, strict=True) if float_
        ]
        made = iter(_once(pair, pair.backward)(residuals.leaves, kept))
        gradients = [next(made) if p else None for p in pair.perturbed]
        return tuple(gradients[i] for i in used)

    flat.defvjp(forward, backward, symbolic_zeros=True)
    return flat(*[leaves[i] for i in used])


def without_derivative(
    program: Program, call: Call, positional: Sequence[Any], keywords: dict[str, Any]
) -> Any:
    """`call(positional, keywords)` of arguments with `ScaledArray`s or precir's state in them: it
    has no derivative.
    """
    if not _may_have_rules(program):
        return call(positional, keywords)

    @jax.custom_jvp
    def step(positional: Any, keywords: Any) -> Any:
        return call(positional, keywords)

    def refuse(primals: Any, tangents: Any) -> Any:
        raise DerivativeError(
            f"{program.signature.name} was given ScaledArrays, or what carries state from step to "
            "step, and there is no derivative with respect to those",
            fix="compile the train step, which takes the gradient itself; to differentiate a "
            "model function, give it the user's own arrays: step.unpack(params)",
        )

    step.defjvp(refuse)
    return step(list(positional), keywords)


def _may_have_rules(program: Program) -> bool:
    """Whether JAX lets a custom rule stand around the program: not around most side effects."""
    effects = program.effects
    return not custom_derivatives_allowed_effects.filter_not_in(effects)


def _read_inputs(graph: Graph) -> set[Operand]:
    return {*graph.outputs, *(o for node in graph.nodes for o in node.inputs)}


def _once(pair: Pair, half: Callable[..., Any]) -> Callable[..., Any]:
    """Half of a pair, refusing to be differentiated where that would be silently wrong: the
    emitted code no longer has the user's custom rules, and rounding has no slope.
    """
    if pair.exact:
        return half

    @jax.custom_jvp
    def guarded(leaves: Any) -> Any:
        arguments = iter(leaves)
        return half(*[next(arguments) if g else f for g, f in zip(given, fixed, strict=True)])

    def refuse(primals: Any, tangents: Any) -> Any:
        raise second_derivative()

    guarded.defjvp(refuse)
    given: list[bool] = []
    fixed: list[Any] = []

    def run(*arguments: Any) -> Any:
        given[:] = [not isinstance(a, jax.ShapeDtypeStruct) for a in arguments]
        fixed[:] = arguments
        return guarded([a for a, g in zip(arguments, given, strict=True) if g])

    return run


def second_derivative() -> DerivativeError:
    """What to do for a derivative that a compiled function does not have."""
    return DerivativeError(
        "a compiled function has its first derivative, in reverse mode, and no other",
        fix="compile the derivative itself, as in precir.compile(jax.hessian(f)) or "
        "precir.compile(lambda x, t: jax.jvp(f, (x,), (t,)))",
    )


def _inexact(x: Any) -> bool:
    return (
        bool(jax.numpy.issubdtype(jax.numpy.result_type(x), np.inexact)) if _is_number(x) else False
    )


def _is_number(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is None or not jax.numpy.issubdtype(dtype, jax.dtypes.extended)


def _zeros(cotangents: Any) -> list[Any]:
    leaves = jax.tree.leaves(cotangents, is_leaf=lambda c: isinstance(c, SymbolicZero))
    return [
        jax.numpy.zeros(c.shape, c.dtype)
        if isinstance(c, SymbolicZero) and c.dtype != jax.dtypes.float0
        else c
        for c in leaves
    ]


@dataclass(frozen=True, eq=False)
class Pair:
    """The compiled forward and backward programs of one set of differentiated leaves."""

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Sequence[Any]], Sequence[Any]]
    perturbed: tuple[bool, ...]
    float_outputs: tuple[bool, ...]
    joint: Graph
    exact: bool


def make_pair(
    fn: Call, program: Program, tree: Any, values: Sequence[Any], perturbed: tuple[bool, ...]
) -> Pair:
    """Trace `jax.vjp` of `fn`, run the passes over both halves at once, and cut."""
    with own_lines():
        halves = _trace(fn, tree, values, perturbed)
    joint = _join(*halves)
    state, _ = run_passes(joint.graph, program.recipe)
    first, second, residual_count = _cut(state.graph, joint)
    name = program.signature.name
    inputs = tuple(Parameter(f"x{i}", jax.tree.structure(0)) for i in range(len(values)))
    many = jax.tree.structure([0] * residual_count)
    forward_result = jax.tree_util.treedef_tuple([program.signature.result, many])
    cotangents = jax.tree.structure([0] * len(joint.cotangents))
    forward_signature = Signature(f"{name}_forward", inputs, forward_result)
    backward_signature = Signature(
        f"{name}_backward",
        (Parameter("residuals", many), Parameter("cotangents", cotangents)),
        jax.tree.structure([0] * sum(perturbed)),
    )
    forward = _loaded(first, forward_signature)
    backward = _loaded(second, backward_signature)
    rules = any(n.op in ("custom_jvp_call", "custom_vjp_call") for n in joint.graph.walk())
    exact = program.recipe.mode == KEEP and not rules and program.recipe.residuals is None
    return Pair(forward, backward, perturbed, joint.float_outputs, state.graph, exact)


def emit_pair(
    fn: Call, program: Program, positional: Sequence[Any], keywords: dict[str, Any]
) -> Emitted:
    """One module for a function and its gradient with respect to every floating-point leaf.

    Raises `DerivativeError` if there is no such leaf.
    """
    values, tree = jax.tree.flatten((list(positional), keywords))
    perturbed = tuple(_inexact(x) for x in values)
    if not any(perturbed):
        raise DerivativeError(
            "no argument is floating point, so there is no gradient to save",
            fix="save the function alone: .save(path, ...)",
        )
    joint = _join(*_trace(fn, tree, values, perturbed))
    state, _ = run_passes(joint.graph, program.recipe)
    first, second, residual_count = _cut(state.graph, joint)
    signature, name = program.signature, program.signature.name
    parameters = tuple(Parameter(p.name, p.tree) for p in signature.parameters)
    many = jax.tree.structure([0] * residual_count)
    result = jax.tree_util.treedef_tuple([signature.result, many])
    # Gradients as custom_vjp wants them: shaped as the arguments, None where there is none.
    marks = iter(perturbed)
    shaped = tuple(
        jax.tree.unflatten(p.tree, [0 if next(marks) else None for _ in range(p.tree.num_leaves)])
        for p in parameters
    )
    backward_signature = Signature(
        f"{name}_backward",
        (Parameter("residuals", many), Parameter("cotangents", signature.result)),
        jax.tree.structure(shaped),
    )
    return emit_with_gradient(
        name,
        (first, Signature(f"{name}_forward", parameters, result)),
        (_with_all_cotangents(second, joint, residual_count), backward_signature),
        doc=program.doc(),
    )


def _with_all_cotangents(graph: Graph, joint: _Joint, residuals: int) -> Graph:
    """Give the backward graph an input for each result, those without a gradient unused."""
    given = iter(graph.inputs[residuals:])
    unused = Type((), "float0")
    full = [next(given) if f else Value(unused, hint="unused") for f in joint.float_outputs]
    return graph.with_(inputs=(*graph.inputs[:residuals], *full))


def _loaded(graph: Graph, signature: Signature) -> Callable[..., Any]:
    module = load(emit(graph, signature, jit=""))
    function: Callable[..., Any] = getattr(module, signature.name)
    return function


def _trace(
    fn: Call, tree: Any, values: Sequence[Any], perturbed: Sequence[bool]
) -> tuple[Graph, Graph, tuple[bool, ...]]:
    """Graphs of `jax.vjp`'s two halves: (leaves -> outputs + residuals), (residuals + cotangents
    of floating outputs -> gradients).
    """
    moving = [i for i, p in enumerate(perturbed) if p]
    held: dict[str, Any] = {}

    def forward(*leaves: Any) -> list[Any]:
        def of_moving(*moved: Any) -> Any:
            full = list(leaves)
            for i, m in zip(moving, moved, strict=True):
                full[i] = m
            args, kwargs = jax.tree.unflatten(tree, full)
            return fn(args, kwargs)

        out, pullback = jax.vjp(of_moving, *[leaves[i] for i in moving])
        flat, held["out_tree"] = jax.tree.flatten(out)
        residuals, held["pullback"] = jax.tree.flatten(pullback)
        held["outputs"] = [(x.shape, x.dtype) for x in map(jax.typeof, flat)]
        return [*flat, *residuals]

    traced = jax.jit(forward).trace(*values)
    first, captured = lower_jaxpr(traced.jaxpr, name="forward", labels=None, phase=FORWARD)
    if captured:
        raise DerivativeError(
            "the function closes over a value of an outer trace",
            fix="pass the value to the compiled function as an argument",
        )
    outputs = held["outputs"]
    floating = tuple(bool(jax.numpy.issubdtype(d, np.inexact)) for _, d in outputs)

    def backward(residuals: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        pullback = jax.tree.unflatten(held["pullback"], residuals)
        given = iter(cotangents)
        full = [
            next(given) if f else np.zeros(s, jax.dtypes.float0)
            for (s, _), f in zip(outputs, floating, strict=True)
        ]
        return pullback(jax.tree.unflatten(held["out_tree"], full))

    shapes = jax.tree.leaves(traced.out_info)
    residuals = [_abstract(s) for s in shapes[len(outputs) :]]
    abstract: Any = jax.ShapeDtypeStruct
    cotangents = [abstract(s, d) for (s, d), f in zip(outputs, floating, strict=True) if f]
    traced_back = jax.jit(backward).trace(residuals, cotangents)
    second, captured = lower_jaxpr(traced_back.jaxpr, name="backward", labels=None, phase=BACKWARD)
    if captured:
        raise DerivativeError(
            "the derivative closes over a value of an outer trace",
            fix="pass the value to the compiled function as an argument",
        )
    return first, second, floating


def _abstract(info: Any) -> Any:
    made: Any = jax.ShapeDtypeStruct
    return made(info.shape, info.dtype, weak_type=getattr(info, "weak_type", False))


@dataclass(frozen=True)
class _Joint:
    graph: Graph
    outputs: int
    cotangents: tuple[Value, ...]
    float_outputs: tuple[bool, ...]


def _join(first: Graph, second: Graph, floating: tuple[bool, ...]) -> _Joint:
    """One graph of both halves: inputs are the leaves and the cotangents, outputs the results
    and the gradients.
    """
    outputs = len(floating)
    residuals = first.outputs[outputs:]
    env: dict[Value, Operand] = dict(zip(second.inputs[: len(residuals)], residuals, strict=True))
    cotangents = []
    for i, value in enumerate(second.inputs[len(residuals) :]):
        made = Value(value.type, hint=f"cotangent{i}")
        cotangents.append(made)
        env[value] = made
    nodes = list(first.nodes)
    names = {n: f"b{n}" for n in second.constants}
    for node in second.nodes:
        inputs = [env.get(o, o) if isinstance(o, Value) else o for o in node.inputs]
        params = node.params
        if node.op == "constant":
            params = {"name": names[node.params["name"]]}
        made_node = node.like(inputs=inputs, params=params)
        nodes.append(made_node)
        env.update(zip(node.outputs, made_node.outputs, strict=True))
    gradients = [env.get(o, o) if isinstance(o, Value) else o for o in second.outputs]
    constants = {**first.constants, **{names[k]: v for k, v in second.constants.items()}}
    graph = Graph(
        "joint",
        (*first.inputs, *cotangents),
        tuple(nodes),
        (*first.outputs[:outputs], *gradients),
        constants,
    )
    return _Joint(graph, outputs, tuple(cotangents), floating)


def _cut(graph: Graph, joint: _Joint) -> tuple[Graph, Graph, int]:
    """Split at the cotangents: what depends on one runs backward, the rest forward. Values made
    forward and read backward are the residuals, in whatever format the passes gave them.
    """
    count = len(joint.cotangents)
    leaves, cotangents = (
        graph.inputs[: len(graph.inputs) - count],
        graph.inputs[len(graph.inputs) - count :],
    )
    behind: set[Value] = set(cotangents)
    first: list[Node] = []
    second: list[Node] = []
    for node in graph.nodes:
        late = any(o in behind for o in node.inputs if isinstance(o, Value)) or (
            node.phase == BACKWARD and node.op != "constant" and _begins(node)
        )
        if late:
            second.append(node)
            behind.update(node.outputs)
        else:
            first.append(node)
    outputs, gradients = graph.outputs[: joint.outputs], graph.outputs[joint.outputs :]
    residuals: dict[Value, None] = {}
    for o in (*(o for n in second for o in n.inputs), *gradients):
        if isinstance(o, Value) and o not in behind:
            residuals.setdefault(o)
    constants = [v for v in residuals if v.node is not None and v.node.op == "constant"]
    for value in constants:  # read on both sides, saved on neither
        residuals.pop(value)
        assert value.node is not None
        second.insert(0, value.node)
    received = {v: Value(v.type, hint=f"saved{i}") for i, v in enumerate(residuals)}
    forward = graph.with_(
        name="forward", inputs=leaves, nodes=tuple(first), outputs=(*outputs, *residuals)
    )
    backward = _renamed(graph, second, received, gradients, cotangents)
    return forward, backward, len(residuals)


def _begins(node: Node) -> bool:
    """Whether a backward node reads nothing that was made, or what is kept for it narrow."""
    return node.op == "optimization_barrier" or not any(isinstance(o, Value) for o in node.inputs)


def _renamed(
    graph: Graph,
    nodes: Sequence[Node],
    received: dict[Value, Value],
    outputs: Sequence[Operand],
    cotangents: Sequence[Value],
) -> Graph:
    env: dict[Value, Operand] = dict(received)
    made: list[Node] = []
    for node in nodes:
        new = node.like(inputs=[env.get(o, o) if isinstance(o, Value) else o for o in node.inputs])
        env.update(zip(node.outputs, new.outputs, strict=True))
        made.append(new)
    results = tuple(env.get(o, o) if isinstance(o, Value) else o for o in outputs)
    return graph.with_(
        name="backward",
        inputs=(*received.values(), *cotangents),
        nodes=tuple(made),
        outputs=results,
    )
