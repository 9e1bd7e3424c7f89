"""The planner: the figures of the papers' laws to the digits given, refusals, and box warnings."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich

import precir
from precir.cli import main
from precir.planner import (
    LAWS,
    FitError,
    PlanError,
    Run,
    efficiencies,
    fit_bits,
    fit_law,
    measure,
    plan,
    read,
)
from precir.planner.box import Box, count
from precir.planner.plan import RECIPES
from precir.planner.quartet import QUARTET, QUEST_BITS

KUMAR, SUN = LAWS.kumar, LAWS.sun
RUNS = Path(__file__).parent / "runs"


def digits(values: Any, places: int) -> list[float]:
    return [round(float(v), places) for v in values]


# --- Kumar: N and D free --------------------------------------------------------------------------


def test_effective_weights_by_bits() -> None:
    bits = (4, 5, 6, 7, 8, 12, 16)
    assert digits(map(KUMAR.factor, bits), 3) == [0.191, 0.427, 0.611, 0.740, 0.828, 0.967, 0.994]


def test_the_offsets_are_within_the_exponent() -> None:
    assert round(KUMAR.activations.factor(3), 2) == -0.05  # the paper's runs diverged there
    assert round(KUMAR.cache.factor(3), 2) == 0.51
    assert round(KUMAR.weights.factor(3), 2) == 0.56
    assert round(KUMAR.activations.least, 2) == 3.11
    bare = [replace(p, offset=0.0) for p in (KUMAR.weights, KUMAR.activations, KUMAR.cache)]
    plain = replace(KUMAR, weights=bare[0], activations=bare[1], cache=bare[2])
    assert round(plain.best_bits(), 2) == 3.47  # far from the paper's 7 to 8
    assert round(plain.break_even(4, 16), 2) == 1.56


def test_the_best_bits_are_the_same_at_every_budget() -> None:
    assert round(KUMAR.best_bits(), 2) == 7.00
    assert digits((KUMAR.best(c).bits for c in (1e18, 1e21, 1e24)), 2) == [7.00, 7.00, 7.00]


def test_the_best_is_the_best_of_a_grid() -> None:
    best = KUMAR.best(1e21)
    for bits in np.linspace(3.2, 20, 200):
        assert KUMAR.divide(1e21, bits).loss >= best.loss - 1e-12
    for scale in (0.9, 1.1):
        tokens = 1e21 * 16 / (6 * best.params * scale * best.bits)
        assert KUMAR.loss(best.params * scale, tokens, KUMAR.factor(best.bits)) > best.loss


def test_the_plateau() -> None:
    bits = (4, 5, 6, 7, 8, 10, 12, 16, 32)
    made = [0.451, 0.807, 0.963, 1.000, 0.978, 0.874, 0.762, 0.587, 0.295]
    assert digits(map(KUMAR.effective_compute, bits), 3) == made
    low, high = KUMAR.plateau()
    assert low < 6 < 8 < high < 9
    best = KUMAR.best(1e21).loss
    gaps = [KUMAR.divide(1e21, p).loss - best for p in (4, 8, 16)]
    assert digits(gaps, 4) == [0.0322, 0.0008, 0.0209]


def test_break_even_speedups() -> None:
    pairs = ((8, 16), (6, 16), (4, 16), (4, 8), (7, 16), (5, 16))
    assert digits((KUMAR.break_even(*p) for p in pairs), 2) == [1.20, 1.63, 5.20, 4.33, 1.34, 2.33]


def test_weights_and_tokens_at_a_budget() -> None:
    wide, eight, four = (KUMAR.divide(1e21, p) for p in (16, 8, 4))
    assert round(eight.params / wide.params, 2) == 1.55
    assert round(eight.tokens / wide.tokens, 2) == 1.29
    assert round(four.params / wide.params, 2) == 4.56
    assert round(four.tokens / wide.tokens, 2) == 0.88
    plain, best = KUMAR.divide_by(1e21, 1.0), KUMAR.best(1e21)
    assert round(plain.tokens / plain.params, 1) == 18.0
    assert round(best.tokens / best.params, 1) == 13.3


def test_figure_1_of_the_paper() -> None:
    losses = [KUMAR.loss(220e6 * 32 / p, 16e9, KUMAR.factor(p)) for p in (4, 5, 6, 7, 8, 16, 32)]
    assert digits(losses, 3) == [3.171, 3.108, 3.092, 3.089, 3.091, 3.140, 3.230]


def test_a_factor_is_measured_by_inverting_the_law() -> None:
    wide, low = KUMAR.loss(1e9, 2e10), KUMAR.loss(1e9, 2e10, 0.9)
    assert KUMAR.measured_factor(low, 1e9, wide) == pytest.approx(0.9)


# --- Kumar: N fixed -------------------------------------------------------------------------------

RUNS_OF_NOTE = ((1e9, 20e9), (405e9, 15.6e12), (70e9, 15e12), (8e9, 15e12), (1e9, 2e12))


def test_best_bits_where_the_weights_are_fixed() -> None:
    found = [KUMAR.best_bits_at(n, d) for n, d in RUNS_OF_NOTE]
    assert digits(found[:2], 2) == [8.24, 8.97]
    assert digits(found[2:], 1) == [11.0, 13.8, 13.8]


def test_they_are_the_best_of_a_grid() -> None:
    best = KUMAR.best_bits_at(8e9, 15e12)

    def loss(bits: float) -> float:
        return KUMAR.loss(8e9, 15e12 * 16 / bits, KUMAR.factor(bits))

    assert min(map(loss, np.linspace(3.2, 32, 300))) >= loss(best)


def test_sixteen_bits_win_where_a_model_is_trained_long() -> None:
    found = [KUMAR.crossover(8, 16, s) for s in (1.3, 1.5, 1.8, 2.0)]
    assert digits(found, 0) == [30, 67, 129, 171]
    pairs = [
        (KUMAR.loss(n, d, KUMAR.factor(16)), KUMAR.loss(n, 2 * d, KUMAR.factor(8)))
        for n, d in ((8e9, 15e12), (1e9, 20e9))
    ]
    assert digits(pairs[0], 5) == [2.82221, 2.82566]
    assert digits(pairs[1], 4) == [3.0502, 3.0237]


def test_penalties_of_weights_and_tokens_as_given() -> None:
    bits = (4, 5, 6, 7, 8)
    small = [KUMAR.penalty(1e9, KUMAR.factor(p)) for p in bits]
    large = [KUMAR.penalty(8e9, KUMAR.factor(p)) for p in bits]
    assert digits(small, 4) == [0.1864, 0.0768, 0.0405, 0.0235, 0.0144]
    assert digits(large, 4) == [0.0664, 0.0274, 0.0144, 0.0084, 0.0051]


# --- quantisation after training ------------------------------------------------------------------


def test_what_quantising_afterwards_adds() -> None:
    small = [KUMAR.after_training(30e6, 26e9, p) for p in (3, 4, 5, 6)]
    large = [KUMAR.after_training(220e6, 26e9, p) for p in (3, 4, 5, 6)]
    assert digits(small, 4) == [0.5858, 0.1078, 0.0198, 0.0036]
    assert digits(large, 4) == [0.2952, 0.0543, 0.0100, 0.0018]


def test_critical_tokens() -> None:
    found = {p: KUMAR.critical_tokens(30e6, p) for p in (3, 4, 5, 6, 8)}
    assert [f"{d:.1e}" for d in found.values()] == [
        "5.3e+09", "2.9e+10", "1.6e+11", "8.4e+11", "2.5e+13",
    ]  # fmt: skip
    assert digits((found[p] / 30e6 for p in (3, 4)), 0) == [177, 959]
    assert [f"{KUMAR.critical_tokens(220e6, p):.3g}" for p in (3, 4, 5)] == [
        "1.05e+10", "5.7e+10", "3.08e+11",
    ]  # fmt: skip
    grid = np.geomspace(1e9, 1e11, 4001)
    total = [KUMAR.loss(30e6, d) + KUMAR.after_training(30e6, d, 3) for d in grid]
    assert grid[int(np.argmin(total))] == pytest.approx(found[3], rel=2e-3)


def test_two_laws_side_by_side() -> None:
    other = LAWS.ouyang
    large = (8e9, 15e12)
    assert digits((KUMAR.after_training(*large, 4), other.delta(*large, 4)), 3) == [0.396, 0.399]
    assert digits((KUMAR.after_training(*large, 3), other.delta(*large, 3)), 2) == [2.15, 1.94]
    assert digits((KUMAR.after_training(*large, 8), other.delta(*large, 8)), 4) == [0.0005, 0.0088]
    trillions = [other.tokens_for(0.2, 1e9, p) / 1e12 for p in (2, 3, 4)]
    assert digits(trillions, 4) == [0.0012, 0.0810, 1.6458]


def test_a_constant_that_is_not_published_is_asked_for() -> None:
    with pytest.raises(PlanError, match="C_w that the paper does not publish"):
        KUMAR.after_training(1e9, 1e10, 4, trained=8)
    known = replace(KUMAR, C_w=1.0)
    assert known.after_training(1e9, 1e10, 4, trained=4) == 0
    assert known.after_training(1e9, 1e10, 4, trained=8) > 0


# --- floating point -------------------------------------------------------------------------------


def test_best_layouts_of_floats() -> None:
    layouts = [f"E{e}M{m}" for e, m in (SUN.best_layout(p) for p in range(3, 17))]
    assert " ".join(layouts) == (
        "E1M1 E2M1 E2M2 E3M2 E3M3 E4M3 E4M4 E5M4 E5M5 E6M5 E6M6 E7M6 E7M7 E8M7"
    )


def test_critical_tokens_of_floats() -> None:
    found = [SUN.critical_tokens(1e9, *f) / 1e12 for f in ((8, 7), (4, 3), (2, 1), (5, 2))]
    assert digits(found[:1], 1) == [1729.5]
    assert digits(found[1:], 3) == [27.329, 0.393, 19.408]


def test_best_bits_of_floats_grow_with_the_budget() -> None:
    found = [SUN.best_bits(c) for c in (1e21, 1e23, 1e25, 1e27, 1e29, 1e31, 1e33)]
    read = [4.20, 4.70, 5.30, 6.00, 6.75, 7.60, 8.55]  # on a grid of 0.05
    assert np.abs(np.array(found) - read).max() < 0.03
    assert digits(map(SUN.best_bits_for_tokens, (0.1e12, 100e12)), 2) == [4.27, 7.62]


def test_they_are_the_best_of_a_grid_too() -> None:
    power = SUN.delta + SUN.nu

    def loss(bits: float, tokens: float) -> float:
        e, m = SUN.delta * bits / power - 0.5, SUN.nu * bits / power - 0.5
        return SUN.loss(1e25 * 16 / (6 * bits * tokens), tokens, e, m)

    bits, tokens = np.linspace(4, 7, 61), np.geomspace(1e10, 1e14, 161)
    grid = np.array([[loss(p, d) for d in tokens] for p in bits])
    assert bits[np.unravel_index(grid.argmin(), grid.shape)[0]] == pytest.approx(
        SUN.best_bits(1e25), abs=0.06
    )


def test_penalties_and_crossovers_of_floats() -> None:
    found = [SUN.penalty(n, d, 4, 3) for n, d in ((1e9, 100e9), (7e9, 2e12), (8e9, 15e12))]
    assert digits(found, 4) == [0.0004, 0.0013, 0.0036]
    assert digits((SUN.crossover(n) for n in (1e9, 8e9, 70e9)), 0) == [6093, 1227, 231]
    part = LAWS.float_weights
    assert digits(map(part.factor, (3, 4, 5, 6, 7, 8, 12)), 3) == [
        0.611, 0.727, 0.809, 0.866, 0.906, 0.934, 0.984,
    ]  # fmt: skip


# --- the others -----------------------------------------------------------------------------------


def test_four_bits_everywhere() -> None:
    law = LAWS.chen
    assert round(100 * (law.delta(594e6, 1e11, 32) / law.delta(74e6, 1e11, 32) - 1), 1) == -36.6
    assert round(100 * (law.delta(1e9, 1e11, 32) / law.delta(1e9, 1e10, 32) - 1), 1) == 18.7
    ratios = [
        law.delta(594e6, 594e6 * r, g, "W16A4") / law.delta(594e6, 594e6 * r, g, "W4A16")
        for g, r in ((32, 100), (32, 1000), (256, 1000))
    ]
    assert digits(ratios, 2) == [1.65, 1.23, 1.65]


def test_how_long_to_train_quantised() -> None:
    asked = ((1e9, 20e9, 4), (1e9, 1e12, 4), (1e9, 1e12, 2), (8e9, 15e12, 4))
    assert digits((LAWS.dremov.share(*a) for a in asked), 2) == [0.16, 0.41, 0.44, 0.44]


def test_pairs_of_formats() -> None:
    def winner(n: float, ratio: float) -> str:
        best = QUARTET.pairs(n, n * ratio)[0]
        return f"{best.forward} {best.backward}"

    short, long = ((1e8, 20), (1e8, 50), (1e9, 20), (1e9, 100)), ((1e9, 2000), (8e9, 1875))
    assert {winner(*p) for p in short} == {"FP8 FP4"}
    assert {winner(*p) for p in (*long, (70e9, 214))} == {"FP4 FP4"}
    speeds = sorted(p.speedup for p in QUARTET.pairs(1e9, 1e10))
    assert speeds == pytest.approx([1.0, 1.2, 1.5, 2.0])


# --- the public runs ------------------------------------------------------------------------------


@cache
def quartet_runs() -> tuple[Run, ...]:
    wide = {"BF16": ""}
    return tuple(
        Run(r["N"], r["D"], r["loss"], wide.get(r["fwd"], r["fwd"]), wide.get(r["bwd"], r["bwd"]))
        for r in json.loads((RUNS / "quartet_runs.json").read_text())
    )


def quest_runs(quantisers: set[str]) -> list[Run]:
    """Those with as many bits of weights as of activations, under any of these quantisers."""
    return [
        Run(r["non_embedding_parameters"], r["tokens"], r["loss"], str(r["w_bits"]))
        for r in json.loads((RUNS / "quest_runs.json").read_text())
        if r["w_bits"] == r["a_bits"] and r["w_quant"] in quantisers
    ]


SR = "AlbertTsengQuantizer"  # stochastic rounding


@pytest.mark.parametrize(
    ("forward", "backward", "rmse"),
    [("", "", 0.0045), ("QuEST", "", 0.0077), ("", SR, 0.0048), ("QuEST", SR, 0.0083)],
)
def test_quartets_law_on_its_runs(forward: str, backward: str, rmse: float) -> None:
    eff_n = QUARTET.forward["FP4"] if forward else 1.0
    eff_d = QUARTET.backward["FP4"] if backward else 1.0
    off = [
        QUARTET.loss(r.params, r.tokens, eff_n, eff_d) - r.loss
        for r in quartet_runs()
        if (r.forward, r.backward) == (forward, backward)
    ]
    assert len(off) > 20
    assert round(math.sqrt(np.mean(np.square(off))), 4) == rmse


def test_quartets_constants_refitted() -> None:
    fit = precir.fit_law(r for r in quartet_runs() if not r.forward and not r.backward)
    assert fit.count == 24
    assert fit.rmse < 0.0045
    assert fit.law.alpha == pytest.approx(QUARTET.alpha, abs=fit.errors["alpha"])
    assert fit.law.beta == pytest.approx(QUARTET.beta, abs=fit.errors["beta"])
    assert fit.law.gamma == pytest.approx(QUARTET.gamma, abs=fit.errors["gamma"])
    assert abs(fit.law.E - QUARTET.E) < fit.errors["E"]


def test_efficiencies_refitted() -> None:
    forward = [r for r in quartet_runs() if r.forward == "QuEST" and not r.backward]
    backward = [r for r in quartet_runs() if not r.forward and r.backward == SR]
    assert fit_law(forward, base=QUARTET).law.forward["QuEST"] == pytest.approx(0.645, abs=0.005)
    assert fit_law(backward, base=QUARTET).law.backward[SR] == pytest.approx(0.8935, abs=0.005)
    both = fit_law(
        r for r in quartet_runs() if r.forward in ("", "QuEST") and r.backward in ("", SR)
    )
    assert both.law.forward["QuEST"] == pytest.approx(0.645, abs=0.02)
    assert both.law.backward[SR] == pytest.approx(0.8935, abs=0.02)


HADAMARD = {
    "HalfHadamardTrustQuantizer", "HadamardTrustQuantizer", "HadamardClipQuantizer", "NoQuantizer",
}  # fmt: skip


def test_quests_bits_inverted_run_by_run() -> None:
    found = efficiencies(quest_runs(HADAMARD), QUARTET)
    assert {int(k): round(v.mean, 3) for k, v in found.items()} == {
        1: 0.047, 2: 0.185, 3: 0.444, 4: 0.706, 8: 1.008, 16: 1.017,
    } == dict(QUEST_BITS)  # fmt: skip
    assert digits((found["4"].low, found["4"].high), 3) == [0.666, 0.736]


def test_quests_best_bits_are_near_four() -> None:
    found = efficiencies(quest_runs(HADAMARD), QUARTET)
    points = {float(k): found[k].mean / found["16"].mean for k in ("2", "3", "4", "8")}
    fit = fit_bits(points)
    assert round(fit.best_bits, 1) == 4.1
    assert round(fit.part.gamma, 1) == 1.6
    assert fit.squares < 0.002
    used = {p: points[p] / p for p in points}
    assert max(used, key=lambda p: used[p]) == 4


# --- refusals -------------------------------------------------------------------------------------


def test_a_degenerate_fit_is_reported_and_not_returned() -> None:
    runs = [
        replace(r, forward="" if r.forward == "16" else r.forward) for r in quest_runs(HADAMARD)
    ]
    with pytest.raises(FitError, match=r"do not determine the law.*E ran away to"):
        fit_law(runs, gamma=1.0)


def test_runs_of_one_shape_are_refused() -> None:
    runs = [Run(n, 100 * n, QUARTET.loss(n, 100 * n)) for n in np.geomspace(1e7, 1e10, 12)]
    with pytest.raises(FitError, match="the same D / N, about 100"):
        fit_law(runs, gamma=QUARTET.gamma)


def test_a_law_is_found_again_in_its_own_numbers() -> None:
    sizes = [(n, n * r) for n in np.geomspace(3e7, 1e9, 6) for r in (20, 80, 320, 1280)]
    runs = [Run(n, d, QUARTET.loss(n, d)) for n, d in sizes]
    found = fit_law(runs, gamma=QUARTET.gamma)
    assert found.rmse < 1e-6
    assert found.law.alpha == pytest.approx(QUARTET.alpha, rel=1e-3)
    assert abs(found.law.E - QUARTET.E) < 1e-3


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(FitError, match="3 runs for 6 constants"):
        fit_law(Run(n, 1e10, 3.0) for n in (1e8, 2e8, 3e8))
    with pytest.raises(FitError, match="2 points"):
        fit_bits({2: 0.2, 4: 0.7})


def test_bits_that_the_law_knows_to_diverge_are_refused() -> None:
    with pytest.raises(PlanError, match=r"activations in 3 bits.*3\.11 bits"):
        KUMAR.factor(3)
    assert KUMAR.factor(3, activations=16, cache=16) > 0.5
    with pytest.raises(PlanError, match="keys and values in 2 bits"):
        KUMAR.factor(16, cache=2)


def test_recipes_that_something_is_known_of_are_compared_too() -> None:
    named = plan(compute=1e21, factors={"fp8-row": 0.9}, speedups={"16-mixed": 1.1})
    found = {c.recipe: c for c in named.choices}
    assert set(found) == {*RECIPES, "fp8-row", "16-mixed"}
    assert (found["fp8-row"].speed, found["fp8-row"].factor) == (found["fp8"].speed, 0.9)
    assert (found["16-mixed"].speed, found["16-mixed"].factor) == (1.1, found["bf16-mixed"].factor)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing is given"),
        ({"params": 1e9}, "tokens or compute is missing"),
        ({"tokens": 1e9}, "params or compute is missing"),
        ({"params": -1, "tokens": 1e9}, "not positive"),
        ({"params": 1e9, "tokens": 1e9, "compute": 1e20}, "is not 6 x params x tokens"),
        ({"compute": 1e21, "speedups": {"fp9": 2.0}}, "speedups: fp9"),
        ({"compute": 1e21, "speedups": {"64-true": 2.0}}, "speedups: 64-true"),
        ({"compute": 1e21, "factors": {"fp8": 0.0}}, "factors: fp8"),
    ],
)
def test_what_cannot_be_answered_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan(**given)


# --- the plan -------------------------------------------------------------------------------------


def test_a_box_says_what_is_outside() -> None:
    box = Box(params=(1e6, 1e9), tokens=(1e9, 1e12), ratio=(10, 1000), bits=(3, 16))
    assert box.outside(1e8, 1e10, 8) == ()
    assert box.outside(8e9, 1e10) == ("N 8B > 1B",)
    assert box.outside(1e6, 1e12) == ("D/N 1M > 1k",)
    assert box.outside(bits=2) == ("bits 2 < 3",)
    assert [count(n) for n in (8e9, 1.5e12, 2.2e8, 2787e12, 12)] == [
        "8B", "1.5T", "220M", "2,787T", "12",
    ]  # fmt: skip


def test_fp8_is_best_where_the_budget_is_free() -> None:
    found = plan(compute=1e21)
    assert found.free
    assert found.best.recipe == "fp8"
    assert found.best.speed == pytest.approx(2.0, abs=0.01)
    slow = plan(compute=1e21, speedups={"fp8": 1.19})
    assert slow.best.recipe == "bf16-mixed"
    assert plan(compute=1e21, speedups={"fp8": 1.21}).best.recipe == "fp8"
    assert plan(compute=1e21, speedups={"fp8": 1.1}, factors={"fp8": 0.98}).best.recipe == "fp8"


def test_a_small_model_trained_long_stays_wide() -> None:
    found = plan(params=8e9, tokens=15e12)
    assert found.best.recipe == "bf16-mixed"
    assert round(found.best.loss, 5) == 2.82221
    assert any("N 8B > 1.7B" in note for note in found.best.notes)
    assert [a.bits for a in found.after if a.risky] == [3, 4, 5, 6]
    assert plan(params=1e9, tokens=20e9).best.recipe == "fp8"


def test_a_card_without_fp8_has_none() -> None:
    found = plan(params=1e9, tokens=20e9, target="a100")
    assert {c.recipe for c in found.choices} == {"float32", "bf16-mixed"}
    assert found.crossover is None


def test_two_of_three_give_the_third() -> None:
    whole = plan(params=1e9, tokens=20e9)
    assert plan(params=1e9, compute=1.2e20).tokens == whole.tokens
    assert plan(tokens=20e9, compute=1.2e20).params == whole.params


def test_the_figures_are_in_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--params", "1B", "--tokens", "20B"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for figure in (
        "best: 7.00 bits at any budget",
        "0.191 0.427 0.611 0.740 0.828 0.967 0.994",
        "0.451 0.807 0.963 1.000 0.978 0.762 0.587 0.295",
        "8-bit over 16-bit 1.20x", "4-bit over 16-bit 5.20x", "4-bit over 8-bit 4.33x",
        "past D/N 171", "best: 8.2 bits", "1,730T", "27.3T", "393B", "past D/N 6,093",
        "E2M1, E3M2, E4M3, E8M7", "3.0502", "3.0237",
    ):  # fmt: skip
        assert figure in out, figure
    assert main(["plan", "--params", "8B", "--tokens", "15T"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for figure in (
        "best: 13.8 bits", "0.3959 0.3988", "2.1516 1.9388", "0.0005 0.0088", "at risk",
        "Kumar: N 8B > 1.7B, D 15T > 26B", "measure",
    ):  # fmt: skip
        assert figure in out, figure


def test_the_command_takes_measurements_and_gives_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--compute", "1e21", "--speedup", "fp8=1.1", "--factor", "fp8=0.98"]
    assert main(["plan", *options, "--output", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best"] == "fp8"
    assert data["break_evens"][0] == {"few": 8, "many": 16, "speedup": pytest.approx(1.2, abs=0.01)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--params", "x"], "--params 'x' is no number"),
        (["--compute", "1e21", "--speedup", "fp8"], "--speedup 'fp8' is not RECIPE=NUMBER"),
        (["--params", "1B"], "tokens or compute is missing"),
        (["--compute", "1e21", "--on", "h1000"], "there is no target"),
    ],
)
def test_the_command_says_what_is_wrong(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *given]) == 2
    assert said in capsys.readouterr().err


def test_it_prints_as_text_too(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(compute=1e21)
    assert "best at equal time: fp8" in str(found)
    rich.print(found)
    assert "best at equal time: fp8" in capsys.readouterr().out


# --- a compiled step ------------------------------------------------------------------------------

LAYERS, WIDTH, WORDS = 3, 16, 40


def model(params: Any, words: jax.Array) -> jax.Array:
    """Attention without weights between two products, layers scanned over and rematerialised."""

    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        h = x @ p["up"]
        mixed = jnp.einsum("bij,bjk->bik", jnp.einsum("bik,bjk->bij", h, h), h)
        return x + jnp.tanh(mixed) @ p["down"], None

    x = params["embed"][words]
    x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
    return -jnp.mean(jax.nn.log_softmax(x @ params["embed"].T)[..., 0])


def train_step(params: Any, words: jax.Array) -> tuple[Any, jax.Array]:
    loss, grads = jax.value_and_grad(model)(params, words)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


def step_args() -> tuple[Any, jax.ShapeDtypeStruct]:
    def weight(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    layers = {"up": weight(LAYERS, WIDTH, 4 * WIDTH), "down": weight(LAYERS, 4 * WIDTH, WIDTH)}
    return {"embed": weight(WORDS, WIDTH), "layers": layers}, jax.ShapeDtypeStruct(
        (4, 8), jnp.int32
    )


@pytest.mark.parametrize("recipe", ["float32", "fp8"])
def test_a_step_is_read_off_its_graph(recipe: str) -> None:
    facts = read(precir.compile(train_step, recipe=recipe).program(*step_args()))
    weights = LAYERS * 2 * WIDTH * 4 * WIDTH + WORDS * WIDTH
    attention = LAYERS * 2 * 2 * 4 * 8 * 8 * 4 * WIDTH
    assert (facts.params, facts.tokens, facts.recipe) == (weights, 4 * 8, recipe)
    once = 2 * weights * facts.tokens + attention
    again = once - 2 * WORDS * WIDTH * facts.tokens  # layers are computed again for the gradient
    assert 3 * once < facts.flops <= 3 * once + again
    assert (facts.low_share > 0.8) == (recipe == "fp8")


def test_a_plan_of_a_step() -> None:
    step = precir.compile(train_step, recipe="fp8")
    found = step.plan(*step_args(), steps=1000)
    assert found.step is not None
    assert (found.params, found.tokens) == (found.step.params, 32_000)
    fp8 = next(c for c in found.choices if c.recipe == "fp8")
    low = found.step.low_share
    assert fp8.speed == pytest.approx(1 / (1 - low + low / 2), rel=1e-3)
    assert "read off the step under fp8" in str(found)
    given = step.plan(*step_args(), tokens=1e6, speedups={"fp8": 1.3})
    assert next(c.speed for c in given.choices if c.recipe == "fp8") == 1.3
    with pytest.raises(PlanError, match="give tokens, or steps"):
        step.plan(*step_args())


def test_a_step_without_weights_is_refused() -> None:
    step = precir.compile(lambda x: x * 2)
    with pytest.raises(PlanError, match="no product of the function"):
        step.plan(jax.ShapeDtypeStruct((8,), jnp.float32), tokens=1e6)


def small_step(w: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    def loss(w: jax.Array) -> jax.Array:
        return 0.1 + jnp.mean((jnp.tanh(batch @ w) @ w.T - batch) ** 2)

    value, gradient = jax.value_and_grad(loss)(w)
    return w - 0.05 * gradient, value


def batches(count: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(8, 16)), jnp.float32) for _ in range(count)]


def test_a_factor_is_measured_by_short_runs() -> None:
    start = (jnp.asarray(np.random.default_rng(1).normal(size=(16, 16)) / 4, jnp.float32),)
    fp8 = precir.recipe("fp8").replace(last_product=None)
    found = measure(small_step, start, batches(32), fp8)
    assert found.params == 2 * 16 * 16  # read twice in a step
    assert found.factor == (
        pytest.approx(KUMAR.measured_factor(found.gap, 512, 0.0)) if found.gap > 0 else 1.0
    )
    assert 0.5 < found.factor <= 1
    assert "N_eff/N" in str(found)
    same = measure(small_step, start, batches(16), "float32")
    assert (same.gap, same.factor, same.seen) == (0.0, 1.0, False)
    assert "within the noise" in str(same)


def test_runs_that_measure_nothing_are_refused() -> None:
    start = (jnp.eye(16),)
    with pytest.raises(PlanError, match="3 batches are too few"):
        measure(small_step, start, batches(3))
    with pytest.raises(PlanError, match="does not return its state and a loss"):
        measure(lambda w, x: (w, w @ x.T), start, batches(16))
    with pytest.raises(PlanError, match="loss under float32 is not finite"):
        measure(lambda w, x: (w, jnp.sum(x @ w) / 0), start, batches(16))


def test_the_command_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "measured.py"
    file.write_text(
        "import jax, jax.numpy as jnp\n"
        "def step(w, x):\n"
        "    f = lambda w: jnp.mean((jnp.tanh(x @ w) @ w.T - x) ** 2)\n"
        "    loss, g = jax.value_and_grad(f)(w)\n"
        "    return w - 0.05 * g, loss\n"
        "def step_batches():\n"
        "    return list(jax.random.normal(jax.random.key(0), (16, 8, 16)))\n"
        "def step_args():\n"
        "    return 0.3 * jnp.eye(16), step_batches()[0]\n"
        "other, other_args = step, step_args\n"
    )
    assert main(["plan", f"{file}:step", "--steps", "1k", "--measure"]) == 0
    assert "measured: fp8: N_eff/N" in capsys.readouterr().out
    assert main(["plan", f"{file}:other", "--steps", "1k", "--measure"]) == 2
    assert "define other_batches() in the file" in capsys.readouterr().err


def test_the_command_reads_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planned.py"
    file.write_text(
        "import jax, jax.numpy as jnp\n"
        "def step(w, x):\n"
        "    return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) @ w))(w)\n"
        "def step_args():\n"
        "    return jnp.ones((16, 16)), jnp.ones((32, 16))\n"
    )
    assert main(["plan", f"{file}:step", "--steps", "1k", "--output", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["step"]["params"] == 2 * 16 * 16  # used twice, and counted so
    assert data["tokens"] == 32_000
    assert main(["plan", f"{file}:step", "--params", "1B"]) == 2
    assert "read off the step" in capsys.readouterr().err
    assert main(["plan", "--params", "1B", "--steps", "3"]) == 2
    assert "of a step" in capsys.readouterr().err
