"""Numerics: iterations, polynomials, series, special functions, transport, branches."""

from typing import Any

import jax
import jax.numpy as jnp

from tests.hazards.case import Real, hazard, safe

Array = Any

# --- hazards ---


def newton_root(a: Array) -> Array:
    def step(x: Array, _: None) -> tuple[Array, None]:
        return 0.5 * (x + a / x), None  # HERE

    return jax.lax.scan(step, a, None, length=6)[0]


def horner(x: Array, coefficients: Array) -> Array:
    def step(total: Array, c: Array) -> tuple[Array, None]:
        return total * x + c, None  # HERE

    return jax.lax.scan(step, jnp.zeros_like(x), coefficients)[0]


def discriminant_root(a: Array, b: Array, c: Array) -> Array:
    inside = b * b - 4.0 * a * c  # HERE
    return 2.0 * c / (-b - jnp.sqrt(inside))


def hand_hypot(x: Array, y: Array) -> Array:
    return jnp.sqrt(x * x + y * y)  # HERE


def log_one_minus_exp(x: Array) -> Array:
    return jnp.log(1.0 - jnp.exp(-x))  # HERE


def binomial(n: Array, k: Array) -> Array:
    lgamma = jax.scipy.special.gammaln
    return jnp.exp(lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0))  # HERE


def gamma_function(x: Array) -> Array:
    return jnp.exp(jax.scipy.special.gammaln(x))  # HERE


def nine_factorial(x: Array) -> Array:
    def step(i: Array, total: Array) -> Array:
        return total * (i + 1).astype(total.dtype)  # HERE

    return jax.lax.fori_loop(0, 9, step, x)


def sinkhorn(cost: Array) -> Array:
    kernel = jnp.exp(-cost / 0.01)  # OR HERE
    v = jnp.full((3,), 1.0 / 3, cost.dtype)
    for _ in range(2):
        u = 1.0 / (kernel @ v)  # HERE
        v = 1.0 / (kernel.T @ u + 1e-3)
    return u


def taylor_exponential(x: Array) -> Array:
    def step(carry: Array, n: Array) -> tuple[Array, None]:
        total, term = carry
        term = term * x / n
        return (total + term, term), None  # HERE

    numbers = jnp.arange(1, 70).astype(x.dtype)
    one = jnp.ones_like(x)
    return jax.lax.scan(step, (one, one), numbers)[0][0]


def geometric_sum(r: Array) -> Array:
    return (1.0 - r**8) / (1.0 - r)  # HERE


def inverse_softplus(y: Array) -> Array:
    return jnp.log(jnp.expm1(y))  # HERE


def sum_of_logs(a: Array, b: Array) -> Array:
    return jnp.log(jnp.exp(a) + jnp.exp(b))  # HERE


def repeated_squares(x: Array) -> Array:
    def small(state: Array) -> Array:
        return state[1] < 4

    def body(state: Array) -> Array:
        x, i = state
        return x * x, i + 1  # HERE

    return jax.lax.while_loop(small, body, (x, 0))[0]


HAZARDS = (
    hazard(
        newton_root, Real(0, 100), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0,),
    ),
    hazard(
        horner, Real(0, 10), Real(0, 2, (7,)),
        kind="overflow", root=("mul", "add"), at=("mul", "add"), symptom="inf",
        trigger=(10.0, 2.0),
    ),
    hazard(
        discriminant_root, Real(0.5, 1), Real(100, 400), Real(1, 100),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(1.0, 300.0, 1.0),
    ),
    hazard(
        hand_hypot, Real(-300, 300), Real(-300, 300), format="float16",
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(300.0, 1.0),
    ),
    hazard(
        log_one_minus_exp, Real(1e-4, 5),
        kind=("rounds-to-bound", "cancellation", "absorption"), root=("exp", "sub"), at="log",
        symptom="inf", trigger=(1e-4,),
    ),
    hazard(
        binomial, Real(20, 40, ()), Real(1, 20, ()),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(40.0, 20.0),
    ),
    hazard(
        gamma_function, Real(1, 12),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(11.0,),
    ),
    hazard(
        nine_factorial, Real(0.5, 1),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(1.0,),
    ),
    hazard(
        sinkhorn, Real(0, 1, (3, 3)),
        kind="underflow", root="exp", at="div", symptom="inf", trigger=(0.5,),
    ),
    hazard(
        taylor_exponential, Real(-20, -15), format="float32",
        kind="cancellation", root="add", at="add", symptom="wrong", trigger=(-19.0,),
    ),
    hazard(
        geometric_sum, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(1.0,),
    ),
    hazard(
        inverse_softplus, Real(0.1, 20),
        kind="overflow", root=("expm1", "exp"), at=("expm1", "exp"), symptom="inf",
        trigger=(15.0,),
    ),
    hazard(
        sum_of_logs, Real(-100, 100), Real(-100, 100), format="bfloat16", intrinsic=True,
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(95.0, 1.0),
    ),
    hazard(
        repeated_squares, Real(1, 3, ()),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(2.5,),
    ),
)  # fmt: skip

# --- safe ---


def newton_root_of_positive(a: Array) -> Array:
    def step(x: Array, _: None) -> tuple[Array, None]:
        return 0.5 * (x + a / x), None

    return jax.lax.scan(step, jnp.maximum(a, 1.0), None, length=6)[0]


def horner_in_range(x: Array, coefficients: Array) -> Array:
    def step(total: Array, c: Array) -> tuple[Array, None]:
        return total * x + c, None

    return jax.lax.scan(step, jnp.zeros_like(x), coefficients)[0]


def discriminant_in_ratios(a: Array, b: Array, c: Array) -> Array:
    inside = 1.0 - 4.0 * (a / b) * (c / b)
    return -2.0 * c / (b * (1.0 + jnp.sqrt(inside)))


def hypot_by_larger(x: Array, y: Array) -> Array:
    x, y = jnp.abs(x), jnp.abs(y)
    large, small = jnp.maximum(jnp.maximum(x, y), 1e-3), jnp.minimum(x, y)
    return large * jnp.sqrt(1.0 + (small / large) ** 2)


def log_one_minus_exp_by_expm1(x: Array) -> Array:
    return jnp.log(-jnp.expm1(-x))


def log_binomial(n: Array, k: Array) -> Array:
    lgamma = jax.scipy.special.gammaln
    return lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0)


def gamma_function_up_to_eight(x: Array) -> Array:
    return jnp.exp(jax.scipy.special.gammaln(x))


def eight_factorial(x: Array) -> Array:
    def step(i: Array, total: Array) -> Array:
        return total * (i + 1).astype(total.dtype)

    return jax.lax.fori_loop(0, 8, step, x)


def warm_sinkhorn(cost: Array) -> Array:
    kernel = jnp.exp(-cost / 0.25)
    v = jnp.full((3,), 1.0 / 3, cost.dtype)
    for _ in range(2):
        u = 1.0 / (kernel @ v)
        v = 1.0 / (kernel.T @ u + 1e-3)
    return u


def taylor_reciprocal(x: Array) -> Array:
    def step(carry: Array, n: Array) -> tuple[Array, None]:
        total, term = carry
        term = term * x / n
        return (total + term, term), None

    numbers = jnp.arange(1, 20).astype(x.dtype)
    one = jnp.ones_like(x)
    return 1.0 / jax.lax.scan(step, (one, one), numbers)[0][0]


def geometric_sum_apart(r: Array) -> Array:
    return (1.0 - r**8) / (1.0 - r)


def stable_inverse_softplus(y: Array) -> Array:
    return y + jnp.log(-jnp.expm1(-y))


def branch_under_vmap(x: Array) -> Array:
    def one(v: Array) -> Array:
        def root(v: Array) -> Array:
            return jnp.sqrt(v)

        return jax.lax.cond(v > 0.1, root, lambda v: 0.0 * v, v)

    return jax.grad(lambda x: jnp.sum(jax.vmap(one)(x)))(x)


def branch_under_vmap_guarded(x: Array) -> Array:
    def one(v: Array) -> Array:
        def root(v: Array) -> Array:
            return jnp.sqrt(jnp.maximum(v, 0.01))

        return jax.lax.cond(v > 0.02, root, lambda v: 0.0 * v, v)

    return jax.grad(lambda x: jnp.sum(jax.vmap(one)(x)))(x)


@jax.custom_jvp
def tame_root(x: Array) -> Array:
    return jnp.sqrt(x)


@tame_root.defjvp
def tame_root_jvp(primals: Array, tangents: Array) -> Array:
    (x,), (t,) = primals, tangents
    return tame_root(x), 0.5 * t / jnp.maximum(jnp.sqrt(x), 0.1)


def root_with_its_own_rule(x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(tame_root(x)))(x)


def library_sum_of_logs(a: Array, b: Array) -> Array:
    return jnp.logaddexp(a, b)


def few_squares(x: Array) -> Array:
    def small(state: Array) -> Array:
        return state[1] < 3

    def body(state: Array) -> Array:
        x, i = state
        return x * x, i + 1

    return jax.lax.while_loop(small, body, (x, 0))[0]


SAFE = (
    safe(newton_root_of_positive, Real(0, 100)),
    safe(horner_in_range, Real(0, 3), Real(0, 2, (7,))),
    safe(discriminant_in_ratios, Real(0.5, 1), Real(100, 400), Real(1, 100)),
    safe(hypot_by_larger, Real(-300, 300), Real(-300, 300)),
    safe(log_one_minus_exp_by_expm1, Real(1e-2, 5)),
    safe(log_binomial, Real(20, 40, ()), Real(1, 20, ()), format="float32"),
    safe(gamma_function_up_to_eight, Real(1, 8)),
    safe(eight_factorial, Real(0.5, 1)),
    safe(warm_sinkhorn, Real(0, 1, (3, 3)), error=0.05),
    safe(taylor_reciprocal, Real(0, 5), format="float32"),
    safe(geometric_sum_apart, Real(0, 0.75)),
    safe(stable_inverse_softplus, Real(0.1, 20)),
    safe(branch_under_vmap, Real(-1, 1), format="float32"),
    safe(branch_under_vmap_guarded, Real(0, 1), format="float32"),
    safe(root_with_its_own_rule, Real(0, 1)),
    safe(library_sum_of_logs, Real(-100, 100), Real(-100, 100), format="bfloat16"),
    safe(few_squares, Real(1, 3, ())),
)  # fmt: skip
