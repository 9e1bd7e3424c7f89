"""The saved module alone trains: in a process that never sees the model, nor precir."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import precir
from tests.programs import PROGRAMS, Program, run

ROOT = Path(__file__).parent.parent
BY_NAME = {p.name: p for p in PROGRAMS}

# Runs a saved module: the state comes as the leaves in an .npz, its structure from an example
# that the library at hand makes. Whatever would bring in the original is refused.
ALONE = """
import importlib.abc, importlib.util, pathlib, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tests", "precir", "passes", "kernels"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
import jax, numpy as np

folder = pathlib.Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("emitted", folder / "step.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
step = getattr(module, sys.argv[2])
arrays = np.load(folder / "given.npz", allow_pickle=False)
STRUCTURE
def group(name):
    count = sum(k.startswith(name + "_") for k in arrays.files)
    return [arrays[f"{name}_{i}"] for i in range(count)]
state = jax.tree.unflatten(structure, group("state"))
losses = []
for i in range(int(arrays["steps"])):
    state, loss, *_ = step(state, *group(f"batch{i}"))
    losses.append(np.asarray(loss))
np.savez(folder / "made.npz", losses=np.array(losses),
         **{f"state_{i}": x for i, x in enumerate(jax.tree.leaves(state))})
"""

# How a process without the model makes the structure of its state.
PLAIN = "structure = jax.tree.structure({!r})"


def spelled(tree: Any) -> str | None:
    """A pytree of dicts, lists and tuples as Python source, None if there is anything else."""
    numbered = jax.tree.map(lambda _: 0, tree)
    try:
        same = eval(repr(numbered), {}) == numbered
    except Exception:
        return None
    return PLAIN.format(numbered) if same else None


NAMES = [
    "mlp_layers", "mlp_dict", "rnn_scan", "attention_grouped", "layers_scan_remat", "experts",
    "large_constant", "custom_vjp_straight_through", "cond_loss", "conv", "switch_update",
]  # fmt: skip


def run_alone(program: Program, folder: Path, structure: str, steps: int = 4) -> np.ndarray:
    state = program.init(0)
    compiled = precir.compile(program.step, **program.options())
    compiled.save(folder / "step.py", state, *program.batch(0))
    name = compiled.program(state, *program.batch(0)).signature.name
    given = {f"state_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    for n in range(steps):
        given |= {f"batch{n}_{i}": np.asarray(x) for i, x in enumerate(program.batch(n))}
    np.savez(folder / "given.npz", steps=steps, **given)
    code = ALONE.replace("STRUCTURE", structure)
    made = subprocess.run(
        [sys.executable, "-c", code, str(folder), name],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return np.load(folder / "made.npz", allow_pickle=False)["losses"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if BY_NAME[n].slow or i > 3 else ())
     for i, n in enumerate(NAMES)],
)  # fmt: skip
def test_trains_alone(name: str, tmp_path: Path) -> None:
    """The same losses, bit for bit, as plain jax.jit of the original."""
    program = BY_NAME[name]
    structure = spelled(program.init(0))
    assert structure is not None
    expected, _ = run(jax.jit(program.step, **program.options()), program, 4)
    assert [float(x) for x in run_alone(program, tmp_path, structure)] == expected


@pytest.mark.parametrize("name", NAMES)
def test_imports_nothing_of_precir(name: str) -> None:
    program = BY_NAME[name]
    text = precir.compile(program.step).source(program.init(0), *program.batch(0))
    assert not [line for line in text.splitlines()
                if line.startswith(("import", "from")) and "precir" in line]  # fmt: skip
    low = precir.compile(program.step, recipe="fp8").source(program.init(0), *program.batch(0))
    imported = [line for line in low.splitlines() if line.startswith("from precir")]
    assert all(line.startswith(("from precir.kernels", "from precir.scaled")) for line in imported)


# Tracebacks.


def squared_error(params: Any, x: jax.Array) -> jax.Array:
    h = x @ params["w"]
    return jax.numpy.sum(jax.numpy.log(h))


def first_line() -> int:
    return squared_error.__code__.co_firstlineno


def test_a_nan_names_the_users_line() -> None:
    compiled = precir.compile(squared_error)
    params, x = {"w": -np.ones((3, 3), np.float32)}, np.ones((2, 3), np.float32)
    jax.config.update("jax_debug_nans", True)
    try:
        with pytest.raises(FloatingPointError) as error:
            compiled(params, x)
    finally:
        jax.config.update("jax_debug_nans", False)
    notes = "\n".join(getattr(error.value, "__notes__", ()))
    assert f"test_emitted_alone.py:{first_line() + 2}" in notes


def test_the_saved_module_says_where_its_statements_come_from(tmp_path: Path) -> None:
    compiled = precir.compile(squared_error)
    compiled.save(tmp_path / "m.py", {"w": np.ones((3, 3), np.float32)}, np.ones((2, 3), "f4"))
    lines = (tmp_path / "m.py").read_text().splitlines()
    comments = [line for line in lines if "# " in line]
    for offset in (1, 2):
        assert any(f"test_emitted_alone.py:{first_line() + offset}" in c for c in comments)


# Determinism.

TEXT = """
import sys, hashlib
from tests.programs import PROGRAMS
import precir
for name in sys.argv[2:]:
    program = next(p for p in PROGRAMS if p.name == name)
    step = precir.compile(program.step, recipe=sys.argv[1], **program.options())
    args = (program.init(0), *program.batch(0))
    texts = {step.source(*args), precir.compile(program.step, recipe=sys.argv[1],
             **program.options()).source(*args)}
    assert len(texts) == 1, "two texts in one process"
    print(name, hashlib.sha256(texts.pop().encode()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["float32", "fp8"])
def test_same_text_in_every_process(recipe: str) -> None:
    made = []
    for seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", TEXT, recipe, "mlp_layers", "layers_scan_remat", "experts"],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        made.append(done.stdout)
    assert made[0] == made[1]
