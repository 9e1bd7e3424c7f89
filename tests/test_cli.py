"""Every command, what it prints, its exit status, and one clear message for every bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from precir.cli import main
from precir.cli.arguments import parse_arguments, parse_static
from precir.cli.trouble import UsageError
from precir.dump import read_dump
from precir.passes.pipeline import PASSES
from precir.recipe import RECIPES

SOURCE = """
import jax
import jax.numpy as jnp
import precir
import helper_of_train

def model(w, x):
    with jax.named_scope("net"):
        for i in range(3):
            with jax.named_scope(f"h_{i}"):
                x = jnp.tanh(x @ w)
    return jnp.sum(x)

def step(w, x):
    return w - jax.grad(model)(w, x)

def step_args():
    return jnp.ones((8, 8)), jnp.ones((4, 8))

def named(x, *, scale):
    return x * scale

def named_args():
    return (jnp.ones(3),), {"scale": 2.0}

def pair(params, batch):
    return params[0] + batch["x"]

def pair_args():
    return (jnp.ones(3), jnp.ones(3)), {"x": jnp.ones(3)}

def power(x, n):
    return x ** n if n > 2 else x

def draws(key):
    return jax.random.normal(key, (3,))

def mismatch(w, x):
    return jnp.dot(
        x, w)

def branches(x):
    if x > 0:
        return x
    return -x

def breaks(x):
    return x
def breaks_args():
    return 1 / 0

def lists(x):
    return x
def lists_args():
    return [jnp.ones(3)]

class Layer:
    @staticmethod
    def apply(x):
        return x @ x

def callback(x):
    jax.debug.callback(lambda x: None, x)
    return x @ x

ready = precir.compile(model, recipe="fp8")
ready_args = step_args
NUMBER = 3

if __name__ == "__main__":
    raise SystemExit("the script ran")
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "train.py").write_text(SOURCE)
    (folder / "helper_of_train.py").write_text("")
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    (folder / "missing.py").write_text("import no_such_module_of_mine\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "text.txt").write_text("no Python")
    package = folder / "pack" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "__init__.py").write_text("")
    (package / "other.py").write_text("SCALE = 3\n")
    (package / "mod.py").write_text("from .other import SCALE\ndef f(x):\n    return x * SCALE\n")
    return folder


@pytest.fixture(scope="module")
def dumps(code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps")
    for recipe in ("float32", "fp8"):
        args = ["--recipe", recipe, "-o", str(folder / recipe)]
        assert main(["compile", f"{code / 'train.py'}:step", *args]) == 0
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def fails(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """Run a command that must fail; returns its message."""
    capsys.readouterr()
    assert main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("precir: error: ")
    assert "Traceback" not in err
    assert out == ""
    assert "bug in precir" not in err
    return err


# -- compile ---------------------------------------------------------------------------------------


def test_compile_writes_a_dump_and_prints_the_report(
    code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"{code / 'train.py'}:step", "--recipe", "fp8"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = read_dump("out/step")
    assert found.report.headline in out
    for file in ("out/step/report.txt", "out/step/step.py", "out/step/00_lower.ir"):
        assert file in out
        assert Path(file).exists()


@pytest.mark.parametrize(
    ("target", "args", "inputs"),
    [
        ("model", ["--args", "f32[8,8] f32[4,8]"], ["f32", "f32"]),
        ("named", [], ["f32", "f32"]),
        ("named", ["--args", "f32[3] scale=f32"], ["f32", "f32"]),
        ("pair", [], ["f32", "f32", "f32"]),
        ("power", ["--args", "bf16[3]", "--static", "n=3"], ["bf16"]),
        ("draws", ["--args", "key"], ["key<fry>"]),
        ("Layer.apply", ["--args", "f32[2,2]"], ["f32"]),
    ],
)
def test_compile_takes_arguments_from_everywhere(
    target: str, args: list[str], inputs: list[str], code: Path
) -> None:
    assert main(["compile", f"{code / 'train.py'}:{target}", *args]) == 0
    report = read_dump(f"out/{target}").report
    assert sum(f.count for f in report.arguments) == len(inputs)
    assert {f.format for f in report.arguments} == set(inputs)


@pytest.mark.parametrize(("args", "recipe"), [([], "fp8"), (["--recipe", "bf16-mixed"],) * 2])
def test_compiled_functions_keep_their_recipe_unless_told(
    args: list[str], recipe: Any, code: Path
) -> None:
    assert main(["compile", f"{code / 'train.py'}:ready", *args]) == 0
    assert read_dump("out/ready").report.recipe == (recipe if recipe == "fp8" else args[1])


def test_compile_reads_a_file_of_a_package(code: Path) -> None:
    assert main(["compile", f"{code}/pack/inner/mod.py:f", "--args", "f32[3]"]) == 0


def test_compile_says_when_the_module_cannot_stand_alone(
    code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"{code / 'train.py'}:callback", "--args", "f32[2,2]"]) == 0
    assert "out/callback/callback.py.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "args", "said"),
    [
        ("nope.py:f", [], "there is no such file"),
        ("train.py", [], "is not FILE:FUNCTION"),
        (":step", [], "is not FILE:FUNCTION"),
        ("train.py:", [], "is not FILE:FUNCTION"),
        ("pack:f", [], "this is a folder"),
        ("text.txt:f", [], "no Python file"),
        ("train.py:stepp", [], "did you mean step?"),
        ("train.py:Layer.aply", [], "did you mean apply?"),
        ("train.py:NUMBER", [], "NUMBER is no function but int"),
        ("train.py:model", [], "define model_args()"),
        ("train.py:breaks", [], "return 1 / 0"),
        ("train.py:lists", [], "returns list, not a tuple"),
        ("broken.py:f", [], "broken.py:2"),
        ("missing.py:f", [], "missing.py:1"),
        ("exits.py:f", [], "if __name__ == '__main__'"),
        ("train.py:mismatch", ["--args", "f32[2,3] f32[4,5]"], "in mismatch\n           "),
        ("train.py:branches", ["--args", "f32"], "if x > 0:"),
        ("train.py:model", ["--args", "f32"], "it is model(w, x)"),
        ("train.py:step", ["--recipe", "fp9"], "did you mean 'fp8'?"),
        ("train.py:step", ["--recipe", "transformer-engine"], "no recipe by itself"),
        ("train.py:step", ["--args", "f32[2"], "cannot read 'f32[2'"),
        ("train.py:step", ["--args", "f33[2]"], "there is no type 'f33'"),
        ("train.py:step", ["--args", "f32[a]"], "cannot read"),
        ("train.py:step", ["--args", ""], "--args is empty"),
        ("train.py:step", ["--args", "a=f32 f32"], "stands after a named argument"),
        ("train.py:step", ["--args", "a=f32 a=f32"], "names 'a' twice"),
        ("train.py:draws", ["--args", "f64[3]"], "JAX_ENABLE_X64=1"),
        ("train.py:power", ["--args", "f32[3]", "--static", "n"], "is not name=value"),
        ("train.py:step", ["-o", "file/out"], "cannot write the dump"),
        ("train.py:step", ["-o", "full"], "no part of a dump (mine.txt)"),
    ],
)  # fmt: skip
def test_compile_says_what_is_wrong(
    target: str, args: list[str], said: str, code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("a file")
    Path("full").mkdir()
    Path("full", "mine.txt").write_text("mine")
    path, colon, name = target.partition(":")
    path = str(code / path) if path else ""
    assert said in fails(capsys, "compile", f"{path}{colon}{name}", *args)
    assert sorted(os.listdir()) == ["file", "full"]
    assert os.listdir("full") == ["mine.txt"]


def test_traceback_is_shown_when_asked_for(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{code / 'train.py'}:mismatch"
    assert main(["compile", target, "--args", "f32[2,3] f32[4,5]", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.count("precir: error:") == 1


def test_a_bug_of_precir_is_called_one(
    code: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = sys.modules["precir.compile"]
    lines = "def fail(*args):\n    raise AssertionError('a pass went wrong')"
    made: dict[str, Any] = {}
    exec(compile(lines, str(driver.__file__), "exec"), made)
    monkeypatch.setattr(driver, "make_program", made["fail"])
    assert main(["compile", f"{code / 'train.py'}:step"]) == 2
    err = capsys.readouterr().err
    assert "AssertionError: a pass went wrong" in err
    assert "this is a bug in precir; --traceback shows where" in err


# -- arguments -------------------------------------------------------------------------------------


def test_specs_are_read_with_any_spaces() -> None:
    positional, named = parse_arguments(" f32[8, 128],i32[]  bool[3] , f8e4m3fn[2] key[4] s=u8 ")
    assert [(a.shape, str(a.dtype)) for a in positional] == [
        ((8, 128), "float32"),
        ((), "int32"),
        ((3,), "bool"),
        ((2,), "float8_e4m3fn"),
        ((4,), "key<fry>"),
    ]
    assert named == {"s": jax.ShapeDtypeStruct((), "uint8")}


def test_static_values_are_literals_or_words() -> None:
    found = parse_static(["n=3", "name=gelu", "flag=True", "shape=(1, 2)", "text=a=b"])
    assert found == {"n": 3, "name": "gelu", "flag": True, "shape": (1, 2), "text": "a=b"}
    with pytest.raises(UsageError):
        parse_static(["=3"])


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_shows_the_report_and_the_passes(
    dumps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no line is cut
    assert main(["inspect", str(dumps / "fp8")]) == 0
    out = capsys.readouterr().out
    assert read_dump(dumps / "fp8").report.headline in out
    assert "-5 dot_general" in out
    assert "+5 scaled_dot" in out
    for stage in ("lower", *(name for name, _ in PASSES)):
        assert f"\n{stage} " in out


@pytest.mark.parametrize("name", ["casts", "06_casts", "06_casts.ir"])
def test_inspect_prints_the_text_of_a_pass(
    name: str, dumps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(dumps / "fp8"), "--pass", name]) == 0
    assert capsys.readouterr().out == (dumps / "fp8" / "06_casts.ir").read_text()


def test_inspect_filters_by_op_and_scope(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["inspect", str(dumps / "fp8"), "--pass", "casts", "--op", "scaled_dot"]
    casts = next(s.graph for s in read_dump(dumps / "fp8").stages if s.name == "casts")
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(n.op == "scaled_dot" for n in casts.walk())
    assert main([*args, "--scope", "*/h_1"]) == 0
    inside = capsys.readouterr().out.splitlines()
    assert inside
    assert set(inside) < set(lines)
    assert all("scope net/h_1" in line for line in inside)
    assert main(["inspect", str(dumps / "fp8"), "--scope", "net/h_1"]) == 0
    assert "net/h_0" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "there is no such folder"),
        (
            ["fp8", "--pass", "fuse"],
            "one of lower, simplify, storage, facts, scales, assign, casts",
        ),
        (["fp8", "--scope", "nett/*"], "scopes: net"),
        (["fp8", "--scope", "net/h_1", "--op", "sin"], "operations there:"),
    ],
)
def test_inspect_says_what_is_wrong(
    args: list[str], said: str, dumps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, "inspect", dumps / args[0], *args[1:])


@pytest.mark.parametrize("command", ["inspect", "diff"])
@pytest.mark.parametrize("part", [0.0, 0.2, 0.7, 0.99])
def test_damaged_dumps_are_named(
    command: str, part: float, dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((dumps / "fp8").iterdir()):
        broken = tmp_path / "broken"
        shutil.copytree(dumps / "fp8", broken)
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: int(part * len(data))])
        args = [broken] if command == "inspect" else [dumps / "fp8", broken]
        assert str(broken / path.name) in fails(capsys, command, *args)
        shutil.rmtree(broken)


# -- diff ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [("fp8", "fp8"), ("fp8:lower", "float32:lower"),
                                      ("fp8:lower", "float32/00_lower.ir")])  # fmt: skip
def test_the_same_is_status_0(
    a: str, b: str, dumps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(dumps / a), str(dumps / b)]) == 0
    assert "the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("a", "b"),
    [("float32", "fp8"), ("fp8:assign", "fp8:casts"),
     ("float32/06_casts.ir", "fp8/06_casts.ir"), ("float32:casts", "fp8/06_casts.ir")],
)  # fmt: skip
def test_a_difference_is_status_1_and_shown(
    a: str, b: str, dumps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(dumps / a), str(dumps / b)]) == 1
    out = capsys.readouterr().out
    assert "+5 scaled_dot" in out
    assert "-5 dot_general" in out
    assert "E4M3" in out
    assert any(line.startswith("-  %dot_general") for line in out.splitlines())
    assert any(line.startswith("+  %scaled_dot") for line in out.splitlines())
    assert main(["diff", str(dumps / a), str(dumps / b), "--brief"]) == 1
    assert "@@" not in capsys.readouterr().out


def test_places_count_only_when_asked_for(dumps: Path, tmp_path: Path) -> None:
    text = (dumps / "fp8" / "06_casts.ir").read_text()
    (tmp_path / "moved.ir").write_text(text.replace("@train.py:11:", "@train.py:99:"))
    paths = [str(dumps / "fp8" / "06_casts.ir"), str(tmp_path / "moved.ir")]
    assert main(["diff", *paths]) == 0
    assert main(["diff", *paths, "--places"]) == 1


def test_a_stage_of_one_dump_alone_is_a_difference(
    dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(dumps / "fp8", folder)
    index = json.loads((folder / "index.json").read_text())
    gone = index["stages"].pop()
    (folder / "index.json").write_text(json.dumps(index))
    assert main(["diff", str(dumps / "fp8"), str(folder)]) == 1
    assert f"{gone['name']}: only in {dumps / 'fp8'}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("fp8", "nowhere", "there is no such file or folder"),
        ("fp8", "fp8:casts", "DIR:casts"),
        ("fp8:fuse", "fp8:casts", "there is no pass 'fuse'"),
        ("fp8/report.txt", "fp8:casts", "line 1"),
        ("fp8/report.txt", "nowhere", "report.txt"),
    ],
)
def test_diff_says_what_is_wrong(
    a: str, b: str, said: str, dumps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, "diff", dumps / a, dumps / b)


# -- recipes and the program itself ----------------------------------------------------------------


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for recipe in RECIPES.values():
        assert f"\n{recipe.name} " in f"\n{out}"
    assert "float8_e5m2" in out


@pytest.mark.parametrize("args", [[], ["compil"], ["compile"], ["diff", "a"], ["recipes", "-x"]])
def test_bad_usage_is_one_message(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help" in fails(capsys, *args)


def test_help_and_version_are_no_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["--version"], ["compile", "--help"], ["diff", "--help"]):
        assert main(args) == 0
    assert "FUNCTION_args()" in capsys.readouterr().out


# What `import jax` says by itself where its CUDA plugin is installed and there is no GPU.
_PLUGIN = re.compile(r"absl::InitializeLog|cudart_stub")


def _run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run(args, capture_output=True, text=True, env=environment, timeout=300)
    kept = [line for line in run.stderr.splitlines(True) if not _PLUGIN.search(line)]
    run.stderr = "".join(kept)
    return run


def test_it_runs_as_a_module() -> None:
    run = _run(sys.executable, "-m", "precir", "recipes")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("float32")
    run = _run(sys.executable, "-m", "precir", "inspect", "nowhere")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 3


def test_a_reader_that_leaves_early_is_no_trouble(dumps: Path) -> None:
    command = f"'{sys.executable}' -m precir inspect '{dumps / 'fp8'}' --pass casts | head -1"
    run = _run("bash", "-c", f"set -o pipefail; {command}")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "precir 1\n"
