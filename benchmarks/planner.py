"""The planner's laws against the figures of their papers, their public runs, and plots of them.

    python benchmarks/planner.py

Seconds. Writes benchmarks/results/planner.md and planner.png. The runs are in tests/runs/.
"""

import argparse
import datetime
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rich
from matplotlib.figure import Figure
from rich.table import Table

from precir.planner import LAWS, FitError, Run, efficiencies, fit_bits, fit_law
from precir.planner.quartet import QUARTET

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "tests" / "runs"
KUMAR, SUN = LAWS.kumar, LAWS.sun
HEADINGS = ("law", "figure", "paper or its runs", "here")
INK, BLUE, RED, GREEN, GREY = "#222222", "#0072b2", "#d55e00", "#009e73", "#999999"
STOCHASTIC = "AlbertTsengQuantizer"
RUNS_OF_NOTE = (
    (1e9, 20e9, "1B, 20B"),
    (405e9, 15.6e12, "405B, 15.6T"),
    (70e9, 15e12, "70B, 15T"),
    (8e9, 15e12, "8B, 15T"),
)
QUEST = ("HalfHadamardTrustQuantizer", "HadamardTrustQuantizer", "HadamardClipQuantizer")


# --- figures --------------------------------------------------------------------------------------


def text(values: Any, places: int) -> str:
    """Numbers with so many decimals."""
    return " ".join(f"{v:.{places}f}" for v in values)


def figures() -> Iterator[tuple[str, str, str, str]]:
    """Each figure: whose law, what it is, what it should be, what the planner has."""
    k, s = KUMAR, SUN
    yield (
        "Kumar", "N_eff/N at 4, 5, 6, 7, 8, 12, 16 bits", ".191 .427 .611 .740 .828 .967 .994",
        text(map(k.factor, (4, 5, 6, 7, 8, 12, 16)), 3),
    )  # fmt: skip
    budgets = [k.best(c).bits for c in (1e18, 1e21, 1e24)]
    yield "Kumar", "P* at 1e18, 1e21, 1e24 FLOPs", "7.00 7.00 7.00", text(budgets, 2)
    made = map(k.effective_compute, (4, 5, 6, 7, 8, 10, 12, 16, 32))
    yield (
        "Kumar", "budget made use of at 4 5 6 7 8 10 12 16 32 bits",
        ".451 .807 .963 1.000 .978 .874 .762 .587 .295", text(made, 3),
    )  # fmt: skip
    pairs = ((8, 16), (4, 8), (4, 16))
    yield (
        "Kumar", "break-even speedups, 8 over 16, 4 over 8, 4 over 16", "1.20 4.33 5.20",
        text((k.break_even(*p) for p in pairs), 2),
    )  # fmt: skip
    fixed = ((8e9, 15e12), (70e9, 15e12), (405e9, 15.6e12), (1e9, 20e9))
    yield (
        "Kumar", "P* at fixed N: 8B 15T, 70B 15T, 405B 15.6T, 1B 20B", "13.8 11.0 9.0 8.2",
        text((k.best_bits_at(*p) for p in fixed), 1),
    )  # fmt: skip
    yield (
        "Kumar", "D/N past which 16 bits beat 8 at 1.3, 1.5, 1.8, 2.0x", "30 67 129 171",
        text((k.crossover(8, 16, x) for x in (1.3, 1.5, 1.8, 2.0)), 0),
    )  # fmt: skip
    yield (
        "Kumar", "delta after training, 30M 26B, 3 4 5 6 bits", ".586 .108 .0198 .0036",
        text((k.after_training(30e6, 26e9, p) for p in (3, 4, 5, 6)), 4),
    )  # fmt: skip
    yield (
        "Kumar", "critical D, 30M, 3 4 5 6 8 bits", "5.3e9 2.9e10 1.6e11 8.4e11 2.5e13",
        " ".join(f"{k.critical_tokens(30e6, p):.2g}" for p in (3, 4, 5, 6, 8)),
    )  # fmt: skip
    layouts = [f"E{e}M{m}" for e, m in map(s.best_layout, (4, 6, 8, 16))]
    yield "Sun", "best layouts of 4, 6, 8, 16 bits", "E2M1 E3M2 E4M3 E8M7", " ".join(layouts)
    critical = [s.critical_tokens(1e9, *f) / 1e12 for f in ((8, 7), (4, 3), (2, 1))]
    yield "Sun", "critical D at 1B: BF16, E4M3, E2M1 (T)", "1730 27 0.4", text(critical, 1)
    yield (
        "Sun", "P* at 1e21, 1e25, 1e31 FLOPs", "4.2 5.3 7.6",
        text(map(s.best_bits, (1e21, 1e25, 1e31)), 1),
    )  # fmt: skip
    yield from run_figures()


def run_figures() -> Iterator[tuple[str, str, str, str]]:
    """What rests on the public runs."""
    runs = quartet_runs()
    kinds = (("", "", "BF16"), ("QuEST", "", "FP4 forward"), ("", STOCHASTIC, "FP4 backward"),
             ("QuEST", STOCHASTIC, "both"))  # fmt: skip
    found = []
    for forward, backward, _ in kinds:
        eff = QUARTET.forward["FP4"] if forward else 1, QUARTET.backward["FP4"] if backward else 1
        off = [
            QUARTET.loss(r.params, r.tokens, *eff) - r.loss
            for r in runs
            if (r.forward, r.backward) == (forward, backward)
        ]
        found.append(math.sqrt(np.mean(np.square(off))))
    names = ", ".join(name for _, _, name in kinds)
    yield "Quartet", f"RMSE on its runs: {names}", ".0045 .0077 .0048 .0083", text(found, 4)
    fit = fit_law(r for r in runs if not r.forward and not r.backward)
    law = fit.law
    yield (
        "Quartet", "refitted to its 24 BF16 runs: alpha, beta, gamma, E, RMSE",
        ".579 .539 .276 1.341 .0045",
        f"{text((law.alpha, law.beta, law.gamma, law.E), 3)} {fit.rmse:.4f}",
    )  # fmt: skip
    eff = quest_efficiencies()
    yield (
        "QuEST", "N_eff/N at 1, 2, 3, 4, 8 bits, inverted run by run",
        ".047 .185 .444 .706 1.008", text((eff[p] for p in (1, 2, 3, 4, 8)), 3),
    )  # fmt: skip
    bits = fit_bits({p: eff[p] / eff[16] for p in (2, 3, 4, 8)})
    yield "QuEST", "P* of Kumar's form through them", "4.1", f"{bits.best_bits:.2f}"
    every = [replace(r, forward="" if r.forward == "16" else r.forward) for r in quest_runs()]
    try:
        fit_law(every, gamma=1.0)
        said = "returned"
    except FitError as error:
        said = f"refused: {error.what}"
    yield "QuEST", "Chinchilla's form fitted to its runs", "degenerate", said


def quartet_runs() -> list[Run]:
    """The public runs of Quartet; "" is BF16."""
    wide = {"BF16": ""}
    return [
        Run(r["N"], r["D"], r["loss"], wide.get(r["fwd"], r["fwd"]), wide.get(r["bwd"], r["bwd"]))
        for r in json.loads((RUNS / "quartet_runs.json").read_text())
    ]


def quest_runs() -> list[Run]:
    """Those of QuEST's runs with as many bits of weights as of activations, by their number."""
    return [
        Run(r["non_embedding_parameters"], r["tokens"], r["loss"], str(r["w_bits"]))
        for r in json.loads((RUNS / "quest_runs.json").read_text())
        if r["w_bits"] == r["a_bits"] and r["w_quant"] in (*QUEST, "NoQuantizer")
    ]


def quest_efficiencies() -> dict[int, float]:
    """N_eff / N by bits."""
    return {int(p): e.mean for p, e in efficiencies(quest_runs(), QUARTET).items()}


# --- plots ----------------------------------------------------------------------------------------


def draw(path: Path) -> None:
    """Four plots: bits at a free budget, bits at fixed N, losses at equal time, after training."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    panels: tuple[Callable[[Any], None], ...] = (budget, fixed, equal_time, afterwards)
    for ax, panel in zip(axes.flat, panels, strict=True):
        panel(ax)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
    figure.savefig(path, dpi=130)


def budget(ax: Any) -> None:
    """How much of a budget each number of bits makes use of, and QuEST's quantiser beside it."""
    bits = np.linspace(3.2, 20, 400)
    ax.plot(bits, [KUMAR.effective_compute(p) for p in bits], color=BLUE, lw=2)
    ax.annotate("Kumar: per-tensor integers", (11.3, 0.83), color=BLUE)
    eff = quest_efficiencies()
    fit = fit_bits({p: eff[p] / eff[16] for p in (2, 3, 4, 8)})
    top = fit.factor(fit.best_bits) / fit.best_bits
    low = np.linspace(1.6, 20, 400)
    ax.plot(low, [fit.factor(p) / p / top for p in low], color=RED, lw=2)
    ax.plot([2, 3, 4, 8, 16], [eff[p] / eff[16] / p / top for p in (2, 3, 4, 8, 16)], "o",
            color=RED, mfc="w", ms=7)  # fmt: skip
    ax.annotate("QuEST: Hadamard, from its runs", (3.9, 0.22), color=RED)
    span = KUMAR.plateau()
    ax.axvspan(*span, color=BLUE, alpha=0.1, lw=0)
    ax.annotate("within 4%", (sum(span) / 2, 0.04), color=BLUE, ha="center")
    for at, name in ((4, "FP4"), (8, "FP8"), (16, "BF16")):
        ax.axvline(at, color=GREY, lw=0.8, ls=":")
        ax.annotate(name, (at, 1.06), color=GREY, ha="center")
    ax.set(xlabel="bits", ylabel="of the budget made use of", xlim=(1.5, 20), ylim=(0, 1.12))
    ax.set_title("N and D free, cost as N D P", loc="left")


def fixed(ax: Any) -> None:
    """The best bits of a model that is trained longer and longer."""
    ratios = np.geomspace(5, 5000, 60)  # alpha is beta, so N alone does not matter
    ax.plot(ratios, [KUMAR.best_bits_at(1e9, r * 1e9) for r in ratios], color=BLUE, lw=2)
    ax.axhline(KUMAR.best_bits(), color=GREY, lw=1, ls="--")
    ax.annotate("N and D free", (1900, KUMAR.best_bits() + 0.12), color=GREY)
    for place, speed in enumerate((1.3, 1.5, 1.8, 2.0)):
        at = KUMAR.crossover(8, 16, speed)
        ax.axvline(at, color=GREY, lw=0.8, ls=":")
        ax.annotate(f"{speed}x", (at, 15.5 - 0.5 * (place % 2)), color=INK, ha="center", fontsize=9)
    ax.annotate("past a dotted line 16 bits beat\n8 bits that are so much faster", (215, 8.2),
                color=INK, fontsize=9)  # fmt: skip
    for n, d, name in RUNS_OF_NOTE:
        best = KUMAR.best_bits_at(n, d)
        ax.plot(d / n, best, "o", color=RED, ms=7)
        ax.annotate(f"{name}: {best:.1f}", (d / n * 0.88, best + 0.1), color=RED, ha="right")
    ax.set(xscale="log", xlabel="D / N at 16 bits", ylabel="best bits", ylim=(6, 16))
    ax.set_title("N fixed, fewer bits buying more tokens (Kumar)", loc="left")


def equal_time(ax: Any) -> None:
    """What fp8 gains or loses on bf16 in the same time, by two laws."""
    ratios = np.geomspace(5, 2e4, 80)
    eight, wide = KUMAR.factor(8), KUMAR.factor(16)
    for size, colour, name in ((1e9, BLUE, "1B"), (8e9, GREEN, "8B")):
        ours = [
            KUMAR.loss(size, 2 * r * size, eight) - KUMAR.loss(size, r * size, wide) for r in ratios
        ]
        theirs = [
            SUN.loss(size, 2 * r * size, 4, 3) - SUN.loss(size, r * size, 8, 7) for r in ratios
        ]
        ax.plot(ratios, ours, color=colour, lw=2, label=f"Kumar, {name}")
        ax.plot(ratios, theirs, color=colour, lw=2, ls="--", label=f"Sun, {name}")
    ax.axhline(0, color=INK, lw=0.8)
    ax.axvspan(1000, 2e4, color=GREY, alpha=0.12, lw=0)
    ax.annotate("beyond the runs", (1100, 0.017), color=GREY)
    ax.set(xscale="log", xlabel="D / N of bf16", ylabel="loss of FP8 minus that of BF16",
           ylim=(-0.1, 0.025), xlim=(5, 2e4))  # fmt: skip
    ax.set_title("Equal time and N, FP8 twice as fast: below 0 it wins", loc="left")
    ax.legend(frameon=False, loc="lower right")


def afterwards(ax: Any) -> None:
    """What quantising an 8B model's weights after training costs, by two laws."""
    tokens = np.geomspace(1e10, 2e13, 60)
    for bits, colour in ((3, RED), (4, BLUE), (5, GREEN), (8, GREY)):
        ax.plot(tokens, [KUMAR.after_training(8e9, d, bits) for d in tokens], color=colour, lw=2,
                label=f"{bits} bits")  # fmt: skip
        ax.plot(tokens, [LAWS.ouyang.delta(8e9, d, bits) for d in tokens], color=colour, lw=2,
                ls="--")  # fmt: skip
        at = KUMAR.critical_tokens(8e9, bits)
        if tokens[0] < at < tokens[-1]:
            ax.plot(at, KUMAR.after_training(8e9, at, bits), "o", color=colour, ms=7)
    ax.axvspan(LAWS.ouyang.box.tokens[1], tokens[-1], color=GREY, alpha=0.12, lw=0)
    ax.annotate("beyond the runs", (3.6e11, 4e-5), color=GREY)
    ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="added to the loss",
           xlim=(tokens[0], tokens[-1]), ylim=(2e-5, 6))  # fmt: skip
    ax.set_title("8B weights quantised after training", loc="left")
    ax.legend(frameon=False, loc="upper left", ncols=4, fontsize=8,
              title="solid: Kumar, dashed: Ouyang; past a dot more training harms",
              title_fontsize=8)  # fmt: skip


# --- the command line -----------------------------------------------------------------------------


def main() -> None:
    """Print the table, and write it and the plots."""
    parser = argparse.ArgumentParser(description="The planner's laws against their papers.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    rows = list(figures())
    table = Table(*HEADINGS, title="Scaling laws of precision")
    for row in rows:
        table.add_row(*row)
    rich.print(table)
    lines = [
        "# Scaling laws of precision, as the planner has them",
        "",
        "Made by `python benchmarks/planner.py`, which explains it; plots in `planner.png`.",
        "",
        f"{datetime.date.today()}.",
        "",
        *(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "planner.md").write_text("\n".join(lines) + "\n")
    draw(options.out / "planner.png")


if __name__ == "__main__":
    main()
