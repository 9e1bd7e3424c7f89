"""Constants: a small one stands in the text, a large one beside it and its digest in the text."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import jax
import numpy as np

from precir.equality import bits_of, same_constant
from precir.ir import Type
from precir.text.kinds import key_implementation
from precir.text.types import SHORT, numpy_dtype, spell_type
from precir.text.values import External, Speller

_WIDEST: Final = 16  # elements of a constant that stands in the text


def spell_constant(array: Any, spell: Speller) -> tuple[str, bool]:
    """What follows its name in the table of constants, and whether it must be kept beside."""
    if type(array) is External and array.number is None:
        return f": {array.text}", False
    bits = bits_of(array)
    spelled = None if bits is None else spell_type(_type(array))
    if bits is None or spelled is None:
        return f" = {spell.external(array)}", False
    host, implementation = bits
    key = "" if implementation is None else f" prng {implementation!r}"
    if host.size <= _WIDEST and host.dtype.itemsize:
        values = _decimal(host)
        try:
            exact = same_constant(parse_inline(values, _type(array), implementation), array)
        except (ValueError, TypeError, OverflowError):
            exact = False
        if exact:
            return f": {spelled}{key} = {spell(values)}", False
    return f": {spelled}{key} beside {digest(host)!r}", True


def _type(array: Any) -> Type:
    return Type(tuple(array.shape), dtype_name(array))


def dtype_name(array: Any) -> str:
    """As the type of a value spells it."""
    if array.dtype == jax.dtypes.float0:
        return "float0"
    return str(getattr(array.dtype, "name", array.dtype))


def _decimal(host: np.ndarray[Any, Any]) -> Any:
    """Nested lists of Python numbers; of the shortest that round to float32."""
    if host.dtype == np.float32:
        return np.array([float(str(x)) for x in host.flat], np.float64).reshape(host.shape).tolist()
    if host.dtype.kind == "V" or host.dtype.name in ("int2", "int4", "uint2", "uint4"):
        wide = np.float64 if "float" in host.dtype.name else np.int64
        return host.astype(wide).tolist()
    return host.tolist()


def _inline(values: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        return np.asarray(np.array(values).astype(dtype))


def parse_inline(values: Any, type_: Type, implementation: str | None) -> Any:
    """The array of a constant that stands in the text. Raises ValueError if it is none."""
    dtype = np.dtype(np.uint32) if implementation else numpy_dtype_of(type_)
    made = _inline(values, dtype)
    if not made.size and 0 in type_.shape:
        made = np.empty(type_.shape, dtype)  # nested lists do not show an empty shape
    array = decoded(made, type_, implementation)
    if tuple(array.shape) != type_.shape:
        raise ValueError(f"shape {array.shape} for {type_}")
    return array


def numpy_dtype_of(type_: Type) -> np.dtype[Any]:
    dtype = numpy_dtype(SHORT.get(type_.dtype, ""))
    if dtype is None:
        raise ValueError(f"no arrays of {type_.dtype}")
    return dtype


def encoded(array: Any) -> np.ndarray[Any, Any] | None:
    """What an `.npz` keeps: plain NumPy numbers, keys and small floats as unsigned integers."""
    bits = bits_of(array)
    if bits is None or bits[0].dtype.itemsize == 0:
        return None
    host = bits[0]
    plain = host.dtype.kind in "biufc" and host.dtype.isbuiltin == 1
    if plain:
        return host
    return np.ascontiguousarray(host).view(f"u{host.dtype.itemsize}").reshape(host.shape)


def decoded(raw: Any, type_: Type, implementation: str | None) -> Any:
    """The constant behind what an `.npz` keeps. Raises ValueError if it is none of this type."""
    if implementation is not None:
        key_implementation(implementation)  # raises if there is none
        try:
            return jax.random.wrap_key_data(raw, impl=implementation)
        except Exception as error:  # of several kinds, for data that are no key
            raise ValueError(f"no key of {implementation}") from error
    dtype = numpy_dtype_of(type_)
    if raw.dtype == dtype:
        return raw
    if raw.dtype.kind != "u" or raw.dtype.itemsize != dtype.itemsize:
        raise ValueError(f"{raw.dtype} where {dtype} was expected")
    return np.ascontiguousarray(raw).view(dtype).reshape(raw.shape)


def digest(host: np.ndarray[Any, Any]) -> str:
    """Eight characters that differ when the numbers do."""
    data = np.ascontiguousarray(host).reshape(-1)
    raw = data.view(np.uint8) if data.dtype.itemsize else np.empty(0, np.uint8)
    return hashlib.blake2b(raw.data, digest_size=4).hexdigest()


def holds(array: Any, type_: Type, implementation: str | None, expected: str | None) -> bool:
    """Whether this is the array that the text speaks of."""
    bits = bits_of(array)
    if bits is None:
        return False
    host, its_implementation = bits
    return (
        tuple(array.shape) == type_.shape
        and dtype_name(array) == type_.dtype
        and its_implementation == implementation
        and (expected is None or digest(host) == expected)
    )
