"""`precir.choose`: what it predicts is so, it is cheapest, and what is hard stays wide."""

import dataclasses
import itertools
import math
import random
import time

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import precir
from precir.auto.choose import ChooseError, Chooser
from precir.auto.cut import BF16, F32, FP8, FP8_BLOCK
from precir.auto.sense import sensitivities
from precir.passes.taps import Tap, tap_values
from precir.target.cards import card
from precir.verify import verify

SMALL = dataclasses.replace(card("h100"), name="h100/256", flops={
    k: v / 256 for k, v in card("h100").flops.items()
})  # fmt: skip


def mlp(params, x):
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return x @ params[-1]


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((mlp(params, x) - y) ** 2)


def train_step(params, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    return [p - 0.1 * g for p, g in zip(params, grads, strict=True)], loss


def scanned_loss(params, batch):
    x, y = batch
    first, stack, last = params

    def layer(h, w):
        return h + jnp.tanh(h @ w), None

    h, _ = jax.lax.scan(layer, x @ first, stack)
    return jnp.mean((h @ last - y) ** 2)


def scanned_step(params, batch):
    loss, grads = jax.value_and_grad(scanned_loss)(params, batch)
    return [p - 0.1 * g for p, g in zip(params, grads, strict=True)], loss


def weights(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=s) / math.sqrt(s[-2]), jnp.float32) for s in shapes]


def batch(seed, rows=64, width=32):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(rows, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return weights(0, (32, 64), (64, 64), (64, 8))


@pytest.fixture(scope="module")
def choice(params):
    batches = [(params, batch(i)) for i in range(4)]
    return precir.choose(train_step, batches, tolerance=0.002, target=SMALL)


# --- taps -----------------------------------------------------------------------------------------


def test_taps_measure_what_rounding_does(params):
    """Against rounding the tensor for real: a weight, whose rounding is the same every time."""
    program = precir.compile(train_step).program(params, batch(0))
    weight = program.graph.inputs[1]

    def wish(graph):
        return [Tap(weight, (("bfloat16", ()),))] if graph is program.graph else []

    (found,) = sensitivities(program, wish, 3, [([params, batch(0)], ())])
    rounded = [params[0], params[1].astype(jnp.bfloat16).astype(jnp.float32), params[2]]
    change = float(loss_fn(rounded, batch(0)) - loss_fn(params, batch(0)))
    assert math.sqrt(found.moved[0].loss) >= abs(change) * 0.9
    grads, others = (jax.grad(loss_fn)(p, batch(0)) for p in (params, rounded))
    sizes = [g.size for g in grads]
    relative = [
        float(jnp.mean((a - b) ** 2) / jnp.mean(a**2)) for a, b in zip(grads, others, strict=True)
    ]
    mean = np.average(relative, weights=sizes)
    assert mean / 5 < found.moved[0].results < mean * 5


@pytest.mark.parametrize("step", [train_step, scanned_step])
def test_tapped_programs_compute_the_same(step):
    stack = [(64, 64)] if step is train_step else [(3, 64, 64)]
    shapes = [(32, 64), *stack, (64, 8)]
    params = weights(1, *shapes)
    program = precir.compile(step).program(params, batch(0))

    def wish(graph):
        return [Tap(v, (("bfloat16", ()),)) for n in graph for v in n.outputs
                if v.type.dtype == "float32" and not n.regions]  # fmt: skip

    tapped, taps = tap_values(program.graph, wish)
    assert len({t.value for t in taps}) == len(taps) > 10
    found = sensitivities(program, wish, 3, [([params, batch(0)], ())])
    assert any(s.moved[0].loss > 0 for s in found)
    assert len(tapped.inputs) == len(program.graph.inputs) + 1
    verify(tapped, after="tap")


def test_a_scan_counts_all_its_iterations():
    """One layer done three times is as sensitive as the three layers written out."""
    stacked = weights(1, (32, 16), (3, 16, 16), (16, 8))

    def written(params, batch):
        x, y = batch
        h = x @ params[0]
        for w in params[1]:
            h = h + jnp.tanh(h @ w)
        return jnp.mean((h @ params[2] - y) ** 2)

    totals = []
    for loss in (scanned_loss, written):
        program = precir.compile(loss).program(stacked, batch(0))

        def wish(graph):
            return [Tap(v, (("bfloat16", ()),)) for n in graph for v in n.outputs
                    if n.op == "tanh"]  # fmt: skip

        found = sensitivities(program, wish, 0, [([stacked, batch(0)], ())])
        totals.append(sum(s.moved[0].loss for s in found))
    # Changes to first order are squared of the sum over iterations, or of each layer's own.
    assert totals[1] / 4 < totals[0] < totals[1] * 4


# --- the prediction -------------------------------------------------------------------------------


def test_predictions_hold_for_random_assignments(params, choice):
    """Within a factor of 3, as measured on batches that were not looked at: see benchmarks/auto.py
    for a GPT.
    """
    chooser: Chooser = choice._chooser
    draw = random.Random(0)
    nodes = [*chooser.places.multiplied, *chooser.places.ops]
    points = []
    for share in (0.4, 0.5, 0.7, 0.9):
        formats = {}
        for node in nodes:
            kinds = [BF16, FP8, FP8_BLOCK] if node in chooser.places.products else [BF16]
            formats[node] = draw.choice(kinds) if draw.random() < share else F32
        points.append(chooser.point(formats))
    recipes = [chooser.recipe(p) for p in points]
    batches = [(params, batch(i)) for i in range(10, 42)]
    for point, error in zip(points, choice.measure(recipes, batches), strict=True):
        assert error.total / 3 < point.error.total < error.total * 3, (point.error, error)


def test_the_recipe_is_the_point(params, choice):
    """What the recipe compiles to has the formats that the model priced."""
    program = precir.compile(train_step, recipe=choice.recipe).program(params, batch(0))
    low = sum(p.low for p in program.assignment.products)
    counts = choice.point.products(choice)
    assert low == counts[FP8] + counts[FP8_BLOCK] > 0
    assert low < len(program.assignment.products)


def test_a_recipe_gives_every_op_its_format(params, choice):
    """Also where an op's class would follow operands that have other formats than usual."""
    chooser: Chooser = choice._chooser
    draw = random.Random(1)
    for share in (0.1, 0.5, 0.9):
        formats = {
            n: BF16 if draw.random() < share else F32
            for n in (*chooser.places.multiplied, *chooser.places.ops)
        }
        point = chooser.point(formats)
        recipe = chooser.recipe(point)
        program = precir.compile(train_step, recipe=recipe).program(params, batch(0))
        (assigned,) = (s.graph for s in program.stages if s.name == "assign")
        right = chooser.assignment(formats).compute
        for a, b in zip(chooser.graph.walk(), assigned.walk(), strict=True):
            if a in formats:
                assert program.assignment.compute[b] == right[a], (a.op, str(a.source))


def test_rounding_the_loss_itself_counts(params, choice):
    """Which nothing in the program reads, and which is one number in 16 bits."""
    chooser: Chooser = choice._chooser
    node = chooser.graph.outputs[chooser.loss].node
    nodes = (*chooser.places.multiplied, *chooser.places.ops)
    point = chooser.point({n: BF16 if n is node else F32 for n in nodes})
    batches = [(params, batch(i)) for i in range(10, 26)]
    (error,) = choice.measure([chooser.recipe(point)], batches)
    assert error.loss > 1e-4
    assert error.loss / 3 < point.error.loss < error.loss * 3


def test_a_gradient_that_is_noise_counts_for_nothing(params):
    """Of a bias that a softmax forgets: zero but for rounding, and as large in 16 bits as any."""

    def loss_fn(params, bias, batch):
        hidden = mlp(params, batch[0])
        scores = jax.nn.log_softmax(hidden + (bias * jnp.ones(8)).sum())
        return -jnp.mean(scores[:, 0])

    def step(params, bias, batch):
        loss, grads = jax.value_and_grad(loss_fn, argnums=(0, 1))(params, bias, batch)
        new = jax.tree.map(lambda p, g: p - 0.1 * g, (params, bias), grads)
        return *new, loss

    bias = jnp.full(8, 0.3)
    found = precir.choose(step, [(params, bias, batch(i)) for i in range(2)], target=SMALL)
    said = " ".join(str(found).split())
    assert "but for 1 that are noise in float32 already (backward " in said
    half = next(p for p in found.uniform if p.name == "bf16-mixed")
    (error,) = found.measure([precir.recipe("bf16-mixed")], [(params, bias, batch(7))])
    assert error.results < 1e-3
    assert error.results / 3 < half.error.results < error.results * 3


# --- the choice -----------------------------------------------------------------------------------


def test_no_uniform_recipe_is_better(choice):
    for p in choice.uniform:
        if p.name != "float32":
            other = choice.within(p.error.total)
            assert other.point.error.total <= p.error.total
            assert other.point.seconds <= p.seconds * 1.0001, p.name


def test_the_cut_is_the_best_of_all(params):
    """By trying every assignment of a program small enough."""
    small = weights(2, (32, 64), (64, 8))
    one = precir.choose(mlp, [(small, batch(0)[0])], tolerance=1.0, target=SMALL)
    chooser: Chooser = one._chooser
    nodes = [*chooser.places.multiplied, *chooser.places.ops]
    assert len(nodes) == 3
    kinds = [
        (F32, BF16, FP8, FP8_BLOCK) if n in chooser.places.products else (F32, BF16) for n in nodes
    ]
    every = [
        chooser.point(dict(zip(nodes, formats, strict=True)))
        for formats in itertools.product(*kinds)
    ]
    for tolerance in (1e-4, 1e-3, 3e-3, 1e-2, 1e-1):
        best = min(p.seconds for p in every if p.error.total <= tolerance)
        assert one.within(tolerance).point.seconds <= best * 1.1, tolerance


WIDTH = 256


def planted_loss(params, x):
    """Three hard products among easy ones: an operand with a channel 1e5 times the others, logits
    of 1e4, and a product half of whose results have gradients of 1e-9, the others of 1e3.
    """

    def dense(name, x):
        with jax.named_scope(name):
            return x @ params[name]

    h = jnp.tanh(dense("first", x))
    h = jnp.tanh(dense("outlier", h * jnp.ones(WIDTH).at[0].set(1e5)))
    last = dense("last", h)
    logits = 3e4 * dense("logits", x)
    sides = [jnp.tanh(dense(name, x)) for name in ("left", "right")]
    y = dense("faint", jnp.concatenate(sides, axis=1))
    faint = y * jnp.full(WIDTH, 1e3).at[::2].set(1e-9)
    with jax.named_scope("loss"):
        sure = jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])
        return 1e-4 * sure + jnp.mean(last**2) + 1e-3 * jnp.mean(faint)


def planted_step(params, x):
    loss, grads = jax.value_and_grad(planted_loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


def planted_params():
    names = ("first", "outlier", "last", "logits", "left", "right", "faint")
    half = WIDTH // 2
    sizes = {"last": 64, "logits": 16, "left": half, "right": half}
    shapes = [(WIDTH, sizes.get(name, WIDTH)) for name in names]
    params = dict(zip(names, weights(3, *shapes), strict=True))
    params["outlier"] = params["outlier"].at[0].multiply(1e-5)
    faint = params["faint"].at[:half, 1::2].set(0)  # the left half has faint gradients alone
    params["faint"] = faint.at[half:, ::2].set(0)
    return params


def test_hard_tensors_are_kept_wide():
    """These products and no others, whatever their neighbours are in."""
    params = planted_params()
    batches = [(params, batch(i, rows=256, width=WIDTH)[0]) for i in range(2)]
    found = precir.choose(planted_step, batches, tolerance=0.02, target=SMALL)
    wide = {name for name, format in _formats(found).items() if format not in (FP8, FP8_BLOCK)}
    assert {" ".join(name.split("/")[0].split()) for name in wide} == {
        "outlier", "logits", "backward faint",
    }, str(found)  # fmt: skip


def _formats(choice):
    return {c.at: c.format for c in choice.recipe.chosen if "dot_general" in c.at}


# --- time -----------------------------------------------------------------------------------------


def test_choosing_grows_with_the_program():
    """Near-linear: three times the layers in at most five times the time, statistics aside."""
    times = []
    for layers in (8, 24):
        params = weights(0, *[(32, 32)] * layers, (32, 8))
        found = precir.choose(mlp, [(params, batch(0)[0])], target=SMALL)
        old = found._chooser
        best = math.inf
        for _ in range(2):
            start = time.perf_counter()
            Chooser(old.compiled, old.program, old.errors, old.card, old.places, old.loss).choice(
                0.01
            )
            best = min(best, time.perf_counter() - start)
        times.append(best)
    assert times[1] < 5 * times[0]


# --- as a user meets it ---------------------------------------------------------------------------


def test_compile_auto_chooses_at_the_first_call(params):
    step = precir.compile(train_step, recipe="auto", tolerance=0.003, target=SMALL)
    with pytest.raises(ChooseError, match="numbers of the first call"):
        jax.jit(lambda p, b: step(p, b))(params, batch(0))
    new, loss = step(params, batch(0))
    plain_new, plain_loss = train_step(params, batch(0))
    assert step.choice.point.error.total <= 0.003
    assert abs(float(loss - plain_loss)) < 0.01
    assert jax.tree.structure(new) == jax.tree.structure(plain_new)
    assert "adds" in str(step.report(params, batch(0)))
    assert jax.jit(lambda p, b: step(p, b))(params, batch(0))[1] == loss


def test_a_recipe_is_a_file(tmp_path, choice, params):
    """Saved, edited by hand, read again."""
    path = tmp_path / "chosen.json"
    choice.recipe.save(path)
    assert precir.recipe(str(path)) == choice.recipe
    text = path.read_text()
    assert '"format": "fp8-block"' in text
    path.write_text(text.replace('"format": "fp8-block"', '"format": "float32"'))
    program = precir.compile(train_step, recipe=path).program(params, batch(0))
    assert not any(p.grains[0].reach != "tensor" for p in program.assignment.products)
    for recipe in precir.RECIPES.values():
        recipe.save(path)
        assert precir.recipe(path) == recipe
    path.write_text('{"name": "x", "colour": 1}')
    with pytest.raises(precir.PrecirError, match="colour"):
        precir.recipe(path)
    with pytest.raises(precir.PrecirError, match="cannot be read"):
        precir.recipe(tmp_path / "none.json")


def test_a_recipe_of_another_program_is_refused(choice):
    other = precir.compile(lambda x: x @ x, recipe=choice.recipe)
    with pytest.raises(precir.PrecirError, match="choose again"):
        other(jnp.ones((8, 8)))


def test_a_model_function_is_chosen_for_by_its_results(params):
    found = precir.choose(mlp, [(params, batch(0)[0])], tolerance=0.02, target=SMALL)
    assert found.point.error.exchange is None
    (error,) = found.measure([found.recipe], [(params, batch(i)[0]) for i in range(1, 5)])
    assert error.total / 3 < found.point.error.total < error.total * 3
    model = precir.compile(mlp, recipe=found.recipe)  # its backward products go by the forward ones
    grads = jax.grad(lambda p: jnp.mean(model(p, batch(0)[0]) ** 2))(params)
    right = jax.grad(lambda p: jnp.mean(mlp(p, batch(0)[0]) ** 2))(params)
    for a, b in zip(grads, right, strict=True):
        assert jnp.linalg.norm(a - b) < 0.2 * jnp.linalg.norm(b)


def test_a_scanned_step_and_a_generator(tmp_path):
    params = weights(1, (32, 64), (3, 64, 64), (64, 8))

    def steps(params):
        for i in range(2):
            params, _ = yield params, batch(i)

    found = precir.choose(scanned_step, steps(params), tolerance=0.01, target=SMALL)
    assert FP8 in found.point.products(found) or FP8_BLOCK in found.point.products(found)
    found.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    (error,) = found.measure([found.recipe], [(params, batch(i)) for i in range(2, 10)])
    assert error.total / 3 < found.point.error.total < error.total * 3


def test_bad_input_is_named(params):
    def two(params, batch):
        def fn(params):
            found = mlp(params, batch[0])
            return jnp.mean((found - batch[1]) ** 2), jnp.mean(found)

        (loss, mean), grads = jax.value_and_grad(fn, has_aux=True)(params)
        return [p - g for p, g in zip(params, grads, strict=True)], loss, mean

    def loops(params, x):
        return jax.lax.while_loop(lambda h: jnp.sum(h) < 10, lambda h: h @ params[1] + 1, x)

    wide = batch(0, width=64)[0]
    given = [(params, batch(0))]
    for fn, batches, options, said in (
        (train_step, [], {}, "no batches"),
        (train_step, given, {"tolerance": -1}, "tolerance"),
        (train_step, [*given, (params, batch(0, rows=8))], {}, "several shapes"),
        (two, given, {}, "2 float32 scalars"),
        (lambda x: x + 1, [(wide,)], {}, "no matrix product"),
        (loops, [(params, wide)], {}, "cannot be differentiated"),
    ):
        with pytest.raises(ChooseError, match=said):
            precir.choose(fn, batches, target=SMALL, **options)
    assert precir.choose(two, given, target=SMALL, loss=lambda r: r[1]).point
    with pytest.raises(precir.PrecirError, match="tolerance"):
        precir.compile(train_step, recipe="fp8", tolerance=0.1)
    with pytest.raises(precir.PrecirError, match=r"precir\.choose"):
        precir.recipe("auto")
