"""`# precir: ignore` on the user's line, with kinds or without."""

from __future__ import annotations

import linecache
import re

from precir.check.hazard import Hazard

_COMMENT = re.compile(r"#\s*precir:\s*ignore(?:\[([\w\s,-]*)\])?")


def suppressed(hazard: Hazard) -> bool:
    """Whether a comment on one of the finding's lines names its kind, or none."""
    last = max(hazard.end_line, hazard.line)
    for line in range(hazard.line, min(last, hazard.line + 20) + 1):
        found = _COMMENT.search(linecache.getline(hazard.file, line))
        if found:
            kinds = found.group(1)
            return kinds is None or hazard.kind in [k.strip() for k in kinds.split(",")]
    return False
