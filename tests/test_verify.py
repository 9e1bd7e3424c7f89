"""The verifier catches a violation of each invariant.

That it is silent on real programs is tested along with their text, in test_text.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from precir.errors import VerifyError
from precir.ir import Graph, Literal, Node, Region, Type, Value, map_regions
from precir.lower import lower
from precir.source import Source, Where
from precir.verify import verify

F32 = Type((4,), "float32")
SCALAR = Type((), "float32")
E4M3 = Type((4,), "float8_e4m3fn", scale=())


# -- what is sound ---------------------------------------------------------------------------------


def scanned(x: jax.Array) -> Any:
    return lax.scan(lambda c, a: (c + a * x[0], c * a), x[0], x, reverse=True)


def looped(x: jax.Array) -> Any:
    return lax.while_loop(lambda c: c[0] < x[0], lambda c: (c[0] + x[1], jnp.sin(c[1])), (x[2], x))


def branched(x: jax.Array) -> Any:
    return lax.switch(x[0].astype(int), [jnp.sin, jnp.cos, lambda y: y], x)


def checkpointed(x: jax.Array) -> Any:
    return jax.grad(lambda y: jax.checkpoint(jnp.sin)(y).sum())(x)


def reduced(x: jax.Array) -> Any:
    return lax.reduce(x, np.float32(1), lambda a, b: a * b + 1, (0,)), x.at[0].add(1.0)


FUNCTIONS = (scanned, looped, branched, checkpointed, reduced, jax.nn.relu)


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions(fn: Callable[..., Any]) -> None:
    verify(lower(fn, jnp.ones(4)), deep=True)
    verify(lower(jax.vmap(fn), jnp.ones((3, 4))), deep=True)
    if fn not in (looped, reduced):
        verify(lower(lambda x: jax.vjp(fn, x), jnp.ones(4)), deep=True)


# -- what is broken --------------------------------------------------------------------------------


def node(op: str = "neg", inputs: Any = (), types: Any = (F32,), **fields: Any) -> Node:
    return Node(op, inputs, types, **fields)


def graph(*nodes: Node, inputs: Any = (), outputs: Any = None, **fields: Any) -> Graph:
    return Graph(
        "main", tuple(inputs), nodes, nodes[-1].outputs if outputs is None else outputs, **fields
    )


X = Value(F32, hint="x")
Q = Value(E4M3, hint="q")
WHOLE = Value(Type((4,), "int32"), hint="i")
OTHER = Value(F32, hint="f")
IN_TWOS = Type((4,), "float8_e4m3fn", scale=(2,), block=(2,))


def literal(value: Any, dtype: str, weak: bool = False) -> Graph:
    return graph(node("f", [Literal(value, Type((), dtype, weak))]))


def foreign_output() -> Graph:
    a, b = node("f"), node("f")
    b.outputs = a.outputs
    return graph(b)


def read_too_early() -> Graph:
    a = node("neg", [X])
    b = node("neg", a.outputs)
    return graph(b, a, inputs=[X])


def read_from_outside() -> Graph:
    v = Value(F32)
    inner = graph(node("add", [v, X]), inputs=[v])
    return graph(node("remat", [X], regions=(inner,)), inputs=[X])


def with_region(op: str = "f", count: int = 1, **params: Any) -> Graph:
    regions = tuple(graph(node("neg", [v]), inputs=[v]) for v in (Value(F32) for _ in range(count)))
    return graph(node(op, [X], params=params, regions=regions), inputs=[X])


def edited(fn: Callable[..., Any], op: str, change: Callable[[Node], Node]) -> Graph:
    """The graph of `fn` with each node named `op` changed."""
    whole = lower(fn, jnp.ones(4))
    nodes = tuple(change(n) if n.op == op else n for n in whole.nodes)
    return Graph("main", whole.inputs, nodes[: [n.op for n in nodes].index(op) + 1], ())


def params(**changes: Any) -> Callable[[Node], Node]:
    return lambda n: n.like(params={**n.params, **changes})


def retyped(index: int, type_: Type) -> Callable[[Node], Node]:
    """With another type for one result."""

    def change(n: Node) -> Node:
        return n.like(types=[type_ if i == index else v.type for i, v in enumerate(n.outputs)])

    return change


def body(which: int, change: Callable[[Graph], Graph]) -> Callable[[Node], Node]:
    def changed(n: Node) -> Node:
        return n.like(
            regions=tuple(change(r) if i == which else r for i, r in enumerate(n.regions))
        )

    return changed


def no_outputs(region: Graph) -> Graph:
    return region.with_(outputs=region.outputs[:-1])


def more_inputs(region: Graph) -> Graph:
    return region.with_(inputs=(*region.inputs, Value(SCALAR)))


def other_outputs(region: Graph) -> Graph:
    last = Literal(0, Type((), "int32"))
    return region.with_(outputs=(*region.outputs[:-1], last))


def quantized(op: str, inputs: Any, type_: Type, **fields: Any) -> Graph:
    return graph(node(op, inputs, [type_], params=fields), inputs=inputs)


DOT = {"dtype": "float32", "dimension_numbers": (((0,), (0,)), ((), ()))}

BROKEN: dict[str, tuple[Callable[[], Graph], str]] = {
    "operand kind": (lambda: graph(node("f", [1.0])), "neither a value nor a literal"),
    "output kind": (lambda: graph(node(), outputs=(2,)), "neither a value nor a literal"),
    "twice": (lambda: graph(*[node()] * 2), "stands twice"),
    "output of another": (foreign_output, "result 0 says it is"),
    "input of a node": (lambda: graph(node(), inputs=node().outputs), "is the result of a node"),
    "input twice": (lambda: graph(node(), inputs=[X, X]), "two inputs are one value"),
    "too early": (read_too_early, "not defined before it"),
    "undefined": (lambda: graph(node("neg", [X])), "not defined before it"),
    "open region": (read_from_outside, "not defined before it"),
    "returned": (lambda: graph(node(), outputs=[X]), "which it does not define"),
    "no dtype": (lambda: graph(node("f", types=[Type((), "")])), "no dtype"),
    "negative": (lambda: graph(node("f", types=[Type((-1,), "int8")])), "a negative size"),
    "scale": (
        lambda: graph(node("f", types=[Type((4, 4), "int8", scale=(1,))])),
        "a scale of shape",
    ),
    "literal too fine": (lambda: literal(0.1, "float32"), "no value of its type"),
    "literal too large": (lambda: literal(1e39, "float32", True), "no value of its type"),
    "literal infinite": (lambda: literal(float("inf"), "float8_e4m3fn"), "no value of its type"),
    "literal int": (lambda: literal(128, "int8"), "no value of its type"),
    "literal negative": (lambda: literal(-1, "uint32"), "no value of its type"),
    "literal int as float": (lambda: literal(1, "float32"), "no value of its type"),
    "literal bool as int": (lambda: literal(True, "int32"), "no value of its type"),
    "literal float as complex": (lambda: literal(1.0, "complex64"), "no value of its type"),
    "literal returned": (
        lambda: graph(node(), outputs=[Literal(1, SCALAR)]),
        "no value of its type",
    ),
    "literal key": (lambda: literal(1, "key<fry>"), "no value of its type"),
    "region unnamed": (lambda: with_region(), "no parameter refers to its 1 regions"),
    "region missing": (lambda: with_region(a=Region(1, True)), "regions [1] of 1"),
    "region twice": (
        lambda: with_region(a=Region(0, True), b=Region(0, True)),
        "regions [0, 0] of 1",
    ),
    "region without": (
        lambda: graph(node("f", params={"a": Region(0, False)})),
        "regions [0] of 0",
    ),
    "region constants": (
        lambda: graph(
            node(
                "f",
                params={"a": Region(0, True)},
                regions=(graph(node(), constants={"c": np.zeros(4)}),),
            )
        ),
        "keeps constants",
    ),
    "constant": (lambda: graph(node("constant", params={"name": "c"})), "has no constant c"),
    "scan regions": (
        lambda: with_region("scan", 2, num_consts=0, num_carry=1, length=1),
        "2 regions",
    ),
    "scan count": (lambda: edited(scanned, "scan", params(num_carry=None)), "num_carry is None"),
    "scan operands": (lambda: edited(scanned, "scan", params(num_consts=9)), "fewer operands"),
    "scan consts": (lambda: edited(scanned, "scan", params(num_consts=0)), "body"),
    "scan length": (lambda: edited(scanned, "scan", params(length=3)), "scanned operands"),
    "scan carry": (lambda: edited(scanned, "scan", retyped(0, F32)), "carried results"),
    "scan stack": (lambda: edited(scanned, "scan", retyped(1, SCALAR)), "stacked results"),
    "scan body": (lambda: edited(scanned, "scan", body(0, no_outputs)), "stacked results"),
    "scan inputs": (lambda: edited(scanned, "scan", body(0, more_inputs)), "scanned operands"),
    "while regions": (
        lambda: edited(looped, "while", lambda n: n.like(regions=n.regions[:1])),
        "1 regions, expected 2",
    ),
    "while counts": (lambda: edited(looped, "while", params(body_nconsts=0)), "inputs of the"),
    "while cond": (
        lambda: edited(looped, "while", body(0, other_outputs)),
        "results of the condition",
    ),
    "while body": (lambda: edited(looped, "while", body(1, other_outputs)), "results of the body"),
    "while results": (lambda: edited(looped, "while", retyped(0, F32)), "results: number 0"),
    "cond branch": (
        lambda: edited(branched, "cond", body(2, other_outputs)),
        "results of branch 2",
    ),
    "cond inputs": (lambda: edited(branched, "cond", body(1, more_inputs)), "inputs of branch 1"),
    "cond index": (
        lambda: graph(node("cond", [X, X], regions=with_region().nodes[0].regions), inputs=[X]),
        "the branch is chosen by float32[4]",
    ),
    "cond empty": (lambda: graph(node("cond")), "0 branches"),
    "remat": (lambda: edited(checkpointed, "remat", body(0, more_inputs)), "inputs of the body"),
    "custom": (lambda: with_region("custom_jvp_call", 2), "2 regions, expected 1"),
    "custom results": (
        lambda: edited(jax.nn.relu, "custom_jvp_call", retyped(0, SCALAR)),
        "results of the body: number 0 is float32[4], expected float32[]",
    ),
    "shard_map": (
        lambda: graph(
            node("shard_map", [X, X], regions=with_region().nodes[0].regions), inputs=[X]
        ),
        "1 inputs of the body, expected 2",
    ),
    "cast": (lambda: quantized("cast", [X], F32, dtype="bfloat16"), "expected bfloat16[4]"),
    "cast shape": (lambda: quantized("cast", [X], SCALAR, dtype="float32"), "expected float32[4]"),
    "cast scale": (lambda: quantized("cast", [X], E4M3, dtype="float8_e4m3fn"), "expected float8"),
    "cast operands": (lambda: quantized("cast", [], F32, dtype="float32"), "0 operands"),
    "quantize": (lambda: quantized("quantize", [X], F32, dtype="float32"), "with a scale of []"),
    "quantize twice": (lambda: quantized("quantize", [Q], E4M3, dtype=E4M3.dtype), "already"),
    "quantize ints": (
        lambda: quantized("quantize", [Value(Type((4,), "int32"))], E4M3, dtype=E4M3.dtype),
        "expected a floating-point array",
    ),
    "quantize block": (
        lambda: quantized("quantize", [X], E4M3, dtype="float8_e4m3fn", block=(2,)),
        "expected float8_e4m3fn[4] with a scale of [2] for blocks of [2]",
    ),
    "quantize no block": (
        lambda: quantized("quantize", [X], E4M3, dtype="float8_e4m3fn", block=(1, 2)),
        "expected sizes of some of the last axes",
    ),
    "quantize scales": (
        lambda: quantized("quantize", [X], E4M3, dtype="float8_e4m3fn", scale_format="float16"),
        "expected float32 or float8_e8m0fnu",
    ),
    "quantize given": (
        lambda: quantized("quantize", [X], E4M3, dtype="float8_e4m3fn", scaling="given"),
        "1 operands and 1 results, expected 2",
    ),
    "quantize given scales": (
        lambda: quantized("quantize", [X, OTHER], E4M3, dtype="float8_e4m3fn", scaling="given"),
        "expected float32[]",
    ),
    "quantize given block": (
        lambda: quantized(
            "quantize",
            [X, Value(SCALAR)],
            IN_TWOS,
            dtype="float8_e4m3fn",
            scaling="given",
            block=(2,),
        ),
        "one for the whole tensor",
    ),
    "block": (
        lambda: graph(node("f", types=[Type((4,), "float8_e4m3fn", scale=(4,), block=(2,))])),
        "a scale of shape",
    ),
    "block of plain": (
        lambda: graph(node("f", types=[Type((4,), "float32", block=(2,))])),
        "no blocks of scaled data",
    ),
    "block of none": (
        lambda: graph(node("f", types=[Type((4,), "float32", scale=(4,), block=(0,))])),
        "no blocks of scaled data",
    ),
    "dot": (
        lambda: quantized("scaled_dot", [WHOLE, Q], SCALAR, **DOT),
        "expected quantised ones",
    ),
    "dot shift": (
        lambda: quantized("scaled_dot", [X, Q], SCALAR, **DOT, shift=127),
        "a whole number up to 126",
    ),
    "dot shape": (
        lambda: quantized("scaled_dot", [Q], F32, **DOT),
        "1 operands",
    ),
    "dot result": (
        lambda: graph(node("scaled_dot", [Q, Q], [F32], params=DOT), inputs=[Q]),
        "expected float32[]",
    ),
    "dot dimensions": (
        lambda: graph(
            node("scaled_dot", [Q, Q], params={"dtype": "float32", "dimension_numbers": 1}),
            inputs=[Q],
        ),
        "do not fit the operands",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    make, message = BROKEN[name]
    with pytest.raises(VerifyError) as error:
        verify(make())
    assert message in str(error.value)


def test_broken_below() -> None:
    """Sub-graphs of sub-graphs are looked at too."""

    def nested(x: jax.Array) -> Any:
        return lax.scan(lambda c, a: (scanned(a)[0], a), x[0], jnp.stack([x, x]))

    def spoil(region: Graph) -> Graph:
        return region.with_(outputs=(*region.outputs[:-1], Value(SCALAR)))

    whole = lower(nested, jnp.ones(4))
    verify(whole)
    with pytest.raises(VerifyError, match="which it does not define"):
        verify(map_regions(whole, spoil))


def test_error_names_pass_node_and_line() -> None:
    source = Source(where=Where("a/train.py", 57, 0, 57, 9, "f"))
    broken = graph(node("neg", [X], source=source, scope="mlp"))
    with pytest.raises(VerifyError) as error:
        verify(broken, after="fold_constants")
    assert "broken graph made by fold_constants: operand" in str(error.value)
    assert "train.py:57, %neg: f32[4] = neg(%undefined)" in str(error.value)


def deep_cases() -> dict[str, Graph]:
    y = Value(Type((4,), "int32"))
    return {
        "shape": graph(node("reduce_sum", [X], [F32], params={"axes": (0,)}), inputs=[X]),
        "dtype": graph(node("sin", [X], [Type((4,), "bfloat16")]), inputs=[X]),
        "refused": graph(node("sub", [X, y]), inputs=[X, y]),
        "below": edited(scanned, "scan", body(0, spoil_sum)),
    }


def spoil_sum(region: Graph) -> Graph:
    nodes = [n.like(op="gt") if n.op == "add" else n for n in region.nodes]
    return Graph("body", region.inputs, tuple(nodes), region.outputs)


@pytest.mark.parametrize("name", ["shape", "dtype", "refused"])
def test_deep(name: str) -> None:
    broken = deep_cases()[name]
    verify(broken)
    with pytest.raises(VerifyError, match="JAX"):
        verify(broken, deep=True)
