"""Train with an emitted module in a plain loop: no model code and no compiler, only the module.

    python examples/train_gpt.py                        writes the folder out/
    python examples/plug_in.py out/train_step_fp8.py    trains again with what it wrote

`train_step_fp8.py` is a module like any other; of precir it imports only the kernels. Beside it
lie the initial state and the batches (`init.npz`) and the losses of the first run (`losses.json`),
with which the losses here must agree to the last bit.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import optax


class State(NamedTuple):
    """The state of the train step: the emitted function takes any such triple."""

    params: Any
    opt_state: Any
    step: Any


def load_module(path: Path) -> ModuleType:
    """Import a file by its path, as `import` would if its folder were on sys.path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def nest(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Return the arrays under a prefix as nested dicts: `h_0/attn/qkv/kernel` is four deep."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            *parents, leaf = name.removeprefix(prefix).split("/")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[leaf] = array
    return tree


def rebuild_state(arrays: dict[str, np.ndarray]) -> State:
    """Put the arrays back into the tree that the train step expects.

    The optimizer is `optax.chain(clip_by_global_norm, adamw)`. A chain keeps one state for each
    link, in order, and `adamw` is itself a chain of three: Adam, weight decay, learning rate.
    Clipping and weight decay remember nothing, so their states are empty. The names of the arrays
    say the same: `opt_state/1/0/mu/...` is the first moment in link 0 of link 1.
    """
    adam = optax.ScaleByAdamState(
        count=arrays["opt_state/1/0/count"],
        mu=nest(arrays, "opt_state/1/0/mu/"),
        nu=nest(arrays, "opt_state/1/0/nu/"),
    )
    rate = optax.ScaleByScheduleState(count=arrays["opt_state/1/2/count"])
    opt_state = (optax.EmptyState(), (adam, optax.EmptyState(), rate))
    return State(nest(arrays, "params/"), opt_state, arrays["step"])


def main() -> int:
    """Train, and return 0 if every loss is the one that the first run saw."""
    parser = argparse.ArgumentParser(description="Train with an emitted module.")
    parser.add_argument("module", type=Path, nargs="?", default=Path("out/train_step_fp8.py"))
    parser.add_argument("--steps", type=int, default=100, help="steps to train for (100)")
    options = parser.parse_args()

    path: Path = options.module
    make = f"python examples/train_gpt.py --out {path.parent}"
    for needed in (path, path.parent / "init.npz", path.parent / "losses.json"):
        if not needed.is_file():
            print(f"plug_in.py: error: no {needed}; make it with: {make}", file=sys.stderr)
            return 2
    with np.load(path.parent / "init.npz", allow_pickle=False) as file:
        arrays = dict(file)
    expected = json.loads((path.parent / "losses.json").read_text()).get(path.stem, [])
    expected = expected[: options.steps]
    batches = arrays.pop("batches")[: options.steps]
    if len(expected) < len(batches):
        print(f"plug_in.py: error: the last run of {make} did not make {path}", file=sys.stderr)
        return 2

    module = load_module(path)
    if "Stored as ScaledArrays" in (module.__doc__ or ""):
        print(
            f"plug_in.py: error: {path} takes its state as precir's step.init stores it, in few "
            "bits; init.npz is float32. Take a module whose recipe stores no state, as fp8",
            file=sys.stderr,
        )
        return 2
    step = module.train_step  # jitted, and donates the state as the first run did
    state = rebuild_state(arrays)
    equal = 0
    for number, (tokens, before) in enumerate(zip(batches, expected, strict=True), start=1):
        state, loss = step(state, tokens)
        equal += float(loss) == before
        if number % 10 == 0 or number == len(batches):
            print(f"step {number:4}  loss {float(loss):.6f}  first run {before:.6f}")
    print(f"{equal} of {len(batches)} losses are the same to the last bit")
    return 0 if equal == len(batches) else 1


if __name__ == "__main__":
    sys.exit(main())
