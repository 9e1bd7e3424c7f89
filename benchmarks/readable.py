"""Is the emitted code as long for 24 layers as for 4, and does it read like code?

    python benchmarks/readable.py
    python benchmarks/readable.py --layers 4 8 --recipes fp8

Emits the train step of examples/train_gpt.py at each number of layers and under each recipe, has
`ruff format` lay it out as this repository's own code is, and looks at the text: it must be under
600 lines, the same number at every depth, and be imports, functions and a few named constants: no
primitive bound by hand, no table of ops that something else interprets.
"""

import argparse
import ast
import datetime
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import rich
from rich.table import Table

import precir

ROOT = Path(__file__).parent.parent
MOST = 600  # lines of a module
RECIPES = ("float32", "bf16-mixed", "fp8")
TABLES = (ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.Constant)


@cache
def load_example() -> ModuleType:
    """Import examples/train_gpt.py, which is not part of a package, by its path."""
    spec = importlib.util.spec_from_file_location("train_gpt", ROOT / "examples" / "train_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_gpt"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Module:
    """An emitted module after `ruff format`."""

    text: str

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    def faults(self) -> Iterator[str]:
        """What keeps it from being code that a person would have written."""
        if self.lines >= MOST:
            yield f"{self.lines} lines"
        if ".bind(" in self.text:
            yield "binds primitives"
        for statement in ast.parse(self.text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, TABLES):
                yield f"line {statement.lineno} is a table"


def emit(layers: int, recipe: str) -> Module:
    """The example's train step at so many layers, formatted; nothing is compiled or run."""
    gpt = load_example()
    config = gpt.Config(layers=layers)
    state = jax.eval_shape(lambda: gpt.init_state(config))
    tokens = jax.ShapeDtypeStruct((config.batch, config.context + 1), np.int32)
    compiled = precir.compile(gpt.make_train_step(config), recipe=recipe, donate_argnums=(0,))
    return Module(formatted(compiled.source(state, tokens)))


def formatted(text: str) -> str:
    """The text as `ruff format` lays it out under this repository's settings."""
    config = str(ROOT / "pyproject.toml")
    command = [sys.executable, "-m", "ruff", "format", "--config", config, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ruff format failed:\n{done.stderr}")
    return done.stdout


def make_rows(modules: dict[tuple[str, int], Module]) -> list[list[str]]:
    """A row for every recipe: the lengths, and what is wrong."""
    depths = sorted({layers for _, layers in modules})
    rows = [["recipe", *(f"lines at {layers} layers" for layers in depths), "verdict"]]
    for recipe in dict.fromkeys(name for name, _ in modules):
        found = [modules[recipe, layers] for layers in depths]
        faults = sorted({fault for module in found for fault in module.faults()})
        if len({module.lines for module in found}) > 1:
            faults.insert(0, "not the same length")
        verdict = "; ".join(faults) or "ok"
        rows.append([recipe, *(str(module.lines) for module in found), verdict])
    return rows


def write(path: Path, rows: list[list[str]]) -> None:
    """Write the rows as Markdown, with what they were measured with."""
    packages = ("precir", "jax", "flax", "optax", "ruff")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    lines = [
        "# Length of the emitted code",
        "",
        "Made by `python benchmarks/readable.py`, which explains it.",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, {versions}.",
        "",
        *(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def version(package: str) -> str:
    """Return the installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(source tree)"


def main(argv: Sequence[str] | None = None) -> None:
    """Emit at every depth under every recipe, and compare."""
    parser = argparse.ArgumentParser(description="Length of the emitted code at several depths.")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "readable.md")
    options = parser.parse_args(argv)
    modules = {(r, n): emit(n, r) for r in options.recipes for n in options.layers}
    rows = make_rows(modules)
    table = Table(*rows[0], title="Lines of the emitted module after ruff format")
    for row in rows[1:]:
        table.add_row(*row)
    rich.print(table)
    write(options.out, rows)


if __name__ == "__main__":
    main()
