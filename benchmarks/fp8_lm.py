"""State in few bits (FP8-LM, arXiv 2310.18313), alone and with fused updates (LOMO, 2306.09782).

    python benchmarks/fp8_lm.py                          all of it (over an hour on two cores)
    python benchmarks/fp8_lm.py --only bytes training    a part of it

bytes         Bytes a parameter, of live arrays and of the gradients that wait for the update.
memory        One step of a GPT of 6.6 billion parameters on one H100.
saved         What the forward pass saves for the backward pass, in E4M3 and as it is.
sharded       The same on eight, fully sharded: FP8-LM's O3, and what crosses the devices.
devices       GPTs of the paper's sizes on 128 H100, against bf16-mixed.
cards         65 billion parameters on eight cards of 24 GiB.
training      Held-out loss of the example GPT over seeds.
equal         Fused updates beside plain ones.
ablation      What each part of the state may be stored in: the paper's table 6.
accumulation  The error of gradients summed over micro-batches.

`memory`, `saved`, `sharded`, `devices` and `cards` compile for GPUs that are not there and run
nothing (fp8_lm_memory.py, fp8_lm_sharded.py); the others run on this machine
(fp8_lm_training.py), where FP8 is emulated: its numbers are exact. The results go to
benchmarks/results/fp8_lm.md, section by section: a part that was not run keeps the section it has.
fp8_lm.png is drawn of what they say.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parent))

import fp8_lm_memory as of_memory
import fp8_lm_sharded as of_sharding
import fp8_lm_training as of_training

OUT = Path(__file__).parent / "results" / "fp8_lm.md"
PARTS: dict[str, tuple[str, Callable[[], Iterator[list[str]]]]] = {
    "bytes": ("Bytes a parameter", of_training.bytes_section),
    "memory": ("6.6 billion parameters on one H100", of_memory.memory_section),
    "saved": ("What is saved for the backward pass", of_memory.saved_section),
    "sharded": ("6.6 billion parameters on eight H100", of_sharding.sharded_section),
    "devices": ("GPTs on 128 H100", of_memory.devices_section),
    "cards": ("65 billion parameters on eight cards of 24 GiB", of_memory.cards_section),
    "training": ("Training", of_training.training_section),
    "equal": ("Fused beside plain", of_training.equal_section),
    "ablation": ("What may be stored in what", of_training.ablation_section),
    "accumulation": ("Accumulation over micro-batches", of_training.accumulation_section),
}


def read(path: Path) -> dict[str, list[str]]:
    """The sections of a results file by heading."""
    found: dict[str, list[str]] = {}
    text = path.read_text().partition("\n![")[0] if path.exists() else ""
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = part.partition("\n")
        found[title] = rest.strip().split("\n")
    return found


def write(path: Path, title: str, lines: Sequence[str]) -> None:
    """Put one section into the file, in the order of PARTS; the others stay."""
    sections = read(path) | {title: "\n".join(lines).strip().split("\n")}
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib", "optax"))
    text = [
        "# State in few bits",
        "",
        "Made by `python benchmarks/fp8_lm.py`, which explains it.",
        "",
        f"{datetime.date.today()}, {platform.machine()}; Python {platform.python_version()}, "
        f"{versions}.",
        "",
    ]
    for name, _ in PARTS.values():
        if name in sections:
            text += [f"## {name}", "", *sections[name], ""]
    text += ["![Peak on each device](fp8_lm.png)", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text))


def draw(path: Path) -> None:
    """Peak bytes on each device, as the tables say: a bar for each recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sections = read(path)
    groups: dict[str, dict[str, float]] = {}
    for part in ("memory", "devices"):
        title = PARTS[part][0]
        here = title
        for line in sections.get(title, []):
            here = line[4:] if line.startswith("### ") else here
            cells = [c.strip() for c in line.strip("|").split("|")]
            if len(cells) == 5 and re.match(r"\d", cells[3]):
                groups.setdefault(here, {})[cells[0]] = float(cells[3].split()[0])
    if not groups:
        return
    figure, axes = pyplot.subplots(1, len(groups), figsize=(4 * len(groups), 3.6), squeeze=False)
    for ax, (title, peaks) in zip(axes[0], groups.items(), strict=True):
        colours = ["tab:blue" if "fused" in name else "tab:orange" for name in peaks]
        ax.barh(list(peaks), list(peaks.values()), color=colours)
        ax.invert_yaxis()
        ax.tick_params(labelsize=7)
        ax.set_title(title, fontsize=8)
        ax.set_xlabel("peak on each device, GiB", fontsize=8)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)


def main() -> None:
    """Make the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    for part in options.only:
        title, section = PARTS[part]
        for lines in section():
            write(options.out, title, lines)  # after each row: all of it takes long
    draw(options.out)


if __name__ == "__main__":
    main()
