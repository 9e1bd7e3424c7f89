"""Kernels that XLA divides among devices: what is cut where, the numbers, and the program that an
H100 gets.
"""

import math
import re
import sys
from functools import partial

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import precir
from precir.formats import E8M0FNU, F32
from precir.kernels import E4M3, E5M2, dequantize, observe, quantize, quantize_cuda
from precir.kernels.act_quantize import act_gradients_p, act_p
from precir.kernels.adam_update import adam_p
from precir.kernels.both_given import quantize_amax_p, quantize_both_given_p
from precir.kernels.dequantize import dequantize_p
from precir.kernels.divided import divided, sharding_rule
from precir.kernels.division import Division, Kind, Rule, decide, device_axes, read_cuts
from precir.kernels.norm_quantize import norm_gradients_p, norm_p
from precir.kernels.observe import observe_p
from precir.kernels.primitive import parts_of
from precir.kernels.quantize import quantize_given_p, quantize_p, quantize_p_reference
from precir.kernels.quantize_both import (
    quantize_both_p,
)
from precir.kernels.scaled_dot import _prepared, scaled_dot, scaled_dot_p
from precir.kernels.writing import Writing
from precir.scaled import ScaledArray
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_same, numbers

# --- where XLA says that an array lies ------------------------------------------------------------


def test_cuts_are_read_off_tiles():
    devices = np.arange(8)
    assert read_cuts(devices.reshape(8, 1), 2, (2, 2, 2)) == ((0, 1, 2), ())
    assert read_cuts(devices.reshape(2, 2, 2), 2, (2, 2, 2)) == ((0,), (1,))
    turned = devices.reshape(2, 4).T.reshape(4, 2)  # of a mesh (2, 4), the last axis first
    assert read_cuts(turned, 2, (2, 2, 2)) == ((1, 2), (0,))
    assert read_cuts(devices[[0, 3, 1, 2, 4, 5, 6, 7]], 1, (2, 2, 2)) is None
    assert list(device_axes(12)) == [(2, 2, 3), (2, 3, 2), (3, 2, 2)]
    assert read_cuts(np.arange(6).reshape(3, 2), 2, (3, 2)) == ((0,), (1,))
    assert read_cuts(np.arange(6).reshape(3, 2), 2, (2, 3)) is None


# --- which cuts are taken -------------------------------------------------------------------------

PRODUCT = Rule(
    (("m", "k"), ("k", "n")), (("m", "n"),), {"m": 4096, "k": 8192, "n": 8192},
    summed=("k",), scatters=True,
)  # fmt: skip


def division(given, wanted, rule=PRODUCT):
    operands = [Kind(tuple(rule.pieces[f] for f in names), 1) for names in rule.operands]
    results = [Kind(tuple(rule.pieces[f] for f in names), 2) for names in rule.results]
    return decide(rule, operands, results, given, [wanted], (8,))


def test_a_weight_is_collected_where_rows_are_cut():
    found = division((((0,), ()), ((0,), ())), ((0,), ()))
    assert found == Division({"m": (0,)})


def test_a_gradient_of_a_weight_is_summed_and_scattered():
    rule = Rule(
        (("k", "m"), ("k", "n")), (("m", "n"),), {"m": 4096, "k": 65536, "n": 4096},
        summed=("k",), scatters=True,
    )  # fmt: skip
    found = division((((0,), ()), ((0,), ())), ((0,), ()), rule)
    assert found == Division({"k": (0,)}, ((0, (0,)),))
    assert found.result(0, rule.results[0]) == ((0,), ())


def test_what_pieces_do_not_divide_is_not_cut():
    rule = Rule((("i",),), (("i",),), {"i": 12})
    assert decide(rule, [Kind((12,), 1)], [Kind((12,), 1)], [((0,),)], [((),)], (8,)) == Division(
        {}
    )


def test_shardy_is_told_of_blocks():
    rule = Rule(((0, 1),), ((0, 1), (0, 1), (None,)), {0: 8, 1: 2}, summed=(1,))
    kinds = [Kind((8, 256), 4)], [Kind((8, 256), 1), Kind((8, 2), 4), Kind((3,), 4)]
    text, options = sharding_rule(rule, *kinds)
    assert text == "f0 (f1 f1i128) -> f0 (f1 f1i128), f0 f1, w0"
    assert options == {
        "f1i128": 128, "reduction_factors": ("f1",), "need_replication_factors": ("w0",)
    }  # fmt: skip


# --- numbers on eight devices ---------------------------------------------------------------------

SPECS = (P(("b", "a")), P(None, ("a", "b")), P("b", "a"))


def on_devices(primitive, operands, specs, wanted=None, **params):
    """What the primitive gives with its operands cut so, divided as on CUDA; and as it is."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    whole = partial(primitive.bind, **params)
    types = [jax.typeof(x) for x in operands]
    apart = divided(parts_of(primitive), types, jax.eval_shape(whole, *operands), 8, **params)
    lying = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(operands, specs, strict=True)
    ]
    where = None
    if wanted is not None:
        each = wanted if type(wanted) is tuple else (wanted,)
        where = tuple(NamedSharding(mesh, spec) for spec in each)
    compiled = jax.jit(apart, out_shardings=where).lower(*lying).compile()
    return compiled(*lying), jax.jit(whole)(*operands), compiled.as_text()


@pytest.mark.parametrize("block", [(), (1, 256), (1, 32), (64, 64), (64, 1), (50, 1)], ids=str)
def test_quantised_in_parts_to_the_same_bits(block):
    x = numbers((64, 256))
    params = {"dtype": E4M3.dtype, "batch_ndim": 0, "block": block, "scales": F32.dtype}
    for spec in SPECS:
        actual, expected, text = on_devices(quantize_p, [x], [spec], **params)
        assert_same(actual, expected)
    whole = {(): (0, 1), (1, 256): (1,), (1, 32): (), (64, 64): (0,), (64, 1): (0,), (50, 1): None}
    assert ("all-gather" in text) == (whole[block] is None)
    assert ("all-reduce" in text) == bool(whole[block])


def test_examples_have_scales_of_their_own_in_parts():
    x = numbers((8, 40, 24), "bfloat16")
    params = {"dtype": E5M2.dtype, "batch_ndim": 1, "block": (), "scales": F32.dtype}
    for spec in (P("a", "b"), P(None, "a", "b")):
        assert_same(*on_devices(quantize_p, [x], [spec], **params)[:2])


def test_measured_and_given_scales_in_parts():
    x, scale = numbers((64, 256)), jnp.float32(0.25)
    for spec in SPECS[1:]:
        for primitive in (quantize_given_p, quantize_amax_p):
            found = on_devices(primitive, [x, scale], [spec, P()], dtype=E4M3.dtype)
            assert_same(*found[:2])
        plain = jnp.abs(jnp.nan_to_num(x, posinf=0, neginf=0)) + 1
        (stats,), (expected,), _ = on_devices(observe_p, [plain], [spec], histogram=True)
        np.testing.assert_array_equal(np.delete(stats, [2, 3], 1), np.delete(expected, [2, 3], 1))
        sums = [np.asarray(s)[:, 2:4].view(np.float32) for s in (stats, expected)]
        np.testing.assert_allclose(*sums, rtol=1e-5)
    scaled = quantize(numbers((64, 256)), E4M3, block=(1, 32))
    found = on_devices(
        dequantize_p, [scaled.data, scaled.scale], [P(None, "a"), P("a")],
        dtype=np.dtype(np.float32), block=(1, 32),
    )  # fmt: skip
    assert_same(*found[:2])


@pytest.mark.parametrize("block", [(), (1, 256), (1, 32), (16, 16), (1, 24)], ids=str)
def test_a_matrix_and_its_transpose_in_parts(block):
    params = {"dtype": E4M3.dtype, "block": block, "scales": F32.dtype}
    for shape, spec in (((64, 256), SPECS[1]), ((64, 256), SPECS[2]), ((8, 16, 64), P("b", "a"))):
        found = on_devices(quantize_both_p, [numbers(shape)], [spec], **params)
        assert_same(*found[:2])
        assert ("all-reduce" in found[2]) == (not block)


def test_a_matrix_and_its_transpose_under_a_given_scale_in_parts():
    given = [numbers((64, 256)), jnp.float32(0.25)]
    for spec, amax in zip(SPECS, (False, True, True), strict=True):
        params = {"dtype": E4M3.dtype, "amax": amax}
        found = on_devices(quantize_both_given_p, given, [spec, P()], **params)
        assert_same(*found[:2])
        assert ("all-reduce" in found[2]) == amax


WRITINGS = {
    "given": Writing(E4M3.dtype, flip=True),
    "blocks": Writing(E4M3.dtype, 16, flip=True),
    "E8M0": Writing(E5M2.dtype, 32, scales=E8M0FNU.dtype, plain=np.dtype(np.float32)),
    "rows": Writing(E4M3.dtype, 128),
    "amax": Writing(None, amax=True),
    "all": Writing(E5M2.dtype, flip=True, plain=np.dtype(np.float32), amax=True),
}


def assert_near(actual, expected):
    """But for float32's rounding, by which a number between two of FP8 may go either way."""
    assert len(actual) == len(expected)
    for a, e in zip(map(np.asarray, actual), map(np.asarray, expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        apart = ~np.isclose(a.astype(np.float32), e.astype(np.float32), rtol=1e-5, atol=1e-6)
        assert apart.mean() <= (0.002 if a.dtype.itemsize == 1 else 0)


@pytest.mark.parametrize("name", WRITINGS)
def test_norms_and_activations_in_parts(name):
    """Rows, and where nothing is summed along them columns, are computed apart."""
    writing, scales = WRITINGS[name], jnp.array([0.25, 4.0])
    x, up, g = (jax.random.normal(jax.random.key(i), (2, 128, 128)) for i in range(3))
    weight, nothing = jnp.linspace(0.5, 2, 128)[None], jnp.zeros((0, 128))
    rows, columns = P(None, ("a", "b")), P("b", None, "a")
    params = {"kind": "layer", "eps": 1e-6, "writing": writing}
    each = jnp.concatenate([weight, -weight])
    for spec, bias, lies in ((rows, nothing, P()), (columns, each, P("b"))):
        found = on_devices(norm_p, [scales, x, weight, bias], [P(), spec, P(), lies], **params)
        assert_near(*found[:2])
    params = {"activation": "silu", "packed": False, "writing": writing}
    for spec in (rows, columns):
        actual, expected, text = on_devices(act_p, [scales, x, up], [P(), spec, spec], **params)
        assert_near(actual, expected)
        whole = name == "rows" and spec == columns  # a scale for all columns, which are cut
        assert ("all-gather" in text) == whole
        assert ("all-reduce" in text) == writing.amax
    both = jnp.stack([scales, scales[::-1]])
    operands, specs = [both, g, x, up], [P(), rows, rows, rows]
    assert_near(*on_devices(act_gradients_p, operands, specs, **params)[:2])
    assert_near(*on_devices(act_gradients_p, operands, specs, alone=True, **params)[:2])
    operands = [both, g, jnp.concatenate([x, up], -1)]
    params["packed"] = True
    assert_near(*on_devices(act_gradients_p, operands, specs[:3], **params)[:2])


@pytest.mark.parametrize("size", [0, 32], ids=["one scale", "blocks"])
@pytest.mark.parametrize("spec", [P(None, ("a", "b")), P(None, "b", "a"), P("b", "a")], ids=str)
def test_updates_in_parts(size, spec):
    """The state stays where it is; only what is under one scale takes a word with the others."""
    w, m, g = (jax.random.normal(jax.random.key(i), (2, 64, 128)) for i in range(3))
    block = (1, 1, size) if size else (1, 64, 128)
    formats = jnp.float16, E4M3, E5M2, E4M3
    stored = [quantize(x, f, block=block) for x, f in zip((w, m, m * m, g), formats, strict=True)]
    scales = [s.scale if size else s.scale.reshape(2) for s in stored]
    hyper = jnp.array([[-1e-2, 0.9, 0.1, 0.999, 0.001, 1e-8, 0.1, 2.0, 30.0, 1.0]])
    operands = [*(a for s, n in zip(stored, scales, strict=True) for a in (s.data, n)), hyper]
    lies = [spec, spec if size else P()] * 4
    operands, specs = [*operands, jnp.zeros((0, 3))], [*lies, P(), P()]
    found, expected, text = on_devices(adam_p, operands, specs, sizes=(size,) * 4)
    assert_near(found, expected)
    for x, old in zip(found[:6:2], stored, strict=False):
        assert (x.dtype, x.sharding.spec) == (old.dtype, spec)
    assert "all-gather" not in text
    assert ("all-reduce" in text) == (not size)


def test_updates_of_state_whose_blocks_devices_divide():
    """Eight devices cut 96 columns, which are three blocks: rows are cut instead, and back."""
    spec, x = P(None, None, ("a", "b")), jax.random.normal(jax.random.key(0), (2, 64, 96))
    stored = [quantize(n, E4M3, block=(1, 1, 32)) for n in (x, x, x * x, x)]
    hyper = jnp.array([[-1e-2, 0.9, 0.1, 0.999, 0.001, 1e-8, 0.1, 2.0, 30.0, 0.5]])
    operands = [*(a for s in stored for a in (s.data, s.scale)), hyper, jnp.zeros((0, 3))]
    specs = [*[spec, P()] * 4, P(), P()]
    found, expected, text = on_devices(adam_p, operands, specs, sizes=(32,) * 4)
    assert_near(found, expected)
    assert all(new.sharding.spec == spec for new in found[:6:2])
    gathered = re.findall(r"= (\w+)\[[\d,]*\][^=]* all-gather\(", text)
    assert set(gathered) <= {"f32"}  # scales alone
    assert "all-to-all" in text


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_gradients_of_norms_in_parts(kind):
    """What is summed over rows is summed over the devices that have them."""
    x, g, besides = (jax.random.normal(jax.random.key(i), (2, 64, 128)) for i in range(3))
    weight = jnp.linspace(0.5, 2, 128)[None]
    mean, rstd = jnp.mean(x, 2), jax.lax.rsqrt(jnp.var(x, 2) + 1e-5)
    params = {"kind": kind, "dtype": np.dtype(np.float32)}
    for spec, w, sums in ((P(None, ("a", "b")), weight, True), (P("b"), -weight, False)):
        operands, specs = [x, g, mean, rstd, w, besides], [spec] * 4 + [P(), spec]
        actual, expected, text = on_devices(norm_gradients_p, operands, specs, **params)
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-5)
        assert ("all-reduce" in text) == sums
        assert "all-gather" not in text


@pytest.mark.parametrize("blocks", [((), ()), ((1, 128), (128, 1)), ((1, 512), (512, 1))], ids=str)
@pytest.mark.parametrize(
    ("a", "b", "out", "crosses"),
    [
        (P("a"), P(None, "b"), None, ()),
        (P("a"), P("a"), P("a"), ("all-gather",)),
        (P(None, "a"), P("a"), None, ("all-reduce",)),
        (P(None, "a"), P("a"), P("a"), ("reduce-scatter",)),
        (P("a", "b"), P("b"), None, ("all-reduce",)),
    ],
    ids=str,
)
def test_products_in_parts(blocks, a, b, out, crosses):
    rng = np.random.default_rng(0)
    left, right = (
        quantize(jnp.asarray(rng.normal(size=s), jnp.float32), E4M3, block=block)
        for s, block in zip(((256, 512), (512, 128)), blocks, strict=True)
    )
    operands, params = _prepared(left, right, (((1,), (0,)), ((), ())), jnp.float32, 0)
    (actual,), (expected,), text = on_devices(
        scaled_dot_p, operands, (a, P(), b, P()), out, **params
    )
    assert {kind for kind in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
            if f" {kind}(" in text} == set(crosses)  # fmt: skip
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * float(jnp.max(abs(expected))))


def test_what_follows_a_product_follows_the_sum():
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 16, 64), (8, 64, 32)))
    left, right = (
        ScaledArray(
            *quantize_p_reference(x, dtype=E4M3.dtype, batch_ndim=1, block=(), scales=F32.dtype)
        )
        for x in (a, b)
    )
    operands, params = _prepared(
        left, right, (((2,), (1,)), ((0,), (0,))), jnp.float16, 3,
        jnp.arange(32.0), "relu", None, True,
    )  # fmt: skip
    for x, y in ((P("b", None, "a"), P("b", "a")), (P("a", "b"), P("a"))):
        (actual, amax), (expected, largest), _ = on_devices(
            scaled_dot_p, operands, (x, P(), y, P(), P()), **params
        )
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(amax, largest, rtol=1e-6)


@pytest.mark.parametrize("out", [jnp.bfloat16, jnp.float32, jnp.float8_e4m3fn], ids=str)
def test_a_bias_of_a_sum_that_is_scattered(out):
    """Each device adds its part of it."""
    rng = np.random.default_rng(2)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((64, 512), (512, 64)))
    left, right = (quantize(x, E4M3) for x in (a, b))
    scale = jnp.float32(0.5) if out == jnp.float8_e4m3fn else None
    operands, params = _prepared(
        left, right, (((1,), (0,)), ((), ())), out, 0, jnp.arange(64.0), "gelu", scale, True
    )
    specs = (P(None, ("a", "b")), P(), P(("a", "b")), P(), P(), *[P()] * (scale is not None))
    for wanted in (P(("a", "b")), P(None, ("b", "a")), P(None, ("a", "b")), P("a", "b"), P()):
        (actual, amax), (expected, largest), text = on_devices(
            scaled_dot_p, operands, specs, (wanted, P()), **params
        )
        assert (" reduce-scatter(" in text) == any(wanted)
        actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
        apart = 0.13 if scale is not None else 0.02 if out == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(actual, expected, rtol=apart, atol=25 * apart)
        np.testing.assert_allclose(amax, largest, rtol=0.02)


def test_the_kernel_under_a_maximum_of_several_devices():
    x = numbers((2, 36000), "bfloat16")
    with interpreted():
        halves = jnp.split(x, 2, axis=1)
        parts = [quantize_cuda.amax_parts(h).max(1, keepdims=True) for h in halves]
        made = [quantize_cuda.under_largest(h, jnp.maximum(*parts), E4M3.dtype) for h in halves]
    expected = quantize_p_reference(x, dtype=E4M3.dtype, batch_ndim=1, block=(), scales=F32.dtype)
    data = np.concatenate([np.asarray(d) for d, _ in made], 1)
    assert_same((data, made[0][1]), expected)


# --- programs -------------------------------------------------------------------------------------


def lying(shape, dtype=jnp.float32):
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("i")))


def test_only_programs_for_several_gpus_are_divided_by_us():
    def both(x):
        a = quantize(x, E4M3)
        return dequantize(a), observe(x), scaled_dot(a, a, (((1,), (1,)), ((), ())))

    x = lying((64, 128))
    text, kernels = lower_for_cuda(both, x)
    assert text.count("@CustomSPMDPartitioning(") == 4
    assert not kernels  # they come when XLA has divided the program
    assert "CustomSPMDPartitioning" not in jax.jit(both).lower(x).as_text()
    one, kernels = lower_for_cuda(both, jax.ShapeDtypeStruct((64, 128), jnp.float32))
    assert "CustomSPMDPartitioning" not in one
    assert kernels
    assert "CustomSPMDPartitioning" not in lower_for_cuda(both, x, capability=80)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
def test_each_gpu_quantises_its_part_and_weights_cross_in_8_bits():
    """Fully sharded: a weight is collected for its product, forward and backward; its gradient is
    summed where it stays.
    """
    stack, x = (4, 512, 512), (2048, 512)

    def step(w, m, x):
        def loss(w):
            h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)
            return jnp.mean((h @ jnp.eye(512)) ** 2)

        g = jax.grad(loss)(w)
        m = 0.9 * m + g
        return w - 0.1 * m, m

    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (stack, stack, x)]
    compiled = precir.compile(step, recipe="fp8-lm-o3", donate_argnums=(0, 1))
    args = jax.eval_shape(compiled.init, *args)
    rows = (
        jax.tree.map(lambda a: P(None, "data") if a.shape == stack else P(), a) for a in args[:2]
    )
    found = compiled.memory(*args, devices=8, shardings=(*rows, P("data")))
    low = sum(p.count for p in found.products if p.low)
    assert low >= 3 * stack[0]
    assert {"Triton amax_parts", "Triton quantize_current"} <= {k.name for k in found.kernels}
    gathered = {c.dtype: c.bytes for c in found.collectives if c.kind == "all-gather"}
    assert gathered["f8e4m3fn"] == 2 * math.prod(stack)
    assert sum(gathered.values()) - gathered["f8e4m3fn"] < 4 * math.prod(stack) // stack[0]
    assert any(c.kind == "reduce-scatter" and c.bytes for c in found.collectives)
