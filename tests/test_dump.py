"""A dump appears whole or not at all, reads back as it was, and tells when it is damaged."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import precir
import precir.dump
from precir.dump import dump, read_dump
from precir.errors import DumpError, PrecirError, TextError
from precir.passes.pipeline import PASSES
from precir.program import Program
from precir.report import Report

TABLE = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)


def model(w: jax.Array, x: jax.Array) -> jax.Array:
    with jax.named_scope("model"):
        return jnp.tanh(x @ w) @ TABLE


def make_program(recipe: str = "fp8", fn: Callable[..., Any] = model) -> Program:
    found: Program = precir.compile(fn, recipe=recipe).program(jnp.ones((8, 20)), jnp.ones((4, 8)))
    return found


@pytest.fixture(scope="module")
def program() -> Program:
    return make_program()


@pytest.fixture(scope="module")
def sound(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    dump(program, folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


STAGES = [f"{n:02}_{name}" for n, name in enumerate(["lower", *(name for name, _ in PASSES)])]
FILES = (
    *(f"{s}.{end}" for s in STAGES for end in ("ir", "npz")),
    *("report.txt", "report.json", "model.py", "model.npz", "index.json"),
)


# -- writing ---------------------------------------------------------------------------------------


def test_a_dump_has_all_of_it(sound: Path, program: Program) -> None:
    assert sorted(contents(sound)) == sorted(FILES)
    assert (sound / "report.txt").read_text() == str(Report.of(program))
    assert (sound / "model.py").read_text() == program.emitted.text
    index = json.loads((sound / "index.json").read_text())
    assert (index["function"], index["jax"]) == ("model", jax.__version__)
    assert (index["precir"], index["recipe"]["name"]) == (precir.__version__, "fp8")
    assert os.listdir(sound.parent) == ["model"]


def test_a_dump_reads_back_as_it_was(sound: Path, program: Program) -> None:
    found = read_dump(sound)
    assert [s.name for s in found.stages] == [s.name for s in program.stages]
    for read, written in zip(found.stages, program.stages, strict=True):
        assert read.graph == written.graph
    assert found.report == Report.of(program)
    assert found.module == program.emitted.text
    assert found.file("casts") == sound / "06_casts.ir"


def test_the_module_runs_alone(sound: Path) -> None:
    spec = importlib.util.spec_from_file_location("dumped_model", sound / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = jnp.full((8, 20), 0.5), jnp.full((4, 8), 0.25)
    expected = precir.compile(model, recipe="fp8")(*args)
    np.testing.assert_array_equal(module.model(*args), expected)


def test_the_same_program_gives_the_same_bytes(sound: Path, tmp_path: Path) -> None:
    dump(make_program(), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(sound)


def test_a_dump_replaces_a_dump_and_nothing_is_left(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    dump(make_program("float32"), folder)
    assert read_dump(folder).report.recipe == "float32"
    assert os.listdir(folder.parent) == ["model"]
    assert "__pycache__" not in os.listdir(folder)


def test_folders_are_made_and_empty_ones_filled(program: Program, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "c", str(tmp_path / "text")):
        dump(program, target)
        read_dump(target)


def _other_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def _other_index(path: Path) -> None:
    path.mkdir()
    (path / "index.json").write_text('{"pages": []}')


def _file(path: Path) -> None:
    path.write_text("a file")


def _link(path: Path) -> None:
    path.symlink_to(path.parent)


@pytest.mark.parametrize("make", [_other_folder, _other_index, _file, _link])
def test_what_is_no_dump_is_left_alone(
    make: Callable[[Path], None], program: Program, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    make(target)
    before = contents(tmp_path)
    with pytest.raises(DumpError, match="precious"):
        dump(program, target)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["precious"]


def test_a_dump_with_more_in_it_is_left_alone(program: Program, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(DumpError, match=r"no part of a dump \(notes.txt\)"):
        dump(program, folder)
    assert contents(folder) == before


def test_the_current_folder_is_not_replaced(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DumpError, match="the folder you are in"):
        dump(program, ".")


@pytest.mark.parametrize("below", ["file/out", "file/a/b"])
def test_an_unwritable_folder_is_named(below: str, program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(DumpError, match="cannot write the dump") as caught:
        dump(program, tmp_path / below)
    assert caught.value.where == str(tmp_path / below)
    assert contents(tmp_path) == {"file": b"a file"}


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(
    step: int, kind: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ("save_graph", "_write_text", "_write_module", "_index")[step]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise kind

    before = contents(folder)
    program = make_program("float32")
    monkeypatch.setattr(precir.dump, name, fail)
    with pytest.raises((DumpError, KeyboardInterrupt)):
        dump(program, folder)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["model"]


def test_a_move_that_fails_puts_the_old_dump_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(folder), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.suffix == ".new":
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    program = make_program("float32")
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DumpError, match="busy"):
        dump(program, folder)
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["model"]


def test_a_module_that_cannot_stand_alone_is_explained(tmp_path: Path) -> None:
    def fn(w: jax.Array, x: jax.Array) -> Any:
        jax.debug.callback(lambda x: None, x)
        return x @ w

    dump(make_program("fp8", fn), tmp_path / "out")
    found = read_dump(tmp_path / "out")
    assert found.module is None
    assert "cannot stand alone" in (tmp_path / "out" / "fn.py.txt").read_text()
    assert not (tmp_path / "out" / "fn.py").exists()


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_cut_file_is_named(file: str, part: float, folder: Path) -> None:
    path = folder / file
    whole = path.read_bytes()
    path.write_bytes(whole[: min(int(part * len(whole)), len(whole) - 2)])
    with pytest.raises((DumpError, TextError)) as caught:
        read_dump(folder)
    assert str(path) in str(caught.value)
    if file.endswith(".ir"):
        assert isinstance(caught.value, TextError)
        assert "line" in str(caught.value.where)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(file: str, folder: Path) -> None:
    (folder / file).unlink()
    with pytest.raises(DumpError) as caught:
        read_dump(folder)
    assert file in str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_changed_file_is_named(file: str, folder: Path) -> None:
    path = folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises((DumpError, TextError)) as caught:
        read_dump(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_other_bytes_is_named(file: str, folder: Path) -> None:
    (folder / file).write_bytes(b"\xff\xfe\x00PK\x03\x04")
    with pytest.raises((DumpError, TextError)) as caught:
        read_dump(folder)
    assert str(folder / file) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "else"},
        {"format": 99},
        {"stages": []},
        {"stages": [{"name": "lower"}]},
        {"stages": [{"name": "lower", "file": "../../secret"}]},
        {"module": 5},
        {"module": "/etc/passwd"},
        {"files": []},
        {"files": {}},
        {"recipe": None},
    ],
)
def test_an_index_of_something_else_is_refused(change: dict[str, Any], folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(DumpError) as caught:
        read_dump(folder)
    assert str(folder / "index.json") in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_dump_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrecirError) as caught:
        read_dump(tmp_path / name)
    assert name in str(caught.value)
