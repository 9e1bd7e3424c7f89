"""The arithmetic of facts: it encloses, it agrees with ml_dtypes' casts, and it is monotone."""

import math
import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import precir
from precir.domains import Kinds, Range, RangeError
from precir.domains.fact import (
    NOTHING,
    Fact,
    contains,
    join,
    meet,
    negate,
    of_array,
    of_number,
    project,
    tidy,
    top,
)
from precir.domains.kinds import INF, NAN, PINF, SPECIAL, ZERO
from precir.domains.rounding import grid_of, round_down, round_nearest, round_up
from precir.formats import FORMATS
from precir.ops.facts.pointwise import cast_fact
from precir.passes.facts import infer_facts

COMPUTED = [name for name in FORMATS if name not in ("float6_e2m3fn", "float6_e3m2fn")]
singles = st.floats(width=32)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = st.lists(singles, max_size=6)
modest = st.floats(-1e6, 1e6, allow_nan=False)


def within(narrow: Fact, wide: Fact) -> bool:
    """Whether all that the first allows, the second does."""
    return (
        (narrow.empty or (wide.lo <= narrow.lo and narrow.hi <= wide.hi))
        and wide.tiny <= narrow.tiny
        and not narrow.flags & ~wide.flags
        and (narrow.whole or not wide.whole)
    )


def fact(xs: list[float]) -> Fact:
    return of_array(np.array(xs, np.float32))


# -- ranges ------------------------------------------------------------------------------------


@st.composite
def ranges(draw) -> Range:
    return Range(*sorted([draw(modest), draw(modest)]))


@given(ranges(), ranges(), st.floats(0, 1), st.floats(0, 1))
def test_range_arithmetic_encloses(a: Range, b: Range, s: float, t: float) -> None:
    x = min(max(a.lo + s * (a.hi - a.lo), a.lo), a.hi)
    y = min(max(b.lo + t * (b.hi - b.lo), b.lo), b.hi)
    p, q = Fraction(x), Fraction(y)

    def holds(r: Range, exact: Fraction) -> bool:
        low = -math.inf if math.isinf(r.lo) else Fraction(r.lo)
        high = math.inf if math.isinf(r.hi) else Fraction(r.hi)
        return low <= exact <= high

    assert holds(a + b, p + q)
    assert holds(a - b, p - q)
    assert holds(a * b, p * q)
    assert holds(-a, -p)
    assert holds(abs(a), abs(p))
    assert x in a.join(b)
    assert y in a.join(b)
    both = a.meet(b)
    assert both is None or (a.encloses(both) and b.encloses(both))
    if x in b:
        assert both is not None
        assert x in both
    if y:
        assert holds(a / b, p / q)


def test_range_of_infinite_bounds() -> None:
    positive = Range(0, math.inf)
    assert (positive + 1) == Range(1, math.inf)
    assert 0 in positive * Range(0, 0)
    assert 1e300 in 1 / Range(0, 1)
    assert positive.round_to("float16") == Range(0, 65504)
    assert Range(1e6, 1e7).round_to("float16") is None
    for lo, hi in [(1, 0), (math.nan, 1), (math.inf, math.inf)]:
        with pytest.raises(RangeError):
            Range(lo, hi)
    with pytest.raises(RangeError):
        Range("a", 1)  # type: ignore[arg-type]


# -- formats -----------------------------------------------------------------------------------


def landmarks(name: str) -> list[float]:
    """Numbers where a format changes its mind: ends, ties, thresholds, subnormals, and about."""
    f = FORMATS[name]
    grid = grid_of(name)
    at = grid.overflow_at if math.isfinite(grid.overflow_at) else f.max
    points = [f.max, at, f.smallest_normal, f.smallest_subnormal, f.smallest_subnormal / 2]
    points += [1.0, 1 + f.epsilon / 2, 1 + f.epsilon * 1.5, 1 - f.epsilon / 4, f.max / 2]
    points += [f.smallest_subnormal * 1.5, f.smallest_normal - f.smallest_subnormal / 2, f.max * 2]
    with np.errstate(all="ignore"):
        near = [x for p in points for x in (p, np.nextafter(p, 0), np.nextafter(p, np.inf))]
        signed = np.float64([*near, 0.0, math.inf]).astype(np.float32)
    return [float(x) for y in signed for x in (y, -y)] + [math.nan]


def cast(xs: list[float], name: str) -> np.ndarray:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(xs, np.float32).astype(FORMATS[name].dtype)


def check_projected(xs: list[float], name: str) -> None:
    got = cast(xs, name)
    projected = project(fact(xs), name)
    assert contains(projected, got), f"{projected} of {xs}, which is {got}"
    assert contains(project(cast_fact(fact(xs), "float32", name), name), got)
    assert within(projected, top(name)._replace(flags=top(name).flags | ZERO))
    if FORMATS[name].flushes_subnormals:
        small = np.abs(got.astype(np.float64)) < FORMATS[name].smallest_normal
        assert contains(projected, np.where(small, np.copysign(0, got), got))


@pytest.mark.parametrize("name", FORMATS)
def test_project_at_landmarks(name: str) -> None:
    points = landmarks(name)
    for x in points:
        check_projected([x], name)
        for y in points[::7]:
            check_projected([x, y], name)


@pytest.mark.parametrize("name", FORMATS)
@given(xs=numbers)
@settings(max_examples=60)
def test_project_is_what_casts_do(name: str, xs: list[float]) -> None:
    check_projected(xs, name)


@pytest.mark.parametrize("name", FORMATS)
def test_project_of_one_number_is_tight(name: str) -> None:
    """Overflow and NaN exactly where a cast has them; finite ends a unit apart at most."""
    grid = grid_of(name)
    for x in landmarks(name):
        got = float(cast([x], name).astype(np.float64)[0])
        f = project(of_number(x), name)
        special = of_number(got).flags & SPECIAL
        if name != "float8_e8m0fnu":  # of which a subnormal float32, read as zero, makes NaN
            assert f.flags & SPECIAL == special, (x, got, f)
        if math.isfinite(got) and math.isfinite(x) and abs(x) >= grid.smallest_normal:
            assert f.lo <= got <= f.hi
            assert got in (f.lo, f.hi) or name == "float8_e5m2fnuz"
            if name not in ("float8_e5m2fnuz", "float8_e8m0fnu"):
                exact = cast_fact(of_number(x), "float32", name)
                assert exact.lo == exact.hi == got, (x, got, exact)


@pytest.mark.parametrize("name", [n for n in COMPUTED if n != "float8_e8m0fnu"])
@given(x=finite)
def test_directed_rounding(name: str, x: float) -> None:
    grid = grid_of(name)
    down, up, near = (r(x, grid) for r in (round_down, round_up, round_nearest))
    assert down <= x <= up
    assert near in (down, up)
    if abs(near) <= grid.max:
        assert near == float(cast([x], name).astype(np.float64)[0])


def test_literals_that_vanish_or_round_to_a_bound() -> None:
    assert project(of_number(1e-8), "float16").flags & ZERO
    assert project(of_number(1 - 1e-7), "float16").hi >= 1.0
    assert cast_fact(of_number(0.999), "float32", "bfloat16").lo == 1.0
    assert project(of_number(-math.inf), "float8_e4m3fn").flags == NAN
    assert project(of_number(465.0), "float8_e4m3fn").flags == NAN
    assert project(of_number(464.0), "float8_e4m3fn").hi == 448
    assert project(of_number(65520.0), "float16") == NOTHING._replace(flags=PINF)
    assert project(of_number(math.inf), "float4_e2m1fn").hi == 6
    assert of_number(0.0) != of_number(-0.0)
    with np.errstate(all="ignore"):
        assert not project(of_number(300.0), "int8").point  # wraps: nothing is known


# -- lattice -----------------------------------------------------------------------------------


@given(numbers, numbers, numbers)
def test_join_and_meet(a: list[float], b: list[float], c: list[float]) -> None:
    f, g, h = fact(a), fact(b), fact(c)
    assert join(f, g) == join(g, f)
    assert join(f, join(g, h)) == join(join(f, g), h)
    assert join(f, f) == f == join(f, NOTHING)
    assert contains(join(f, g), np.array(a + b, np.float32))
    assert within(f, join(f, g))
    both = meet(f, g)
    assert both == meet(g, f)
    assert within(both, tidy(f))
    assert within(both, tidy(g))
    common = [x for x in a if contains(f, np.float32(x)) and contains(g, np.float32(x))]
    assert contains(both, np.array(common, np.float32))


@given(numbers)
def test_facts_of_arrays(xs: list[float]) -> None:
    array = np.array(xs, np.float32)
    f = fact(xs)
    assert contains(f, array)
    assert tidy(f) == f
    assert negate(negate(f)) == f
    assert contains(negate(f), -array)
    assert f.finite == bool(np.isfinite(array).all())
    assert f.magnitude == max([0.0, *np.abs(array[np.isfinite(array)]).astype(float)])
    for name in ("float16", "float8_e5m2"):
        small = cast(xs, name)
        assert contains(of_array(small), small)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int64", "complex64"])
def test_facts_of_other_dtypes(dtype: str) -> None:
    array = np.array([0, 1, 1, 0, 1]).astype(dtype)
    f = of_array(array)
    assert contains(f, array)
    assert (f.lo, f.hi, f.whole) == (0, 1, True)
    assert within(project(f, dtype), top(dtype))


# -- kinds -------------------------------------------------------------------------------------


def kind(x: float, normal: float) -> Kinds:
    if x != x:
        return Kinds.NAN
    sign = "NEG" if math.copysign(1, x) < 0 else "POS"
    size = abs(x)
    what = "INF" if math.isinf(x) else "NORMAL" if size >= normal else "SUBNORMAL"
    return Kinds[f"{sign}_{'ZERO' if x == 0 else what}"]


def negated_twice(kinds: Kinds) -> Kinds:
    other = -kinds
    return -other


@given(numbers)
def test_kinds(xs: list[float]) -> None:
    f = fact(xs)
    normal = FORMATS["float32"].smallest_normal
    kinds = f.kinds("float32")
    for x in xs:
        assert kind(x, normal) in kinds
    assert negate(f).kinds("float32") == -kinds
    assert negated_twice(kinds) == kinds
    if len(xs) == 1:
        assert kinds == kind(xs[0], normal)


@given(st.integers(0, int(Kinds.ANY)), st.integers(0, int(Kinds.ANY)))
def test_negated_kinds(a: int, b: int) -> None:
    p, q = Kinds(a), Kinds(b)
    assert -(p | q) == -p | -q
    assert -(p & q) == -p & -q
    assert bool(p & Kinds.NEGATIVE) == bool(-p & Kinds.POSITIVE)
    assert bool(str(p))


# -- rules -------------------------------------------------------------------------------------

UNARY = {
    f.__name__: f
    for f in (
        lax.abs, lax.neg, lax.sign, lax.floor, lax.ceil, lax.round, lax.exp, lax.exp2, lax.expm1,
        lax.log, lax.log1p, lax.sqrt, lax.rsqrt, lax.cbrt, lax.tanh, lax.logistic, lax.erf,
        lax.erfc, lax.erf_inv, lax.sin, lax.cos, lax.tan, lax.asin, lax.acos, lax.atan, lax.sinh,
        lax.cosh, lax.asinh, lax.acosh, lax.atanh, lax.lgamma, lax.digamma, lax.square,
        lax.is_finite, lax.bessel_i0e, lax.bessel_i1e,
    )
}  # fmt: skip
UNARY |= {f"integer_pow {n}": (lambda x, n=n: lax.integer_pow(x, n)) for n in (-3, -2, -1, 2, 3, 4)}
UNARY |= {f"to {d}": (lambda x, d=d: x.astype(d)) for d in ("int8", "float16", "bfloat16", "bool")}
UNARY |= {f"to {d}": (lambda x, d=d: x.astype(d)) for d in ("float8_e4m3fn", "float8_e5m2")}
UNARY |= {
    "reduce_precision": lambda x: lax.reduce_precision(x, 5, 7),
    "clamp": lambda x: jnp.clip(x, -1.0, 2.0),
    "sum": jnp.sum,
    "cumsum": jnp.cumsum,
    "cumprod": jnp.cumprod,
    "prod": jnp.prod,
    "where": lambda x: jnp.where(x > 0, jnp.log(x), x),
    "softmax": jax.nn.softmax,
}
BINARY = {
    f.__name__: f
    for f in (lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.pow, lax.atan2,
              lax.nextafter, lax.lt, lax.le, lax.gt, lax.ge, lax.eq, lax.ne, jnp.dot)
}  # fmt: skip

GRAPHS = {}


def graph_of(function, count: int, dtype: str):
    key = (function, dtype)
    if key not in GRAPHS:
        GRAPHS[key] = precir.lower(function, *[jnp.ones(6, dtype)] * count)
    return GRAPHS[key]


def results(graph, *facts: Fact) -> list[Fact]:
    found = infer_facts(graph, facts)
    return [found[o] for o in graph.outputs]


def check_monotone(function, dtype: str, *operands: tuple[list[float], list[float]]) -> None:
    graph = graph_of(function, len(operands), dtype)
    narrow = [project(fact(a), dtype) for a, _ in operands]
    wide = [project(fact(a + b), dtype) for a, b in operands]
    for f, g in zip(results(graph, *narrow), results(graph, *wide), strict=True):
        assert within(f, g), f"{f} of {narrow} is not in {g} of {wide}"


some = st.lists(singles | modest.map(np.float32).map(float), min_size=1, max_size=4)
dtypes = st.sampled_from(["float32", "bfloat16", "float16"])


@pytest.mark.parametrize("name", UNARY)
@given(a=some, b=some, dtype=dtypes)
@settings(max_examples=40)
def test_monotone(name: str, a: list[float], b: list[float], dtype: str) -> None:
    check_monotone(UNARY[name], dtype, (a, b))


@pytest.mark.parametrize("name", BINARY)
@given(a=some, b=some, c=some, d=some, dtype=dtypes)
@settings(max_examples=40)
def test_monotone_in_both(
    name: str, a: list[float], b: list[float], c: list[float], d: list[float], dtype: str
) -> None:
    check_monotone(BINARY[name], dtype, (a, b), (c, d))


def test_what_is_empty_or_all() -> None:
    for function in UNARY.values():
        graph = graph_of(function, 1, "float32")
        assert results(graph, NOTHING)
        assert results(graph, top("float32"))
    assert Kinds.INF == INF
