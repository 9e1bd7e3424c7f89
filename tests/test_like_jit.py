"""A compiled function behaves as jax.jit's does: called, transformed, lowered, refused."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import precir
from precir.errors import DerivativeError
from tests.programs import assert_bit_identical
from tests.programs.plain import mlp, mlp_init, mse

X = np.linspace(-1, 1, 8, dtype=np.float32)
W = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


def wave(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(x) * x)


def affine(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


@jax.custom_vjp
def rounded(x: jax.Array) -> jax.Array:
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (3 * g,))


# Calls.


def test_decorator() -> None:
    @precir.compile
    def plain(x):
        """Doubles."""
        return 2 * x

    @precir.compile(recipe="float32", static_argnames="n")
    def power(x, *, n):
        return x**n

    assert (plain.__name__, plain.__doc__) == ("plain", "Doubles.")
    assert_bit_identical(plain(X), 2 * X)
    assert_bit_identical(power(X, n=3), jax.jit(lambda x: x**3)(X))
    assert "plain" in repr(plain)
    assert "float32" in repr(plain)


@pytest.mark.parametrize("static", [
    {"static_argnums": 1}, {"static_argnums": (-1,)}, {"static_argnames": "n"},
    {"static_argnames": ("n",)}, {"static_argnums": (1,), "static_argnames": ("n",)},
])  # fmt: skip
def test_static_arguments(static: dict[str, Any]) -> None:
    def repeat(x, n):
        return sum(x * i for i in range(n))

    mine, theirs = precir.compile(repeat, **static), jax.jit(repeat, **static)
    for n in (2, 3, 2):
        assert_bit_identical(mine(X, n), theirs(X, n))
    if static != {"static_argnums": (-1,)}:
        assert_bit_identical(mine(X, n=4), theirs(X, n=4))


def test_static_in_the_middle_and_donated() -> None:
    def step(state, name, x, scale=2.0, *, sign):
        return {"a": state["a"] + getattr(jnp, name)(x) * scale * sign}

    options = {"static_argnums": (1,), "static_argnames": "sign", "donate_argnums": (0,)}
    mine, theirs = precir.compile(step, **options), jax.jit(step, **options)
    for name in ("sin", "cos"):
        a, b = jnp.asarray(X), jnp.asarray(X)
        args = (name, X, np.float32(3))
        assert_bit_identical(mine({"a": a}, *args, sign=-1), theirs({"a": b}, *args, sign=-1))
        assert a.is_deleted()
        assert b.is_deleted()


@pytest.mark.parametrize("donated", [{"donate_argnums": 0}, {"donate_argnames": "state"}])
def test_donation(donated: dict[str, Any]) -> None:
    step = precir.compile(lambda state, x: state + x, **donated)
    state = jnp.asarray(X)
    x = jnp.ones(8)
    assert_bit_identical(step(state, x), X + 1)
    assert state.is_deleted()
    assert not x.is_deleted()


def test_keywords_defaults_and_varargs() -> None:
    def f(a, b=2.0, *rest, c, d=None, **more):
        total = a * b + c + sum(rest) + sum(more.values())
        return total if d is None else total - d["x"]

    mine, theirs = precir.compile(f), jax.jit(f)
    for args, kwargs in [
        ((X,), {"c": 1.0}), ((X, 3.0), {"c": X}), ((X, X, X, 2.0), {"c": 1}),
        ((X,), {"c": 1.0, "d": {"x": X}, "z": X, "y": 3.0}), ((), {"c": 1.0, "a": X, "b": X}),
    ]:  # fmt: skip
        assert_bit_identical(mine(*args, **kwargs), theirs(*args, **kwargs))


def test_traced_once_for_each_signature() -> None:
    traced = []

    @precir.compile
    def f(x):
        traced.append(x.shape)
        return x * 2

    for _ in range(3):
        f(jnp.ones(3))
    assert len(traced) == 1
    f(jnp.ones(4))
    f(jnp.ones(3, jnp.int32))
    f(jnp.ones(3))
    f(np.ones(3, np.float32))
    assert len(traced) == 3
    f.clear_cache()
    f(jnp.ones(3))
    assert len(traced) == 4


def test_methods() -> None:
    class Model:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        @partial(precir.compile, static_argnums=0)
        def __call__(self, x):
            return x * self.scale

        @partial(precir.compile, static_argnums=0, static_argnames="twice")
        def other(self, x, twice=False):
            return x + self.scale * (1 + twice)

    a, b = Model(2.0), Model(3.0)
    assert_bit_identical([a(X), b(X)], [X * 2, X * 3])
    assert_bit_identical([a.other(X), b.other(X, twice=True)], [X + 2, X + 6])
    assert_bit_identical(precir.compile(a.other)(X), X + 2)


@partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["name"])
class Layer:
    def __init__(self, w: Any, name: str) -> None:
        self.w, self.name = w, name


class Pair(NamedTuple):
    first: Any
    second: Any


def test_pytrees() -> None:
    def f(tree, nothing, empty):
        layer, pair = tree["layer"], tree["pair"]
        scale = 2 if layer.name == "double" else 1
        new = Layer(layer.w * scale, layer.name)
        return {(1, 2): new, (0, 1): pair}, {3: Pair(pair.second, nothing)}, None, empty, ()

    mine, theirs = precir.compile(f), jax.jit(f)
    for name in ("double", "single"):
        tree = {"layer": Layer(X, name), "pair": Pair(1.0, [X, {"a": None}])}
        assert_bit_identical(mine(tree, None, {}), theirs(tree, None, {}))


def test_static_pytree() -> None:
    f = precir.compile(lambda x, shape: x.reshape(shape), static_argnums=1)
    assert f(X, (2, 4)).shape == (2, 4)
    assert f(X, (4, 2)).shape == (4, 2)


def test_results_are_typed_as_jit_types_them() -> None:
    def f(x):
        return x * 2, jnp.asarray(2), 3, x.astype(int), jax.random.key(0), 1.5 * jnp.float32(2)

    for a, b in zip(precir.compile(f)(1.0), jax.jit(f)(1.0), strict=True):
        assert jax.typeof(a) == jax.typeof(b)


def test_keep_unused() -> None:
    for keep in (False, True):
        mine = precir.compile(lambda x, y: x + 1, keep_unused=keep).lower(X, W).compile()
        theirs = jax.jit(lambda x, y: x + 1, keep_unused=keep).lower(X, W).compile()
        assert mine.as_text().count("parameter(") == theirs.as_text().count("parameter(")


# Lowering, ahead of time.


def test_trace_lower_compile() -> None:
    f = precir.compile(affine)
    expected = jax.jit(affine)(W, X)
    shapes = jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.float32)
    assert_bit_identical(f.trace(*shapes).lower().compile()(W, X), expected)
    assert_bit_identical(f.lower(*shapes).compile()(W, X), expected)
    assert_bit_identical(f.lower(W, X).compile()(W, X), expected)
    assert f.eval_shape(*shapes).shape == (8,)
    assert "dot_general" in f.lower(W, X).as_text()
    with pytest.raises(TypeError, match="compiled"):
        f.lower(W, X).compile()(W[:4], X[:4])


def mesh() -> Any:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_shardings() -> None:
    rows = NamedSharding(mesh(), PartitionSpec("data"))
    whole = NamedSharding(rows.mesh, PartitionSpec())
    batch = np.tile(X, (16, 1))
    options = {"in_shardings": (whole, rows), "out_shardings": rows}
    mine, theirs = precir.compile(affine, **options), jax.jit(affine, **options)
    assert_bit_identical(mine(W, batch), theirs(W, batch))
    assert mine(W, batch).sharding == rows
    abstract = (
        jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=rows),
    )
    plain = precir.compile(affine).lower(*abstract).compile()
    assert plain.input_shardings == jax.jit(affine).lower(*abstract).compile().input_shardings
    args = jax.device_put(W, whole), jax.device_put(batch, rows)
    assert_bit_identical(plain(*args), theirs(W, batch))


# Inside other transformations.

TRANSFORMED = {
    "jit": lambda f: jax.jit(f),
    "grad": lambda f: jax.grad(lambda x: jnp.sum(f(x))),
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])),
    "vmap of grad": lambda f: (
        lambda x: jax.vmap(jax.grad(lambda x: jnp.sum(f(x))))(jnp.stack([x, 2 * x]))
    ),
    "grad of vmap": lambda f: jax.grad(lambda x: jnp.sum(jax.vmap(f)(jnp.stack([x, 2 * x])))),
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), c), x, None, length=3),
    "grad of scan": lambda f: jax.grad(
        lambda x: jnp.sum(jax.lax.scan(lambda c, _: (f(c), None), x, None, length=3)[0])
    ),
    "while": lambda f: lambda x: jax.lax.fori_loop(0, jnp.int32(3), lambda i, c: f(c), x),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] < 0, f, lambda x: x, x),
    "remat": lambda f: jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: f(f(x)))(x))),
    "linearize": lambda f: lambda x: jax.vjp(f, x)[1](x)[0],
    "jacrev": lambda f: jax.jacrev(f),
    "shard_map": lambda f: jax.shard_map(
        f, mesh=mesh(), in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    ),
    "in itself": lambda f: precir.compile(f),
    "grad of itself": lambda f: precir.compile(jax.grad(lambda x: jnp.sum(f(x)))),
}
FUNCTIONS = {
    "smooth": lambda x: jnp.tanh(x) * x,
    "custom rule": lambda x: rounded(x) * x,
    "relu": lambda x: jax.nn.relu(x) + x,
}


@pytest.mark.parametrize("around", TRANSFORMED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transformed(around: str, name: str) -> None:
    f, transform = FUNCTIONS[name], TRANSFORMED[around]
    mine = jax.jit(transform(precir.compile(f)))(X)
    assert_bit_identical(mine, jax.jit(transform(jax.jit(f)))(X))


def test_gradient_at_once_and_within_jit() -> None:
    params, batch = mlp_init(0), (W, np.ones((8, 4), np.float32))
    mine, theirs = precir.compile(mse), jax.jit(mse)
    np.testing.assert_array_equal(mine(params, *batch), theirs(params, *batch))
    for wrap in (lambda f: f, jax.jit):
        a = wrap(jax.value_and_grad(mine))(params, *batch)
        b = wrap(jax.value_and_grad(theirs))(params, *batch)
        assert jax.tree.all(jax.tree.map(lambda u, v: np.allclose(u, v, 1e-6, 1e-6), a, b))


@precir.compile
def many(params, key, steps, x):
    noise = jax.random.normal(key, x.shape)
    y = x * params["w"] + noise
    return jnp.sum(y * y), {"y": y, "steps": steps + 1, "key": jax.random.fold_in(key, steps)}


def test_aux_keys_and_integers() -> None:
    plain = jax.jit(many.__wrapped__)
    args = {"w": jnp.float32(2)}, jax.random.key(1), np.int32(3), X
    mine = jax.jit(jax.value_and_grad(many, has_aux=True))(*args)
    assert_bit_identical(mine, jax.jit(jax.value_and_grad(plain, has_aux=True))(*args))
    both = partial(jax.grad, argnums=(0, 3), has_aux=True)
    assert_bit_identical(jax.jit(both(many))(*args), jax.jit(both(plain))(*args))
    inexact = jax.grad(lambda *a: many(*a)[0], argnums=(0, 2), allow_int=True)
    assert inexact(*args)[1].dtype == jax.dtypes.float0


def test_gradient_of_an_unused_and_of_an_unreached_argument() -> None:
    f = precir.compile(lambda x, y, z: (jnp.sum(x * x), jnp.sum(y)))
    gradients = jax.grad(lambda *a: f(*a)[0], argnums=(0, 1, 2))(X, X, X)
    assert_bit_identical(gradients, (2 * X, np.zeros_like(X), np.zeros_like(X)))


# Values of an outer trace that the function closes over.


@pytest.mark.parametrize("name", FUNCTIONS)
def test_closure_over_an_outer_value(name: str) -> None:
    inner = FUNCTIONS[name]

    def outer(x, w, wrap):
        return jnp.sum(wrap(lambda x: inner(x) * jnp.sin(w) + inner(w))(x))

    mine = jax.jit(jax.value_and_grad(partial(outer, wrap=precir.compile), argnums=(0, 1)))
    theirs = jax.jit(jax.value_and_grad(partial(outer, wrap=jax.jit), argnums=(0, 1)))
    assert_bit_identical(mine(X, 2 * X), theirs(X, 2 * X))


def test_closure_in_scan() -> None:
    def outer(x, w, wrap):
        def body(c, t):
            return wrap(lambda c: jnp.tanh(c * w + t))(c), None

        return jnp.sum(jax.lax.scan(body, x, jnp.arange(3.0))[0])

    mine = jax.jit(jax.grad(partial(outer, wrap=precir.compile), argnums=(0, 1)))
    theirs = jax.jit(jax.grad(partial(outer, wrap=jax.jit), argnums=(0, 1)))
    assert_bit_identical(mine(X, 2 * X), theirs(X, 2 * X))


def test_gradient_with_a_debug_print(capfd: Any) -> None:
    def f(x):
        y = rounded(x) * x
        jax.debug.print("y0 = {}", y[0])
        return jnp.sum(y)

    mine, theirs = jax.grad(precir.compile(f))(X), jax.grad(jax.jit(f))(X)
    jax.effects_barrier()
    assert_bit_identical(mine, theirs)
    assert capfd.readouterr().out.count("y0 = ") >= 2


# Derivatives beyond the first reverse one: right, or refused with the way out.

BEYOND = {
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1],
    "jacfwd": jax.jacfwd,
    "hessian": jax.hessian,
    "grad of grad": lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2)),
    "jvp of grad": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.ones_like(x),))[1],
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](x),
}


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["at once", "in jit"])
@pytest.mark.parametrize("around", BEYOND)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_further_derivatives(name: str, around: str, outer: Any) -> None:
    def f(x):
        return jnp.sum(FUNCTIONS[name](x) ** 2)

    derive = BEYOND[around]
    try:
        mine = outer(derive(precir.compile(f)))(X)
    except TypeError as error:
        # JAX refuses by itself, in its own words, only where the call is long over.
        late = around == "linearize" or outer is jax.jit
        ours = isinstance(error, DerivativeError) and "precir.compile" in str(error)
        assert ours or (late and "custom_vjp" in str(error))  # noqa: PT017
    else:
        np.testing.assert_allclose(mine, outer(derive(jax.jit(f)))(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("around", [k for k in BEYOND if k != "linearize"])
def test_the_way_out_of_further_derivatives(around: str) -> None:
    def f(x):
        return jnp.sum(jnp.tanh(x) ** 2)

    derive = BEYOND[around]
    assert_bit_identical(precir.compile(derive(f))(X), jax.jit(derive(f))(X))


@pytest.mark.parametrize("recipe", ["bf16-mixed", "fp8"])
def test_further_derivatives_of_a_low_precision_model(recipe: str) -> None:
    f = precir.compile(lambda x: jnp.sum(jnp.tanh(x @ W) @ W), recipe=recipe)
    assert np.isfinite(jax.grad(f)(X)).all()
    with pytest.raises(DerivativeError, match=r"precir\.compile"):
        jax.hessian(f)(X)


# What jit refuses is refused, by an error of the same type.

REFUSED = {
    "python branch on a tracer": (lambda x: x if x > 0 else -x, (np.float32(1),), {}),
    "conversion to a number": (lambda x: float(x), (np.float32(1),), {}),
    "conversion to numpy": (lambda x: np.asarray(x), (X,), {}),
    "argument is no array": (lambda x: x, ("text",), {}),
    "result is no array": (lambda x: "text", (X,), {}),
    "result is an object": (lambda x: object(), (X,), {}),
    "unhashable static": (lambda x, n: x, (X, [1]), {"static_argnums": 1}),
    "static number out of range": (lambda x: x, (X,), {"static_argnums": 3}),
    "static name unknown": (lambda x: x, (X,), {"static_argnames": "n"}),
    "donated number out of range": (lambda x: x, (X,), {"donate_argnums": 3}),
    "static and donated": (lambda x: x, (X,), {"static_argnums": 0, "donate_argnums": 0}),
    "too few arguments": (lambda x, y: x, (X,), {}),
    "shapes that do not fit": (lambda x: x @ jnp.ones((3, 3)), (X,), {}),
    "an index of dynamic length": (lambda x: x[x > 0], (X,), {}),
    "the user's own": (lambda x: {}["missing"], (X,), {}),
}


def outcome(compile_: Any, fn: Any, args: Any, options: Any) -> tuple[type, str] | None:
    try:
        compile_(fn, **options)(*args)
    except Exception as error:
        return type(error), str(error).splitlines()[0] if str(error) else ""
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_jit_refuses(name: str) -> None:
    fn, args, options = REFUSED[name]
    mine, theirs = outcome(precir.compile, fn, args, options), outcome(jax.jit, fn, args, options)
    assert theirs is not None
    assert mine is not None
    assert mine[0] is theirs[0], f"{mine} against {theirs}"
    assert mine[1][:40] == theirs[1][:40]


def test_leaked_tracer() -> None:
    leaks = []

    @precir.compile
    def f(x):
        leaks.append(x)
        return x * 2

    assert_bit_identical(f(X), X * 2)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        leaks[0] + 1


def test_what_is_not_a_function() -> None:
    for value in (3, "f", None, X):
        if value is not None:
            with pytest.raises(TypeError, match="function"):
                precir.compile(value)


def test_mlp_of_another_module() -> None:
    params = mlp_init(0)
    assert_bit_identical(precir.compile(mlp)(params, W), jax.jit(mlp)(params, W))
