"""Dtypes and literals: small formats, integers at their limits, weak types, keys, complex."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.cases.case import array, f32, table

CASES, case = table("numbers")

FLOAT8 = [
    dtype
    for name in (
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3",
        "float8_e3m4",
        "float8_e4m3b11fnuz",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "bfloat16",
        "float16",
    )
    if (dtype := getattr(jnp, name, None)) is not None
]


def every(dtypes, *shapes, **options):
    """A case for each dtype."""

    def add(function):
        for dtype in dtypes:
            case(*[array(dtype, *shape) for shape in shapes], **options)(function)
        return function

    return add


# small formats


@every(FLOAT8, (3, 4), (3, 4))
def small_arithmetic(x, y):
    return (
        x + y,
        x - y,
        x * y,
        x / y,
        -x,
        abs(x),
        jnp.maximum(x, y),
        jnp.minimum(x, y),
        x * 2,
        x + 0.5,
        1 - x,
        x == y,
        x < y,
        x >= 1,
        jnp.where(x > y, x, y),
        jnp.where(x > 0, x, 0),
        jnp.sign(x),
        jnp.isnan(x),
        x.sum(),
        x.max(),
        x @ y.T,
        x.reshape(4, 3),
        x[1],
        jnp.concatenate([x, y]),
        x**2,
        jnp.clip(x, -1, 1),
    )


@every(FLOAT8, (3, 4))
def small_casts(x):
    wide = x.astype(jnp.float32)
    back = (wide * 3).astype(x.dtype)
    return (
        wide,
        back,
        x.astype(jnp.int8),
        jnp.arange(4).astype(x.dtype),
        jnp.full((2,), 0.3, x.dtype),
        lax.bitcast_convert_type(x, jnp.uint8 if x.dtype.itemsize == 1 else jnp.uint16),
    )


@every(FLOAT8, (3, 4))
def small_in_loops(x):
    def body(c, row):
        return (c * row).astype(c.dtype), c

    return lax.scan(body, x[0], x), lax.fori_loop(0, 2, lambda i, c: c + c, x)


@every([jnp.int4, jnp.uint4], (3, 4))
def four_bits(x):
    return (
        x.astype(jnp.int8),
        x.astype(jnp.float32) * 0.5,
        jnp.arange(4).astype(x.dtype),
        x.reshape(4, 3),
        x[1],
        x + x,
        x == x,
        jnp.where(x == 1, x, jnp.ones_like(x)),
        jnp.full((2,), 3, x.dtype),
        jnp.zeros((2,), x.dtype),
    )


@every(
    [
        getattr(jnp, n)
        for n in ("int2", "uint2", "float4_e2m1fn", "float8_e8m0fnu")
        if hasattr(jnp, n)
    ],
    (3, 4),
)
def smallest(x):
    return x, x.astype(jnp.float32), x[1], jnp.ones((2,), x.dtype)


# integers


@every([np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32], (5,), (5,))
def integers(x, y):
    top, bottom = jnp.iinfo(x.dtype).max, jnp.iinfo(x.dtype).min
    return (
        x + x.dtype.type(top),
        x - 1 - x.dtype.type(bottom),
        x * x.dtype.type(top),
        x // 3,
        x % 3,
        lax.div(x, y),
        lax.rem(x, y),
        lax.div(x, x.dtype.type(3)),
        -x,
        ~x,
        x & y,
        x | x.dtype.type(top),
        x ^ y,
        x << 2,
        x >> 1,
        lax.shift_right_logical(x, x.dtype.type(1)),
        lax.shift_left(x, y),
        abs(x),
        jnp.sign(x),
        x**3,
        x == x.dtype.type(top),
        x < bottom,
        jnp.maximum(x, x.dtype.type(top)),
        jnp.minimum(x, bottom),
        jnp.clip(x, 1, 3),
        lax.clamp(x.dtype.type(1), x, x.dtype.type(3)),
        lax.population_count(x),
        lax.clz(x),
        x.astype(jnp.float32),
        x / y,
        x.sum(),
        x.astype(bool),
        jnp.full((2,), x.dtype.type(top)),
        jnp.where(x > 0, x, bottom),
        jnp.float32(2.0) * x,
        x.astype(jnp.int8),
        lax.bitcast_convert_type(x, x.dtype),
        jnp.power(x, 2),
        jnp.gcd(x, y),
    )


@case(array(np.uint32, 3))
def large_literals(x):
    return (
        x + np.uint32(3000000000),
        x & 0x7FFFFFFF,
        x | np.uint32(0x80000000),
        x == np.uint32(2**32 - 1),
        x ^ 0xFFFF,
    )


@case(array(bool, 4), array(bool, 4))
def booleans(p, q):
    return (
        p & q,
        p | q,
        ~p,
        p ^ q,
        p == q,
        p != q,
        p & True,
        p | False,
        p.astype(jnp.int32) + 1,
        p + q,
        p * q,
        p < q,
        jnp.where(p, q, True),
        p.sum(),
        p.any(),
        p.all(),
        jnp.argmax(p),
        lax.max(p, q),
        jnp.logical_not(p),
        lax.reduce_xor(p, (0,)),
    )


# literals and weak types


@case()
def weak_outputs():
    return (
        1,
        2.0,
        True,
        1j,
        None,
        jnp.float32(3),
        np.int8(4),
        jnp.asarray(5),
        lax.full((2,), 1.0),
        lax.full((), 2),
    )


@case(2.0, 3, f32(2))
@case(2, 3.5, f32(2))
def weak_inputs(a, b, x):
    return (
        a,
        b,
        a + b,
        a * 2,
        a - 1.5,
        a + x,
        x * b,
        a / b,
        -a if not isinstance(a, bool) else a,
        a > b,
        jnp.sin(b),
        b + np.float32(1),
        jnp.where(x > 0, a, b),
        jnp.where(True, b, 1.0),
        jnp.maximum(a, b),
        jnp.maximum(b, 1),
        b * np.float16(2),
        lax.full_like(x, b),
        jnp.asarray(b),
        b**2,
        jnp.broadcast_to(b, (2,)),
        jnp.stack([jnp.asarray(b)] * 2),
        lax.select(True, b, b),
    )


@case(f32(2), 3.0)
def weak_arrays(x, w):
    y = jnp.broadcast_to(w, (2,))
    return (
        y,
        y + 1,
        2 * y,
        y + x,
        y.sum(),
        y.max(),
        y.prod(),
        y[0],
        y.reshape(1, 2),
        y.T,
        y * np.float32(2),
        -y,
        y == 1,
        jnp.sqrt(y),
        jnp.where(x > 0, y, 0),
        jnp.where(x > 0, y, np.float32(0)),
        jnp.maximum(y, 2),
        jnp.minimum(y, np.float32(2)),
        y.astype(jnp.float32),
        y.astype(jnp.bfloat16),
        y @ y,
        jnp.concatenate([y, y]),
        lax.pad(y, np.float32(1), [(1, 1, 0)]),
        y[jnp.array([1, 0])],
        y.at[0].set(1),
        jnp.cumsum(y),
        jnp.sort(y),
        lax.stop_gradient(y),
        lax.optimization_barrier(y),
        lax.slice(y, (0,), (1,)),
        lax.dynamic_slice(y, (1,), (1,)),
        lax.clamp(0.0, y, 1.0),
        lax.rev(y, (0,)),
        lax.expand_dims(y, (0,)),
        lax.cond(x[0] > 0, lambda y: y, lambda y: y * 2, y),
        lax.scan(lambda c, _: (c, c), y, None, length=2),
        lax.while_loop(lambda c: c[0] < 9, lambda c: c * 2, y),
        jnp.round(y),
        jnp.floor(y),
        y % 2,
        y**2,
        y**0.5,
        jnp.exp(y),
        lax.square(y),
        lax.integer_pow(y, 3),
        lax.rem(y, y),
        y / 3,
        y - 1,
        1 - y,
        1 / y,
        jnp.abs(y),
        jnp.sign(y),
        jnp.isfinite(y),
        lax.erf(y),
        jax.nn.relu(y),
        lax.reduce_precision(y, 8, 7),
        lax.select_n(x > 0, y, y),
        lax.reduce_max(y, (0,)),
        lax.reduce_sum(y, (0,)),
        jnp.mean(y),
        lax.split(y, (1, 1)),
        lax.dynamic_update_slice(y, y[:1], (1,)),
        lax.gather,
        lax.nextafter(y, y),
    )[:-2]


@case(3)
def weak_integers(n):
    y = jnp.broadcast_to(n, (2,))
    return (
        n,
        y,
        n + 1,
        y * 2,
        y // 2,
        y % 2,
        n << 1,
        y & 1,
        ~y,
        -n,
        y == 3,
        y + np.int32(1),
        y.sum(),
        y.max(),
        jnp.maximum(y, 1),
        jnp.clip(n, 0, 2),
        y.astype(jnp.float32),
        y.astype(float),
        n / 2,
        y[n - 3],
        lax.population_count(y),
        jnp.arange(4)[n],
        jnp.arange(n) if False else 0,
        lax.convert_element_type(n, jnp.float32),
        jnp.float32(n),
        jnp.int8(n),
        jnp.where(n > 1, n, 0),
        y.argmax(),
        lax.iota(jnp.int32, 2) + n,
    )


@case(f32(2))
def special_literals(x):
    return (
        x * jnp.inf,
        x + -jnp.inf,
        x * jnp.nan,
        x * -0.0,
        x + 1e-45,
        x * 3.4028235e38,
        jnp.where(x > 0, jnp.inf, -jnp.inf),
        jnp.maximum(x, -jnp.inf),
        x / 0.0,
        x * 0.1,
        x + 1e8,
        x - 16777217,
        x * np.float32(1) / 3,
        jnp.full((2,), -jnp.inf),
        x.at[0].set(jnp.nan),
        x == -0.0,
        x * 2**-126,
        x * 1e-40,
    )


@every([jnp.bfloat16, np.float16], (3,))
def half_literals(x):
    return (
        x * 0.1,
        x + 1e-3,
        x * 65504,
        x - 0.333,
        jnp.where(x > 0, x, -jnp.inf),
        jnp.maximum(x, 0.1),
        x * x.dtype.type(0.7),
        x == 0.1,
        jnp.full((2,), 0.1, x.dtype),
    )


@case(array(np.complex64, 3), f32(3))
def complex_(z, x):
    return (
        z + z,
        z * 2,
        z * 1j,
        z / (2 + 1j),
        z - x,
        -z,
        abs(z),
        z.conj(),
        z.real,
        z.imag,
        lax.complex(x, x),
        jnp.exp(z),
        jnp.sqrt(z),
        jnp.sin(z),
        z**2,
        z**0.5,
        jnp.angle(z),
        z == z,
        z != 0,
        jnp.where(x > 0, z, 1j),
        z.sum(),
        z.prod(),
        jnp.vdot(z, z),
        jnp.conj(x),
        z @ z,
        jnp.isfinite(z),
        z * complex(jnp.inf, -0.0),
        z.astype(jnp.complex64),
        x.astype(jnp.complex64),
        jnp.log(z),
        jnp.tanh(z),
        z * complex(-0.0, 1.0),
        jnp.sign(z),
        z.at[0].set(0),
        jnp.full((2,), 1 + 2j),
        lax.convert_element_type_p.bind(
            z, new_dtype=np.dtype(bool), weak_type=False, sharding=None
        ),
        jnp.real(x),
        jnp.reciprocal(z),
        jax.grad(lambda z: abs(z).sum())(z),
    )


@case(f32(3))
def rounding(x):
    return (
        jnp.round(x),
        lax.round(x),
        jnp.rint(x),
        jnp.trunc(x),
        jnp.floor(x),
        jnp.ceil(x),
        jnp.modf(x),
        jnp.frexp(x),
        jnp.round(x, 1),
        lax.reduce_precision(x, 5, 10),
    )


@case(f32(3), array(bool, 3))
def float0(x, p):
    n = jnp.arange(3)
    return (
        jax.grad(lambda n: x.sum(), allow_int=True)(n),
        jax.jvp(lambda x, n: x * n, (x, n), (x, np.zeros(3, jax.dtypes.float0))),
        jax.vjp(lambda x, n: (x * n, n), x, n)[1]((x, np.zeros(3, jax.dtypes.float0))),
    )


@case(f32(3))
def special_functions(x):
    a = jnp.abs(x) + 0.5
    return (
        lax.lgamma(a),
        lax.digamma(a),
        lax.polygamma(jnp.float32(1), a[0]),
        lax.igamma(a, a),
        lax.igammac(a, a),
        lax.betainc(a, a, a / 9),
        lax.zeta(a + 1, a),
        lax.bessel_i0e(x),
        lax.bessel_i1e(x),
        lax.erf(x),
        lax.erfc(x),
        lax.erf_inv(x / 9),
        jax.scipy.special.i0(x),
        lax.random_gamma_grad(a, a),
        lax.igamma_grad_a(a, a),
        lax.cbrt(x),
        lax.exp2(x),
        lax.tan(x),
        lax.atan2(x, a),
        lax.asinh(x),
        lax.acosh(a + 1),
        lax.atanh(x / 9),
        lax.nextafter(x, a),
        lax.rsqrt(a),
        lax.logistic(x),
        lax.sinh(x),
        lax.cosh(x),
        lax.asin(x / 9),
        lax.acos(x / 9),
        lax.atan(x),
        lax.expm1(x),
        lax.log1p(a),
        lax.pow(a, x),
        lax.pow(a, 3),
        lax.pow(a, 2.5),
        lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST),
        lax.tanh(x, accuracy=lax.Tolerance(1e-5, 1e-5, 5)) if False else 0,
        jnp.sinc(x),
        jnp.hypot(x, a),
        jnp.logaddexp(x, a),
    )


# random numbers


@case(3)
@case(np.uint32(4))
@case(-1)
def keys(seed):
    key = jax.random.key(seed)
    a, b = jax.random.split(key)
    many = jax.random.split(key, (2, 3))
    return (
        key,
        a,
        many,
        many[0],
        many.T,
        many.reshape(6),
        jax.random.key_data(b),
        jax.random.wrap_key_data(jax.random.key_data(many)),
        jax.random.fold_in(a, 7),
        jax.random.fold_in(a, np.uint32(2**31 + 5)),
        jax.random.bits(a),
        jax.random.bits(a, (3,), np.uint8),
        jax.random.bits(a, (2, 2), np.uint16),
        jax.random.clone(b),
        jnp.concatenate([many[0], many[1]]),
        jnp.where(seed > 0, a, b),
        jnp.stack([a, b]),
        a == b,
        jnp.broadcast_to(a, (2,)),
        jax.vmap(jax.random.bits)(many[0]),
        jax.vmap(lambda k: jax.random.fold_in(k, 1))(many[0]),
        jax.vmap(jax.random.split)(many[0]),
        many[seed],
        jax.vmap(lambda k, i: jax.random.fold_in(k, i))(many[0], jnp.arange(3)),
    )


@case(jax.random.key(1), jax.random.split(jax.random.key(2), 3), jax.random.key(3, impl="rbg"))
def keys_as_arguments(a, many, rbg):
    return (
        jax.random.normal(a, (3,)),
        jax.vmap(jax.random.uniform)(many),
        many,
        rbg,
        jax.random.normal(rbg, (3,)),
        jax.random.split(rbg, 2),
        jax.random.bits(rbg, (2,), np.uint8),
        jax.random.fold_in(rbg, 3),
        jax.random.key(5, impl="rbg"),
        jax.random.key(6, impl="unsafe_rbg"),
        jax.random.key_data(rbg),
        {"k": (many[1], a)},
    )


@case(jax.random.key(1))
def distributions(key):
    r = jax.random
    return (
        r.normal(key, (4,)),
        r.normal(key, (4,), jnp.bfloat16),
        r.normal(key, (4,), jnp.float16),
        r.uniform(key, (4,), minval=-1, maxval=3),
        r.randint(key, (4,), -5, 9),
        r.randint(key, (4,), 0, 200, np.uint8),
        r.bernoulli(key, 0.3, (4,)),
        r.categorical(key, jnp.arange(4.0)),
        r.permutation(key, 5),
        r.choice(key, 9, (3,), replace=False),
        r.gumbel(key, (3,)),
        r.exponential(key, (3,)),
        r.truncated_normal(key, -1, 1, (3,)),
        r.gamma(key, 2.0, (3,)),
        r.beta(key, 1.0, 2.0, (2,)),
        r.dirichlet(key, jnp.ones(3)),
        r.poisson(key, 3.0, (3,)),
        r.laplace(key, (3,)),
        r.cauchy(key, (3,)),
        r.rademacher(key, (3,)),
        r.multivariate_normal(key, jnp.zeros(2), jnp.eye(2)),
        r.orthogonal(key, 2),
        r.ball(key, 2),
        r.t(key, 3.0, (2,)),
        r.binomial(key, 5, 0.4, (2,)),
        r.normal(key, (2,), np.complex64),
        r.shuffle(key, jnp.arange(3)) if False else 0,
    )


@case(jax.random.PRNGKey(0))
def raw_keys(key):
    a, b = jax.random.split(key)
    return (
        a,
        jax.random.normal(a, (2,)),
        jax.random.fold_in(b, 3),
        jax.random.PRNGKey(4),
        jax.random.PRNGKey(jnp.uint32(3)),
        jax.random.split(key, 3),
    )


@case(array(np.uint32, 4))
def bit_generators(key):
    return (
        lax.rng_bit_generator(key, (2, 3)),
        lax.rng_bit_generator(key, (4,), np.uint8),
        lax.rng_bit_generator(key, (2,), algorithm=lax.RandomAlgorithm.RNG_THREE_FRY),
    )
