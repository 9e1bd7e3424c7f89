"""JAX function in, Graph out.

Every primitive keeps its own name. Calls that are only structure (jit, closed calls) are inlined,
their names kept in the scope; control flow, remat, custom rules and shard_map become nodes with
sub-graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core as jax_core
from jax._src import core as src_core
from jax._src.source_info_util import Transform
from jax.extend import core as jex_core
from jax.sharding import AxisType

from precir.errors import LoweringError
from precir.ir import (
    BACKWARD,
    FORWARD,
    UNPHASED,
    Graph,
    Literal,
    Node,
    Operand,
    Region,
    Type,
    Value,
)
from precir.jaxprs import is_weak, shared_draws, weakness_seen
from precir.phases import complete_phases
from precir.primitives import remember
from precir.source import Source, is_jax

# Calls inlined into their caller: parameter that holds the callee.
_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "xla_call": "call_jaxpr",
}
# Nodes with sub-graphs in a canonical form: parameters that hold them, in order.
_REGIONS = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_vjp_call_jaxpr": ("call_jaxpr",),
    "shard_map": ("jaxpr",),
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
}
_CANONICAL_NAMES = {
    "remat2": "remat",
    "checkpoint": "remat",
    "custom_vjp_call_jaxpr": "custom_vjp_call",
    "pjit": "jit",
}
# Parameters that say nothing once the sub-graphs are out: rules that JAX has already applied
# wherever this program is differentiated, and bookkeeping of the tracer.
_DROPPED = {
    "custom_jvp_call": ("jvp_jaxpr_fun", "num_consts", "symbolic_zeros"),
    "custom_vjp_call": (
        "fwd_jaxpr_thunk", "fwd", "bwd", "num_consts", "out_trees", "symbolic_zeros",
    ),
    "custom_vjp_call_jaxpr": (
        "fun_jaxpr", "fwd_jaxpr_thunk", "bwd", "num_consts", "out_trees", "symbolic_zeros",
    ),
}  # fmt: skip


def lower(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """The Graph of `fn` at the shapes and dtypes of `args` and `kwargs`.

    Arguments may be arrays or `jax.ShapeDtypeStruct`s, in any pytrees. Raises whatever
    `jax.jit(fn).trace` raises for a function that JAX cannot trace.
    """
    traced = jax.jit(fn).trace(*args, **kwargs)
    graph, _ = lower_jaxpr(traced.jaxpr, name=getattr(fn, "__name__", "main"), labels=None)
    return graph


def lower_jaxpr(
    closed: jex_core.ClosedJaxpr, *, name: str, labels: Sequence[str] | None, phase: str = UNPHASED
) -> tuple[Graph, list[Any]]:
    """Lower a traced program.

    Args:
      closed: what `jax.jit(fn).trace(...).jaxpr` gives.
      name: the graph's name.
      labels: a name for each input, for people to read (`params['w']`).
      phase: phase of every node that the name stack says nothing about.

    Returns:
      The graph, and the arrays it closes over that only exist inside an outer trace. Those are
      its last inputs, since a tracer cannot be a constant.
    """
    return _Lowering().top(closed, name, labels, phase)


class _Lowering:
    def __init__(self) -> None:
        self.constants: dict[str, Any] = {}
        self._constant_names: dict[int, str] = {}
        self._types: dict[tuple[Any, ...], Type] = {}
        self._stacks: dict[Any, tuple[str, str]] = {}
        self.called_from: Source | None = None
        self._kept: set[int] = set()

    def top(
        self, closed: Any, name: str, labels: Sequence[str] | None, phase: str
    ) -> tuple[Graph, list[Any]]:
        jaxpr = closed.jaxpr
        self._kept = shared_draws(jaxpr)
        env: dict[Any, Operand] = {}
        nodes: list[Node] = []
        inputs = []
        for i, var in enumerate(jaxpr.invars):
            value = Value(self.type(var.aval), hint=labels[i] if labels else f"arg{i}")
            inputs.append(value)
            env[var] = value
        captured: list[Any] = []
        for var, const in zip(jaxpr.constvars, closed.consts, strict=True):
            if isinstance(const, jax_core.Tracer):
                value = Value(self.type(var.aval), hint=f"captured{len(captured)}")
                inputs.append(value)
                captured.append(const)
                env[var] = value
            else:
                env[var] = self.constant(const, var.aval, nodes)
        self.body(jaxpr, env, nodes, "", phase, weak=True)
        outputs = tuple(self.read(env, v, nodes) for v in jaxpr.outvars)
        graph = Graph(name, tuple(inputs), tuple(nodes), outputs, self.constants)
        complete_phases(graph, phase or FORWARD)
        return graph, captured

    def region(self, jaxpr: Any, name: str, scope: str, phase: str, weak: bool) -> Graph:
        consts: Sequence[Any] = ()
        if hasattr(jaxpr, "consts"):
            jaxpr, consts = jaxpr.jaxpr, jaxpr.consts
        env: dict[Any, Operand] = {}
        nodes: list[Node] = []
        inputs = [Value(self.type(v.aval), hint=f"arg{i}") for i, v in enumerate(jaxpr.invars)]
        env.update(zip(jaxpr.invars, inputs, strict=True))
        if len(consts) != len(jaxpr.constvars):
            raise LoweringError(f"{name} holds {len(jaxpr.constvars)} unbound constants")
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            if isinstance(const, jax_core.Tracer):
                raise LoweringError(
                    f"the body of {name} closes over a value of an outer trace",
                    fix="pass it to the body as an argument",
                )
            env[var] = self.constant(const, var.aval, nodes)
        self.body(jaxpr, env, nodes, scope, phase, weak)
        outputs = tuple(self.read(env, v, nodes) for v in jaxpr.outvars)
        return Graph(name, tuple(inputs), tuple(nodes), outputs)

    def body(
        self,
        jaxpr: Any,
        env: dict[Any, Operand],
        nodes: list[Node],
        scope: str,
        phase: str,
        weak: bool,
    ) -> None:
        """Lower the equations of `jaxpr`; `weak` if the weakness of its results is seen outside."""
        seen = weakness_seen(jaxpr, weak)
        for eqn in jaxpr.eqns:
            op = eqn.primitive.name
            inner_scope, inner_phase = self.place(eqn.source_info.name_stack, scope, phase)
            inner_weak = any(v in seen for v in eqn.outvars)
            if op in _INLINED and id(eqn.params[_INLINED[op]]) not in self._kept:
                self.inline(eqn, env, nodes, inner_scope, inner_phase, inner_weak)
                continue
            if op == "custom_linear_solve":
                self.solve(eqn, env, nodes, inner_scope, inner_phase, inner_weak)
                continue
            inputs = [
                env[v] if type(v) is not src_core.Literal else self.literal(v, nodes)
                for v in eqn.invars
            ]
            params, regions = self.params(op, eqn, inner_scope, inner_phase, inner_weak)
            types = [self.type(v.aval) for v in eqn.outvars]
            if not inner_weak and not regions and any(t.weak for t in types):
                if op == "convert_element_type":
                    params = {**params, "weak_type": False}
                if op == "convert_element_type" or _strong(eqn.invars, inputs):
                    types = [replace(t, weak=False) for t in types]
            remember(eqn.primitive)
            node = Node(
                _CANONICAL_NAMES.get(op, op),
                inputs,
                types,
                params,
                regions=regions,
                source=self.called_from or Source(eqn.source_info.traceback),
                scope=inner_scope,
                phase=inner_phase,
                effects=bool(eqn.effects) and _has_side_effects(eqn.effects),
            )
            nodes.append(node)
            env.update(zip(eqn.outvars, node.outputs, strict=True))

    def inline(
        self,
        eqn: Any,
        env: dict[Any, Operand],
        nodes: list[Node],
        scope: str,
        phase: str,
        weak: bool,
    ) -> None:
        callee = eqn.params[_INLINED[eqn.primitive.name]]
        name = eqn.params.get("name")
        if name and not name.startswith("<"):
            scope = f"{scope}/{name}" if scope else name
        args = [self.read(env, v, nodes) for v in eqn.invars]
        args = self.constrain(args, eqn.params.get("in_shardings"), eqn, nodes, scope, phase)
        consts = getattr(callee, "consts", ())
        jaxpr = getattr(callee, "jaxpr", callee)
        inner: dict[Any, Operand] = dict(zip(jaxpr.invars, args, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            inner[var] = self.constant(const, var.aval, nodes)
        outer = self.called_from
        if outer is None and is_jax(getattr(jaxpr.debug_info, "func_filename", None) or ""):
            # JAX traces its helpers once: what they hold names whoever called them first.
            self.called_from = Source(eqn.source_info.traceback)
        self.body(jaxpr, inner, nodes, scope, phase, weak)
        self.called_from = outer
        outs = [self.read(inner, v, nodes) for v in jaxpr.outvars]
        outs = self.constrain(outs, eqn.params.get("out_shardings"), eqn, nodes, scope, phase)
        env.update(zip(eqn.outvars, outs, strict=True))

    def solve(
        self,
        eqn: Any,
        env: dict[Any, Operand],
        nodes: list[Node],
        scope: str,
        phase: str,
        weak: bool,
    ) -> None:
        """A linear solve is its `solve` program; the others only serve its derivatives."""
        lengths, solve = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
        args = [self.read(env, v, nodes) for v in eqn.invars]
        first = lengths.matvec + lengths.vecmat
        total = first + lengths.solve + lengths.transpose_solve
        inner: dict[Any, Operand] = dict(
            zip(solve.jaxpr.invars, args[first : first + lengths.solve] + args[total:], strict=True)
        )
        for var, const in zip(solve.jaxpr.constvars, solve.consts, strict=True):
            inner[var] = self.constant(const, var.aval, nodes)
        self.body(solve.jaxpr, inner, nodes, scope, phase, weak)
        outs = [self.read(inner, v, nodes) for v in solve.jaxpr.outvars]
        env.update(zip(eqn.outvars, outs, strict=True))

    def constrain(
        self,
        operands: list[Operand],
        shardings: Any,
        eqn: Any,
        nodes: list[Node],
        scope: str,
        phase: str,
    ) -> list[Operand]:
        """Keep what an inlined jit said of shardings, as constraint nodes."""
        if shardings is None or all(_unspecified(s) for s in shardings):
            return operands
        kept: list[Operand] = []
        for operand, sharding in zip(operands, shardings, strict=True):
            if _unspecified(sharding) or type(operand) is Literal:
                kept.append(operand)
                continue
            params = {"sharding": sharding}
            source = Source(eqn.source_info.traceback)
            node = Node(
                "sharding_constraint", [operand], [operand.type], params,
                source=source, scope=scope, phase=phase,
            )  # fmt: skip
            nodes.append(node)
            kept.append(node.outputs[0])
        return kept

    def params(
        self, op: str, eqn: Any, scope: str, phase: str, weak: bool
    ) -> tuple[Mapping[str, Any], tuple[Graph, ...]]:
        """Split a primitive's parameters into plain ones and sub-graphs."""
        raw = eqn.params
        if op in _REGIONS:
            held: list[Any] = []
            for key in _REGIONS[op]:
                value = raw[key if key in raw else "fun_jaxpr"]
                held.extend(value if isinstance(value, tuple) else (value,))
            dropped = {*_REGIONS[op], *_DROPPED.get(op, ())}
            params = {k: v for k, v in raw.items() if k not in dropped}
            if op == "scan":
                params = scan_params(raw)
            if op in _INLINED:
                (called,) = held
                return {}, (self.region(called, raw["name"], scope, phase, weak),)
            names = (
                [f"{op}_{k}" for k in ("cond", "body")]
                if op == "while"
                else [f"{op}_body"] * len(held)
            )
            return params, tuple(
                self.region(j, n, scope, phase, weak) for j, n in zip(held, names, strict=True)
            )
        regions: list[Graph] = []
        params = {}
        for key, value in raw.items():
            if hasattr(value, "eqns"):
                params[key] = Region(len(regions), hasattr(value, "consts"))
                regions.append(self.region(value, f"{op}_{key}", scope, phase, weak))
            elif (
                op != "sharding_constraint"
                and key in ("sharding", "out_sharding")
                and _says_nothing(value)
            ):
                params[key] = None
            else:
                params[key] = value
        return params, tuple(regions)

    def read(self, env: Mapping[Any, Operand], var: Any, nodes: list[Node]) -> Operand:
        return self.literal(var, nodes) if type(var) is src_core.Literal else env[var]

    def literal(self, var: Any, nodes: list[Node]) -> Operand:
        return self.constant(var.val, var.aval, nodes)

    def constant(self, array: Any, aval: Any, nodes: list[Node]) -> Operand:
        kind = self.type(aval)
        extended = jnp.issubdtype(aval.dtype, jax.dtypes.extended)
        if kind.shape == () and not extended and kind.dtype != "float0":
            return Literal(_python_scalar(array), kind)
        name = self._constant_names.setdefault(id(array), f"c{len(self._constant_names)}")
        self.constants[name] = array
        node = Node("constant", (), [kind], {"name": name})
        nodes.append(node)
        return node.outputs[0]

    def type(self, aval: Any) -> Type:
        shape = getattr(aval, "shape", ())
        dtype = getattr(aval, "dtype", None)
        key = (type(aval), shape, dtype, getattr(aval, "weak_type", False))
        found = self._types.get(key)
        if found is None:
            found = self._types[key] = Type(tuple(shape), _dtype_name(aval), bool(key[3]))
        return found

    def place(self, stack: Any, scope: str, phase: str) -> tuple[str, str]:
        """Scope and phase of a node, from its name stack and those of the enclosing program."""
        if not stack.stack:
            return scope, phase
        key = (stack, scope, phase)
        found = self._stacks.get(key)
        if found is None:
            found = self._stacks[key] = _place(stack, scope, phase)
        return found


def _strong(variables: Sequence[Any], operands: Sequence[Operand]) -> bool:
    """Whether operands that JAX held weakly were made strong, all of them."""
    weak = [o for v, o in zip(variables, operands, strict=True) if is_weak(v)]
    return bool(weak) and not any(o.type.weak for o in weak)


def _place(stack: Any, scope: str, phase: str) -> tuple[str, str]:
    names = [scope] if scope else []
    for part in stack.stack:
        if isinstance(part, Transform):
            if part.name == "transpose":
                phase = BACKWARD
            elif part.name == "jvp" and phase != BACKWARD:
                phase = FORWARD
        elif part.name == "rematted_computation":
            phase = FORWARD  # a forward value computed again
        elif part.name != "checkpoint":
            names.append(part.name)
    return "/".join(names), phase


def _unspecified(sharding: Any) -> bool:
    return type(sharding).__name__ == "UnspecifiedValue"


def _says_nothing(sharding: Any) -> bool:
    """A sharding with no explicit axis, which some of JAX's rules leave behind: the compiler
    decides it, or the body of a shard_map has it by itself.
    """
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and AxisType.Explicit not in (mesh.axis_types or ())


def scan_params(raw: Mapping[str, Any]) -> dict[str, Any]:
    """num_consts and num_carry under every JAX: from 0.11 on they hide in a flattened tree."""
    if "ft_in" in raw:
        consts, carry, _ = (len(part) for part in raw["ft_in"].unpack())
    else:
        consts, carry = raw["num_consts"], raw["num_carry"]
    return {
        "length": raw["length"],
        "num_carry": carry,
        "num_consts": consts,
        "reverse": raw["reverse"],
        "unroll": raw["unroll"],
    }


def _python_scalar(value: Any) -> bool | int | float | complex:
    for kind in (bool, int, float, complex):
        if isinstance(value, kind):  # JAX's typed literals are subclasses
            plain: Any = kind
            return plain(value)  # type: ignore[no-any-return]
    item = np.asarray(value).item()
    return item if isinstance(item, (bool, int, float, complex)) else _from_ml_dtype(value)


def _from_ml_dtype(value: Any) -> int | float:
    array = np.asarray(value)
    integral = jnp.issubdtype(array.dtype, np.integer)
    return int(array.astype(np.int32)) if integral else float(array.astype(np.float64))


def _dtype_name(aval: Any) -> str:
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return type(aval).__name__
    if dtype == jax.dtypes.float0:
        return "float0"
    if isinstance(aval, jax_core.ShapedArray):
        return str(getattr(dtype, "name", dtype))
    return f"{type(aval).__name__}<{dtype}>"


def _has_side_effects(effects: Any) -> bool:
    """Whether a node must be kept though nobody reads it; a named axis is no side effect."""
    return any(type(e).__name__ != "NamedAxisEffect" for e in effects)
