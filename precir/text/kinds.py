"""What of JAX's own may stand in a parameter, and how each is taken apart and built again."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from precir.ir import Region, Type
from precir.primitives import primitive_named
from precir.text.types import LONG, SCALARS

Parts = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]


class Unavailable(Exception):
    """A value whose text is sound and that cannot be built here: a device of another machine."""


@dataclass(frozen=True)
class Kind:
    """A kind of value written as a call.

    Attributes:
      name: of the call.
      apart: yields arguments and keywords to try; those that build an equal value are written.
      build: makes the value.
    """

    name: str
    apart: Callable[[Any], Parts]
    build: Callable[..., Any]


def _found(*paths: str) -> dict[str, Any]:
    """What this JAX has of the given `module:attribute`s, by attribute."""
    found = {}
    for path in paths:
        module, _, attribute = path.partition(":")
        try:
            found[attribute.lstrip("_")] = getattr(import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    return found


_ENUMS: Final = _found(
    *("jax.lax:AccuracyMode", "jax.lax:DotAlgorithmPreset", "jax.lax:FftType"),
    *("jax.lax:GatherScatterMode", "jax.lax:Precision", "jax.lax:RandomAlgorithm"),
    *("jax.lax:RoundingMethod", "jax.sharding:AxisType", "jax._src.core:MemorySpace"),
    *("jaxlib._jax:ArrayCopySemantics", "jax._src.lax.lax:RaggedDotMode"),
    *("jax._src.lax.linalg:SvdAlgorithm", "jax._src.lax.linalg:EigImplementation"),
    *("jax._src.lax.linalg:EighImplementation",),
)
ENUMS: Final[dict[type, str]] = {
    cls: name for name, cls in _ENUMS.items() if isinstance(cls, enum.EnumMeta)
}
ENUMS_BY_NAME: Final[dict[str, Any]] = {name: cls for cls, name in ENUMS.items()}

_RECORDS: Final = _found(
    *("jax.lax:ConvDimensionNumbers", "jax.lax:DotAlgorithm", "jax.lax:GatherDimensionNumbers"),
    *("jax.lax:RaggedDotDimensionNumbers", "jax.lax:ScatterDimensionNumbers"),
    "jax._src.lax.control_flow.solves:_LinearSolveTuple",
)


def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(getattr(cls, "_fields", getattr(cls, "__dataclass_fields__", ())))


RECORDS: Final[dict[type, tuple[str, tuple[str, ...]]]] = {
    cls: (name, _fields(cls)) for name, cls in _RECORDS.items() if _fields(cls)
} | {Type: ("Type", ("shape", "dtype", "weak", "scale"))}

# Classes that stand for dtypes.
_CLASSES: Final = (bool, int, float, complex, *SCALARS)

SINGLETONS: Final[dict[str, Any]] = {
    "Ellipsis": ...,
    "P.UNCONSTRAINED": PartitionSpec.UNCONSTRAINED,
    **_found("jax._src.sharding_impls:UNSPECIFIED"),
    **{f"{cls.__module__}.{cls.__name__}": cls for cls in _CLASSES},
    **{f"jnp.{name}": getattr(jnp, name) for name in LONG.values() if hasattr(jnp, name)},
    **{f"checkpoint_policies.{k}": v for k, v in vars(jax.checkpoint_policies).items()},
}
SINGLETON_NAMES: Final = {id(value): name for name, value in SINGLETONS.items()}


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], values: list[Any]) -> np.ndarray[Any, Any]:
    return np.array(values, dtype).reshape(shape)


def _device(platform: str, number: int) -> jax.Device:
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise Unavailable from error
    for device in devices:
        if device.id == number:
            return device
    raise Unavailable


def _primitive(name: str) -> Any:
    found = primitive_named(name)
    if found is None:
        raise Unavailable
    return found


_PRNG: Final = _found("jax._src.random.prng:prngs", "jax._src.prng:prngs")
_ABSTRACT: Final = _found("jax._src.mesh:AbstractDevice")
_KEY: Final = _found(
    *("jax._src.prng:PRNGImpl", "jax._src.prng:KeyTy"),
    *("jax._src.random.prng:PRNGImpl", "jax._src.random.prng:KeyTy"),
)


def key_implementation(name: str) -> Any:
    """The PRNG implementation of that name."""
    found = _PRNG.get("prngs", {}).get(name)
    if found is None:
        raise Unavailable
    return found


def _key_dtype(name: str) -> Any:
    return _KEY["KeyTy"](key_implementation(name))


def _mesh(
    platform: str, numbers: tuple[int, ...], shape: tuple[int, ...], names: Any, types: Any
) -> Mesh:
    devices = np.array([_device(platform, number) for number in numbers], object)
    if not numbers:
        devices = np.empty((), object)  # JAX's empty mesh
    return Mesh(devices.reshape(shape), names, axis_types=types)


def _abstract_mesh(sizes: Any, names: Any, types: Any, device: tuple[Any, ...]) -> AbstractMesh:
    keywords = {"abstract_device": _ABSTRACT["AbstractDevice"](*device)} if device else {}
    return AbstractMesh(sizes, names, axis_types=types, **keywords)


def _named_sharding_parts(value: Any) -> Parts:
    yield (value.mesh, value.spec), {}
    yield (value.mesh, value.spec), {"memory_kind": value.memory_kind}


def _one_device_parts(value: Any) -> Parts:
    (device,) = value.device_set
    yield (device,), {}
    yield (device,), {"memory_kind": value.memory_kind}


def _spec_parts(value: Any) -> Parts:
    keywords = {}
    for name in ("unreduced", "reduced", "unreduced_kind"):
        held = getattr(value, name, None)
        if held:
            keywords[name] = held
    yield tuple(value), keywords


def _mesh_parts(value: Any) -> Parts:
    devices = [] if value.empty else list(value.devices.flat)
    (platform,) = {d.platform for d in devices} or {""}
    numbers = tuple(d.id for d in devices)
    yield (platform, numbers, value.devices.shape, value.axis_names, value.axis_types), {}


def _abstract_mesh_parts(value: Any) -> Parts:
    device = value.abstract_device
    parts = () if device is None else tuple(getattr(device, f) for f in _fields(type(device)))
    yield (value.axis_sizes, value.axis_names, value.axis_types, parts), {}


def _aval_parts(value: Any) -> Parts:
    yield (value.shape, value.dtype), {}
    yield (value.shape, value.dtype), {"weak_type": value.weak_type}


def _one(*names: str) -> Callable[[Any], Parts]:
    """Take apart into these attributes."""

    def parts(value: Any) -> Parts:
        yield tuple(getattr(value, name) for name in names), {}

    return parts


_TYPES: Final[tuple[tuple[Any, Kind], ...]] = (
    (Region, Kind("Region", _one("index", "closed"), Region)),
    (slice, Kind("slice", _one("start", "stop", "step"), slice)),
    (PartitionSpec, Kind("P", _spec_parts, PartitionSpec)),
    (AbstractMesh, Kind("AbstractMesh", _abstract_mesh_parts, _abstract_mesh)),
    (Mesh, Kind("Mesh", _mesh_parts, _mesh)),
    (NamedSharding, Kind("NamedSharding", _named_sharding_parts, NamedSharding)),
    (
        SingleDeviceSharding,
        Kind("SingleDeviceSharding", _one_device_parts, SingleDeviceSharding),
    ),
    (jax.Device, Kind("Device", _one("platform", "id"), _device)),
    (jax.ShapeDtypeStruct, Kind("ShapeDtypeStruct", _aval_parts, jax.ShapeDtypeStruct)),
    (jax.core.ShapedArray, Kind("ShapedArray", _aval_parts, jax.core.ShapedArray)),
    (jax.lax.Tolerance, Kind("Tolerance", _one("atol", "rtol", "ulps"), jax.lax.Tolerance)),
    (Primitive, Kind("Primitive", _one("name"), _primitive)),
    (_KEY.get("PRNGImpl"), Kind("PRNGImpl", _one("name"), key_implementation)),
    (_KEY.get("KeyTy"), Kind("KeyTy", lambda v: _one("name")(v._impl), _key_dtype)),
)

KINDS: Final[dict[type, Kind]] = {cls: kind for cls, kind in _TYPES if cls is not None}

BUILDERS: Final[dict[str, Callable[..., Any]]] = {
    **{kind.name: kind.build for kind in KINDS.values()},
    **{name: cls for cls, (name, _) in RECORDS.items()},
    **dict.fromkeys(("complex",), complex),
    "array": _array,
}
