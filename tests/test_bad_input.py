"""Bad input to compile, recipes, save and lower: a clear error, and nothing half written."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.errors import DumpError, EmitError, PrecirError, RecipeError

X = np.ones(4, np.float32)
BIG = np.arange(4096, dtype=np.float32)


def double(x: jax.Array) -> jax.Array:
    return 2 * x


@pytest.mark.parametrize(("name", "says"), [
    ("pf8", "fp8"), ("bfloat16", "bf16"), ("", "known"),
    ("transformer-engine", "no recipe by itself"), ("transformer-engine", "fp8"),
])  # fmt: skip
def test_unknown_recipe(name: str, says: str) -> None:
    with pytest.raises(RecipeError) as error:
        precir.compile(double, recipe=name)
    assert says in str(error.value)
    assert "fix" in str(error.value)
    assert "float32" in str(error.value)  # the known ones are listed


@pytest.mark.parametrize("recipe", [3, None, b"fp8", ["fp8"]])
def test_recipe_of_another_type(recipe: Any) -> None:
    with pytest.raises(RecipeError, match="name or a precir"):
        precir.compile(double, recipe=recipe)


@pytest.mark.parametrize("changes", [
    {"compute": "float8"}, {"mode": "fast"}, {"forward": "float8_e4m3fn"}, {"scaling": "sometimes"},
    {"last_product": "int8"}, {"wide": ""},
])  # fmt: skip
def test_recipe_with_a_bad_field(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        precir.Recipe("mine", **changes)


def test_recipe_without_such_a_field() -> None:
    with pytest.raises(RecipeError, match="no field tiles"):
        precir.Recipe("mine").replace(tiles=128)


def test_unwritable_folder(tmp_path: Path) -> None:
    compiled = precir.compile(lambda x: x + jnp.asarray(BIG))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "m.py", tmp_path / "file" / "m.py"):
        with pytest.raises(DumpError) as error:
            compiled.save(path, BIG)
        assert str(path) in str(error.value)
        assert error.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m.py").mkdir()
    with pytest.raises(DumpError, match=r"m\.py"):
        precir.compile(double).save(tmp_path / "m.py", X)
    assert [p.name for p in tmp_path.iterdir()] == ["m.py"]
    assert not list((tmp_path / "m.py").iterdir())


def test_a_failing_save_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    precir.compile(double).save(path, X)
    before = path.read_text()

    def with_callback(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4,), jnp.float32), x)

    with pytest.raises(EmitError, match="stand alone"):
        precir.compile(with_callback).save(path, X)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.py"]


def test_lines_of_errors_in_the_users_code() -> None:
    def model(x):
        y = x * 2
        return y @ jnp.ones((3, 3))  # the line that does not fit

    with pytest.raises(TypeError) as error:
        precir.compile(model)(X)
    lines = [entry.lineno for entry in error.traceback]
    here = model.__code__.co_firstlineno
    assert here + 1 in lines  # as pytest counts, from 0


@pytest.mark.parametrize("method", ["source", "program", "lower", "trace"])
def test_arguments_that_do_not_fit(method: str) -> None:
    compiled = precir.compile(lambda x, y: x + y)
    with pytest.raises(TypeError):
        getattr(compiled, method)(X)
    with pytest.raises((TypeError, ValueError)):
        getattr(compiled, method)(X, np.ones(5, np.float32))
    with pytest.raises(TypeError, match="as an abstract array"):
        getattr(compiled, method)(X, object())


def test_every_error_of_ours_is_one_family() -> None:
    for kind in (DumpError, EmitError, RecipeError):
        assert issubclass(kind, PrecirError)


def test_a_tracer_leaked_into_a_compiled_function() -> None:
    leaked = []
    jax.jit(lambda x: leaked.append(x))(X)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        precir.compile(lambda x: x + leaked[0])(X)
