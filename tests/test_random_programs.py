"""Random JAX programs: none crashes the compiler, none is miscompiled, none loses its text.

A program is a list of statements over matrices, vectors and scalars. Operands are found from the
end of what was made so far, from its start, by the number of the layer, or among saved values, so
that blocks that repeat carry values on, share them, index arguments forward and backward, reach
two copies back, and leave values behind for later loops.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import precir
from tests.programs import assert_bit_identical
from tests.relief import relieve

Tree = Any
M, V, S = "msv"[0], "msv"[2], "msv"[1]  # matrix (4, 4), vector (4,), scalar

UNARY: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "half": lambda x: x * 0.5,
    "neg": lambda x: -x,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "square": lambda x: x * x * 0.25,
    "clip": lambda x: jnp.clip(x, -1, 1),
    "gelu": jax.nn.gelu,
    "detached": lax.stop_gradient,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: (a + b) * 0.5,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "max": jnp.maximum,
    "where": lambda a, b: jnp.where(a > 0, a, b),
    "ratio": lambda a, b: a / (2 + b * b),
}
# name: (kinds of operands, kind of the result, function)
SHAPED: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "matmul": (M + M, M, lambda a, b: a @ b * 0.25),
    "apply": (M + V, V, lambda a, b: a @ b * 0.25),
    "outer": (V + V, M, lambda a, b: a[:, None] * b),
    "dot": (V + V, S, lambda a, b: jnp.dot(a, b) * 0.25),
    "add_row": (M + V, M, lambda a, b: a + b),
    "add_column": (M + V, M, lambda a, b: a + b[:, None]),
    "scale": (M + S, M, lambda a, b: a * b),
    "shift": (V + S, V, lambda a, b: a + b),
    "rows": (M, V, lambda a: jnp.mean(a, axis=0)),
    "columns": (M, V, lambda a: jnp.max(a, axis=1)),
    "total": (M, S, lambda a: jnp.sum(a) * 0.1),
    "mean": (V, S, jnp.mean),
    "transpose": (M, M, lambda a: a.T),
    "reshape": (M, M, lambda a: a.reshape(2, 8)[::-1].reshape(4, 4)),
    "reverse": (V, V, lambda a: a[::-1]),
    "take": (M, M, lambda a: a[jnp.array([2, 0, 3, 3])]),
    "row": (M, V, lambda a: a[1]),
    "slices": (M + M, M, lambda a, b: jnp.concatenate([a[:2], b[1:3]])),
    "softmax": (M, M, lambda a: jax.nn.softmax(a, axis=-1)),
    "norm": (M, M, lambda a: a * lax.rsqrt(jnp.mean(a * a, -1, keepdims=True) + 1e-3)),
    "set": (M + V, M, lambda a, b: a.at[2].set(b)),
    "sorted": (V, V, jnp.sort),
    "cumsum": (V, V, lambda a: jnp.cumsum(a) * 0.3),
    "einsum": (M + M, M, lambda a, b: jnp.einsum("ij,ik->jk", a, b) * 0.25),
    "batched": (M + M, M, lambda a, b: jax.vmap(lambda u, v: jnp.roll(u, 1) * v)(a, b)),
}
SMOOTH = [
    *("tanh", "sin", "half", "neg", "sigmoid", "add", "mul", "ratio", "matmul", "apply", "outer"),
    *("dot", "einsum", "add_row", "add_column", "rows", "total", "mean", "transpose", "reshape"),
    *("reverse", "take", "row", "slices", "softmax", "set", "batched"),
]


@dataclass(frozen=True)
class Op:
    """One operation; `reads` are (way, number) for each operand."""

    name: str
    kind: str
    reads: tuple[tuple[str, int], ...]
    save: bool = False


@dataclass(frozen=True)
class Block:
    """Statements run `count` times unrolled, or as the body of a scan, while, cond or remat."""

    form: str
    count: int
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Spec:
    """A program: its arguments' layout, its statements, what it returns."""

    layers: int
    layout: str  # "keys", "list", "tuple" or "by name"
    statements: tuple[Any, ...]
    returned: tuple[tuple[str, int], ...]
    gradient: bool


@dataclass
class Values:
    """What a program has made so far, by kind."""

    layers: Callable[[str, int], Any]
    count: int
    made: dict[str, list[Any]]
    saved: dict[str, list[Any]] = field(default_factory=lambda: {M: [], V: [], S: []})

    def read(self, kind: str, way: str, number: int, copy: int, copies: int) -> Any:
        made, saved = self.made[kind], self.saved[kind]
        if way == "first":
            return made[number % min(len(made), 4)]
        if way == "layer":
            return self.layers(kind, (copy + number % 2) % self.count)
        if way == "layer reversed":
            return self.layers(kind, (copies - 1 - copy) % self.count)
        if way == "saved" and saved:
            return saved[copy % len(saved)]
        if way == "saved reversed" and saved:
            return saved[-1 - copy % len(saved)]
        return made[-1 - number % min(len(made), 8)]


def execute(statements: tuple[Any, ...], values: Values, copy: int, copies: int) -> None:
    for statement in statements:
        if isinstance(statement, Block):
            block(statement, values, copy, copies)
            continue
        kind = statement.kind
        if statement.name in SHAPED:
            kinds, kind, fn = SHAPED[statement.name]
        elif statement.name in UNARY:
            kinds, fn = kind, UNARY[statement.name]
        else:
            kinds, fn = kind + kind, BINARY[statement.name]
        operands = [
            values.read(k, *read, copy, copies)
            for k, read in zip(kinds, statement.reads, strict=False)
        ]
        result = fn(*operands)
        values.made[kind].append(result)
        if statement.save:
            values.saved[kind].append(result)


def block(statement: Block, values: Values, copy: int, copies: int) -> None:
    if statement.form == "repeat":
        for c in range(statement.count):
            execute(statement.body, values, c, statement.count)
        return

    def body(m: Any, v: Any, s: Any, at: int = 0) -> tuple[Any, Any, Any]:
        inner = Values(
            values.layers,
            values.count,
            {M: [*values.made[M], m], V: [*values.made[V], v], S: [*values.made[S], s]},
        )
        execute(statement.body, inner, at, statement.count)
        return inner.made[M][-1], inner.made[V][-1], inner.made[S][-1]

    start = tuple(values.made[k][-1] for k in (M, V, S))
    if statement.form == "scan":
        xs = jnp.stack([values.layers(V, i) for i in range(values.count)])

        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            new = body(carry[0], carry[1] + x, carry[2])
            return new, new[1]

        done, ys = lax.scan(step, start, xs)
        values.made[V].append(ys[0])
    elif statement.form == "while":
        done = lax.fori_loop(0, statement.count, lambda i, c: body(*c), start)
    elif statement.form == "cond":
        done = lax.cond(start[2] > 0, lambda c: body(*c), lambda c: c, start)
    elif statement.form == "remat":
        done = jax.checkpoint(lambda *c: body(*c))(*start)
    else:
        done = jax.jit(body, static_argnums=3)(*start, copy)
    for kind, value in zip((M, V, S), done, strict=True):
        values.made[kind].append(value)


def arguments(spec: Spec) -> Tree:
    rng = np.random.default_rng(spec.layers)

    def draw(*shape: int) -> Any:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    layers = [{"w": draw(4, 4), "b": draw(4), "g": draw()} for _ in range(spec.layers)]
    x = {"x": draw(4, 4), "v": draw(4), "s": draw()}
    if spec.layout == "keys":
        return {**{f"h_{i}": layer for i, layer in enumerate(layers)}, **x}
    if spec.layout == "list":
        return {"layers": layers, **x}
    if spec.layout == "tuple":
        return {"layers": tuple((layer["w"], layer["b"], layer["g"]) for layer in layers), **x}
    named = {f"{k}{i}": layer[k] for i, layer in enumerate(layers) for k in layer}
    return {**named, **x}


def layer_reader(spec: Spec, args: Tree) -> Callable[[str, int], Any]:
    names = {M: "w", V: "b", S: "g"}

    def read(kind: str, i: int) -> Any:
        if spec.layout == "keys":
            return args[f"h_{i}"][names[kind]]
        if spec.layout == "list":
            return args["layers"][i][names[kind]]
        if spec.layout == "tuple":
            return args["layers"][i][(M, V, S).index(kind)]
        return args[f"{names[kind]}{i}"]

    return read


def function_of(spec: Spec) -> Callable[[Tree], Tree]:
    """The JAX function that a spec describes."""

    def forward(args: Tree) -> Tree:
        made = {M: [args["x"]], V: [args["v"]], S: [args["s"]]}
        values = Values(layer_reader(spec, args), spec.layers, made)
        execute(spec.statements, values, 0, 1)
        return [values.read(k, "back", n, 0, 1) for k, n in spec.returned] + [
            made[k][-1] for k in (M, V, S)
        ]

    def program(args: Tree) -> Tree:
        return forward(args)

    def trained(args: Tree) -> Tree:
        def loss(args: Tree) -> jax.Array:
            return sum(jnp.sum(x * x) for x in forward(args))

        value, gradients = jax.value_and_grad(loss)(args)
        return jax.tree.map(lambda p, g: p - 0.1 * g, args, gradients), value

    return trained if spec.gradient else program


# What hypothesis draws.

WAYS = ["back"] * 4 + ["first", "layer", "layer", "layer reversed", "saved", "saved reversed"]
FORMS = ["scan", "while", "cond", "remat", "jit"]


def ops(names: list[str]) -> st.SearchStrategy[Op]:
    read = st.tuples(st.sampled_from(WAYS), st.integers(0, 7))
    return st.builds(
        Op,
        st.sampled_from(names),
        st.sampled_from([M, V, S]),
        st.tuples(read, read),
        st.sampled_from([False, False, True]),
    )


def specs(names: list[str] | None = None) -> st.SearchStrategy[Spec]:
    op = ops(sorted(names or [*UNARY, *BINARY, *SHAPED]))
    inner = st.lists(op, min_size=1, max_size=8).map(tuple)
    region = st.builds(Block, st.sampled_from(FORMS), st.integers(1, 3), inner)
    repeat = st.builds(
        Block,
        st.just("repeat"),
        st.sampled_from([2, 3, 3, 4, 6, 13]),
        st.lists(st.one_of(op, op, op, op, region), min_size=1, max_size=10).map(tuple),
    )
    nested = st.builds(
        Block,
        st.just("repeat"),
        st.integers(2, 3),
        st.lists(st.one_of(op, op, repeat), min_size=1, max_size=4).map(tuple),
    )
    statement = st.one_of(op, op, repeat, repeat, nested, region)
    return st.builds(
        Spec,
        st.sampled_from([2, 3, 3, 4, 13]),
        st.sampled_from(["keys", "list", "tuple", "by name"]),
        st.lists(statement, min_size=1, max_size=6).map(tuple),
        st.lists(st.tuples(st.sampled_from([M, V, S]), st.integers(0, 7)), max_size=3).map(tuple),
        st.booleans(),
    ).filter(lambda spec: size(spec.statements) <= 160)


def size(statements: tuple[Any, ...]) -> int:
    """About how many operations a program makes."""
    return sum(
        s.count * size(s.body) if isinstance(s, Block) and s.form == "repeat"
        else size(s.body) if isinstance(s, Block) else 1
        for s in statements
    )  # fmt: skip


# Whether two jaxprs compute the same: value numbering over both, calls looked through. This says
# so for nearly every program in milliseconds; where it does not, the bits decide.

TRANSPARENT = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr",
               "custom_vjp_call": "call_jaxpr", "closed_call": "call_jaxpr"}  # fmt: skip


class Numbering:
    """Gives the same number to values that are computed alike."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.constants: dict[int, np.ndarray] = {}

    def number(self, *key: Any) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def constant(self, value: Any, dtype: Any) -> int:
        array = np.asarray(value).astype(dtype)
        number = self.number("constant", str(array.dtype), array.shape, array.tobytes())
        self.constants[number] = array
        return number

    def closed(self, closed: Any, inputs: Sequence[int]) -> list[int]:
        """Numbers of a jaxpr's results, given those of its inputs."""
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        env = {
            v: self.constant(c, v.aval.dtype) for v, c in zip(jaxpr.constvars, consts, strict=True)
        }
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> int:
            return self.constant(v.val, v.aval.dtype) if hasattr(v, "val") else env[v]

        for eqn in jaxpr.eqns:
            made = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, made, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, taken: list[int]) -> list[int]:
        name, params = eqn.primitive.name, eqn.params
        if name in TRANSPARENT:
            return self.closed(params[TRANSPARENT[name]], taken)
        if name in ("remat", "remat2", "checkpoint"):
            behind = params["differentiated"] and params["prevent_cse"]
            return self.closed(params["jaxpr"], self.barrier(taken) if behind else taken)
        if name == "optimization_barrier":
            return self.barrier(taken)
        if name in ("copy", "stop_gradient"):
            return taken
        if name == "add_any":  # what JAX calls a sum that its derivatives make
            name = "add"
        if name == "convert_element_type" and taken[0] in self.constants:
            return [self.constant(self.constants[taken[0]], params["new_dtype"])]
        about: tuple[Any, ...]
        if name == "scan":
            about, taken = self.scan(eqn, taken)
        elif name == "while":
            about, taken = self.while_(params, taken)
        elif name == "cond":
            about = tuple(tuple(self.closed(b, taken[1:])) for b in params["branches"])
            taken = taken[:1]
        else:
            about = tuple((k, _shown(v)) for k, v in sorted(params.items()) if not _default(k, v))
        return [
            self.number(name, about, tuple(taken), i, str(v.aval.dtype), v.aval.shape)
            for i, v in enumerate(eqn.outvars)
        ]

    def barrier(self, taken: Sequence[int]) -> list[int]:
        return [self.number("barrier", n) for n in taken]

    def scan(self, eqn: Any, taken: list[int]) -> tuple[Any, list[int]]:
        """What a scan's body reads from outside keeps its number there, so that the order in
        which the body lists it does not matter.
        """
        params = eqn.params
        if "ft_in" in params:  # from JAX 0.11 on
            consts, carry, _ = (len(part) for part in params["ft_in"].unpack())
        else:
            consts, carry = params["num_consts"], params["num_carry"]
        xs = taken[consts + carry :]
        inner = [
            *taken[:consts],
            *(self.number("carry", i) for i in range(carry)),
            *(self.number("element", x) for x in xs),
        ]
        body = self.closed(params["jaxpr"], inner)
        kept = (params["length"], params["reverse"], params["unroll"])
        return (*kept, *body), taken[consts : consts + carry]

    def while_(self, params: Any, taken: list[int]) -> tuple[Any, list[int]]:
        n, m = params["cond_nconsts"], params["body_nconsts"]
        carry = [self.number("carry", i) for i in range(len(taken) - n - m)]
        condition = self.closed(params["cond_jaxpr"], [*taken[:n], *carry])
        body = self.closed(params["body_jaxpr"], [*taken[n : n + m], *carry])
        return (tuple(condition), tuple(body)), taken[n + m :]


def _shown(value: Any) -> str:
    text = re.sub(r"np\.int64\((-?\d+)\)", r"\1", str(value))
    return re.sub(r"<class 'jax\.numpy\.(\w+)'>", r"\1", text)


def _default(name: str, value: Any) -> bool:
    """Parameters whose absence says the same."""
    return name == "strides" and (value is None or set(value) == {1})


def same_computation(a: Any, b: Any) -> bool:
    """Whether two closed jaxprs are seen to compute the same without running them."""
    numbering = Numbering()
    inputs = [numbering.number("argument", i) for i in range(len(a.jaxpr.invars))]
    return numbering.closed(a, inputs) == numbering.closed(b, inputs)


def run(fn: Callable[..., Any], args: Tree) -> Tree:
    relieve()
    return jax.device_get(fn(args))


def check_bits(fn: Callable[..., Any], args: Tree) -> None:
    assert_bit_identical(run(precir.compile(fn), args), run(jax.jit(fn), args))


def check_float32(spec: Spec, *, bits: bool) -> bool:
    """Raises if the program is miscompiled; whether its bits had to be looked at."""
    fn, args = function_of(spec), arguments(spec)
    compiled = precir.compile(fn)
    program = compiled.program(args)
    text = program.emitted.text
    if bits or not same_computation(jax.make_jaxpr(program.main)(args), jax.make_jaxpr(fn)(args)):
        check_bits(fn, args)
        bits = True
    again = precir.compile(fn).source(args)
    assert text == again, "the same program gave two texts"
    return bits


def examples(count: int) -> Callable[..., Any]:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much,
            HealthCheck.large_base_example]  # fmt: skip
    return settings(max_examples=count, suppress_health_check=slow, deadline=None)


def check_low(spec: Spec, recipe: str, room: float) -> None:
    """Low precision stays finite and near float32, where that is finite and of moderate size."""
    fn, args = function_of(spec), arguments(spec)
    high, low = run(jax.jit(fn), args), run(precir.compile(fn, recipe=recipe), args)
    for a, b in zip(jax.tree.leaves(high), jax.tree.leaves(low), strict=True):
        if np.isfinite(a).all() and np.abs(a).max() < 100:
            assert np.isfinite(b).all()
            assert np.mean(np.abs(a - b)) <= room * (1 + np.mean(np.abs(a)))


@examples(40)
@given(specs())
def test_bits(spec: Spec) -> None:
    check_float32(spec, bits=True)


@examples(20)
@given(specs())
def test_same_computation(spec: Spec) -> None:
    check_float32(spec, bits=False)


LOW = [("bf16-mixed", 0.1), ("fp8", 0.5), ("scaled-32", 1e-3), ("scaled-16", 0.1)]


@pytest.mark.parametrize(("recipe", "room"), LOW)
def test_low_precision(recipe: str, room: float) -> None:
    @examples(5)
    @given(specs(SMOOTH))
    def each(spec: Spec) -> None:
        check_low(spec, recipe, room)

    each()


@pytest.mark.sweep
@pytest.mark.parametrize(("recipe", "room"), LOW)
def test_low_precision_sweep(recipe: str, room: float) -> None:
    @examples(60)
    @given(specs(SMOOTH))
    def each(spec: Spec) -> None:
        check_low(spec, recipe, room)

    each()


@pytest.mark.sweep
@examples(120)
@given(specs())
def test_bits_sweep(spec: Spec) -> None:
    check_float32(spec, bits=True)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(4))
def test_same_computation_sweep(part: int) -> None:
    @examples(250)
    @given(specs())
    def each(spec: Spec) -> None:
        check_float32(spec, bits=False)

    each()
