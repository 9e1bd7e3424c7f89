"""How the tensors of `adam_update` are stored, and the scales that are proved for the next step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jax import Array
from jax import numpy as jnp
from jax.typing import ArrayLike

from precir.errors import PrecirError
from precir.formats import E4M3, E5M2, F16, F32, format_of
from precir.kernels.powers import power_of_two_scale
from precir.scaled import ScaledArray, full_block

HEADROOM: Final = 4.0  # what a weight under a scale of the last step may grow by

NARROW: Final = (E4M3.name, E5M2.name, F16.name)
GRADIENTS: Final = ("float32", "bfloat16", "float16")


class UpdateError(PrecirError, TypeError):
    """A weight, a moment, a gradient or a scale that ``adam_update`` does not take."""


@dataclass(frozen=True)
class Stored:
    """One of the four tensors: ``size`` elements of a row to a scale, or 0; ``lead`` the axes of
    which each element has one scale, or None.
    """

    data: Array
    scale: Array | None
    block: tuple[int, ...]
    size: int
    lead: tuple[int, ...] | None

    def operands(self, examples: int, rows: int, columns: int) -> list[Array]:
        """Data and scales as ``adam_p`` takes them."""
        data = self.data.reshape(examples, rows, columns)
        if self.scale is None:
            return [data, jnp.zeros(0, np.float32)]
        if self.size:
            return [data, self.scale.reshape(examples, rows, -(-columns // self.size))]
        return [data, jnp.broadcast_to(self.scale.reshape(-1), (examples,))]

    def like(self, data: Array, scale: Array) -> ScaledArray | Array:
        data = data.reshape(self.data.shape)
        if self.scale is None:
            return data
        return ScaledArray(data, scale.reshape(self.scale.shape), self.block)

    def bound(self, amax: Array) -> Array:
        """Of what is stored, where the numbers that were rounded to it had this amax."""
        assert self.scale is not None
        format = format_of(self.data.dtype)
        scale = self.scale.reshape(amax.shape)
        return amax * (1 + format.epsilon / 2) + scale * (format.smallest_subnormal / 2)


def stored(name: str, x: ScaledArray | ArrayLike, shape: tuple[int, ...]) -> Stored:
    if np.shape(x.data if isinstance(x, ScaledArray) else x) != shape:
        raise UpdateError(f"{name} is not of the weight's shape, {shape}")
    if not isinstance(x, ScaledArray):
        x = jnp.asarray(x)
        if x.dtype.name not in (GRADIENTS if name == "gradient" else {"float32"}):
            raise UpdateError(f"{name} cannot be a plain {x.dtype}", fix="quantize it, or float32")
        return Stored(x, None, (), 0, None)
    data, scale = jnp.asarray(x.data), jnp.asarray(x.scale)
    if data.dtype.name not in NARROW:
        raise UpdateError(f"{name} is stored in E4M3, E5M2 or float16, not {data.dtype}")
    if not x.block:
        return Stored(data, scale, (), 0, scale.shape)
    block = full_block(x.block, len(shape))
    if scale.size == 1 and all(b >= n for b, n in zip(block, shape, strict=True)):
        return Stored(data, scale, x.block, 0, ())
    if all(b == 1 for b in block[:-1]):
        return Stored(data, scale, x.block, block[-1], None)
    if block[0] == 1 and all(b >= n for b, n in zip(block[1:], shape[1:], strict=True)):
        return Stored(data, scale, x.block, 0, shape[:1])
    raise UpdateError(
        f"{name} has blocks of {x.block}",
        fix="one scale, block=(1, *shape[1:]), or a block along the last axis",
    )


def proved_scales(
    stored: list[Stored], hyper: Array, last: ArrayLike, gradient_amax: ArrayLike | None
) -> Array:
    """float32[..., 3]: the scales of the step to come."""
    _, first, second, gradient = stored
    w, m, v = jnp.moveaxis(jnp.asarray(last, np.float32), -1, 0)
    if gradient_amax is not None:
        g = jnp.asarray(gradient_amax, np.float32)
    elif gradient.scale is not None:
        g = jnp.max(gradient.scale.astype(np.float32)) * format_of(gradient.data.dtype).max
    else:
        raise UpdateError(
            "a scale proved from the last step needs a bound of the gradient",
            fix="pass gradient_amax",
        )
    _, b1, rest1, b2, rest2, *_, times = hyper
    g = g * jnp.abs(times)
    bounds = [
        HEADROOM * w,
        b1 * (first.bound(m) if first.lead is not None else m) + rest1 * g,
        b2 * (second.bound(v) if second.lead is not None else v) + rest2 * (g * g),
    ]
    rounded = np.float32(1 + 2.0**-20)  # more than the step rounds up
    return jnp.stack(
        [
            power_of_two_scale(
                jnp.minimum(rounded * jnp.broadcast_to(bound, w.shape), np.float32(F32.max)),
                s.data.dtype,
            )
            for bound, s in zip(bounds, stored[:3], strict=True)
        ],
        -1,
    )
