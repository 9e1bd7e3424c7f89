"""The text form: every graph survives being printed and parsed, and no text does any harm."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from precir.errors import PrecirError, TextError
from precir.ir import Graph, Literal, Node, Region, Type, Value
from precir.lower import lower, lower_jaxpr
from precir.source import Source, Where
from precir.text import External, externals_of, load_graph, parse, print_graph, save_graph
from precir.text.types import SHORT
from precir.verify import verify
from tests.programs import PROGRAMS, Program


def assert_survives(graph: Graph) -> None:
    text = print_graph(graph)
    parsed = parse(text, graph.constants, externals_of(graph))
    assert parsed == graph
    assert print_graph(parsed) == text
    assert print_graph(parse(text)) == text, "with nothing but the text"
    assert print_graph(graph) == text


def one(
    op: str = "op", inputs: Any = (), types: Any = (), outputs: Any = None, **fields: Any
) -> Graph:
    """A graph of one node."""
    node = Node(op, inputs, types, **fields)
    values = tuple(i for i in inputs if isinstance(i, Value))
    return Graph("main", values, (node,), node.outputs if outputs is None else outputs)


# -- graphs of real programs -----------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_programs(program: Program) -> None:
    if jax.device_count() < program.needs_devices:
        pytest.skip(f"needs {program.needs_devices} devices")
    step = jax.jit(program.step, **program.options())
    traced = step.trace(program.init(0), *program.batch(0), **program.keywords(0))
    graph, _ = lower_jaxpr(traced.jaxpr, name=program.name, labels=None)
    assert_survives(graph)
    verify(graph, deep=True)


def harnesses(every: int) -> Iterator[tuple[str, Graph]]:
    arguments, sys.argv = sys.argv, sys.argv[:1]  # absl reads the command line
    from jax._src.internal_test_util import test_harnesses

    sys.argv = arguments
    for i, harness in enumerate(test_harnesses.all_harnesses[::every]):
        if harness.filter("cpu"):
            traced = jax.jit(harness.dyn_fun).trace(
                *harness.dyn_args_maker(np.random.RandomState(i))
            )
            yield harness.fullname, lower_jaxpr(traced.jaxpr, name="main", labels=None)[0]


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.sweep)])
def test_primitives(every: int) -> None:
    for name, graph in harnesses(every):
        try:
            assert_survives(graph)
            verify(graph, deep=True)
        except (AssertionError, PrecirError) as error:
            raise AssertionError(name) from error


def scanned(x: jax.Array) -> Any:
    return lax.scan(lambda c, a: (c + a, c * a), x[0], x, unroll=2)


def looped(x: jax.Array) -> Any:
    return lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))


def branched(x: jax.Array) -> Any:
    return lax.switch(x[0].astype(int), [jnp.sin, jnp.cos, lambda y: y], x)


def rematerialized(x: jax.Array) -> Any:
    policy = jax.checkpoint_policies.dots_saveable
    return jax.grad(lambda y: jax.checkpoint(jnp.tanh, policy=policy)(y @ y.T).sum())(x[None])


@jax.custom_vjp
def clipped(x: jax.Array) -> jax.Array:
    return x


clipped.defvjp(lambda x: (x, x), lambda x, g: (jnp.where(x > 0, g, -jnp.inf),))


def custom(x: jax.Array) -> Any:
    return clipped(x), jax.nn.relu(x), jax.grad(lambda y: clipped(y).sum())(x)


def keys(x: jax.Array) -> Any:
    key = jax.random.key(0)
    more = jax.random.split(jax.random.key(7, impl="rbg"), 3)
    return jax.random.normal(key, x.shape), jax.vmap(jax.random.bits)(more), KEYS, KEY


KEYS = jax.random.split(jax.random.key(3), 20)
KEY = jax.random.key(5, impl="rbg")
BIG = np.arange(200.0, dtype=np.float32).reshape(10, 20)
SPECIAL = [1.0, -0.0, np.nan, np.inf, -np.inf, 0.1]


def constants(x: jax.Array) -> Any:
    """Of every dtype, small and large; wrapped, since JAX folds what NumPy can compute."""
    arrays = [
        np.array(SPECIAL, dtype)
        for dtype in (np.float32, np.float16, jnp.bfloat16, jnp.float8_e5m2, np.complex64)
    ]
    arrays += [
        np.array([1, -1, 7], np.int8),
        np.array([[True], [False]]),
        np.empty((0, 3), np.int32),
    ]
    arrays += [np.arange(100).astype(jnp.bfloat16), np.arange(64).astype(jnp.float8_e4m3fn), BIG]
    return [x.sum(), *(jnp.asarray(a) for a in arrays), KEY, KEYS]


def effects(x: jax.Array) -> jax.Array:
    jax.debug.print("{} > 'quoted' # {}", x, x.sum())
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def scopes(x: jax.Array) -> jax.Array:
    with jax.named_scope("a b"), jax.named_scope("forward"), jax.named_scope("100%"):
        return x * 2


def sharded(x: jax.Array) -> Any:
    mesh = jax.make_mesh((2, 1), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    inner = jax.shard_map(lambda y: lax.psum(y, "a"), mesh=mesh, in_specs=P("a"), out_specs=P())
    spec = jax.sharding.NamedSharding(mesh, P(("a", "b"), None))
    kept = lax.with_sharding_constraint(x[:, None], spec)
    moved = jax.device_put(x, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return inner(x), kept, moved


def precisions(x: jax.Array) -> Any:
    y = x[None]
    return (
        lax.dot(y, y.T, precision="highest"),
        lax.dot(y, y.T, precision=lax.DotAlgorithmPreset.BF16_BF16_F32),
        lax.dot(y, y.T, precision=lax.DotAlgorithm(jnp.float16, jnp.float16, jnp.float32)),
        lax.ragged_dot(y, y.T[None], jnp.array([1])),
        lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST),
        lax.exp(x, accuracy=lax.Tolerance(0.1, 0.0, 0)),
        jnp.linalg.svd(y),
    )


@pytest.mark.parametrize(
    "fn",
    [
        scanned, looped, branched, rematerialized, custom, keys, constants, effects, scopes,
        sharded, precisions,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_functions(fn: Callable[..., Any], tmp_path: Any) -> None:
    graph = lower(fn, jnp.ones(4))
    assert_survives(graph)
    verify(graph, deep=True)
    save_graph(graph, tmp_path / "g.ir")
    loaded = load_graph(tmp_path / "g.ir")
    assert print_graph(loaded) == print_graph(graph)
    assert loaded == graph or externals_of(graph)


# -- pieces --------------------------------------------------------------------------------------

DTYPES = [*SHORT, "key<fry>", "AbstractRef<float32>", "f32"]
shapes = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)
types = st.builds(
    Type,
    shapes,
    st.sampled_from(DTYPES) | st.text(min_size=1),
    st.booleans(),
    st.none() | shapes,
)
numbers = st.booleans() | st.integers() | st.floats() | st.complex_numbers()
words = st.text() | st.sampled_from(
    ["graph", "return", "forward", "scope", "a/b", "<lambda>", "%x"]
)
values = st.recursive(
    st.none()
    | numbers
    | words
    | st.binary(max_size=4)
    | st.sampled_from([np.dtype(np.float32), np.dtype(jnp.bfloat16), Ellipsis, Region(0, True)])
    | st.sampled_from(
        [np.int64(4), np.float32(0.1), jnp.float8_e5m2(1.5), np.bool_(True), np.float64, float]
    ),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(words | st.integers(), inner)
        | st.frozensets(words | st.integers())
    ),
    max_leaves=8,
)
wheres = st.builds(Where, words, *[st.integers(0, 10**6)] * 4, words)


@given(types, types, words, words)
def test_types_and_names(a: Type, b: Type, hint: str, name: str) -> None:
    inputs = (Value(a, hint=hint), Value(b, hint=hint), Value(a))
    assert_survives(Graph(name, inputs, (), (inputs[1], inputs[0])))


@given(numbers, types)
def test_literals(number: Any, type_: Type) -> None:
    assert_survives(one(inputs=[Literal(number, type_)], outputs=(Literal(number, Type((), "f")),)))


@given(st.floats(width=32), st.booleans())
def test_float32_literals(number: float, weak: bool) -> None:
    assert_survives(one(inputs=[Literal(number, Type((), "float32", weak))]))


@given(st.dictionaries(words, values, max_size=4))
def test_params(params: dict[str, Any]) -> None:
    assert_survives(one(params=params))


@given(words, wheres | st.none(), words, words, st.booleans(), st.lists(types, max_size=3))
def test_nodes(
    op: str, where: Where | None, scope: str, phase: str, effects: bool, types: Any
) -> None:
    source = Source(where=where)
    graph = one(op, (), types, source=source, scope=scope, phase=phase, effects=effects)
    for value in graph.nodes[0].outputs[1:]:
        value.hint = scope
    assert_survives(graph)


def test_files_of_one_name() -> None:
    nodes = [
        Node("op", (), (), source=Source(where=Where(file, 1, 2, 3, 4, "f")))
        for file in ("a/train.py", "b/train.py", "c d.py", "<stdin>", "e f.py", "a/train.py")
    ]
    assert_survives(Graph("main", (), tuple(nodes), ()))
    assert "train.py:1" not in print_graph(Graph("main", (), tuple(nodes), ()), places=False)


def test_objects_without_a_text() -> None:
    held = {"f": scanned, "g": scanned, "many": (object(), [looped])}
    graph = one(params=held)
    assert_survives(graph)
    assert len(externals_of(graph)) == 3
    found = parse(print_graph(graph)).nodes[0].params
    assert found["f"] == found["g"] == External("function scanned", 0)
    assert parse(print_graph(graph)) == parse(print_graph(graph))


def test_values_that_print_with_difficulty() -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = object.__hash__

    endless: list[Any] = []
    endless.append(endless)
    deep: Any = ()
    for _ in range(200):
        deep = (deep,)
    objects = np.array([None, test_params])
    for value in (Hostile(), endless, deep, 10**5000, objects, np.arange(1000.0)):
        graph = one(params={"x": value})
        parsed = parse(print_graph(graph), externals=externals_of(graph))
        assert print_graph(parsed) == print_graph(graph)


def test_values_of_another_machine() -> None:
    mesh = "Mesh('cpu', (0, 999), (2,), ('a',), (AxisType.Auto,))"
    for value in (
        mesh,
        f"(NamedSharding({mesh}, P('a')), 1)",
        "Device('tpu', 0)",
        "Primitive('no such')",
        "PRNGImpl('no such')",
    ):
        graph = parse(f"graph f() {{\n  g(x={value})\n  return\n}}")
        assert f"  g(x={value})\n" in print_graph(graph)
        assert_survives(graph)
    missing = "constants {\n  c: key<x>[] prng 'no such' = [1, 2]\n}\ngraph f() { return }"
    assert_survives(parse(missing))
    assert "  c: key<x>[] prng 'no such' = [1, 2]\n" in print_graph(parse(missing))


def test_externals_keep_their_number() -> None:
    graph = parse("graph f() { g(x=<external 3: b>, y=<external 1: a>) return }")
    assert_survives(graph)
    assert externals_of(graph).keys() == {1, 3}


def test_broken_graphs_print() -> None:
    lost = Value(Type((), "float32"), hint="lost")
    text = print_graph(one(inputs=[], outputs=(lost,)))
    with pytest.raises(
        TextError, match="expected a value that is defined above, found `%undefined`"
    ):
        parse(text)


def test_what_people_write() -> None:
    text = """
    # A comment, and no first line.
    graph main(%x: f32[8,16], %w "params['w']": f8e4m3fn[16,4]*scale[]) {
      %0: f32[8,4] = dot(%x, %w, precision=Precision.HIGHEST)  # range [-3, 3]
      %h: f32[8,4]~ = mul(
        %0, 0.1:f32,
      )
      print(%h)  @ effects
      return %h, nan:bf16, -inf:f16, True:bool, 3:i32~, complex(0.0, -0.0):c64
    }
    """
    graph = parse(text)
    assert_survives(graph)
    assert [v.hint for v in graph.inputs] == ["x", "params['w']"]
    assert graph.inputs[1].type == Type((16, 4), "float8_e4m3fn", scale=())
    assert graph.nodes[0].params == {"precision": lax.Precision.HIGHEST}
    assert graph.nodes[1].inputs[1] == Literal(float(np.float32(0.1)), Type((), "float32"))
    assert graph.nodes[2].effects


def test_reads_well() -> None:
    def step(params: Any, x: jax.Array) -> jax.Array:
        with jax.named_scope("mlp"):
            return jnp.where(x > 0.1, x @ params["w"], 0.0)

    traced = jax.jit(step).trace({"w": jnp.ones((2, 2))}, jnp.ones((2, 2)))
    graph, _ = lower_jaxpr(traced.jaxpr, name="step", labels=["params['w']", "x"])
    text = print_graph(graph, places=False)
    assert text.startswith(
        """\
precir 1

graph step(%params.w "params['w']": f32[2,2], %x: f32[2,2]) {
  %gt: bool[2,2] = gt(%x, 0.1:f32)  @ scope mlp, forward
  %dot_general: f32[2,2] = dot_general(%x, %params.w, dimension_numbers=(((1,), (0,)), ((), ()))"""
    )


# -- texts that are damaged ----------------------------------------------------------------------


def damaged_samples() -> list[str]:
    graphs = [lower(fn, jnp.ones(4)) for fn in (scanned, constants, effects, sharded)]
    places = Source(where=Where("a/b.py", 1, 2, 3, 4, "<lambda>"))
    graphs.append(one("a b", params={"x": [1, {"a": 0.5}], "y y": b"1"}, source=places, phase="p"))
    return [print_graph(g) for g in graphs]


SAMPLES = damaged_samples()
JUNK = [
    "",
    "(",
    ")",
    "{",
    "}",
    "[",
    "%",
    "=",
    ",",
    ":",
    "'",
    '"',
    "\\",
    "#",
    "@",
    "<",
    "\n",
    "\x00",
]
JUNK += ["-", "9" * 5000, "f32", "inf", "None", "graph", "\ud800", "é", "(" * 3000, "{" * 3000]
JUNK += [
    "graph a() { b() {" * 500,
    "Mesh(",
    "P(None)",
    "External(",
    "exact(",
    "1e999",
    "-0x",
    "Type(",
]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.sampled_from([0, 1, 1, 2, 5, 40, 10**6]))
        text = text[:start] + draw(st.sampled_from(JUNK) | st.text(max_size=3)) + text[stop:]
    return text


@given(damaged())
def test_damaged_texts(text: str) -> None:
    try:
        graph = parse(text)
    except TextError as error:
        message = str(error)
    else:
        assert parse(print_graph(graph)) == graph
        return
    assert re.match(r"line \d+: expected ", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected `graph`, found the end of the text"),
        ("precir 2\ngraph", "line 1: expected version 1, found `2`"),
        ("graph f() {\n  return", "line 2: expected `,` or `}`, found the end of the text"),
        (
            "graph f() {\n return %x\n}",
            "line 2: expected a value that is defined above, found `%x`",
        ),
        ("graph f(%x: f32[4) {", "line 1: expected `,` or `)`, found `[`"),
        ("graph f(%x: 4) {", "line 1: expected a type, as f32[4,8],, found `4`"),
        (
            "graph f() {\n f(a=open('x'))\n}",
            "line 2: expected a value of a known kind, found `open`",
        ),
        ("graph f() {\n f(a=Precision.LOW)\n}", "line 2: expected a member of Precision"),
        ("graph f() {\n f(a=P(1, 2)(3))\n}", "line 2: expected `,` or `)`, found `(`"),
        ("graph f() {\n f() @a.py:1:2-3:4 g\n}", "line 2: expected a place"),
        ("graph f(%x: f32[], %x: f32[]) {", "line 1: expected a name that is not taken"),
        ("constants { c: f32[2] = [1.0] }", "line 1: expected numbers of float32[2]"),
        ("graph f() { return }\ngraph g() { return }", "line 2: expected the end of the text"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(TextError) as error:
        parse(text)
    assert message in str(error.value)


def test_constants_of_another_program() -> None:
    graph = lower(constants, jnp.ones(4))
    changed = dict(graph.constants)
    name = next(k for k, v in changed.items() if v.shape == BIG.shape)
    changed[name] = BIG + 1
    with pytest.raises(TextError, match=f"constant {name} as it was given"):
        parse(print_graph(graph), changed)


# -- files -----------------------------------------------------------------------------------------


def test_files(tmp_path: Any) -> None:
    path, beside = tmp_path / "deep" / "g.ir", tmp_path / "deep" / "g.npz"
    graph = lower(constants, jnp.ones(4))
    odd = {"file": BIG, "../a b": BIG.astype(np.complex64), "small": BIG[0, :2]}
    graph = graph.with_(constants=dict(graph.constants) | odd)
    save_graph(graph, path)
    assert load_graph(path) == graph
    first = beside.read_bytes()
    save_graph(graph, path)
    assert beside.read_bytes() == first
    assert sorted(p.name for p in path.parent.iterdir()) == ["g.ir", "g.npz"]
    with np.load(beside, allow_pickle=False) as archive:
        assert "file" in archive.files
        assert "small" not in archive.files
    save_graph(graph.with_(constants={}), path)
    assert not beside.exists()


def test_damaged_files(tmp_path: Any) -> None:
    path = tmp_path / "g.ir"
    save_graph(lower(constants, jnp.ones(4)), path)
    whole = path.with_suffix(".npz").read_bytes()
    for cut in (whole[:100], b"", whole[: len(whole) // 2], whole[:300] + b"x" + whole[301:]):
        path.with_suffix(".npz").write_bytes(cut)
        with pytest.raises(TextError, match=r"g\.(npz|ir)"):
            load_graph(path)
    path.with_suffix(".npz").unlink()
    assert any(type(c) is External for c in load_graph(path).constants.values())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TextError):
        load_graph(path)


def test_saving_fails_whole(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.ir"
    graph = lower(constants, jnp.ones(4))
    save_graph(graph, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="disk full"):
        save_graph(graph, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# -- equality --------------------------------------------------------------------------------------


def changes() -> dict[str, Graph]:
    """Graphs that each differ from the first in one thing."""
    f32 = Type((), "float32")
    x, y = Value(f32, hint="x"), Value(f32, hint="y")

    def made(
        op: str = "sub", inputs: Any = (x, y), inner: str = "a", outputs: Any = None, **fields: Any
    ) -> Graph:
        region = Graph(inner, (), (Node("f", (), (), fields.pop("deep", {})),), ())
        node = Node(op, inputs, fields.pop("types", [f32]), regions=(region,), **fields)
        constants = fields.pop("constants", {})
        return Graph("g", (x, y), (node,), outputs or node.outputs, constants)

    key = {"c": jax.random.key(0)}
    base = made()
    return {
        "base": base,
        "name": base.with_(name="h"),
        "hint": parse(print_graph(base).replace("%x", "%z")),
        "op": made("add"),
        "operands": made(inputs=(y, x)),
        "literal": made(inputs=(x, Literal(0.0, f32))),
        "negative literal": made(inputs=(x, Literal(-0.0, f32))),
        "type": made(types=[Type((), "float32", weak=True)]),
        "output": made(outputs=(x,)),
        "param": made(params={"a": 1}),
        "param type": made(params={"a": True}),
        "param float": made(params={"a": 1.0}),
        "param name": made(params={"b": 1}),
        "inner name": made(inner="b"),
        "inner param": made(deep={"a": (1,)}),
        "scope": made(scope="s"),
        "phase": made(phase="forward"),
        "effects": made(effects=True),
        "source": made(source=Source(where=Where("f", 1, 2, 3, 4, "g"))),
        "constant": base.with_(constants={"c": np.float32([0.0])}),
        "constant sign": base.with_(constants={"c": np.float32([-0.0])}),
        "constant dtype": base.with_(constants={"c": np.int32([0])}),
        "constant shape": base.with_(constants={"c": np.float32([[0.0]])}),
        "constant nan": base.with_(constants={"c": np.float32([np.nan])}),
        "constant key": base.with_(constants=key),
        "constant other key": base.with_(constants={"c": jax.random.key(1)}),
        "constant rbg key": base.with_(constants={"c": jax.random.key(0, impl="rbg")}),
    }


def test_equality() -> None:
    first, second = changes(), changes()
    for name, graph in first.items():
        assert_survives(graph)
        for other, its in second.items():
            assert (graph == its) == (name == other), (name, other)
    assert first["base"] != "base"


def test_equality_sees_through_copies() -> None:
    a, b = lower(constants, jnp.ones(4)), lower(constants, jnp.ones(4))
    assert a == b
    assert a == a.with_(
        constants={
            k: np.asarray(v) if v.dtype != KEY.dtype and v.dtype != KEYS.dtype else v
            for k, v in a.constants.items()
        }
    )


@pytest.mark.parametrize(
    "type_",
    [
        Type((4, 8), "float8_e4m3fn", scale=()),
        Type((4, 8), "float8_e4m3fn", scale=(4,)),
        Type((4, 300), "float8_e5m2", scale=(4, 3), block=(1, 128)),
        Type((3, 4, 300), "float16", scale=(3, 4, 3), block=(1, 128)),
    ],
    ids=str,
)
def test_scales_of_blocks(type_: Type) -> None:
    x = Value(Type(type_.shape, "float32"), hint="x")
    params = {"dtype": type_.dtype, "block": type_.block, "scale_format": "float8_e8m0fnu"}
    graph = one("quantize", [x], [type_], params=params)
    assert_survives(graph)
    assert parse(print_graph(graph)).outputs[0].type == type_


@pytest.mark.parametrize(
    "text", ["f32[4]/[2]", "f8e4m3fn[4]*scale[2]/[]", "f8e4m3fn[4]*scale[2]/2"]
)
def test_blocks_without_sense(text: str) -> None:
    with pytest.raises(TextError):
        parse(f"graph main(%x: {text}) {{\n  return %x\n}}")
