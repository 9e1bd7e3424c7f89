"""One step of AdamW on weights and moments that live in narrow storage, in one or two reads.

What leaves memory and comes back is the storage alone: no float32 copy of a weight, a moment or a
gradient is made. The arithmetic is float32, from moments that are not rounded yet, in the order of
``optax.adamw`` (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2):

    m' = (1 - b1) g + b1 m
    v' = (1 - b2) g^2 + b2 v
    u  = (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps) + weight_decay w
    w' = w - lr u

with each result rounded once, when it is stored. To divide by 1 - b1^t is to multiply with its
reciprocal, which is how XLA divides by a scalar. The storage is that of Peng et al., FP8-LM, arXiv
2310.18313, section 2.2, where one scale is for a tensor, and also blocks along the last axis.

The scale of a block is that of the new elements in it, which one read gives. One scale for a tensor
needs the largest of all new elements first: the step is then computed twice, as in MS-AMP, or, with
``last``, its scale is taken from what is known before.

On NVIDIA GPUs from Ada on it is a Triton kernel, elsewhere XLA's code. They differ in the last bit
where XLA fuses a product and a sum, and where numbers are added of which XLA:CPU reads one as zero,
being subnormal in float32, and the other is below 2^-100.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike

from precir.formats import F32
from precir.kernels import fused_cuts
from precir.kernels.adam_stored import UpdateError, proved_scales, stored
from precir.kernels.divided import Parts, Split, collectives
from precir.kernels.folding import fold, unfold
from precir.kernels.launch import fp8_gpu, launch, result
from precir.kernels.powers import power_of_two_carry, power_of_two_scale
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import quantize_given_reference, quantize_p_reference
from precir.kernels.quantize_cuda import largest
from precir.scaled import ScaledArray

TILE: Final = 2048  # elements of a program
WARPS: Final = 8
HYPERS: Final = 10  # as `_reference` names them


class Updated(NamedTuple):
    """What ``adam_update`` returns."""

    weight: ScaledArray | Array
    first: ScaledArray | Array
    second: ScaledArray | Array
    amax: Array
    """float32[..., 3]: the largest finite magnitudes of the new weight, first and second moment, as
    computed; 0 for each that is not under one scale. Leading axes as the scales have.
    """


def adam_update(
    weight: ScaledArray | ArrayLike,
    first: ScaledArray | ArrayLike,
    second: ScaledArray | ArrayLike,
    gradient: ScaledArray | ArrayLike,
    *,
    lr: ArrayLike,
    count: ArrayLike | None = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    gradient_scale: ArrayLike = 1.0,
    corrections: tuple[ArrayLike, ArrayLike] | None = None,
    last: Array | None = None,
    gradient_amax: ArrayLike | None = None,
) -> Updated:
    """The next weight and moments, each stored as it came.

    All four have one shape, of any rank. ``weight``, ``first`` and ``second`` are float32, or in
    float8_e4m3fn, float8_e5m2 or float16 as a ``ScaledArray``: under one scale (``block=()``), one
    for each layer of a stack (``block=(1, *shape[1:])``), or in blocks along the last axis
    (``block=(1, 128)``). ``gradient`` is the same, or plain float16 or bfloat16. ``count`` is the
    number of this step, from 1; with ``lr`` and the other scalars it may be traced. Adam without
    weight decay is a ``weight_decay`` of 0. ``corrections`` are what the moments are divided by, in
    the place of ``count``: 1 - b1^t and 1 - b2^t as the caller has them. ``gradient_scale`` is what
    the gradient is multiplied by first, as where it is clipped; it costs no further read.

    ``last`` is the ``amax`` of the step before: then one read suffices. The new moments' scales are
    proved: |m'| <= b1 amax(m) + (1 - b1) amax(g) with rounding to spare, and the second's likewise.
    ``gradient_amax`` is amax(g); without it, it is what the gradient's scale allows, and a plain
    gradient is refused. A weight has no such bound (its step is m / eps where v rounds to zero): it
    gets four times its last amax and saturates past that.

    Special values are those of ``quantize``. Not differentiable; under ``jax.vmap`` each example
    has its own scales. Raises ``UpdateError`` (a ``TypeError``) for shapes, formats and blocks that
    are none of these, and for neither ``count`` nor ``corrections``, or both.
    """
    if (count is None) == (corrections is None):
        raise UpdateError(
            "the bias corrections are known twice, or not at all",
            fix="pass count, the number of this step, or corrections, what moments are divided by",
        )
    shape = np.shape(weight.data if isinstance(weight, ScaledArray) else weight)
    given = [("weight", weight), ("first", first), ("second", second), ("gradient", gradient)]
    tensors = [stored(name, x, shape) for name, x in given]
    lead = next((s.lead for s in tensors[:3] if s.lead is not None), ())
    for s in tensors:
        if s.lead not in (None, lead, ()) or (s.lead == () != lead and s is not tensors[3]):
            raise UpdateError(
                f"scales for {lead} and scales for {s.lead} of one parameter",
                fix="store weight and moments alike: under one scale each, or one for each layer",
            )
    examples = math.prod(lead)
    if len(shape) > 2 and all(s.lead is None for s in tensors[:3]):
        examples = shape[0]  # no scale is for more, and axes that are cut stay apart

    # What is constant is computed as optax does: in Python's numbers, then rounded.
    if count is not None:
        corrections = 1 - b1**count, 1 - b2**count
    scalars = [-jnp.asarray(lr, np.float32), b1, 1 - b1, b2, 1 - b2, eps, weight_decay]
    scalars += [1 / jnp.asarray(c, np.float32) for c in corrections or ()]
    scalars.append(gradient_scale)
    hyper = jnp.stack([jnp.asarray(s, np.float32) for s in scalars])
    scales = jnp.zeros((0, 3), np.float32)
    if last is not None:
        proved = proved_scales(tensors, hyper, last, gradient_amax)
        scales = jnp.broadcast_to(proved.reshape(-1, 3), (examples, 3))

    columns = shape[-1] if shape else 1
    rows = math.prod(shape) // max(1, examples * columns)
    operands: list[Array] = []
    for s in tensors:
        operands += s.operands(examples, rows, columns)
    sizes = tuple(s.size for s in tensors)
    new = adam_p.bind(*operands, hyper.reshape(1, HYPERS), scales, sizes=sizes)
    w, m, v = (s.like(new[2 * i], new[2 * i + 1]) for i, s in enumerate(tensors[:3]))
    if examples != math.prod(lead):
        return Updated(w, m, v, jnp.zeros(3, np.float32))
    return Updated(w, m, v, new[6].reshape(*lead, 3))


# --- on [examples, rows, columns]: each tensor, then its scales: [0] for none, [examples] for one,
# [examples, rows, groups] where ``sizes`` says how many columns a group has. Then the scalars,
# [1 or examples, 10], and the new scales, [examples, 3], or [0, 3] where they are to be found.


def _reference(*operands: Array, sizes: tuple[int, ...], across: tuple[str, ...] = ()) -> Results:
    """With ``across``, the operands are what a device has, and these are the device axes that the
    scales for all of a tensor reach across.
    """
    *tensors, hyper, given = operands
    neg_lr, b1, rest1, b2, rest2, eps, decay, c1, c2, times = (
        hyper[:, i].reshape(-1, 1, 1) for i in range(HYPERS)
    )
    w, m, v, g = (
        _wide(data, scale, size)
        for data, scale, size in zip(tensors[::2], tensors[1::2], sizes, strict=True)
    )
    g = times * g  # before its square, which may leave float32
    m = rest1 * g + b1 * m
    v = rest2 * (g * g) + b2 * v
    step = (m * c1) / (lax.sqrt(v * c2) + eps)
    w = w + neg_lr * (step + decay * w)
    results: list[Array] = []
    amax: list[Array] = []
    for i, new in enumerate((w, m, v)):
        data, scale = tensors[2 * i], tensors[2 * i + 1]
        results += _narrow(new, data, scale, sizes[i], given[:, i], across)
        amax.append(_amax(new) if scale.ndim == 1 and scale.size else jnp.zeros(new.shape[0]))
    return *results, _agreed(jnp.stack([a.astype(np.float32) for a in amax], 1), across)


def _wide(data: Array, scale: Array, size: int) -> Array:
    if not scale.size:
        return data.astype(np.float32)
    return ScaledArray(data, scale, (1, size) if size else ()).unscale()


def _narrow(
    new: Array, data: Array, scale: Array, size: int, given: Array, across: tuple[str, ...]
) -> tuple[Array, Array]:
    dtype = data.dtype
    params: dict[str, Any]
    if size:
        params = {"batch_ndim": 0, "block": (1, size), "scales": scale.dtype}
        return quantize_p_reference(new, dtype=dtype, **params)
    if not scale.size:
        return new, scale
    if given.size:
        return quantize_given_reference(new, given, dtype=dtype)[0], given
    params = {"batch_ndim": 1, "block": (), "scales": F32.dtype, "across": across}
    return quantize_p_reference(new, dtype=dtype, **params)


def _agreed(amax: Array, across: tuple[str, ...]) -> Array:
    return collectives.pmax(amax, across) if across else amax


def _amax(new: Array) -> Array:
    magnitude = lax.abs(new)
    usual = (magnitude >= F32.smallest_normal) & (magnitude < np.inf)
    return jnp.max(jnp.where(usual, magnitude, 0), (1, 2), initial=0)


def _on_cuda(*operands: Array, sizes: tuple[int, ...], across: tuple[str, ...] = ()) -> Results:
    """With ``across`` as ``_reference``."""
    *tensors, hyper, given = operands
    datas, scales = tensors[::2], tensors[1::2]
    (examples, rows, columns), grouped = datas[0].shape, {s for s in sizes if s}
    wide = min(grouped, default=TILE)
    served = len(grouped) < 2 and wide in (16, 32, 64, 128, 256, 512, 1024, TILE)
    served &= all(s.dtype == np.float32 for s in scales) and datas[0].size > 0
    if not (served and fp8_gpu()):
        return _reference(*operands, sizes=sizes, across=across)
    from precir.kernels.triton.adam_update import adam_amax, adam_write

    if not grouped:
        m, n = 1, rows * columns
    elif columns % wide == 0:  # the groups of all rows follow one another
        m, n = rows * (columns // wide), wide
    else:
        m, n = rows, columns
    kinds = [2 if size else min(1, s.size) for size, s in zip(sizes, scales, strict=True)]
    tall = TILE // wide
    tiles = -(-m // tall) * -(-n // wide)
    names = ("WEIGHT", "FIRST", "SECOND", "GRADIENT")
    constants: dict[str, Any] = dict(zip(names, kinds, strict=True))
    constants |= {"M": m, "N": n, "TALL": tall, "WIDE": wide, "HYPERS": hyper.shape[0]}
    inputs = [
        a
        for data, scale in zip(datas, scales, strict=True)
        for a in (data.reshape(examples, m, n), scale if scale.size else hyper)
    ] + [hyper]
    grid, found = (examples * tiles,), result((examples, tiles, 3), np.int32)
    one = 1 in kinds[:3]
    amax = jnp.zeros((examples, 3), np.float32)
    if one and not given.size:
        (parts,) = launch(adam_amax, inputs, [found], grid, warps=WARPS, **constants)
        amax = _agreed(largest(parts.transpose(0, 2, 1), (examples, 3)), across)
    used = given
    if not given.size:
        used = jnp.stack(
            [power_of_two_scale(amax[:, i], d.dtype) for i, d in enumerate(datas[:3])], 1
        )
    nothing = result((1,), np.float32)
    out = []
    for data, scale, kind in zip(datas[:3], scales, kinds, strict=False):
        out += [result((examples, m, n), data.dtype)]
        out += [result(scale.shape, np.float32) if kind == 2 else nothing]
    measured = bool(one and given.size)
    # Data, and scales of groups, which the new ones are made of element by element.
    in_place = {2 * i: 2 * i for i in range(3)}
    in_place |= {2 * i + 1: 2 * i + 1 for i, kind in enumerate(kinds[:3]) if kind == 2}
    *new, parts = launch(
        adam_write,
        [*inputs, used],
        [*out, found if measured else result((1,), np.int32)],
        grid,
        warps=WARPS,
        in_place=in_place,
        WEIGHT_CARRY=power_of_two_carry(datas[0].dtype),
        FIRST_CARRY=power_of_two_carry(datas[1].dtype),
        SECOND_CARRY=power_of_two_carry(datas[2].dtype),
        AMAX=measured,
        **constants,
    )
    if measured:
        amax = _agreed(largest(parts.transpose(0, 2, 1), (examples, 3)), across)
    for i, kind in enumerate(kinds[:3]):
        new[2 * i] = new[2 * i].reshape(datas[0].shape)
        if kind < 2:
            new[2 * i + 1] = used[:, i] if kind else scales[i]
    return *new, amax


def _batch(
    operands: tuple[Array, ...], dims: Dims, *, sizes: tuple[int, ...]
) -> tuple[Results, Dims]:
    shared = (*(False,) * 8, True, False)
    folded, size = fold(operands, dims, shared=shared)
    return unfold(adam_p.bind(*folded, sizes=sizes), size)


def _of_one_device(split: Split, *operands: Array, sizes: tuple[int, ...]) -> Results:
    return _on_cuda(*operands, sizes=sizes, across=split.agreed)


adam_p = kernel_primitive(
    "precir_adam_update",
    _reference,
    platforms={"cuda": _on_cuda},
    batch=_batch,
    parts=Parts(fused_cuts.adam, _of_one_device),
)
