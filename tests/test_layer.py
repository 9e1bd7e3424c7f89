"""A layer of a stack in the place of an array: the same bits, and kernels that find its place."""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from precir.kernels import (
    E4M3,
    Layer,
    quantize,
    quantize_and_amax,
    quantize_both,
    quantize_both_and_amax,
)
from precir.kernels.launch import SHARED_MEMORY
from precir.kernels.layer import operands
from precir.kernels.quantize import QuantizeError
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_same, numbers

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

# One for each raw kernel that reads what is quantised: its name, and how it is reached.
WAYS = {
    "quantize_groups": partial(quantize, block=(1, 32)),
    "quantize_tiles": partial(quantize, block=(32, 32)),
    "quantize_tiles down columns": partial(quantize, block=(32, 1)),
    "quantize_current": quantize,
    "quantize_given": partial(quantize, scale=0.25),
    "quantize_given_amax": partial(quantize_and_amax, scale=0.25),
    "both_current": quantize_both,
    "both_squares": partial(quantize_both, block=(32, 32)),
    "both_groups": partial(quantize_both, block=(1, 32)),
    "both_given": partial(quantize_both, scale=0.25),
    "both_given_amax": partial(quantize_both_and_amax, scale=0.25),
    "no kernel": lambda x, _: quantize(x, "float16"),
}
EACH = pytest.mark.parametrize("way", WAYS)


def leaves(way, x):
    return jax.tree.leaves(WAYS[way](x, E4M3))


@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits(way, dtype):
    stack = numbers((3, 130, 140), dtype)
    for i in range(3):
        layer = Layer(stack, jnp.int32(i))
        assert_same(leaves(way, layer), leaves(way, stack[i]))


@EACH
def test_in_a_loop_and_under_vmap(way):
    stack = numbers((3, 64, 96))
    expected = jax.lax.map(lambda x: leaves(way, x), stack)
    looped = jax.lax.map(lambda i: leaves(way, Layer(stack, i)), jnp.arange(3))
    assert_same(looped, expected)
    each = jax.vmap(lambda i: leaves(way, Layer(stack, i)))(jnp.arange(3))
    assert_same(each, expected)
    two = jnp.stack([stack, 2 * stack[::-1]])
    stacks = jax.vmap(lambda s: leaves(way, Layer(s, jnp.int32(1))))(two)
    assert_same(stacks, jax.vmap(lambda s: leaves(way, s[1]))(two))
    both = jax.vmap(lambda s, i: leaves(way, Layer(s, i)))(two, jnp.array([2, 0]))
    assert_same(both, jax.vmap(lambda x: leaves(way, x))(jnp.stack([two[0, 2], two[1, 0]])))
    moved = jax.vmap(lambda s: leaves(way, Layer(s, jnp.int32(1))), 3)(jnp.moveaxis(two, 0, 3))
    assert_same(moved, stacks)


@ON_LINUX
@EACH
def test_kernels_find_their_place(way):
    stack = numbers((3, 130, 140))
    for i in (0, 2):
        with interpreted():
            actual = leaves(way, Layer(stack, jnp.int32(i)))
        assert_same(actual, leaves(way, stack[i]))


@ON_LINUX
@EACH
def test_no_copy_for_hopper(way):
    """No slice is left for XLA to make, and a stack may be larger than 2^31 elements."""
    stack = jax.ShapeDtypeStruct((200, 4096, 4096), jnp.float32)
    text, kernels = lower_for_cuda(
        lambda s, i: leaves(way, Layer(s, i)), stack, jax.ShapeDtypeStruct((), jnp.int32)
    )
    sliced = way == "no kernel"
    assert ("dynamic_slice" in text) == sliced
    assert bool(kernels) != sliced
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY
        assert kernel.resources()["spilled"] == 0, kernel.resources()
        assert "arith.extsi" in kernel.ttir


def test_bad_layers():
    with pytest.raises(QuantizeError, match="wide floating-point"):
        quantize(Layer(jnp.ones((2, 3), jnp.int32), jnp.int32(0)), E4M3)
    with pytest.raises(QuantizeError, match="not a tensor of shape"):
        quantize_both_and_amax(Layer(jnp.ones((2, 3)), jnp.int32(0)), E4M3, scale=1.0)


def test_a_layer_is_like_an_array():
    layer = Layer(jnp.ones((2, 3, 4)), jnp.int32(1))
    assert (layer.shape, layer.ndim, layer.size) == ((3, 4), 2, 12)
    assert layer.dtype == np.float32
    assert layer.reshape(2, -1).shape == layer.reshape((2, 6)).shape == (2, 6)
    assert [x.shape for x in operands(layer)] == [(2, 3, 4), ()]
    assert Layer(jnp.ones((0, 3)), jnp.int32(0)).size == 0
