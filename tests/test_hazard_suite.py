"""The hazard suites are true: every hazard happens when run, and every safe case is safe."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from tests.hazards import HAZARDS, SAFE, Case, held_out
from tests.hazards.births import births
from tests.hazards.case import DTYPES, KINDS, SYMPTOMS, cast

# A literal beyond the format, such as -1e9 in float16, is a cause here, not a mistake of the test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

FILLS = 30

BOTH = (*HAZARDS, *held_out.HAZARDS)
BOTH_SAFE = (*SAFE, *held_out.SAFE)


def each(tuned: tuple[Case, ...], others: tuple[Case, ...]) -> pytest.MarkDecorator:
    """Over both suites; the fast tests look at the first."""
    rest = [pytest.param(case, marks=pytest.mark.sweep) for case in others]
    return pytest.mark.parametrize("case", [*tuned, *rest], ids=lambda case: case.name)


every_hazard = each(HAZARDS, held_out.HAZARDS)
every_safe = each(SAFE, held_out.SAFE)


def leaves(outputs: Any) -> list[np.ndarray]:
    """The outputs as float64 arrays."""
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(outputs)]


@functools.cache
def traced(case: Case, dtype: Any) -> Callable[..., Any]:
    """The program in a type, traced once and run an operation at a time: no fusion hides a step."""
    args = cast(case.make_args(np.random.default_rng(0)), dtype)
    function = jaxpr_as_fun(jax.make_jaxpr(case.fn)(*args))
    return lambda *args: function(*jax.tree.leaves(args))


def narrow(case: Case, args: tuple[Any, ...]) -> list[np.ndarray]:
    """The outputs in the case's own format."""
    dtype = DTYPES[case.format]
    return leaves(traced(case, dtype)(*cast(args, dtype)))


def wide(case: Case, args: tuple[Any, ...], *, rounded: bool = False) -> list[np.ndarray]:
    """The outputs in float32, or in float64 where float32 is the format.

    With `rounded`, of the arguments as the format holds them: what is left is the program's error.
    """
    if rounded:
        args = cast(args, DTYPES[case.format])
    if case.format == "float32":
        with jax.enable_x64(True):
            return leaves(traced(case, np.float64)(*cast(args, np.float64)))
    return leaves(traced(case, np.float32)(*cast(args, np.float32)))


def finite(outputs: list[np.ndarray]) -> bool:
    return all(np.isfinite(leaf).all() for leaf in outputs)


def error(got: list[np.ndarray], want: list[np.ndarray], floor: float = 1e-300) -> float:
    """The largest error of an output, relative to its largest number, or to the floor if larger."""
    errors = [0.0]
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if a.size:
            errors.append(float(np.abs(a - b).max() / max(np.abs(b).max(), floor)))
    return max(errors)


def test_enough() -> None:
    assert len(HAZARDS) >= 90
    assert len(SAFE) >= 70
    assert set(Counter(case.kind for case in HAZARDS)) == set(KINDS)
    assert {case.symptom for case in HAZARDS} == set(SYMPTOMS)
    assert {case.format for case in HAZARDS} == set(DTYPES)
    names = [case.name for case in (*BOTH, *BOTH_SAFE)]
    assert len(names) == len(set(names))


def test_enough_held_out() -> None:
    assert len(held_out.HAZARDS) >= 80
    assert len(held_out.SAFE) >= 80
    assert {case.kind for case in held_out.HAZARDS} == set(KINDS)
    assert {case.format for case in held_out.HAZARDS} == set(DTYPES)
    tuned = {case.name.split(".")[1] for case in (*HAZARDS, *SAFE)}
    assert not tuned & {case.name.split(".")[1] for case in (*held_out.HAZARDS, *held_out.SAFE)}


@every_hazard
def test_hazard_is_inside_its_ranges(case: Case) -> None:
    triggers, specs = jax.tree.leaves(case.trigger_args()), jax.tree.leaves(case.args)
    assert len(triggers) == len(specs)
    for array, spec in zip(triggers, specs, strict=True):
        if hasattr(spec, "low"):
            assert spec.low <= array.min()
            assert array.max() <= spec.high


@every_hazard
def test_hazard_happens(case: Case) -> None:
    got = narrow(case, case.trigger_args())
    want = wide(case, case.trigger_args())
    if case.symptom in ("nan", "inf"):
        assert finite(want) != case.intrinsic, want
        # An inf may end as a plausible 0: then the result is wrong.
        assert not finite(got) or error(got, want) > case.error, (got, want)
    elif case.symptom == "index" and case.intrinsic:
        assert births(case.fn, cast(case.trigger_args(), DTYPES[case.format]))
    else:
        assert finite(want)
        assert error(got, want) > case.error, (got, want)
        if case.symptom == "zero":
            assert any((a == 0).all() and (b != 0).any() for a, b in zip(got, want, strict=True))


@every_hazard
def test_hazard_is_born_on_its_line(case: Case) -> None:
    line = case.line
    if case.symptom not in ("nan", "inf"):
        return
    found = births(case.fn, cast(case.trigger_args(), DTYPES[case.format]))
    at = [birth for birth in found if (birth.file, birth.line) == (case.file, line)]
    seen = {birth.primitive for birth in at if case.symptom in ("nan", birth.symptom)}
    assert seen & set(case.primitives), found


@every_safe
def test_safe_is_safe(case: Case) -> None:
    rng = np.random.default_rng(0)
    ways = ("low", "high", "least", "corners", "corners", *("any",) * (FILLS - 15))
    for way in (*ways, *("even",) * 10):
        args = case.make_args(rng, way)
        got, want = narrow(case, args), wide(case, args, rounded=True)
        assert finite(got), (way, args, got)
        assert error(got, want, floor=0.1) <= case.error, (way, args, got, want)
