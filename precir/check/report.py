"""Findings as plain data: JSON, and SARIF for code hosts.

`as_json` gives, for `precir check --output json`::

    {"version": 1,              of this schema: a field may be added in it, none changed or removed
     "precir": "0.1.0",
     "target": "train.py:step", as given
     "format": "float16",
     "counts": {"error": 1, "warning": 0, "note": 2, "suppressed": 0},
     "findings": [...],         `plain` of each: errors, then warnings, then notes if asked for
     "comments": [...]}         misspelt `# precir: ignore[...]`: file, line, column, message
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jax
import numpy as np

from precir.check.hazard import KINDS, SEVERITIES, Hazard, Step
from precir.check.place import code_at, place_of, short
from precir.check.suppress import Misspelt
from precir.version import __version__

VERSION: Final = 1
SMALL: Final = 64  # numbers of a witness that are written out
SARIF_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"

RULES: Final = {
    "overflow": "A value, sum, product, exponential or cast leaves the format.",
    "underflow": "A value or a constant vanishes, and what it guarded fails.",
    "invalid": "An operation has no result: 0/0, inf - inf, the logarithm or root of a negative.",
    "rounds-to-bound": "A limit, a probability or a decay rounds to the value it must not reach.",
    "cancellation": "A difference of near equals leaves only their rounding errors.",
    "absorption": "A small term is swallowed by a large one: counters and averages stand still.",
    "inexact": "Whole numbers, positions or phases are past what the significand holds.",
}


@dataclass(frozen=True)
class Findings:
    """What a check gave, and what of it is shown."""

    target: str
    format: str
    shown: Sequence[Hazard]
    hidden: int = 0
    suppressed: Sequence[Hazard] = ()
    misspelt: Sequence[Misspelt] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many of each severity, hidden notes too, and how many suppressed."""
        by = Counter(h.severity for h in self.shown)
        by["note"] += self.hidden
        return {**{s: by[s] for s in SEVERITIES}, "suppressed": len(self.suppressed)}


def plain(hazard: Hazard) -> dict[str, Any]:
    """A finding as values that JSON has.

    Its fields are those of `Hazard`, except that `line`, `column`, `end_line` and `end_column` are
    as printed (from 1, in characters, the end not included), that `file` is relative to the working
    directory where it lies in it, and that `witness` is [arguments, those by name], each array as
    nested lists (NaN and infinities as strings) or, past 64 numbers, as {"shape", "dtype", "min",
    "max"}; null without one. `code` is the line of code.
    """
    p = place_of(hazard)
    return {
        "kind": hazard.kind,
        "severity": hazard.severity,
        "message": hazard.message,
        "mend": hazard.mend,
        "format": hazard.format,
        "primitive": hazard.primitive,
        "root": hazard.root,
        "symptom": hazard.symptom,
        "file": short(hazard.file) if hazard.file else "",
        "line": p.line,
        "column": p.column,
        "end_line": p.end_line,
        "end_column": p.end_column,
        "code": code_at(hazard.file, hazard.line).strip(),
        "because": [_plain_step(s) for s in hazard.because],
        "then": [_plain_step(s) for s in hazard.then],
        "witness": None if hazard.witness is None else _witness(hazard.witness),
    }


def as_json(found: Findings) -> dict[str, Any]:
    """All findings, in the schema of this module's docstring."""
    return {
        "version": VERSION,
        "precir": __version__,
        "target": found.target,
        "format": found.format,
        "counts": found.counts,
        "findings": [plain(h) for h in found.shown],
        "comments": [
            {"file": short(m.file), "line": m.line, "column": m.column, "message": m.message}
            for m in found.misspelt
        ],
    }


def as_sarif(found: Findings) -> dict[str, Any]:
    """All findings as a SARIF 2.1.0 log of one run; those suppressed are in it, as such."""
    results = [_result(h, False) for h in found.shown]
    results += [_result(h, True) for h in found.suppressed]
    run = {
        "tool": {"driver": _driver()},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True}],
        "results": results,
        "properties": {"target": found.target, "format": found.format},
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _plain_step(step: Step) -> dict[str, Any]:
    return {
        "text": step.text, "file": short(step.file) if step.file else "", "line": step.line
    }  # fmt: skip


def _witness(tree: Any) -> Any:
    """Dicts, lists and numbers, in place of any pytree of arrays."""
    if isinstance(tree, dict):
        return {str(k): _witness(v) for k, v in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {k: _witness(v) for k, v in zip(tree._fields, tree, strict=True)}
    if isinstance(tree, (tuple, list)):
        return [_witness(v) for v in tree]
    if tree is None:
        return None
    if hasattr(tree, "dtype") or isinstance(tree, (bool, int, float, complex)):
        return _array(tree)
    below = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): _array(x) for path, x in below}


def _array(x: Any) -> Any:
    if str(getattr(x, "dtype", "")).startswith("key"):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    if array.dtype.kind not in "biufc":  # ml_dtypes' own
        array = array.astype(np.float32)
    if array.size <= SMALL:
        return _finite(array.tolist())
    summary = {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.dtype.kind == "c":
        return summary
    return {**summary, "min": _finite(array.min().item()), "max": _finite(array.max().item())}


def _finite(x: Any) -> Any:
    """JSON has no NaN, no infinities and no complex numbers."""
    if isinstance(x, list):
        return [_finite(y) for y in x]
    if isinstance(x, complex):
        return [_finite(x.real), _finite(x.imag)]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _driver() -> dict[str, Any]:
    rules = [
        {
            "id": kind,
            "name": "".join(part.capitalize() for part in kind.split("-")),
            "shortDescription": {"text": RULES[kind]},
            "defaultConfiguration": {"level": "warning"},
        }
        for kind in KINDS
    ]
    return {
        "name": "precir",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": rules,
    }


def _result(h: Hazard, suppressed: bool) -> dict[str, Any]:
    mend = f"\nMend: {h.mend}" if h.mend else ""
    result: dict[str, Any] = {
        "ruleId": h.kind,
        "ruleIndex": KINDS.index(h.kind),
        "level": h.severity,
        "message": {"text": f"{h.message[:1].upper()}{h.message[1:]}.{mend}"},
        "locations": [_location(h)] if h.file else [],
        "partialFingerprints": {"precir/v1": _fingerprint(h)},
        "properties": {
            "format": h.format, "primitive": h.primitive, "root": h.root, "symptom": h.symptom,
            "mend": h.mend, "witness": plain(h)["witness"],
        },
    }  # fmt: skip
    if h.because or h.then:
        result["codeFlows"] = [{"threadFlows": [{"locations": _flow(h)}]}]
    if suppressed:
        result["suppressions"] = [{"kind": "inSource"}]
    return result


def _flow(h: Hazard) -> list[dict[str, Any]]:
    """From the first cause, through the finding, to what follows."""
    here = {**(_location(h) if h.file else {}), "message": {"text": h.message}}
    locations = [*map(_step_location, h.because), here, *map(_step_location, h.then)]
    return [{"location": location} for location in locations]


def _step_location(step: Step) -> dict[str, Any]:
    location: dict[str, Any] = {"message": {"text": step.text}}
    if step.file and step.line:
        location["physicalLocation"] = {
            "artifactLocation": _artifact(step.file), "region": {"startLine": step.line}
        }  # fmt: skip
    return location


def _location(h: Hazard) -> dict[str, Any]:
    p = place_of(h)
    region: dict[str, Any] = {
        "startLine": p.line, "startColumn": p.column,
        "endLine": p.end_line, "endColumn": p.end_column,
    }  # fmt: skip
    code = code_at(h.file, h.line)
    if code:
        region["snippet"] = {"text": code}
    return {"physicalLocation": {"artifactLocation": _artifact(h.file), "region": region}}


def _artifact(file: str) -> dict[str, str]:
    """A relative URI where the file lies below the working directory."""
    path = short(file)
    if os.path.isabs(path):
        return {"uri": Path(path).as_uri()}
    return {"uri": quote(Path(path).as_posix()), "uriBaseId": "%SRCROOT%"}


def _fingerprint(h: Hazard) -> str:
    """The same when only the line's number changes."""
    parts = (h.kind, h.primitive, h.root, h.format, short(h.file), code_at(h.file, h.line).strip())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
