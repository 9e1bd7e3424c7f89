"""`precir.quantize_model`: weights in 8 bits that products take as they lie."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import rich
from jax import lax

import precir
from precir import InferenceError, ScaledArray
from precir.formats import power_of_two
from precir.inference.storing import quantize_int8
from precir.kernels import E4M3, lookup, quantize
from precir.recipe import Recipe
from precir.scaled import reshaped_block, scale_shape, spread

WIDTH, HEADS, WORDS, LAYERS = 16, 2, 40, 2


def noise(seed: int, *shape: int, size: float = 0.2) -> jax.Array:
    return size * jax.random.normal(jax.random.key(seed), shape)


def is_scaled(x: Any) -> bool:
    return isinstance(x, ScaledArray)


def deviation(got: Any, wanted: Any) -> float:
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.sqrt(np.sum((a - b) ** 2) / np.sum(b**2)))


# -- models ----------------------------------------------------------------------------------------


def mlp_params() -> dict[str, Any]:
    return {"up": noise(0, 8, 64), "bias": noise(1, 64), "down": noise(2, 64, 32),
            "head": noise(3, 32, 8)}  # fmt: skip


def mlp(p: Any, x: Any) -> Any:
    return jax.nn.relu(jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]) @ p["head"]


def gpt_params() -> dict[str, Any]:
    d, h = WIDTH, HEADS
    layers = {
        "qkv": noise(0, LAYERS, d, 3, h, d // h), "out": noise(1, LAYERS, h, d // h, d),
        "up": noise(2, LAYERS, d, 4 * d), "bias": noise(3, LAYERS, 4 * d),
        "down": noise(4, LAYERS, 4 * d, d), "norm": jnp.ones((LAYERS, d)),
    }  # fmt: skip
    return {"words": noise(5, WORDS, d, size=1.0), "layers": layers, "norm": jnp.ones(d)}


def norm(x: Any, g: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return g * x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)


def gpt_layer(x: Any, p: Any) -> Any:
    q, k, v = jnp.moveaxis(jnp.einsum("td,dchk->tchk", norm(x, p["norm"]), p["qkv"]), 1, 0)
    weights = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k) / 4)
    x = x + jnp.einsum("hts,shk,hkd->td", weights, v, p["out"])
    hidden = jax.nn.gelu(norm(x, p["norm"]) @ p["up"] + p["bias"])
    return x + hidden @ p["down"]


def scanned(p: Any, ids: Any) -> Any:
    x, _ = lax.scan(lambda x, w: (gpt_layer(x, w), None), p["words"][ids], p["layers"])
    return norm(x, p["norm"]) @ p["words"].T


def unrolled(p: Any, ids: Any) -> Any:
    x = jnp.take(p["words"], ids, axis=0)
    for i in range(LAYERS):
        x = gpt_layer(x, jax.tree.map(lambda w: w[i], p["layers"]))  # noqa: B023
    return norm(x, p["norm"]) @ p["words"].T


def counted(p: Any, ids: Any) -> Any:
    """The layers of a stack by a number that is not known while tracing."""

    def body(i: Any, x: Any) -> Any:
        return jax.checkpoint(gpt_layer)(x, jax.tree.map(lambda w: w[i], p["layers"]))

    return norm(lax.fori_loop(0, LAYERS, body, p["words"][ids]), p["norm"]) @ p["words"].T


IDS = [(jax.random.randint(jax.random.key(s), (12,), 0, WORDS),) for s in range(2)]


@functools.cache
def quantized(model: Callable[..., Any]) -> precir.QuantizedModel:
    return precir.quantize_model(model, gpt_params(), IDS, measure=model is scanned)


gpts = pytest.mark.parametrize(
    "model", [scanned, unrolled, pytest.param(counted, marks=pytest.mark.slow)]
)


# -- integers --------------------------------------------------------------------------------------


def test_int8_by_hand() -> None:
    """Each column under its largest / 127, dequantised into the products' bfloat16."""
    params, x = mlp_params(), noise(9, 16, 8, size=1.0)
    params["up"] = params["up"].at[:, 3].set(0).at[2, 5].set(0)
    q = precir.quantize_model(mlp, params, [(x,)], recipe="int8-inference")
    wide = {}
    for name in ("up", "down", "head"):
        w, stored = np.asarray(params[name]), q.params[name]
        largest = np.abs(w).max(0, keepdims=True)
        scale = np.where(largest == 0, 1, largest / 127)
        np.testing.assert_allclose(stored.scale, scale, rtol=1e-6)
        assert stored.block == (w.shape[0], 1)
        assert stored.data.dtype == jnp.int8
        assert np.abs(np.asarray(stored.data, int)).max() == 127
        assert np.all(np.asarray(stored.data)[w == 0] == 0)
        assert np.abs(stored.unscale() - w).max() <= 0.5001 * scale.max()
        wide[name] = stored.unscale()
    half = precir.compile(mlp, recipe="bf16-mixed")
    np.testing.assert_array_equal(q(q.params, x), half({**params, **wide}, x))
    assert q.report().outputs[0].error < 0.02
    low = precir.quantize_model(mlp, params, [(x,)], recipe="fp8-inference", measure=False)
    for fine, coarse in zip(q.report().weights, low.report().weights, strict=True):
        if fine.format == coarse.format == "i8":
            assert fine.snr > coarse.snr + 6  # dB: twice as exact


@pytest.mark.parametrize("block", [(), (1, 5), (4, 4), (7, 1)])
def test_int8_in_blocks(block: tuple[int, ...]) -> None:
    """Also where the last block reaches over the end."""
    w = noise(0, 7, 11)
    stored = jax.jit(quantize_int8, static_argnums=1)(w, block)
    assert stored.scale.shape == scale_shape(w.shape, block)
    error = np.abs(stored.unscale() - w)
    assert np.all(error <= 0.5001 * np.broadcast_to(spread(stored.scale, w.shape, block), w.shape))
    assert np.all(stored.scale <= np.abs(w).max() / 127 * 1.001)


def test_int8_is_widened_one_layer_at_a_time() -> None:
    """No wide copy of a stack is kept: XLA plans with less than that for everything."""
    params = gpt_params()
    stacks = [k for k, w in params["layers"].items() if w.ndim > 2]
    for name, w in params["layers"].items():  # as deep as makes a copy of the stack show
        params["layers"][name] = jnp.concatenate([w] * 32)
    q = precir.quantize_model(scanned, params, IDS[:1], recipe="int8-inference", measure=False)
    assert all(is_scaled(q.params["layers"][name]) for name in stacks)
    assert q.params["words"].data.dtype == jnp.int8
    assert 0.25 < q.report().ratio < 0.35
    planned = q.lower(q.params, *IDS[0]).compile().memory_analysis().temp_size_in_bytes
    assert planned < sum(params["layers"][name].size for name in stacks)


def test_stored_is_for_products_in_16_bits() -> None:
    with pytest.raises(precir.PrecirError, match="stored in their own format"):
        precir.recipe("fp8-inference", stored="int8")
    with pytest.raises(precir.PrecirError, match="stored cannot be 'int4'"):
        precir.recipe("bf16-mixed", stored="int4")


# -- weights in products ---------------------------------------------------------------------------


def test_an_mlp_by_hand() -> None:
    """Activations under twice the scale of the largest that was seen, rows of weights under their
    own, sums in float32: the numbers that the report and the emitted program rest on.
    """
    params, x = mlp_params(), noise(9, 16, 8, size=1.0)
    recipe = precir.recipe("fp8-inference", compute="float32", last_product="float32")
    q = precir.quantize_model(mlp, params, [(x[:8],), (x[8:],)], recipe=recipe)

    def rounded(a: Any, scale: Any) -> Any:
        return (np.asarray(a) / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    def by_rows(w: Any) -> Any:
        scales = [power_of_two(float(m), "e4m3") for m in np.abs(w).max(0)]
        return rounded(w, np.array(scales, np.float32))

    wide = np.maximum(x @ params["up"] + params["bias"], 0)
    scales = [2 * power_of_two(float(np.abs(a).max()), "e4m3") for a in (x, wide)]
    hidden = rounded(x, scales[0]) @ by_rows(params["up"]) + params["bias"]
    hidden = rounded(np.maximum(hidden, 0), scales[1]) @ by_rows(params["down"])
    expected = np.maximum(hidden, 0) @ np.asarray(params["head"])
    got = q(q.params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert 0.01 < deviation(got, mlp(params, x)) < 0.1
    assert q.report().outputs[0].error == pytest.approx(deviation(got, mlp(params, x)), rel=1e-3)


@gpts
def test_products_take_what_is_stored(model: Callable[..., Any]) -> None:
    """Stacks too have a scale for each output of each layer, and nothing quantises a weight."""
    params, q = gpt_params(), quantized(model)
    block = {"qkv": (1, 16, 1, 1, 1), "out": (1, 2, 8, 1), "up": (1, 16, 1), "down": (1, 64, 1)}
    for name, w in q.params["layers"].items():
        assert is_scaled(w) == (name in block)
        if is_scaled(w):
            assert (w.dtype, w.block) == (E4M3.dtype, block[name])
            assert w.scale.shape == scale_shape(w.shape, block[name])
    assert q.params["words"].block == (1, WIDTH)  # rows of the table, columns of the logits
    made = [n for n in q.program().graph.walk() if n.op == "quantize"]
    assert made
    assert all(n.params["scaling"] == "given" for n in made)  # activations, by calibration
    dots = [n for n in q.program().graph.walk() if n.op == "scaled_dot"]
    assert sum(n.inputs[1].type.block != () for n in dots) == len(dots) * 4 // 6
    text = q.source()
    assert "lookup(" in text
    assert "words_q" not in text
    for batch in IDS:
        assert 0.01 < deviation(q(q.params, *batch), model(params, *batch)) < 0.15
    up = q.params["layers"]["up"]  # what a wrong scale would do
    layers = q.params["layers"] | {"up": ScaledArray(up.data, 2 * up.scale, up.block)}
    assert deviation(q(q.params | {"layers": layers}, *IDS[0]), model(params, *IDS[0])) > 0.15


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        (scanned, "fp8-block"), (scanned, "bf16-mixed"),
        *(pytest.param(m, r, marks=pytest.mark.slow)
          for m, r in ((scanned, "fp8"), (unrolled, "fp8-row"), (unrolled, "mxfp8"))),
    ],
)  # fmt: skip
def test_bits_are_those_of_the_compiled_model(model: Callable[..., Any], recipe: str) -> None:
    """Storing a weight only moves its rounding ahead of time."""
    params = gpt_params()

    def hidden(p: Any, x: Any) -> Any:
        return model({**p, "words": jnp.zeros((WORDS, WIDTH)).at[:12].set(x)}, jnp.arange(12))

    layers = {k: v for k, v in params.items() if k != "words"}
    x = noise(8, 12, WIDTH, size=1.0)
    q = precir.quantize_model(hidden, layers, [(x,)], recipe=recipe, measure=False)
    plain = precir.compile(hidden, recipe=recipe)(layers, x)
    np.testing.assert_array_equal(q(q.params, x), plain)
    assert q.report().ratio < (0.6 if recipe == "bf16-mixed" else 0.4)


def test_sub_programs_take_weights_as_they_lie() -> None:
    def model(p: Any, x: Any) -> Any:
        def step(x: Any, _: Any) -> Any:
            return jnp.tanh(jax.checkpoint(lambda x: x @ p["a"])(x)), None

        x, _ = lax.scan(step, x, None, length=2)
        x = lax.cond(x.sum() > 0, lambda x: x @ p["b"].T, lambda x: jnp.sin(x @ p["b"].T), x)
        x = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["a"])),
                           (0, x))[1]  # fmt: skip
        return jnp.sum((x @ p["c"].astype(jnp.bfloat16)) @ p["d"])

    params = {k: noise(i, 16, 16) for i, k in enumerate("abcd")}
    x = noise(7, 4, 16, size=1.0)
    q = precir.quantize_model(model, params, [(x,)], measure=False)
    assert [is_scaled(q.params[k]) for k in "abcd"] == [True] * 4
    quantized = [n for n in q.program().graph.walk() if n.op == "quantize"]
    assert all(n.params["scaling"] == "given" for n in quantized)
    assert deviation(q(q.params, x), model(params, x)) < 0.15


def test_what_is_computed_with_stays() -> None:
    """And is still multiplied in 8 bits, as an activation is."""

    def model(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ (p["gate"] * p["up"]))
        left, right = jnp.split(p["both"], 2, axis=1)
        return (jnp.tanh(x @ left) + jnp.tanh(x @ right)) @ p["head"] + p["up"].sum()

    params = {"gate": noise(0, 8, 8), "up": noise(1, 8, 8), "both": noise(2, 8, 16),
              "head": noise(3, 8, 4), "step": 3, "mask": jnp.array([0.0, -jnp.inf])}  # fmt: skip
    x = noise(4, 5, 8, size=1.0)
    q = precir.quantize_model(model, params, [(x,)])
    rows = {w.name: w for w in q.report().weights}
    assert rows['p["gate"]'].reason.startswith("read by mul at ")
    assert "split" in rows['p["both"]'].reason
    assert rows['p["mask"]'].reason == "nothing reads it"
    assert rows['p["head"]'].format == "bf16"
    assert q.params["step"] == 3
    assert deviation(q(q.params, x), model(params, x)) < 0.1


def test_convolutions_have_their_weights_in_16_bits() -> None:
    def model(p: Any, x: Any) -> Any:
        return lax.conv(x, p["kernel"], (1, 1), "SAME").mean((2, 3)) @ p["head"]

    params = {"kernel": noise(0, 4, 3, 3, 3), "head": noise(1, 4, 2)}
    q = precir.quantize_model(model, params, [(noise(2, 1, 3, 8, 8),)])
    rows = {w.name.split('"')[1]: w for w in q.report().weights}
    assert q.params["kernel"].dtype == q.params["head"].dtype == jnp.bfloat16
    assert q.report().products[0].reason == "no 8-bit kernel for conv_general_dilated"
    assert rows["head"].bytes == 2 * params["head"].size + 4


def test_weights_given_in_16_bits() -> None:
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), mlp_params())
    x = noise(9, 16, 8, size=1.0)
    q = precir.quantize_model(mlp, params, [(x,)], measure=False)
    assert q.params["up"].dtype == E4M3.dtype
    assert q.params["bias"].dtype == jnp.bfloat16
    assert deviation(q(q.params, x), mlp(params, x)) < 0.1
    assert 0.5 < q.report().ratio < 0.65


# -- lookups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(), (1, 8), (1, 3), (4, 4), (16, 1)])
@pytest.mark.parametrize("mode", ["clip", "fill", "promise_in_bounds"])
def test_lookups_are_gathers_of_the_table(block: tuple[int, ...], mode: str) -> None:
    table = quantize(noise(0, 10, 8) * 2.0 ** jnp.arange(10)[:, None], E4M3, block=block)
    ids = jnp.array([[0, 3], [9, 5]]) if mode[0] == "p" else jnp.array([[0, -1], [9, 11]])
    numbers = lax.GatherDimensionNumbers((2,), (0,), (0,))
    for fill in (None, 0.0) if mode == "fill" else (None,):
        options: dict[str, Any] = {"mode": mode, "fill_value": fill}
        args = ids[..., None], numbers, (1, 8)
        expected = lax.gather(table.unscale(), *args, **options)
        np.testing.assert_array_equal(lookup(table, *args, **options), expected)
        rounded = lookup(table, *args, out=jnp.bfloat16, **options)
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_array_equal(rounded.astype(jnp.float32), expected)
    with pytest.raises(TypeError, match="axis 1 of a quantised table"):
        lookup(table, ids[..., None], numbers, (1, 4), mode=mode)


def test_only_what_is_looked_up_is_dequantised() -> None:
    def model(p: Any, ids: Any) -> Any:
        return jnp.tanh(p["words"][ids] @ p["up"]) @ p["head"]

    params = {"words": noise(0, 5000, 64), "up": noise(1, 64, 64), "head": noise(2, 64, 8)}
    q = precir.quantize_model(model, params, [(jnp.arange(7),)], measure=False)
    assert ".unscale()" not in q.source().split("head")[0]
    sizes = q.lower(q.params, jnp.arange(7)).compile().memory_analysis()
    assert sizes.temp_size_in_bytes < params["words"].nbytes / 8
    assert q.report().weights[2].reason == "1 lookup"


@pytest.mark.parametrize(
    ("shape", "new", "block", "expected"),
    [
        ((4, 6), (24,), (4, 6), (24,)),
        ((4, 6), (2, 2, 6), (1, 6), (1, 1, 6)),
        ((4, 6), (1, 4, 1, 6), (2, 3), (1, 2, 1, 3)),
        ((4, 6), (24,), (1, 6), None),
        ((2, 4, 6), (8, 6), (1, 1, 6), (1, 6)),
        ((2, 4, 6), (2, 24), (1, 4, 6), (1, 24)),
        ((6,), (2, 3), (3,), None),
    ],
)
def test_reshapes_of_blocks(shape: Any, new: Any, block: Any, expected: Any) -> None:
    assert reshaped_block(shape, new, block) == expected
    made = quantize(noise(0, *shape) * jnp.arange(1, shape[-1] + 1) ** 3, E4M3, block=block)
    if expected is not None:
        assert made.reshape(new).block == expected
        np.testing.assert_array_equal(made.reshape(new).unscale(), made.unscale().reshape(new))


# -- the report ------------------------------------------------------------------------------------


def test_report_adds_up() -> None:
    params, q = gpt_params(), quantized(scanned)
    report = q.report()
    assert report.bytes == sum(x.nbytes for x in jax.tree.leaves(q.params))
    assert report.bytes == sum(w.bytes for w in report.weights)
    assert report.before == sum(x.nbytes for x in jax.tree.leaves(params))
    assert report.ratio < 0.36  # a scale for each 16 numbers, in so narrow a model
    assert len(report.weights) == len(jax.tree.leaves(params))
    stored = [w for w in report.weights if w.format == "E4M3"]
    assert len(stored) == 5
    assert all(29 < (w.snr or 0) < 33 for w in stored)  # 3 digits: 31.5 dB of noise evenly spread
    assert [len(p.layers) for p in report.products] == [LAYERS] * 6 + [0]
    errors = [p.error or 0 for p in report.products]
    assert all(0.01 < e < 0.2 for e in errors)
    assert report.products[-1].reason.startswith("its result reaches the loss")
    assert report.products[-1].weights == ('p["words"]',)
    (out,) = report.outputs
    got = [deviation(q(q.params, *b), scanned(params, *b)) for b in IDS]
    assert min(got) <= (out.error or 0) <= max(got)
    assert 0.98 < (out.worst or 0) <= (out.cosine or 0) < 1
    assert report.data["ratio"] == report.ratio
    text = str(report)
    assert "its result reaches the loss" in text
    assert all(f"\n{name}" in text for name in ("layers/qkv ", "layers/bias ", "words ", "norm "))
    shown = io.StringIO()
    rich.print(quantized(unrolled).report(), file=shown)
    assert "3 others" in shown.getvalue()  # two of each layer in one stack, and the last norm


def test_what_leaves_the_calibrated_range_saturates_and_is_counted() -> None:
    params, x = mlp_params(), noise(9, 16, 8, size=1.0)
    q = precir.quantize_model(mlp, params, [(x,)])
    assert q.report().beyond == 0
    assert q.compare(params, [(x,)]).outputs == q.report().outputs
    far = q.compare(params, [(100 * x,)])
    assert far.ranges[0].beyond > 100
    assert far.ranges[0].elements == x.size
    assert "saturated" in str(far)
    assert np.isfinite(q(q.params, 1e6 * x)).all()


def test_without_measuring() -> None:
    q = precir.quantize_model(mlp, mlp_params(), [(noise(9, 16, 8),)], measure=False)
    assert q.report().batches == 0
    assert q.report().outputs == ()
    assert "Errors" not in str(q.report())


# -- a pytree and a function like any other --------------------------------------------------------


def test_params_survive_a_checkpoint(tmp_path: Path) -> None:
    q = quantized(scanned)
    with ocp.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "weights", q.params)
    shapes = jax.eval_shape(q.quantize, gpt_params())
    with ocp.StandardCheckpointer() as keeper:
        restored = keeper.restore(tmp_path / "weights", shapes)
    np.testing.assert_array_equal(q(restored, *IDS[0]), q(q.params, *IDS[0]))


def test_saved_module_stands_alone(tmp_path: Path) -> None:
    q = quantized(unrolled)
    q.save(tmp_path / "saved.py")
    text = (tmp_path / "saved.py").read_text()
    ours = {line.split()[1] for line in text.splitlines() if "precir" in line and "import" in line}
    assert ours <= {"precir.kernels", "precir.packed"}
    alone: dict[str, Any] = {"__file__": str(tmp_path / "saved.py"), "__name__": "saved"}
    exec(compile(text, "saved.py", "exec"), alone)
    np.testing.assert_array_equal(alone["unrolled"](q.params, *IDS[0]), q(q.params, *IDS[0]))
    assert q.source() == text


def test_like_jit() -> None:
    params, x = mlp_params(), noise(9, 16, 8, size=1.0)
    q = precir.quantize_model(mlp, params, [(x,)], donate_argnums=1)
    stored = jax.device_put(q.params, jax.devices()[0])
    expected = np.asarray(q(stored, x + 0))
    np.testing.assert_array_equal(jax.jit(q)(stored, x), expected)
    exact = {"xla_allow_excess_precision": False}  # else XLA:CPU rounds to bfloat16, or not
    one_by_one = jax.jit(jax.vmap(q, (None, 0)), compiler_options=exact)(stored, x[:, None])
    together = jax.jit(lambda p, x: q(p, x), compiler_options=exact)(stored, x)
    np.testing.assert_array_equal(one_by_one[:, 0], together)
    np.testing.assert_array_equal(q(stored, x[:3] + 0), expected[:3])  # another shape
    again = jax.jit(q.quantize)(params)
    assert jax.tree.structure(again) == jax.tree.structure(q.params)
    np.testing.assert_array_equal(q(again, x + 0), expected)
    assert "fp8-inference" in repr(q)


def test_static_arguments() -> None:
    def model(p: Any, x: Any, twice: bool) -> Any:
        y = jnp.tanh(x @ p["up"]) @ p["down"]
        return (2 * y if twice else y) @ p["head"]

    params, x = mlp_params(), noise(9, 4, 8)
    q = precir.quantize_model(model, params, [(x, True)], static_argnums=2, measure=False)
    assert deviation(q(q.params, x, True), model(params, x, True)) < 0.1
    assert q.source(x, False) != q.source()


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": []}, "no batches to calibrate on"),
        ({"batches": [jnp.ones((2, 8))]}, "a batch is a tuple of the model's inputs, not"),
        ({"params": mlp_params() | {"up": noise(0, 8, 64).at[0, 0].set(jnp.nan)}}, r'p\["up"\]'),
        ({"params": mlp_params() | {"up": noise(0, 8, 64).at[0, 0].set(jnp.inf)}}, "not all num"),
        ({"params": mlp_params() | {"bias": noise(0, 64) * jnp.nan}}, r'p\["bias"\]'),
        ({"params": precir.scale(mlp_params(), "float16")}, "ScaledArrays already"),
        ({"recipe": "fp8-delayed"}, "is for training"),
        ({"recipe": "scaled-16"}, "is for training"),
        ({"recipe": "fp8-lm-o2"}, "is for training"),
        ({"recipe": "float32"}, "stores no weight of mlp in fewer bits"),
    ],
)
def test_what_cannot_be_quantised(change: dict[str, Any], said: str) -> None:
    given = {"params": mlp_params(), "batches": [(jnp.ones((2, 8)),)]} | change
    with pytest.raises(InferenceError, match=said) as error:
        precir.quantize_model(mlp, **given)
    assert error.value.fix


def test_no_matrix() -> None:
    with pytest.raises(InferenceError, match="stores no weight") as error:
        precir.quantize_model(lambda p, x: x * p, jnp.ones(8), [(jnp.ones(8),)])
    assert "no matrix" in str(error.value)


def test_other_weights_than_the_quantised() -> None:
    params, x = mlp_params(), jnp.ones((2, 8))
    q = precir.quantize_model(mlp, params, [(x,)], measure=False)
    with pytest.raises(InferenceError, match="not stored as the model takes them"):
        q(params, x)
    with pytest.raises(InferenceError, match="another structure or shapes"):
        q.quantize(params | {"up": params["up"][:4]})


def test_weights_may_have_finer_scales_than_static_activations() -> None:
    assert Recipe("mine", "mixed", scaling="static", weight_scales="row").weight_scales == "row"
    for other in ({"activation_scales": "row"}, {"gradient_scales": "1x128"}):
        with pytest.raises(precir.PrecirError, match="static scaling has one scale"):
            Recipe("mine", "mixed", scaling="static", **other)
