"""How good is `precir check`: recall and false alarms over the programs of tests/hazards.

    python benchmarks/hazards.py
    python benchmarks/hazards.py --verbose --only losses
    python benchmarks/hazards.py --suite held-out

The linter was tuned on the first suite; the held-out one says how it does on programs that no rule
of it was written from.

Each hazard there was confirmed by running it in its format, and each safe look-alike by running it
on many inputs (tests/test_hazard_suite.py). A hazard counts as found if a finding of the default
severities (errors and warnings) has its kind. Of those found, how many name the first cause's
primitive, the primitive where the symptom is born, and the line. A safe program with any finding
is a false alarm.
"""

import argparse
import datetime
import importlib.metadata
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import jax
import numpy as np
import rich
from rich.table import Table

import precir

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.hazards import HAZARDS, SAFE, Case, held_out  # noqa: E402
from tests.hazards.case import Span, cast  # noqa: E402

TUNED = (*HAZARDS, *SAFE)
HELD_OUT = (*held_out.HAZARDS, *held_out.SAFE)
SUITES = {"tuned": TUNED, "held-out": HELD_OUT, "both": (*TUNED, *HELD_OUT)}


@dataclass(frozen=True)
class Result:
    """What the linter said of one case."""

    case: Case
    findings: tuple[precir.Hazard, ...]
    seconds: float

    @property
    def match(self) -> precir.Hazard | None:
        """The finding that agrees best."""
        right = [h for h in self.findings if h.kind in self.case.kinds]
        return max(right, key=self.points, default=None)

    def points(self, h: precir.Hazard) -> int:
        case = self.case
        return (
            2 * (h.root in case.roots)
            + 2 * (h.line in case.lines)
            + (h.primitive in case.primitives)
        )


def ask(case: Case) -> Result:
    """Check one case as a user would: arguments as shapes, ranges as given."""
    args = cast(case.make_args(np.random.default_rng(0)), np.float32)
    shapes = jax.tree.map(abstract, args, case.args)
    ranges = jax.tree.map(
        lambda s: precir.Range(s.low, s.high), case.ranges, is_leaf=lambda x: isinstance(x, Span)
    )
    start = time.process_time()
    found = precir.check(case.fn, *shapes, format=case.format, ranges=ranges)
    return Result(case, tuple(found), time.process_time() - start)


def abstract(x: jax.Array, spec: object) -> object:
    """A shape for what has a range; what is fixed stays as it is."""
    return (
        x
        if not jax.numpy.issubdtype(x.dtype, np.floating)
        else jax.ShapeDtypeStruct(x.shape, x.dtype)
    )


@dataclass(frozen=True)
class Score:
    """Shares of the suite."""

    hazards: int
    safe: int
    recall: float
    false_alarms: float
    root: float
    primitive: float
    line: float


def score(results: Sequence[Result]) -> Score:
    hazards = [r for r in results if r.case.kinds]
    safe = [r for r in results if not r.case.kinds]
    matched = [(r.case, m) for r in hazards if (m := r.match) is not None]
    n = max(len(matched), 1)
    return Score(
        len(hazards),
        len(safe),
        len(matched) / max(len(hazards), 1),
        sum(bool(r.findings) for r in safe) / max(len(safe), 1),
        sum(m.root in c.roots for c, m in matched) / n,
        sum(m.primitive in c.primitives for c, m in matched) / n,
        sum(m.line in c.lines for c, m in matched) / n,
    )


def explain(result: Result) -> str | None:
    """What is wrong with a result, if anything is."""
    case, match = result.case, result.match
    said = "; ".join(
        f"{h.severity} {h.kind} {h.primitive}<-{h.root} {h.symptom} line {h.line}"
        for h in result.findings
    )
    if not case.kinds:
        return f"FALSE ALARM {case.name}: {said}" if result.findings else None
    kinds, births, roots = ("/".join(x) for x in (case.kinds, case.primitives, case.roots))
    wanted = f"{kinds} {births}<-{roots} {case.symptom} line {case.lines}"
    if match is None:
        return f"MISSED {case.name}: wanted {wanted}; said {said or 'nothing'}"
    wrong = [
        what
        for what, right in (
            ("root", match.root in case.roots),
            ("line", match.line in case.lines),
            ("primitive", match.primitive in case.primitives),
        )
        if not right
    ]
    return (
        f"{', '.join(wrong).upper()} {case.name}: wanted {wanted}; said {said}" if wrong else None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--suite", choices=tuple(SUITES), default="tuned", help="which programs")
    parser.add_argument("--verbose", action="store_true", help="say what was wrong")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    results = []
    for case in SUITES[options.suite]:
        if options.only in case.name:
            result = ask(case)
            results.append(result)
            if options.verbose and (text := explain(result)):
                rich.print(text.replace("[", r"\["))
    found = score(results)
    table = Table("measure", "value", "target")
    for name, value, target in (
        ("hazards", f"{found.hazards}", ">= 80"),
        ("safe look-alikes", f"{found.safe}", ">= 60"),
        ("recall", f"{found.recall:.3f}", ">= 0.95"),
        ("false alarms", f"{found.false_alarms:.3f}", "<= 0.05"),
        ("root right", f"{found.root:.3f}", ">= 0.90"),
        ("primitive right", f"{found.primitive:.3f}", ""),
        ("line right", f"{found.line:.3f}", ">= 0.95"),
        ("processor time of a check, median", f"{median(r.seconds for r in results):.2f} s", ""),
    ):
        table.add_row(name, value, target)
    rich.print(table)
    kinds = Counter(r.case.kind for r in results if r.case.kinds)
    rich.print(dict(kinds))
    if options.output:
        write(options.output, table, found)


def write(path: Path, table: Table, found: Score) -> None:
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib", "numpy"))
    rows = zip(*(c._cells for c in table.columns), strict=True)
    lines = [
        "# precir check: recall and false alarms",
        "",
        "Made by `python benchmarks/hazards.py`, which explains it.",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, {versions}.",
        "",
        "| measure | value | target |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
