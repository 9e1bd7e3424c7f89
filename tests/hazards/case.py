"""What a case of the hazard suite is: a small program, the ranges of its arguments, the verdict.

Each argument is a pytree of `Real`, `Whole` or `Fixed`: a shape and the range of its numbers. From
these come the random fills, the corner fills and the ranges that a linter is told.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

MARKER, ALSO = "# HERE", "# OR HERE"

KINDS = (
    "overflow",
    "underflow",
    "invalid",
    "rounds-to-bound",
    "cancellation",
    "absorption",
    "inexact",
)

SYMPTOMS = ("nan", "inf", "zero", "wrong", "stuck", "index")

DTYPES: dict[str, Any] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


@dataclass(frozen=True)
class Real:
    """An array of floats from [low, high]; `known` is False where the linter is told no range."""

    low: float
    high: float
    shape: tuple[int, ...] = (4,)
    known: bool = True

    def fill(self, way: str, rng: np.random.Generator) -> np.ndarray:
        """An array of this range: its ends, a mix of them, spread evenly or over magnitudes."""
        low, high, shape = self.low, self.high, self.shape
        if way == "low":
            array = np.full(shape, low)
        elif way == "high":
            array = np.full(shape, high)
        elif way == "corners":
            array = rng.choice([low, high], shape)
        elif way == "least":
            array = np.full(shape, min(max(0.0, low), high))
        elif way == "magnitudes":
            top = max(abs(low), abs(high))
            sizes = top * np.exp2(rng.uniform(-16, 0, shape))
            array = np.clip(sizes * rng.choice([-1.0, 1.0], shape), low, high)
        else:
            array = rng.uniform(low, high, shape)
        return np.asarray(array, np.float64)


@dataclass(frozen=True)
class Whole:
    """An array of int32 from [low, high]."""

    low: int
    high: int
    shape: tuple[int, ...] = (4,)
    known: bool = True

    def fill(self, way: str, rng: np.random.Generator) -> np.ndarray:
        """An array of this range."""
        if way in ("low", "high"):
            return np.full(self.shape, self.low if way == "low" else self.high, np.int32)
        return np.asarray(rng.integers(self.low, self.high + 1, self.shape), np.int32)


@dataclass(frozen=True)
class Fixed:
    """One concrete array of integers or booleans, which the linter sees as it is."""

    values: tuple[Any, ...] | int | bool

    def fill(self, way: str, rng: np.random.Generator) -> np.ndarray:
        """The array itself."""
        array = np.asarray(self.values)
        return array if array.dtype == bool else array.astype(np.int32)


WAYS = ("low", "high", "corners", "least", "magnitudes", "even")


@dataclass(frozen=True)
class Span:
    """The range that the linter is told of one array: a leaf of `Case.ranges`."""

    low: float
    high: float


def span(spec: Real | Whole | Fixed) -> Span | None:
    if isinstance(spec, Fixed) or not spec.known:
        return None
    return Span(spec.low, spec.high)


@dataclass(frozen=True, eq=False)
class Case:
    """A program, its arguments, its format, and what a linter must say of it.

    A safe one has no `kinds`: nothing may be said of it. Of a hazard, `kinds`, `roots` and
    `primitives` hold every answer that is right, the best one first; `trigger` has an entry per
    argument, a pytree prefix of it, whose numbers fill whole arrays. `error` is the relative error
    against the wide run that shows a wrong result; of a safe case, the one it stays under.
    `intrinsic` says that the wide run has it too: float32, or float64 where float32 is the format.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    format: str
    kinds: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    primitives: tuple[str, ...] = ()
    symptom: str = ""
    trigger: tuple[Any, ...] = ()
    error: float = 0.0
    intrinsic: bool = False

    @property
    def kind(self) -> str:
        """The best answer."""
        return self.kinds[0]

    @property
    def ranges(self) -> tuple[Any, ...]:
        """What the linter is told, an entry per argument: spans as leaves, None for unknown."""
        return tuple(jax.tree.map(span, arg) for arg in self.args)

    def make_args(self, rng: np.random.Generator, way: str = "even") -> tuple[Any, ...]:
        """Arguments inside the ranges, floats as float64 arrays, integers as int32."""
        ways = WAYS if way == "any" else (way,)
        return jax.tree.map(lambda spec: spec.fill(ways[rng.integers(len(ways))], rng), self.args)

    def trigger_args(self) -> tuple[Any, ...]:
        """The arguments that make it happen."""
        return tuple(filled(*pair) for pair in zip(self.trigger, self.args, strict=True))

    @property
    def file(self) -> str:
        """The file of the program."""
        return inspect.getsourcefile(self.fn) or ""

    @property
    def line(self) -> int:
        """The line, of the file, on which the bad value is born: the marked one."""
        return self.lines[0]

    @property
    def lines(self) -> tuple[int, ...]:
        """Every line that is right, the best one first: where it is born, or where it comes of."""
        source, start = inspect.getsourcelines(self.fn)
        first = [start + i for i, line in enumerate(source) if line.rstrip().endswith(MARKER)]
        others = [start + i for i, line in enumerate(source) if line.rstrip().endswith(ALSO)]
        if len(first) != 1:
            raise ValueError(f"{self.name} has {len(first)} marked lines, not one")
        return (*first, *others)


def filled(prefix: Any, specs: Any) -> Any:
    if isinstance(prefix, int | float | np.ndarray):
        return jax.tree.map(lambda spec: full(prefix, spec), specs)
    return jax.tree.map(filled, prefix, specs)


def full(value: Any, spec: Real | Whole | Fixed) -> np.ndarray:
    if isinstance(spec, Fixed):
        return spec.fill("even", np.random.default_rng(0))
    dtype = np.float64 if isinstance(spec, Real) else np.int32
    return np.array(np.broadcast_to(np.asarray(value, dtype), spec.shape))


def cast(args: tuple[Any, ...], dtype: Any) -> tuple[Any, ...]:
    """The arguments as JAX arrays, every float among them in one type."""

    def one(x: Any) -> jax.Array:
        return jnp.asarray(x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x)

    return jax.tree.map(one, args)


def several(answer: str | tuple[str, ...]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else answer


def named(fn: Callable[..., Any], format: str) -> str:
    return f"{fn.__module__.rpartition('.')[2]}.{fn.__name__}.{format}"


def hazard(
    fn: Callable[..., Any],
    *args: Any,
    kind: str | tuple[str, ...],
    root: str | tuple[str, ...],
    at: str | tuple[str, ...],
    symptom: str,
    trigger: tuple[Any, ...],
    format: str = "float16",
    error: float = 0.1,
    intrinsic: bool = False,
) -> Case:
    """A case that must be found, `at` the primitive that bears the symptom."""
    return Case(
        name=named(fn, format),
        fn=fn,
        args=args,
        format=format,
        kinds=several(kind),
        roots=several(root),
        primitives=several(at),
        symptom=symptom,
        trigger=trigger,
        error=error,
        intrinsic=intrinsic,
    )


def safe(fn: Callable[..., Any], *args: Any, format: str = "float16", error: float = 0.0) -> Case:
    """A case of which nothing may be said; `error` bounds its error where it is not the usual."""
    usual = {"float16": 0.03, "bfloat16": 0.15, "float32": 1e-3}.get(format, 0.5)
    return Case(named(fn, format) + ".safe", fn, args, format, error=error or usual)
