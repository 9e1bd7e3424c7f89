"""The rooms keep their doors: who may import whom, and under which name."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent

# From the lowest to the highest: a module imports from its own layer and those below. A new module
# is added here, in the lowest layer that serves it; `x.*` stands for x and all that is in it.
LAYERS = (
    # The leaves.
    (
        "precir.formats",
        "precir.scaled",
        "precir.packed",
        "precir.errors",
        "precir.source",
        "precir.version",
    ),
    ("precir.domains.*",),
    ("precir.kernels.*", "precir.scaling"),
    ("precir.attrs", "precir.equality", "precir.ir", "precir.jaxprs", "precir.primitives"),
    ("precir.ops.*",),
    ("precir.text.*", "precir.verify.*", "precir.phases", "precir.lower", "precir.emit.*"),
    ("precir.recipe", "precir.recipe_file"),
    ("precir.passes.*",),
    ("precir.describe", "precir.program", "precir.state", "precir.vjp", "precir.check.*"),
    (
        *("precir.auto.*", "precir.report.*", "precir.target.*", "precir.planner.*"),
        *("precir.dump", "precir.observe", "precir.compile", "precir.inference.*"),
    ),
    ("precir",),  # re-exports what users import
    ("precir.cli.*", "precir.__main__"),
)

# Kernels travel with the programs that precir writes, so they lean on little.
KERNELS_IMPORT = (
    *("precir.kernels.*", "precir.formats", "precir.scaled", "precir.errors"),
    *("jax.*", "jax_triton.*", "triton.*", "numpy.*"),
)

# Libraries that only some modules may know of.
HIDDEN = {"networkx": ("precir.ir",)}

# Found on GPU machines alone, so never imported at the top of a file: but in the raw kernels, which
# are not imported at the top of any other file themselves.
OPTIONAL = ("jax_triton.*", "triton.*", "precir.kernels.triton.*")
RAW_KERNELS = ("precir.kernels.triton.*",)


def modules() -> dict[str, Path]:
    """Every module of the package by name, in passes/ and kernels/ by way of the symlinks."""
    found = {}
    for folder, _, files in os.walk(ROOT / "precir", followlinks=True):
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py":
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts).removesuffix(".__init__")] = path
    return dict(sorted(found.items()))


MODULES = modules()


def imports(name: str, nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """Yield what the import statements among these nodes of a module import, and their lines."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            origin = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:  # `from precir import ir` names a module, and not always
                inner = f"{origin}.{alias.name}"
                yield (inner if inner in MODULES else origin), node.lineno


def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, p) or name == p.removesuffix(".*") for p in patterns)


def layer(name: str) -> int:
    return next((i for i, patterns in enumerate(LAYERS) if matches(name, patterns)), -1)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == "precir"


@pytest.mark.parametrize("name", MODULES)
def test_module_has_a_layer(name: str) -> None:
    assert layer(name) >= 0, f"{name} has no layer yet: add it to LAYERS in tests/test_layout.py"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "precir"])
def test_imports_go_one_way(name: str) -> None:
    upward = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}, from a higher layer"
        for target, line in imports(name, ast.walk(parse(name)))
        if is_ours(target) and layer(target) > layer(name) >= 0
    ]
    assert not upward, "\n".join([*upward, "see LAYERS in tests/test_layout.py"])


def test_imports_have_no_cycle() -> None:
    graph = nx.DiGraph()
    for name in MODULES:
        graph.add_edges_from(
            (name, target)
            for target, _ in imports(name, iter(parse(name).body))
            if target in MODULES and target != name
        )
    cycles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert not cycles, f"these modules import each other: {cycles}"


@pytest.mark.parametrize("name", [name for name in MODULES if matches(name, ("precir.kernels.*",))])
def test_kernels_import_little(name: str) -> None:
    others = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}"
        for target, line in imports(name, ast.walk(parse(name)))
        if target.partition(".")[0] not in sys.stdlib_module_names
        and not matches(target, KERNELS_IMPORT)
    ]
    assert not others, "\n".join([*others, f"a kernel may import only {KERNELS_IMPORT}"])


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    for target, line in imports(name, ast.walk(parse(name))):
        homes = HIDDEN.get(target.partition(".")[0], (name,))
        assert matches(name, homes), (
            f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}, known only to {homes}"
        )


@pytest.mark.parametrize("name", MODULES)
def test_precir_imports_on_any_machine(name: str) -> None:
    for target, line in imports(name, iter(parse(name).body)):
        assert not matches(target, OPTIONAL) or matches(name, RAW_KERNELS), (
            f"{MODULES[name].relative_to(ROOT)}:{line} imports {target} at the top: "
            "import it inside the function that needs it"
        )


@pytest.mark.parametrize("room", ["passes", "kernels"])
def test_rooms_have_one_name(room: str) -> None:
    assert os.readlink(ROOT / "precir" / room) == f"../{room}"
    run = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert f"ImportError: import precir.{room}, not {room}:" in run.stderr


@pytest.mark.parametrize("room", ["passes", "kernels"])
def test_rooms_import_under_that_name(room: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import precir.{room}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
