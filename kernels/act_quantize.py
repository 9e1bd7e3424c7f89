"""Activations, gated or not, written in FP8 as they are computed; and their gradients.

Between two products a network has an activation. Fused, what is read is the product's result, and
what is written is the next product's operand: no activation in 16 or 32 bits goes through memory.

    gelu        x Phi(x) = x (1 + erf(x / sqrt 2)) / 2     Hendrycks and Gimpel, arXiv 1606.08415
    gelu_tanh   x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), which is x (1 + tanh(...)) / 2
    silu        x sigmoid(x)
    relu        max(x, 0)

and gated, times a second tensor: GeGLU, SwiGLU, ReGLU of Shazeer, arXiv 2002.05202. All in float32,
rounded once. Special values are those of ``jax.nn`` and then of ``quantize``; float32's subnormals
are zero.

One read knows the scale of a block or a row, and one that is given: of earlier steps, of a
calibration, or of a bound (``activation_scale``). Reads and writes, in bytes for each element of
bfloat16 input: 2 + 1, gated 4 + 1, one more with the transpose; for the gradients, into FP8, 4 + 1,
gated 6 + 2.

On NVIDIA GPUs from Ada on these are Triton kernels, elsewhere XLA's code. Their exponentials and
error functions differ in the last bits, so that a number between two of FP8 may go either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.formats import F32, Format
from precir.kernels import fused_cuts
from precir.kernels.divided import Parts, Split
from precir.kernels.folding import fold, unfold
from precir.kernels.launch import launch
from precir.kernels.powers import power_of_two_scale
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import QuantizeError, checked_array, checked_scale
from precir.kernels.quantize_cuda import warps
from precir.kernels.writing import (
    LONGEST,
    Writing,
    Written,
    agreed,
    kernels_serve,
    matrix,
    writing_of,
)

_SHARP: Final = 2 * (2 / np.pi) ** 0.5
_CUBIC: Final = 0.044715


def act_quantize(
    x: ArrayLike,
    format: DTypeLike | Format | None,
    *,
    activation: str = "gelu_tanh",
    up: ArrayLike | None = None,
    packed: bool = False,
    scale: ArrayLike | None = None,
    block: tuple[int, ...] = (),
    scale_format: DTypeLike | Format = F32,
    transposed: bool = False,
    plain: DTypeLike | None = None,
    amax: bool = False,
) -> Written:
    """``quantize`` of act(x), or of act(x) * up: ``x`` and ``up`` [..., columns], float16, bfloat16
    or float32; or ``packed``, [..., 2 columns], whose first half is activated and multiplied with
    the second.

    ``activation`` is "gelu", "gelu_tanh", "silu" or "relu". The result is E4M3 or E5M2, under
    ``scale``, one float32 power of two, or in blocks along the last axis: ``block=(1, 128)``, with
    ``scale_format`` as in ``quantize``, or ``(1, columns)``. ``transposed`` adds the transpose,
    under the same scale or in blocks along its own rows, which a backward product needs, ``plain``
    a copy in that dtype, and ``amax`` the largest finite magnitude, which the next steps' scales
    need. Without a format only these two are there: with ``amax`` alone nothing but it is written.

    Not differentiable: ``act_gradients`` is what its backward pass calls. Under ``jax.vmap`` each
    example has its own scales. Raises ``QuantizeError`` (a ``TypeError``) for what it does not
    take, one current scale for the whole tensor among it: that takes a second read.
    """
    x, both = _inputs(x, up, packed)
    shape = (*x.shape[:-1], x.shape[-1] // (1 + packed)) if x.ndim else ()
    writing, given = writing_of(
        shape, format, scale=scale, block=block, scale_format=scale_format,
        transposed=transposed, plain=plain, amax=amax,
    )  # fmt: skip
    params = {"activation": _known(activation), "packed": packed, "writing": writing}
    results = act_p.bind(given.reshape(1), *map(matrix, both), **params)
    return writing.written(results, given, shape)


def act_gradients(
    x: ArrayLike,
    gradient: ArrayLike,
    format: DTypeLike | Format | None = None,
    *,
    activation: str = "gelu_tanh",
    up: ArrayLike | None = None,
    packed: bool = False,
    scale: ArrayLike | None = None,
    up_scale: ArrayLike | None = None,
    block: tuple[int, ...] = (),
    scale_format: DTypeLike | Format = F32,
    transposed: bool = False,
    plain: DTypeLike | None = None,
    amax: bool = False,
    of_up: bool = True,
) -> tuple[Written, Written | None]:
    """The gradients of ``x`` and of ``up`` (None where there is none, or not ``of_up``: that one is
    an ``act_quantize``, gated by the gradient), from the ``gradient`` of act(x) * up: [...,
    columns], float16, bfloat16 or float32. Of what is ``packed`` it is one, of its shape.

    They are written in ``format``, E5M2 as a rule, as ``act_quantize`` writes its result, ``up``'s
    under ``up_scale`` where scales are given (``scale`` if left out); and with no format in
    ``plain``, by default the dtype of ``x``. What was rounded on the way forward has a derivative
    of 1: the gradient is that of the unrounded activation.
    """
    x, both = _inputs(x, up, packed)
    g = checked_array(gradient)
    inner = (*x.shape[:-1], x.shape[-1] // (1 + packed)) if x.ndim else ()
    if g.shape != inner:
        raise QuantizeError(f"the gradient has shape {inner}, as the activation, not {g.shape}")
    if format is None and plain is None:
        plain = x.dtype if x.dtype != np.float64 else np.float32
    writing, given = writing_of(
        x.shape, format, scale=scale, block=block, scale_format=scale_format,
        transposed=transposed, plain=plain, amax=amax,
    )  # fmt: skip
    other = given if up_scale is None else checked_scale(up_scale)
    params = {"activation": _known(activation), "packed": packed, "writing": writing}
    params |= {"alone": True} if len(both) > 1 and not of_up else {}
    scales = jnp.stack([given, other]).reshape(1, 2)
    results = act_gradients_p.bind(scales, matrix(g), *map(matrix, both), **params)
    n = writing.count()
    second = writing.written(results[n:], other, x.shape) if len(results) > n else None
    return writing.written(results[:n], given, x.shape), second


def act_gradients_amax(
    x: ArrayLike,
    gradient: ArrayLike,
    *,
    activation: str = "gelu_tanh",
    up: ArrayLike | None = None,
) -> Array:
    """The largest finite magnitude of the gradient of ``x`` that ``act_gradients`` would write,
    float32[]: what its scale is made of, from a read of its operands that writes nothing.
    """
    x, both = _inputs(x, up, packed=False)
    g = checked_array(gradient)
    if g.shape != x.shape or not x.ndim:
        raise QuantizeError(f"x has shape {x.shape}, and its gradient {g.shape}")
    params = {
        "activation": _known(activation), "packed": False, "writing": Writing(None, amax=True),
        **({"alone": True} if len(both) > 1 else {}),
    }  # fmt: skip
    one = jnp.ones((1, 2), np.float32)
    results: Results = act_gradients_p.bind(one, matrix(g), *map(matrix, both), **params)
    return results[0][0]


def activation_scale(
    x_amax: ArrayLike, format: DTypeLike | Format, *, up_amax: ArrayLike = 1.0
) -> Array:
    """A scale under which no activation overflows: |act(x)| <= |x| for each of them, so that
    |act(x) * up| <= amax(x) * amax(up), which the products before may give. float32[].
    """
    bound = jnp.asarray(x_amax, np.float32) * jnp.asarray(up_amax, np.float32)
    return power_of_two_scale(jnp.minimum(bound * (1 + 2.0**-20), F32.max), format)


def _inputs(x: ArrayLike, up: ArrayLike | None, packed: bool) -> tuple[Array, list[Array]]:
    x = checked_array(x)
    if packed and (up is not None or not x.ndim or x.shape[-1] % 2):
        raise QuantizeError(
            "what is packed is one tensor of an even number of columns", fix="leave out up"
        )
    if up is None:
        return x, [x]
    up = checked_array(up)
    if up.shape != x.shape:
        raise QuantizeError(f"x has shape {x.shape}, and up {up.shape}")
    return x, [x, up]


def _known(activation: str) -> str:
    if activation not in _ACTIVATIONS:
        raise QuantizeError(f"an activation is one of {', '.join(_ACTIVATIONS)}, not {activation}")
    return activation


# --- activations and slopes, as kernels/triton/activations.py has them


def _gelu(x: Array) -> tuple[Array, Array]:
    half = 0.5 * (1 + lax.erf(x * np.float32(0.5**0.5)))
    return x * half, half + x * (lax.exp(-0.5 * (x * x)) * np.float32((2 * np.pi) ** -0.5))


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    s, rest = _sigmoids(np.float32(_SHARP) * (x + np.float32(_CUBIC) * (x * x * x)))
    slope = np.float32(_SHARP) * (1 + np.float32(3 * _CUBIC) * (x * x))
    return x * s, s + x * (s * rest) * slope


def _silu(x: Array) -> tuple[Array, Array]:
    s, rest = _sigmoids(x)
    return x * s, s + x * (s * rest)


def _relu(x: Array) -> tuple[Array, Array]:
    return jnp.where(x <= 0, 0, x), jnp.where(x > 0, np.float32(1), np.float32(0))


def _chained(g: Array, slope: Array, activation: str) -> Array:
    """The gradient of what is activated: where relu is flat, none, be it infinite or not."""
    return jnp.where(slope > 0, g, 0) if activation == "relu" else slope * g


def _sigmoids(z: Array) -> tuple[Array, Array]:
    """The sigmoid of ``z`` and of -z, of one exponential that cannot overflow."""
    small = lax.exp(-lax.abs(z))
    most, least = 1 / (1 + small), small / (1 + small)
    return jnp.where(z >= 0, most, least), jnp.where(z >= 0, least, most)


_ACTIVATIONS: Final[dict[str, Callable[[Array], tuple[Array, Array]]]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
}


# --- on [examples, rows, columns], scales first: [examples], and [examples, 2] for gradients


def _halves(both: tuple[Array, ...], packed: bool) -> list[Array]:
    wide = [a.astype(np.float32) for a in both]
    return jnp.split(wide[0], 2, axis=-1) if packed else wide


def _reference(
    given: Array, *both: Array, activation: str, packed: bool, writing: Writing
) -> Results:
    x, *up = _halves(both, packed)
    y, _ = _ACTIVATIONS[activation](x)
    return tuple(writing.reference(y * up[0] if up else y, given))


def _on_cuda(
    given: Array, *both: Array, activation: str, packed: bool, writing: Writing
) -> Results:
    examples, rows, stride = both[0].shape
    columns = stride // 2 if packed else stride
    tile = writing.tile(columns) if kernels_serve(*both) else None
    if tile is None:
        params: dict[str, Any] = {"activation": activation, "packed": packed}
        return _reference(given, *both, writing=writing, **params)
    from precir.kernels.triton.act_quantize import act_forward

    tall, wide = tile
    programs = examples * -(-rows // tall) * -(-columns // wide)
    slots = launch(
        act_forward,
        [both[0], both[-1], given],
        writing.slots(examples, rows, columns, programs),
        (programs,),
        warps=warps(tall * wide),
        M=rows,
        N=columns,
        STRIDE=stride,
        TALL=tall,
        WIDE=wide,
        KIND=activation,
        GATED=packed or len(both) > 1,
        **writing.constants(columns, wide),
    )
    return tuple(writing.asked_for(slots))


def _gradients_reference(
    given: Array,
    g: Array,
    *both: Array,
    activation: str,
    packed: bool,
    writing: Writing,
    alone: bool = False,
) -> Results:
    x, *up = _halves(both, packed)
    wide = g.astype(np.float32)
    y, slope = _ACTIVATIONS[activation](x)
    one, other = given[:, 0], given[:, 1]
    if not up or alone:
        return tuple(
            writing.reference(_chained(wide * up[0] if up else wide, slope, activation), one)
        )
    pair = _chained(wide * up[0], slope, activation), y * wide
    if packed:
        return tuple(writing.reference(jnp.concatenate(pair, -1), one))
    return *writing.reference(pair[0], one), *writing.reference(pair[1], other)


def _gradients_on_cuda(
    given: Array,
    g: Array,
    *both: Array,
    activation: str,
    packed: bool,
    writing: Writing,
    alone: bool = False,
) -> Results:
    examples, rows, columns = g.shape
    stride = both[0].shape[2]
    tile = writing.tile(columns) if kernels_serve(g, *both) else None
    # Groups of what is packed lie in one half, and are as wide as a tile.
    size = writing.size if packed else 0
    if tile is None or (size and (columns % size or tile[1] != size)):
        params: dict[str, Any] = {"activation": activation, "packed": packed, "alone": alone}
        return _gradients_reference(given, g, *both, writing=writing, **params)
    from precir.kernels.triton.act_quantize import act_backward

    tall, wide = tile
    programs = examples * -(-rows // tall) * -(-columns // wide)
    gated, two = packed or len(both) > 1, len(both) > 1 and not alone
    # What is packed has its second amaxes apart, and all else in one.
    nothing = Writing(None, amax=packed and writing.amax)
    others = (writing if two else nothing).slots(examples, rows, stride, programs)
    slots = launch(
        act_backward,
        [both[0], both[-1], g, given],
        [*writing.slots(examples, rows, stride, programs), *others],
        (programs,),
        warps=32 if tall * wide == LONGEST else warps(tall * wide * (1 + gated)),
        M=rows,
        N=columns,
        STRIDE=stride,
        TALL=tall,
        WIDE=wide,
        KIND=activation,
        GATED=gated,
        ALONE=alone,
        **writing.constants(columns, wide),
    )
    first = writing.asked_for(slots[:6])
    if two:
        return *first, *writing.asked_for(slots[6:])
    if packed and writing.amax:
        first[-1] = jnp.maximum(first[-1], nothing.asked_for(slots[6:])[0])
    return tuple(first)


def _batch(operands: tuple[Array, ...], dims: Dims, **params: Any) -> tuple[Results, Dims]:
    folded, size = fold(operands, dims, shared=(False,) * len(operands))
    return unfold(act_p.bind(*folded, **params), size)


def _batch_gradients(
    operands: tuple[Array, ...], dims: Dims, **params: Any
) -> tuple[Results, Dims]:
    folded, size = fold(operands, dims, shared=(False,) * len(operands))
    return unfold(act_gradients_p.bind(*folded, **params), size)


def _of_one_device(split: Split, *operands: Array, writing: Writing, **params: Any) -> Results:
    return tuple(agreed(split, writing, _on_cuda(*operands, writing=writing, **params)))


def _gradients_of_one_device(
    split: Split, *operands: Array, writing: Writing, **params: Any
) -> Results:
    results = _gradients_on_cuda(*operands, writing=writing, **params)
    n = writing.count()
    return *agreed(split, writing, results[:n]), *agreed(split, writing, results[n:])


act_p = kernel_primitive(
    "precir_act_quantize",
    _reference,
    platforms={"cuda": _on_cuda},
    batch=_batch,
    parts=Parts(fused_cuts.activation, _of_one_device),
)
act_gradients_p = kernel_primitive(
    "precir_act_gradients",
    _gradients_reference,
    platforms={"cuda": _gradients_on_cuda},
    batch=_batch_gradients,
    parts=Parts(fused_cuts.activation_gradients, _gradients_of_one_device),
)
