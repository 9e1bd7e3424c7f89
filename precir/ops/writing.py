"""How a node becomes source: templates with holes for operands, and Python spelled from values."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from precir.ir import Graph, Literal, Node, Operand, Value

# Python's precedence of what we write, loosest first.
LOWEST, COMPARE, BIT_OR, BIT_XOR, BIT_AND, SHIFT, SUM, PRODUCT, UNARY, POWER, ATOM = range(11)


@dataclass(frozen=True, slots=True)
class Hole:
    """Where operand `index` goes: as tightly bound as `precedence`; `bare` if a Python scalar
    takes the other operand's dtype there, else literals are written with their dtype; as an
    `array` if the text around it asks for more than a scalar's value.
    """

    index: int
    precedence: int = LOWEST
    bare: bool = False
    array: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """Source with holes. `targets` spells what the outputs are assigned to when it is not just
    `a` or `a, b` (a pattern with one `{}` for each output).
    """

    pieces: tuple[str | Hole, ...]
    precedence: int = ATOM
    targets: str | None = None

    @property
    def key(self) -> str:
        """The text with anonymous holes, literals not filled in."""
        return "".join(p if isinstance(p, str) else f"\0{p.index}" for p in self.pieces)


class Opaque(Exception):
    """A value that has no source text: a Python function, a device handle."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"no source text for {type(value).__name__}")
        self.value = value


class Writer(Protocol):
    """What writing a node may ask of the module being written."""

    def use(self, module: str, name: str | None = None) -> str:
        """Import `module` (or `name` from it) and return how to refer to it."""
        ...

    def function(
        self, graph: Graph, groups: tuple[int, ...] = (), returns: tuple[int, ...] = ()
    ) -> str:
        """The name of a module-level function for a sub-graph. `groups` sizes the trailing
        parameters that arrive as one (a tuple unless a single value), `returns` its results.
        """
        ...

    def hoist(self, text: str, wish: str) -> str:
        """The name of a module-level constant whose value is `text`."""
        ...

    def external(self, value: Any) -> str:
        """Refer to an object that has no source text (the module then cannot stand alone)."""
        ...


_LAX_NAMES = {
    "GatherScatterMode", "Precision", "RandomAlgorithm", "RoundingMethod", "FftType",
    "GatherDimensionNumbers", "ScatterDimensionNumbers", "ConvDimensionNumbers",
    "DotAlgorithm", "DotAlgorithmPreset", "RaggedDotDimensionNumbers", "AccuracyMode", "Tolerance",
}  # fmt: skip


# How `GatherScatterMode.from_any` spells them.
_MODES = {"CLIP": "clip", "FILL_OR_DROP": "fill", "PROMISE_IN_BOUNDS": "promise_in_bounds"}


def source(value: Any, w: Writer) -> str:
    """Python source whose value equals `value`. Raises `Opaque` where there is none."""
    simple = _SIMPLE.get(type(value))
    if simple is not None:
        return simple(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        held: Any = value
        defaults = held._field_defaults
        names = [k for k in held._fields if k not in defaults or getattr(held, k) != defaults[k]]
        inner = ", ".join(f"{k}={source(getattr(held, k), w)}" for k in names)
        text = f"{_named(type(value), w)}({inner})"
        name = type(value).__name__
        return w.hoist(text, name) if name.endswith("DimensionNumbers") else text
    if isinstance(value, jax.sharding.PartitionSpec):
        inner = ", ".join(source(p, w) for p in value)
        return f"{w.use('jax', 'P')}({inner})"
    if isinstance(value, tuple):
        items = [source(v, w) for v in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, list):
        return f"[{', '.join(source(v, w) for v in value)}]"
    if isinstance(value, (frozenset, set)):
        items = sorted(source(v, w) for v in value)
        return f"frozenset(({', '.join(items)},))" if items else "frozenset()"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{source(k, w)}: {source(v, w)}" for k, v in value.items()) + "}"
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return dtype_source(np.dtype(value).name, w)
    if isinstance(value, np.generic):
        return source(value.item(), w)
    if isinstance(value, jax.lax.GatherScatterMode) and value.name in _MODES:
        return repr(_MODES[value.name]).replace("'", '"')
    if isinstance(value, enum.Enum):
        return f"{_named(type(value), w)}.{value.name}"
    if isinstance(value, jax.sharding.NamedSharding):
        named = w.use("jax.sharding", "NamedSharding")
        return f"{named}({source(value.mesh, w)}, {source(value.spec, w)})"
    if isinstance(value, jax.sharding.Mesh):
        return _mesh(value, w)
    if isinstance(value, jax.sharding.AbstractMesh):
        types = source(tuple(value.axis_types), w)
        abstract = w.use("jax.sharding", "AbstractMesh")
        return f"{abstract}({value.axis_sizes!r}, {value.axis_names!r}, axis_types={types})"
    if is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        inner = ", ".join(f"{k}={source(v, w)}" for k, v in shown.items())
        return f"{_named(type(value), w)}({inner})"
    if isinstance(value, type) or (callable(value) and _importable(value)):
        return _named(value, w)
    raise Opaque(value)


def _float(value: float) -> str:
    if math.isnan(value):
        return "jnp.nan"
    if math.isinf(value):
        return "jnp.inf" if value > 0 else "-jnp.inf"
    return repr(value)


_SIMPLE: dict[type, Callable[[Any], str]] = {
    int: repr, bool: repr, str: repr, bytes: repr, type(None): repr, float: _float,
    complex: lambda v: f"complex({_float(v.real)}, {_float(v.imag)})", type(...): lambda _: "...",
}  # fmt: skip


def dtype_source(name: str, w: Writer) -> str:
    if hasattr(jnp, name):
        return f"jnp.{name}" if name != "bool" else "jnp.bool_"
    return f"{w.use('numpy')}.dtype({name!r})"


def jaxpr_source(graph: Graph, w: Writer) -> str:
    """A sub-program as a closed jaxpr, for a primitive that takes one."""
    shapes = []
    for v in graph.inputs:
        weak = ", weak_type=True" if v.type.weak else ""
        shape, dtype = source(v.type.shape, w), dtype_source(v.type.dtype, w)
        shapes.append(f"jax.ShapeDtypeStruct({shape}, {dtype}{weak})")
    return f"jax.make_jaxpr({w.function(graph)})({', '.join(shapes)})"


def _importable(value: Any) -> bool:
    import sys

    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    return module in sys.modules and getattr(sys.modules[module], name, None) is value


def _named(value: Any, w: Writer) -> str:
    name = value.__name__
    if name in _LAX_NAMES and hasattr(jax.lax, name):
        return f"lax.{name}"
    if not _importable(value):
        raise Opaque(value)
    return w.use(value.__module__, name)


def _mesh(mesh: jax.sharding.Mesh, w: Writer) -> str:
    ids = [d.id for d in mesh.devices.flat]
    np_ = w.use("numpy")
    devices = "jax.devices()"
    if ids != list(range(len(ids))) or len(ids) != len(jax.devices()):
        devices = f"[jax.devices()[i] for i in {ids}]"
    types = "" if not mesh.axis_types else f", axis_types={source(tuple(mesh.axis_types), w)}"
    made = w.use("jax.sharding", "Mesh")
    return (
        f"{made}({np_}.array({devices}).reshape({mesh.devices.shape}), {mesh.axis_names!r}{types})"
    )


def literal_source(literal: Literal, w: Writer, bare: bool, array: bool = False) -> tuple[str, int]:
    """A scalar constant and its precedence: `2.0` where `bare` or where JAX gives it that very
    type of its own accord, else with its dtype.
    """
    value, dtype = literal.value, literal.type.dtype
    text = (
        _shortest(value, dtype)
        if type(value) is float and math.isfinite(value)
        else source(value, w)
    )
    untyped = literal.type.weak and dtype == jnp.result_type(type(value)).name
    if array:
        return f"{'jnp.asarray' if untyped else dtype_source(dtype, w)}({text})", ATOM
    if untyped or (bare and not (isinstance(value, int) and abs(value) >= 2**31)):
        return text, UNARY if text.startswith("-") else ATOM
    if isinstance(value, bool) and dtype == "bool":
        return f"{w.use('numpy')}.bool_({text})", ATOM
    text = text.replace("jnp.", f"{w.use('numpy')}.")
    if hasattr(np, dtype):
        return f"{w.use('numpy')}.{dtype}({text})", ATOM
    return f"{w.use('numpy')}.array({text}, {dtype_source(dtype, w)})", ATOM


def _shortest(value: float, dtype: str) -> str:
    """The shortest decimal that rounds to `value` in its dtype: 1e-06, not 9.99999997e-07."""
    if dtype in ("float16", "float32"):
        text = str(getattr(np, dtype)(value))
        return text if float(getattr(np, dtype)(float(text))) == value else repr(value)
    if dtype == "bfloat16":
        for digits in range(1, 10):
            text = repr(float(f"{value:.{digits}g}"))
            if float(jnp.bfloat16.dtype.type(float(text))) == value:
                return text
    return repr(value)


def bare_scalars(operands: Sequence[Operand]) -> bool:
    """Whether a Python scalar among operands of one dtype stands for its literal: it takes the
    dtype of the arrays, and cannot make the result strongly typed.
    """
    arrays = [o for o in operands if isinstance(o, Value)]
    weak = all(o.type.weak for o in operands)
    return bool(arrays) and (weak or not all(a.type.weak for a in arrays))


def arguments(node: Node, keywords: Mapping[str, Any], w: Writer) -> list[str] | None:
    """`name=value` for each parameter that differs from its default; None if a parameter is not
    in `keywords` at all (the caller then binds the primitive itself).
    """
    written = []
    for name, value in node.params.items():
        if name not in keywords:
            return None
        default = keywords[name]
        if default is DROPPED:
            continue
        if default is REQUIRED or value != default:
            written.append(f"{name}={source(value, w)}")
    return written


class _Marker(enum.Enum):
    REQUIRED = enum.auto()
    DROPPED = enum.auto()


REQUIRED, DROPPED = _Marker.REQUIRED, _Marker.DROPPED
