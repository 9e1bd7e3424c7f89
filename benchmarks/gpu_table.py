"""What benchmarks/gpu.py heard from its workers, as a table: of numbers, verdicts, and choices."""

import argparse
import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
CHOICE = ROOT / "kernels" / "choice.json"
HEADINGS = (
    "what", "size", "time", "rate", "of floor", "as fast as", "by", "result", "verdict",
)  # fmt: skip

Row = dict[str, Any]


@dataclass
class Found:
    """All that was heard from workers."""

    environment: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    choices: list[Row] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def hear(self, message: dict[str, Any]) -> None:
        """Keep what one line says."""
        match message:
            case {"environment": environment}:
                self.environment = environment
            case {"jobs": jobs}:
                self.jobs = jobs
            case {"row": row}:
                self.add(row)
            case {"check": check}:
                self.checks[check["name"]] = check["text"]
            case {"choice": choice}:
                self.choices = [c for c in self.choices if not _same(c, choice)] + [choice]
            case {"left": job}:
                self.left = [*dict.fromkeys([*self.left, job])]

    def add(self, row: Row) -> None:
        """A row; a later one replaces one of the same name."""
        self.rows[row["section"], row["name"], row["size"]] = row


def _same(one: Row, other: Row) -> bool:
    return all(one[k] == other[k] for k in ("way", "granularity", "shapes", "out", "epilogue"))


# --- the table ------------------------------------------------------------------------------------


def peaks(found: Found) -> dict[str, float]:
    """Bytes and operations in a second: "bytes" and "bf16" as measured, "fp8" as the datasheet."""
    rows = [r for r in found.rows.values() if r["section"] == "ceiling" and r.get("seconds")]
    known = {
        "bytes": max((r["bytes"] / r["seconds"] for r in rows if r["bytes"]), default=0.0),
        "bf16": max((r["work"] / r["seconds"] for r in rows if r["work"]), default=0.0),
    }
    devices = json.loads(CHOICE.read_text())["devices"]
    device = found.environment.get("device", "")
    fp8 = [row["fp8"] for name, row in devices.items() if device.startswith(name)]
    return {name: value for name, value in (known | {"fp8": (*fp8, 0.0)[0]}).items() if value}


def table(found: Found) -> list[tuple[str, ...]]:
    """A row for each thing that was checked or timed."""
    ceiling = peaks(found)
    rows = [
        (name, "small and odd", "", "", "", "", "", text, _verdict_of_check(text))
        for name, text in found.checks.items()
    ]
    return [*rows, *(cells(row, found, ceiling) for row in found.rows.values())]


def _verdict_of_check(text: str) -> str:
    if text.startswith("failed"):
        return "FAILED"
    return "" if text.endswith("not run") else "ok" if _right(text) else "WRONG"


def _right(text: str) -> bool:
    return not text.startswith(("WRONG", "failed"))


def cells(row: Row, found: Found, ceiling: dict[str, float]) -> tuple[str, ...]:
    """One row, by its headings."""
    what = row["name"]
    if row["section"] not in ("product", "ceiling", what):
        what = f"{row['section']}: {what}"
    if "failed" in row:
        absent = row["failed"].startswith(("not installed", "left out"))
        verdict = "" if absent else "FAILED"
        return what, row["size"], "", "", "", "", "", row["failed"], verdict
    seconds = row["seconds"]
    result = [row["check"]] if row.get("check") else []
    if "temporary" in row:
        result.append(f"{row['temporary']:.2f} GiB of temporaries")
    if "compile" in row:
        result.append(f"compiled in {row['compile']:.0f} s")
    share, over = _share(row, ceiling), _over(row, found)
    return (
        what, row["size"], duration(seconds) if seconds else "", _rate(row),
        f"{share:.0%}" if share else "", f"{over:.2f} x {row['base']}" if over else "", row["by"],
        ", ".join(result), verdict_of(row, share, over),
    )  # fmt: skip


def _share(row: Row, ceiling: dict[str, float]) -> float:
    """The floor over the time; 0 where either is unknown."""
    if not row["seconds"] or "bytes" not in row or "rate" not in row:
        return 0.0
    needs = [("bytes", row["bytes"]), (row["rate"], row["work"])]
    if any(amount and name not in ceiling for name, amount in needs):
        return 0.0
    return max(a / ceiling[name] for name, a in needs if a) / float(row["seconds"])


def _over(row: Row, found: Found) -> float:
    base = found.rows.get((row["section"], row.get("base", ""), row["size"]), {})
    if base is row or not row["seconds"] or not base.get("seconds"):
        return 0.0
    return float(base["seconds"] / row["seconds"])


def _rate(row: Row) -> str:
    if not row["seconds"]:
        return ""
    for name, unit, scale in (("tokens", "tokens/s", 1.0), ("work", "TFLOP/s", 1e12)):
        if row.get(name):
            return f"{row[name] / row['seconds'] / scale:,.0f} {unit}"
    return f"{row['bytes'] / row['seconds'] / 1e12:.2f} TB/s"


def verdict_of(row: Row, share: float, over: float) -> str:
    """Whether it is right, and as fast as it should be."""
    if not _right(row.get("check", "")):
        return "WRONG"
    if not row.get("aim") or not row["seconds"]:
        return ""
    kind, least = row["aim"]
    reached = {"share": share, "over": over, "rate": row.get("work", 0.0) / row["seconds"]}[kind]
    wish = {"share": f"{least:.0%}", "over": f"{least} x {row.get('base')}"}
    if not reached:
        return ""
    return "ok" if reached >= least else f"MISSED {wish.get(kind, f'{least / 1e12:.0f} TFLOP/s')}"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


# --- what is written ------------------------------------------------------------------------------

PACKAGES = ("python", "jax", "jaxlib", "triton", "jax-triton", "flax", "qwix", "numpy")


def markdown(found: Found, options: argparse.Namespace) -> str:
    """The results file."""
    head = ["# Kernels and train steps on a GPU", "", "Made by `python benchmarks/gpu.py`, which "
            "explains it.", ""]  # fmt: skip
    if options.plan:
        rows = [f"- {job}" for job in found.jobs]
        return "\n".join(
            [*head, "**Not yet run on a GPU.** A run will measure, in this order:", "", *rows, ""]
        )
    env = found.environment
    versions = ", ".join(f"{p} {env[p]}" for p in PACKAGES)
    driver = f", driver {env['driver']}" if "driver" in env else ""
    lines = [*head, f"{datetime.date.today()}, {env['device']} ({env['machine']}){driver}, "
             f"{versions}."]  # fmt: skip
    if options.tiny:
        lines.append("Tiny mode: it shows that everything runs; nothing was timed.")
    ceiling = peaks(found)
    if {"bytes", "bf16"} <= ceiling.keys():
        fp8 = f"{ceiling['fp8'] / 1e12:.0f} TFLOP/s (datasheet)" if "fp8" in ceiling else "unknown"
        lines.append(
            f"A copy moves {ceiling['bytes'] / 1e12:.2f} TB/s, a bfloat16 product of 8192 makes "
            f"{ceiling['bf16'] / 1e12:.0f} TFLOP/s, the FP8 peak is {fp8}."
        )
    if found.left:
        lines += ["", f"Left out, the {options.minutes:g} minutes being over: "
                  f"{'; '.join(found.left)}."]  # fmt: skip
    rows = (HEADINGS, ("---",) * len(HEADINGS), *table(found))
    return "\n".join([*lines, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def choice_table(found: Found, old: dict[str, Any]) -> dict[str, Any]:
    """The table of kernels/choice.json with this device's measured rows in place of its old ones.

    Raises ``SystemExit`` for a device whose FP8 peak is not in it.
    """
    device = found.environment["device"]
    key = next((name for name in old["devices"] if device.startswith(name)), None)
    if key is None:
        raise SystemExit(f"error: {CHOICE} has no peaks of a {device}: add them first")
    ceiling, date = peaks(found), datetime.date.today()
    measured = {name: float(f"{ceiling[name]:.4g}") for name in ("bf16", "bytes")}
    source = f"fp8: datasheet, dense; bf16: a product of 8192, and bytes: a copy, measured {date}"
    devices = old["devices"] | {key: old["devices"][key] | measured | {"source": source}}
    versions = ", ".join(f"{p} {found.environment[p]}" for p in ("jax", "triton", "jax-triton"))
    rows = [row for row in old["measured"] if row["device"] != key]
    rows += [
        {"device": key} | c
        | {"seconds": float(f"{c['seconds']:.4g}"), "source": f"measured {date}, {versions}"}
        for c in found.choices if c["seconds"]
    ]  # fmt: skip
    return old | {"devices": devices, "measured": rows}


def laid_out(table: dict[str, Any]) -> str:
    """JSON with one device, way or measured row to a line."""
    parts = []
    for name, rows in table.items():
        if isinstance(rows, dict):
            body = [f"    {json.dumps(k)}: {_line(v)}" for k, v in rows.items()]
            opened, closed = "{", "}"
        else:
            body, opened, closed = [f"    {_line(r)}" for r in rows], "[", "]"
        inner = "\n" + ",\n".join(body) + "\n  " if body else ""
        parts.append(f"  {json.dumps(name)}: {opened}{inner}{closed}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(row: Row) -> str:
    """A row as JSON, its large and small numbers as powers of ten."""
    fields = (f"{json.dumps(k)}: {_value(v)}" for k, v in row.items())
    return f"{{{', '.join(fields)}}}"


def _value(value: Any) -> str:
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.6g}".replace("e+", "e").replace("e-0", "e-")
    return json.dumps(value)


def show(rows: list[tuple[str, ...]]) -> None:
    """Print the table, as wide as it needs."""
    shown = Table(*HEADINGS)
    for row in rows:
        shown.add_row(*row)
    Console(width=220).print(shown, highlight=False, markup=False)
