"""A `Plan` as tables. What leaves the runs behind a law is said on the same line."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from precir.planner.box import count

if TYPE_CHECKING:
    from precir.planner.plan import Plan


def plain(plan: Plan) -> str:
    """Tables without colour, 120 columns wide."""
    to = io.StringIO()
    console = Console(file=to, width=120, color_system=None)
    for part in screen(plan):
        console.print(part)
    return "\n".join(line.rstrip() for line in to.getvalue().splitlines()) + "\n"


def screen(plan: Plan) -> Iterator[RenderableType]:
    """What `rich.print` shows."""
    yield Text(_question(plan), "bold")
    if plan.step is not None:
        yield Text(_step(plan))
    yield Text(_answer(plan))
    for part in (_recipes, _bits, _fixed, _floats, _pairs, _after, _others):
        yield Text()
        yield from part(plan)


def _question(plan: Plan) -> str:
    ratio = f"D/N {plan.tokens / plan.params:.3g}, {plan.compute:.3g} FLOPs at 16 bits"
    best = " (the best for the budget at 16 bits)" if plan.free else ""
    return f"{count(plan.params)} weights, {count(plan.tokens)} tokens{best}; {ratio}; {plan.card}"


def _step(plan: Plan) -> str:
    facts = plan.step
    assert facts is not None
    return (
        f"read off the step under {facts.recipe}: {count(facts.params)} weights in products, "
        f"{facts.tokens:,} tokens and {facts.flops:.3g} FLOPs a call, "
        f"{100 * facts.low_share:.1f}% of them in 8 bits"
    )


def _answer(plan: Plan) -> str:
    best = plan.best
    line = f"best at equal time: {best.recipe}, predicted loss {best.loss:.4f}"
    if len(plan.choices) > 1:
        second = plan.choices[1]
        line += f", {second.loss - best.loss:.4f} below {second.recipe}"
    return f"{line}{_noted(best.notes)}"


def _recipes(plan: Plan) -> Iterator[RenderableType]:
    law = plan.laws.kumar
    names = ["recipe", "speed", "N_eff/N", "N", "D", "loss at equal time"]
    if not plan.free:
        names += ["loss as asked", "of it precision"]
    yield Text(f"Recipes at the time that bf16-mixed takes ({law.source})", "bold")
    table = _table(*names, "outside")
    for c in plan.choices:
        cells = [
            c.recipe, f"{c.speed:.2f}x", f"{c.factor:.3f}", count(c.params), count(c.tokens),
            f"{c.loss:.4f}",
        ]  # fmt: skip
        if c.loss_as_asked is not None and c.penalty is not None:
            cells += [f"{c.loss_as_asked:.4f}", f"{c.penalty:.4f}"]
        table.add_row(*cells, _joined(c.notes))
    yield table


def _bits(plan: Plan) -> Iterator[RenderableType]:
    law, best = plan.laws.kumar, plan.optimum
    low, high = plan.plateau
    yield Text(f"Bits, where cost is as N D P ({law.source}; N and D free)", "bold")
    yield Text(
        f"best: {plan.best_bits:.2f} bits at any budget; within 4% of it: {low:.1f} to {high:.1f}, "
        f"of formats that exist FP8; here N {count(best.params)}, D {count(best.tokens)}, "
        f"loss {best.loss:.4f}{_noted(law.box.outside(best.params, best.tokens))}"
    )
    table = _table("bits", *(f"{p:g}" for p in plan.effective))
    table.add_row("N_eff/N", *(f"{f:.3f}" for f, _ in plan.effective.values()))
    table.add_row("budget made use of", *(f"{e:.3f}" for _, e in plan.effective.values()))
    yield table
    evens = ", ".join(f"{a}-bit over {b}-bit {s:.2f}x" for (a, b), s in plan.break_evens.items())
    yield Text(f"speedups needed to pay: {evens}")


def _fixed(plan: Plan) -> Iterator[RenderableType]:
    law, n, d = plan.laws.kumar, plan.params, plan.tokens
    yield Text("N fixed, fewer bits buying more tokens", "bold")
    yield Text(
        f"best: {plan.best_bits_here:.1f} bits (more than {plan.best_bits:.1f} the longer a model "
        f"is trained){_noted(law.box.outside(n, d, plan.best_bits_here))}"
    )
    if plan.crossover is not None:
        speed = next((c.speed for c in plan.choices if c.recipe == "fp8"), 0)
        here = "beats" if d / n > plan.crossover else "loses to"
        yield Text(
            f"16 bits beat FP8 at {speed:.2f}x its speed past D/N {plan.crossover:.0f}: here "
            f"({d / n:.3g}) bf16-mixed {here} fp8{_noted(law.box.outside(n, d))}"
        )


def _floats(plan: Plan) -> Iterator[RenderableType]:
    law = plan.laws.sun
    yield Text(f"Floating point, a scale for each 128 ({law.source}; {law.box.numbers})", "bold")
    table = _table(
        "format", "adds to the loss", "more tokens harm past", "outside",
    )  # fmt: skip
    for each in plan.layouts:
        table.add_row(
            each.name, f"{each.penalty:.4f}", count(each.critical_tokens), _joined(each.notes)
        )
    yield table
    best = [law.best_layout(p) for p in (4, 6, 8, 16)]
    layouts = ", ".join(f"E{e}M{m}" for e, m in best)
    line = f"best bits {plan.float_best_bits:.1f} (growing with the budget)"
    yield Text(f"{line}; best layouts of 4, 6, 8, 16 bits: {layouts}{_noted(plan.notes['sun'])}")
    if plan.float_crossover is not None:
        yield Text(
            f"16 bits beat E4M3 at equal time past D/N {plan.float_crossover:,.0f}"
            f"{_noted(plan.notes['sun'])}"
        )


def _pairs(plan: Plan) -> Iterator[RenderableType]:
    law = plan.laws.quartet
    yield Text(
        f"FP4 and FP8 at the budgets of FP8 ({law.source}; FP4 ideally twice as fast)", "bold"
    )
    table = _table(
        "forward", "backward", "N", "D", "training", "loss", "outside",
    )  # fmt: skip
    for p in plan.pairs:
        table.add_row(
            p.forward, p.backward, count(p.params), count(p.tokens), f"{p.speedup:.1f}x",
            f"{p.loss:.4f}", _joined(law.box.outside(p.params, p.tokens)),
        )  # fmt: skip
    yield table


def _after(plan: Plan) -> Iterator[RenderableType]:
    laws = plan.laws
    yield Text(
        f"Quantising the weights after training, a risk ({laws.kumar.source}; "
        f"{laws.ouyang.source})",
        "bold",
    )
    table = _table(
        "bits", "Kumar adds", "Ouyang adds", "critical D", "verdict", "outside",
    )  # fmt: skip
    for a in plan.after:
        table.add_row(
            f"{a.bits}", f"{a.kumar:.4f}", f"{a.ouyang:.4f}", count(a.critical_tokens),
            Text("at risk", "yellow") if a.risky else "low", _joined(a.notes),
        )  # fmt: skip
    yield table
    yield Text(
        "absolute values differ by model and method: quantise the model at hand and measure "
        "(in large runs the error follows the learning rate's decay, arXiv 2510.06213)"
    )


def _others(plan: Plan) -> Iterator[RenderableType]:
    laws = plan.laws
    yield Text(
        f"W4A4 training adds {plan.four_bits:.3f}, a scale for each 128; the input of the last "
        f"MLP product in 8 bits takes about 40% of that back ({laws.chen.source})"
        f"{_noted(plan.notes['chen'])}"
    )
    yield Text(
        f"4-bit weights: train {100 * plan.quantised_share:.0f}% of the tokens quantised "
        f"({laws.dremov.source}){_noted(plan.notes['dremov'])}"
    )


def _joined(notes: Sequence[str]) -> Text:
    return Text("; ".join(notes), "yellow")


def _noted(notes: Sequence[str]) -> str:
    return f" [outside its runs: {'; '.join(notes)}]" if notes else ""


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        wide = name in ("outside",)
        table.add_column(
            name,
            justify="left" if wide or name == names[0] else "right",
            no_wrap=not wide,
            overflow="fold",
        )
    return table
