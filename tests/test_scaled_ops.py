"""The nodes quantize and scaled_dot in emitted source: what is written runs as the kernels do."""

from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.domains.fact import interval as fact_of
from precir.emit import Parameter, Signature, emit, load
from precir.ir import Graph, Literal, Node, Operand, Type, Value
from precir.kernels import E4M3, E8M0FNU, ScaledArray, quantize, scaled_dot
from precir.passes.facts import infer_facts
from precir.scaled import scale_shape
from precir.verify import verify

X, W = Type((8, 40), "float32"), Type((40, 6), "float32")
DIMS = (((1,), (0,)), ((), ()))


def quantized(x: Value, *more: Operand, **params: Any) -> Node:
    block = params.get("block", ())
    kind = Type(x.type.shape, params["dtype"], scale=scale_shape(x.type.shape, block), block=block)
    return Node("quantize", [x, *more], [kind], params)


def product(left: dict[str, Any], right: dict[str, Any], **params: Any) -> Graph:
    x, w = Value(X, hint="x"), Value(W, hint="w")
    a = quantized(x, *left.pop("scale", ()), dtype="float8_e4m3fn", **left)
    b = quantized(w, *right.pop("scale", ()), dtype="float8_e4m3fn", **right)
    params = {"dimension_numbers": DIMS, "dtype": "bfloat16", **params}
    kind = Type((8, 6), params["dtype"])
    dot = Node("scaled_dot", [*a.outputs, *b.outputs], [kind], params)
    return Graph("main", (x, w), (a, b, dot), dot.outputs)


def run(graph: Graph) -> tuple[str, np.ndarray, Any]:
    """The emitted source and its result, for arguments of every size."""
    verify(graph)
    rng = np.random.default_rng(0)
    args = [
        jnp.asarray(
            rng.normal(size=v.type.shape) * 2 ** rng.uniform(-9, 9, v.type.shape), v.type.dtype
        )
        for v in graph.inputs
    ]
    leaf = jax.tree.structure(0)
    signature = Signature("main", tuple(Parameter(v.hint, leaf) for v in graph.inputs), leaf)
    emitted = emit(graph, signature)
    made = load(emitted).main(*args)
    fact = infer_facts(graph)[graph.outputs[0]]
    assert fact.lo <= np.asarray(made, np.float64).min()
    assert np.asarray(made, np.float64).max() <= fact.hi
    return emitted.text, np.asarray(made), args


def number(value: float) -> tuple[Literal]:
    return (Literal(value, Type((), "float32")),)


BLOCK = {"scaling": "current", "block": (1, 16)}
MX = {"scaling": "current", "block": (32, 1), "scale_format": "float8_e8m0fnu"}


def test_blocks() -> None:
    text, made, (x, w) = run(product(BLOCK, MX))
    assert "quantize(x, E4M3, block=(1, 16))" in text
    assert "quantize(w, E4M3, block=(32, 1), scale_format=E8M0FNU)" in text
    a = quantize(x, E4M3, block=(1, 16))
    b = quantize(w, E4M3, block=(32, 1), scale_format=E8M0FNU)
    np.testing.assert_array_equal(made, scaled_dot(a, b, DIMS, out=jnp.bfloat16))


def test_given_scales() -> None:
    left, right = {"scaling": "given", "scale": number(2.0**-5)}, {"scaling": "current"}
    text, made, (x, w) = run(product(left, right, shift=-6))
    assert "quantize(x, E4M3, scale=2.0**-5)" in text
    assert "out=jnp.bfloat16, shift=-6)" in text
    a, b = quantize(x, E4M3, scale=2.0**-5), quantize(w, E4M3)
    np.testing.assert_array_equal(made, scaled_dot(a, b, DIMS, out=jnp.bfloat16, shift=-6))


def test_a_scale_that_is_computed() -> None:
    x, s = Value(X, hint="x"), Value(Type((), "float32"), hint="s")
    q = quantized(x, s, dtype="float16", scaling="given")
    back = Node("scaled_dot", [*q.outputs, *q.outputs], [Type((8, 8), "float16")], {
        "dimension_numbers": (((1,), (1,)), ((), ())), "dtype": "float16", "shift": -20,
    })  # fmt: skip
    graph = Graph("main", (x, s), (q, back), back.outputs)
    verify(graph)
    leaf = jax.tree.structure(0)
    emitted = emit(graph, Signature("main", (Parameter("x", leaf), Parameter("s", leaf)), leaf))
    assert "quantize(x, jnp.float16, scale=s)" in emitted.text
    value = jnp.asarray(np.random.default_rng(0).normal(size=X.shape), jnp.float32)
    made = load(emitted).main(value, jnp.float32(2.0**-9))
    exact = np.asarray(value, np.float64) @ np.asarray(value, np.float64).T * 2.0**-20
    np.testing.assert_allclose(made, exact, atol=2**-24, rtol=2**-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_plain_operands(dtype: str) -> None:
    x, w = Value(Type(X.shape, dtype), hint="x"), Value(Type(W.shape, dtype), hint="w")
    params = {"dimension_numbers": DIMS, "dtype": "float16", "shift": -12}
    dot = Node("scaled_dot", [x, w], [Type((8, 6), "float16")], params)
    text, made, args = run(Graph("main", (x, w), (dot,), dot.outputs))
    assert "scaled_dot(x, w, (((1,), (0,)), ((), ())), out=jnp.float16, shift=-12)" in text
    np.testing.assert_array_equal(made, scaled_dot(*args, DIMS, out=jnp.float16, shift=-12))


@pytest.mark.parametrize("exponent", [-9, 0, 9])
def test_facts_hold_where_all_is_subnormal(exponent: int) -> None:
    """Rounding may double what is as small as the format's least."""
    x = Value(Type((4, 4), "float32"), hint="x")
    q = quantized(x, *number(2.0**exponent), dtype="float8_e4m3fn", scaling="given")
    given = [fact_of(-0.6 * 2.0 ** (exponent - 9), 0.6 * 2.0 ** (exponent - 9))]
    fact = infer_facts(Graph("main", (x,), (q,), q.outputs), given)[q.outputs[0]]
    value = quantize(jnp.float32(0.6 * 2.0 ** (exponent - 9)), E4M3, scale=2.0**exponent)
    assert isinstance(value, ScaledArray)
    assert float(value.unscale()) <= fact.hi
