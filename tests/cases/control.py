"""Loops, branches, rematerialisation, custom rules, calls."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.cases.case import array, f32, i32, table

CASES, case = table("control")

# scan


@case(f32(), f32(5, 3))
@case(f32(3), f32(0, 3))
@case(f32(1, 3), f32(1, 3))
def scan(c, xs):
    return lax.scan(lambda c, x: (c + x.sum(), c * x), c, xs)


@case(f32(3), f32(5, 3))
def scan_reverse(c, xs):
    return lax.scan(lambda c, x: (c * 0.5 + x, c - x), c, xs, reverse=True)


@case(f32(3), f32(6, 3))
def scan_unroll(c, xs):
    return lax.scan(lambda c, x: (c * 0.5 + x, c - x), c, xs, unroll=2)


@case(f32(3), f32(6, 3))
def scan_unroll_all(c, xs):
    return lax.scan(lambda c, x: (c * 0.5 + x, None), c, xs, unroll=True)


@case(f32(3))
def scan_without_xs(c):
    return lax.scan(lambda c, _: (jnp.sin(c), c.sum()), c, None, length=4)


@case(f32(4, 3))
def scan_without_carry(xs):
    return lax.scan(lambda c, x: (c, (x, x * x)), None, xs)


@case(f32(3))
def scan_of_nothing(c):
    return lax.scan(lambda c, _: (c, None), c, None, length=3)


@case({"a": f32(2), "b": (i32(), None)}, [f32(4, 2), array(bool, 4)])
def scan_trees(c, xs):
    def body(c, x):
        value, flag = x
        a = jnp.where(flag, c["a"] + value, c["a"])
        n, _ = c["b"]
        return {"a": a, "b": (n + 1, None)}, {"seen": a.sum(), "n": n}

    return lax.scan(body, c, xs)


@case(f32(3), f32(4, 3))
def scan_constants(w, xs):
    table = jnp.arange(12.0).reshape(4, 3)
    return lax.scan(lambda c, x: (c + w * x, c @ table.T), jnp.zeros(3), xs)


@case(f32(4, 3))
def scan_weak_carry(xs):
    return lax.scan(lambda c, x: (c + x.sum(), c), 0.0, xs)


@case()
def scan_weak_kept():
    return lax.scan(lambda c, _: (c * 2, c), 1, None, length=4)


@case(f32(3, 4, 2))
def scan_nested(xs):
    def outer(c, x):
        c, ys = lax.scan(lambda c, y: (c + y, c * y), c, x)
        return c, ys.sum()

    return lax.scan(outer, jnp.ones(2), xs)


@case(f32(5))
def scan_output_is_carry_twice(xs):
    return lax.scan(lambda c, x: ((c[1], c[0]), (c[0], c[0], x, 3.0)), (1.0, 2.0), xs)


@case(array(jnp.bfloat16, 3), array(jnp.bfloat16, 4, 3))
@case(array(np.float16, 3), array(np.float16, 4, 3))
@case(array(np.uint8, 3), array(np.uint8, 4, 3))
@case(array(np.complex64, 3), array(np.complex64, 4, 3))
def scan_dtypes(c, xs):
    return lax.scan(lambda c, x: (c * x, c + x), c, xs)


@case(7)
def scan_keys(seed):
    def body(key, _):
        key, now = jax.random.split(key)
        return key, (now, jax.random.normal(now, (2,)))

    return lax.scan(body, jax.random.key(seed), None, length=3)


@case(f32(4))
def scan_carries_an_input_through(xs):
    return lax.scan(lambda c, x: ((c[0], c[1] + x), None), (jnp.float32(2), jnp.float32(0)), xs)


@case(f32(3), f32(4, 3))
def scan_gradient(w, xs):
    def loss(w):
        c, ys = lax.scan(lambda c, x: (jnp.tanh(c * w + x), c.sum()), jnp.zeros(3), xs)
        return c.sum() + ys.sum()

    return jax.value_and_grad(loss)(w)


@case(f32(5, 3))
@case(f32(1, 3))
def associative_scan(xs):
    return lax.associative_scan(jnp.maximum, xs), lax.associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (xs, xs), reverse=True, axis=1
    )


@case(f32(5, 3))
def map_(xs):
    return lax.map(lambda x: (x.sum(), x * 2), xs), lax.map(jnp.sin, xs, batch_size=2)


# while and fori_loop


@case(f32())
def while_(x):
    return lax.while_loop(lambda c: jnp.abs(c) > 0.1, lambda c: c / 2, x)


@case(f32(3), 4)
def while_tuple(x, n):
    return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * x), (0, x))


@case({"n": i32(), "x": f32(2)})
def while_tree(c):
    out = lax.while_loop(lambda c: c["n"] < 12, lambda c: {"n": c["n"] + 3, "x": c["x"] - 1}, c)
    return out["x"], out["n"]


@case(f32(3))
def while_never(x):
    return lax.while_loop(lambda c: False, lambda c: c + 1, x)


@case(f32(4))
def while_with_constants(x):
    limit = jnp.asarray(np.linspace(1, 9, 4), jnp.float32)
    return lax.while_loop(lambda c: (c < limit).any(), lambda c: c + jnp.abs(x) + 0.5 * limit, x)


@case(f32(3))
def while_batched(x):
    return jax.vmap(lambda v: lax.while_loop(lambda c: c < 3, lambda c: c + v, 1.0))(jnp.abs(x))


@case(f32(3))
def fori(x):
    return lax.fori_loop(0, 5, lambda i, c: c * 0.5 + i, x)


@case(f32(3), 6)
def fori_dynamic(x, n):
    return lax.fori_loop(2, n, lambda i, c: (c[0] + i, c[1].at[i % 3].add(1.0)), (0.0, x))


@case(f32(3))
def fori_unroll(x):
    return lax.fori_loop(0, 6, lambda i, c: c + i * x, x, unroll=3)


@case(f32(3))
def fori_uint8(x):
    return lax.fori_loop(np.uint8(1), np.uint8(4), lambda i, c: c + i.astype(c.dtype), x)


@case(3)
def fori_keys(seed):
    return lax.fori_loop(0, 3, lambda i, k: jax.random.fold_in(k, i), jax.random.key(seed))


@case(f32(6))
def fori_in_place(x):
    def body(i, x):
        return lax.dynamic_update_slice(x, lax.dynamic_slice(x, (i,), (2,)) * 2, (i - 1,))

    return lax.fori_loop(0, 6, body, x)


# cond and switch


@case(True, f32(3))
@case(False, f32(3))
def cond(p, x):
    return lax.cond(p, jnp.sin, jnp.cos, x)


@case(i32(), f32(3))
def cond_of_number(n, x):
    return lax.cond(n, lambda x: x + 1, lambda x: x - 1, x)


@case(array(bool), f32(3), {"a": f32(2)})
def cond_trees(p, x, t):
    return lax.cond(
        p,
        lambda x, t: {"y": x, "z": (t["a"], 1)},
        lambda x, t: {"y": x * 2, "z": (t["a"], 2)},
        x,
        t,
    )


@case(array(bool))
def cond_without_operands(p):
    return lax.cond(p, lambda: 1.0, lambda: 2.0)


@case(array(bool), f32(3))
def cond_closure(p, x):
    y = x * 2
    return lax.cond(p, lambda: x + y, lambda: y)


@case(array(bool), f32(3))
def cond_weak(p, x):
    return lax.cond(p, lambda: (1.0, 2), lambda: (x.sum(), 3)), lax.cond(
        p, lambda: None, lambda: None
    )


@case(array(bool, 3), f32(3))
def cond_batched(p, x):
    return jax.vmap(lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x))(p, x)


@case(f32(3), array(bool))
def cond_gradient(x, p):
    return jax.grad(lambda x: lax.cond(p, lambda x: (x**2).sum(), lambda x: x.prod(), x))(x)


@case(1, f32(3))
@case(7, f32(3))
@case(-3, f32(3))
@case(np.uint8(2), f32(3))
@case(np.int8(-2), f32(3))
def switch(i, x):
    return lax.switch(i, [jnp.sin, jnp.cos, lambda x: x * 2], x)


@case(i32(), f32(3))
def switch_of_one_and_two(i, x):
    return lax.switch(i, [jnp.sin], x), lax.switch(i, [jnp.sin, jnp.cos], x)


@case(i32(4), f32(4))
def switch_batched(i, x):
    return jax.vmap(lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, lambda x: x * 2], x))(i, x)


@case(f32(4))
def switch_on_used_index(x):
    i = jnp.clip(jnp.argmax(x), 0, 2)
    p = x[0] > 0
    return i, lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), lax.cond(p, jnp.sin, jnp.cos, x), p


@case(f32(4))
def cond_in_scan(xs):
    def body(c, x):
        return lax.cond(x > 0, lambda c: c + x, lambda c: c, c), lax.cond(
            c > 1, lambda: 1, lambda: 0
        )

    return lax.scan(body, 0.0, xs)


# remat and custom rules


@case(f32(3, 3))
def remat(x):
    return jax.checkpoint(lambda x: jnp.sin(x @ x))(x)


@case(f32(3, 3))
@case(f32(1, 1))
def remat_gradient(x):
    f = jax.checkpoint(lambda x, y: jnp.sin(jnp.sin(x @ y) @ x).sum())
    return jax.value_and_grad(f, argnums=(0, 1))(x, x + 1)


@case(f32(3, 3))
def remat_policy(x):
    f = jax.checkpoint(
        lambda x: jnp.sin(jnp.exp(x @ x)).sum(), policy=jax.checkpoint_policies.dots_saveable
    )
    return jax.grad(f)(x)


@case(f32(3, 3))
def remat_without_prevention(x):
    f = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)).sum(), prevent_cse=False)
    return jax.grad(f)(x)


@case(f32(3))
def remat_of_scan(x):
    def step(c, _):
        return jax.checkpoint(lambda c: jnp.tanh(c * 2))(c), None

    return jax.grad(lambda x: lax.scan(step, x, None, length=3)[0].sum())(x)


@jax.custom_jvp
def doubled(x, y):
    return jnp.sin(x) * 2 + y


@doubled.defjvp
def _(primals, tangents):
    x, y = primals
    return doubled(x, y), 3 * tangents[0] * x + tangents[1]


@case(f32(3), f32())
def custom_jvp(x, y):
    return doubled(x, y), doubled(x, 2.0), doubled(1.0, y)


@case(f32(3), f32())
def custom_jvp_derivatives(x, y):
    return jax.jvp(doubled, (x, y), (x, y)), jax.grad(lambda x: doubled(x, y).sum())(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def clipped(limit, x):
    return x * limit


clipped.defvjp(
    lambda limit, x: (x * limit, x), lambda limit, x, g: (jnp.clip(g, -limit, limit) + x,)
)


@case(f32(3))
def custom_vjp(x):
    return clipped(2.0, x), jax.grad(lambda x: clipped(3.0, x).sum())(x)


@case(f32(3))
def custom_rules_in_loops(x):
    def body(c, _):
        return doubled(clipped(0.5, c), 1.0), jax.nn.relu(c)

    return lax.scan(body, x, None, length=3), jax.nn.silu(x), jax.nn.gelu(x), jax.nn.logsumexp(x)


@case(f32(3, 3), f32(3))
def custom_root(a, b):
    return lax.custom_root(
        lambda x: x * jnp.abs(b) - 1,
        jnp.ones(3),
        lambda f, x: 1 / jnp.abs(b),
        lambda g, y: y / g(jnp.ones(3)),
    )


@case(f32(3, 3), f32(3))
def custom_linear_solve(a, b):
    return lax.custom_linear_solve(
        lambda x: (a @ x) * 0 + x * 2, b, lambda f, b: b / 2, symmetric=True
    )


@case(f32(4))
def custom_gradient_helpers(x):
    return lax.stop_gradient(x), jax.grad(lambda x: (lax.stop_gradient(x) * x).sum())(x)


# calls


@functools.partial(jax.jit, static_argnums=1, static_argnames="k")
def scaled(x, n, *, k=1):
    return x * n + k


@case(f32(3))
def jit_with_static(x):
    return scaled(x, 2), scaled(x, 3, k=2), scaled(scaled(x, 2), 2)


@case(f32(3))
def jit_inline_and_donated(x):
    inline = jax.jit(lambda x: x + 1, inline=True)
    donated = jax.jit(lambda x: x * 2, donate_argnums=0)
    return inline(donated(inline(x))), jax.jit(lambda x: (x, x))(x)


@case(f32(3))
def jit_closes_over_constants(x):
    table = np.arange(3.0, dtype=np.float32)
    big = jnp.arange(6).reshape(2, 3)
    return jax.jit(lambda x: x * table + big)(x), jax.named_call(lambda x: x + table, name="named")(
        x
    )


@case(f32(3))
def named_scopes(x):
    with jax.named_scope("outer"), jax.named_scope("for"):
        return x + 1


@case(f32(2, 3))
def vmap_of_everything(x):
    return jax.vmap(jax.value_and_grad(lambda v: jnp.linalg.norm(v) * jnp.tanh(v).sum()))(x)


@case(f32(3))
def hessian(x):
    return jax.hessian(lambda x: jnp.sum(jnp.sin(x) * jnp.exp(x)))(x), jax.jacfwd(jnp.tanh)(x)


@case(f32(3), f32(3))
def optimization_barrier(x, y):
    return lax.optimization_barrier(x), lax.optimization_barrier((x, y, {"a": x + y}))


@case(f32(4))
def linear_transpose(x):
    return jax.linear_transpose(lambda x: x[1:] * 2, x)(x[1:])
