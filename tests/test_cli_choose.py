"""`precir choose`: the curve, the reasons and the recipe's file; one message for what is wrong."""

import sys
from pathlib import Path

import pytest

import precir
from precir.cli import main

SOURCE = """
import jax
import jax.numpy as jnp

def loss_of(params, x):
    first, last = params
    return jnp.mean((jnp.tanh(x @ first) @ last - x) ** 2)

def step(params, x):
    loss, grads = jax.value_and_grad(loss_of)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

def step_batches():
    return jax.random.normal(jax.random.key(0), (6, 64, 32))

def step_args():
    keys = jax.random.split(jax.random.key(1))
    params = [jax.random.normal(k, s) / 6 for k, s in zip(keys, [(32, 64), (64, 32)])]
    return params, step_batches()[0]

alone, alone_args = step, step_args

def named(params, x, *, scale):
    return step(params, x * scale)

def named_args():
    return step_args(), {"scale": 1.0}

def double(x):
    return x + x
def double_args():
    return (jnp.ones(3),)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "train.py"
    path.write_text(SOURCE)
    return path


def test_choose_prints_the_curve_and_writes_the_recipe(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--tolerance", "0.01", "--target", "h100", "--batches", "2", "--after", "3"]
    out = ["--out", "out/chosen.json", "--plot", "out/curve.png"]
    assert main(["choose", f"{file}:step", *args, *out]) == 0
    said, err = capsys.readouterr()
    assert err == ""
    for text in ("auto, chosen", "bf16-mixed", "fp8-block", "bits would", "chosen.json"):
        assert text in said
    recipe = precir.recipe("out/chosen.json")
    assert recipe.chosen
    assert all(c.why for c in recipe.chosen)
    assert Path("out/curve.png").stat().st_size > 10_000
    assert main(["compile", f"{file}:step", "--recipe", "out/chosen.json"]) == 0


def test_choose_takes_the_arguments_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choose", f"{file}:alone", "--on", "a100"]) == 0
    assert "auto, chosen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "args", "said"),
    [
        ("step", ["--tolerance", "-1"], "a tolerance is an error to accept"),
        ("step", ["--tolerance", "x"], "invalid float value"),
        ("step", ["--target", "h101"], "there is no target 'h101'"),
        ("step", ["--tokens", "many"], "--tokens 'many' is no number"),
        ("step", ["--batches", "0"], "--batches '0'"),
        ("step", ["--after", "6"], "step_batches() gives no more than 6"),
        ("step", ["--out", "chosen.txt"], "chosen.txt is no recipe file"),
        ("alone", ["--after", "1"], "define alone_batches() in the file"),
        ("named", [], "gives arguments by name: scale"),
        ("double", [], "no matrix product"),
        ("nothing", [], "there is no nothing in it"),
    ],
)
def test_choose_says_what_is_wrong(
    target: str, args: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["choose", f"{file}:{target}", *args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("precir: error: ")
    assert said in err
    assert "Traceback" not in err
    assert out == ""
