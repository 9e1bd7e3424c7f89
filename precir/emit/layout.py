"""Break long lines at their outermost commas."""

from __future__ import annotations

from collections.abc import Iterator

WIDTH = 100


def definition(name: str, parameters: list[str]) -> str:
    return f"def {name}({', '.join(parameters)}):"


def wrap(line: str) -> list[str]:
    """One logical line as physical lines of at most `WIDTH` columns where brackets allow."""
    if len(line) <= WIDTH or line.lstrip().startswith("#"):
        return [line]
    code, comment = _split_comment(line)
    if comment and len(code) <= WIDTH:
        indent = len(line) - len(line.lstrip())
        return [" " * indent + comment, *wrap(code)]
    opened = _outer_bracket(code)
    if opened is None:
        return _bracketed(code) if comment == "" else [line]
    start, stop = opened
    clauses = _comprehension(code[start + 1 : stop])
    items = clauses or _split_commas(code[start + 1 : stop])
    indent = len(code) - len(code.lstrip())
    inner = " " * (indent + 4)
    lines = [code[: start + 1]]
    if comment:
        lines.insert(0, " " * indent + comment)
    current = inner
    alone = len(items) == 1 and code[:stop].rstrip().endswith(",")  # a tuple of one
    for n, item in enumerate(items):
        last = n + 1 == len(items)
        piece = item if clauses or (last and not alone) else item + ","
        if current != inner and (clauses or len(current) + 1 + len(piece) > WIDTH):
            lines.append(current)
            current = inner
        current += (" " if current != inner else "") + piece
    lines.append(current)
    lines.append(" " * indent + code[stop:])
    return [part for text in lines for part in (wrap(text) if len(text) < len(line) else [text])]


def _bracketed(code: str) -> list[str]:
    """`a, b, c = value`: put the targets in brackets so that they can be broken."""
    target, equals, value = code.partition(" = ")
    if not equals or "," not in target or any(c in target for c in "([{"):
        return [code]
    indent = len(code) - len(code.lstrip())
    return wrap(f"{' ' * indent}({target.strip()}) = {value}")


def _split_comment(line: str) -> tuple[str, str]:
    for i, c in _outside_strings(line):
        if c == "#":
            return line[:i].rstrip(), line[i:]
    return line, ""


def _outside_strings(code: str) -> Iterator[tuple[int, str]]:
    """The characters that are neither in a string literal nor one of its quotes."""
    quoted, escaped = "", False
    for i, c in enumerate(code):
        if escaped:
            escaped = False
        elif quoted:
            escaped = c == "\\"
            quoted = "" if c == quoted else quoted
        elif c in "\"'":
            quoted = c
        else:
            yield i, c


def _outer_bracket(code: str) -> tuple[int, int] | None:
    """The longest outermost bracket pair."""
    best: tuple[int, int] | None = None
    depth, start = 0, 0
    for i, c in _outside_strings(code):
        if c in "([{":
            if depth == 0:
                start = i
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth == 0 and i - start > 1 and (best is None or i - start > best[1] - best[0]):
                best = (start, i)
    return best


def _comprehension(text: str) -> list[str]:
    """[element, for-clause] if the inside of a bracket is a comprehension, else nothing."""
    depth = 0
    for i, c in _outside_strings(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(" for ", i):
            return [text[:i].strip(), text[i:].strip()]
    return []


def _split_commas(text: str) -> list[str]:
    items, depth, start = [], 0, 0
    for i, c in _outside_strings(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
    rest = text[start:].strip()
    return [*items, rest] if rest else items
