"""Text back to a graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from precir.equality import same_constant
from precir.ir import UNPHASED, Graph, Literal, Node, Operand, Type, Value
from precir.source import NOWHERE, Source, Where
from precir.text.constants import holds, parse_inline
from precir.text.expressions import Expressions, number
from precir.text.kinds import Unavailable
from precir.text.printer import PHASES, VERSION, in_few_digits, rounded
from precir.text.tokens import END, Tokens
from precir.text.types import NAME, WORD, parse_type
from precir.text.values import External

_PLACE: Final = re.compile(r"@([\w.\-+~]+):(-?\d+):(-?\d+)-(-?\d+):(-?\d+)")
_BARE: Final = re.compile(rf"{WORD}|<[\w.]+>")
_DEEPEST: Final = 100  # sub-graphs in sub-graphs
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})

# What to do for a constant that lies beside the text: its name, type and PRNG implementation.
Stored = Callable[[str, Type, str | None], Any]


def parse(
    text: str,
    constants: Mapping[str, Any] = _NOTHING,
    externals: Mapping[int, Any] = _NOTHING,
) -> Graph:
    """The graph of a text that `print_graph` or a person wrote.

    Args:
      text: what to read.
      constants: the arrays beside the text, by name; those that are missing become `External`s,
        so that the graph can be looked at but not run.
      externals: the objects that the text only refers to, by number (`externals_of`); those that
        are missing become `External`s.

    Raises:
      TextError: the text is corrupted, truncated or from another version, or the constants are
        not those it speaks of.
    """
    return parse_stored(text, lambda name, type_, key: constants.get(name), externals)


def parse_stored(text: str, stored: Stored, externals: Mapping[int, Any] = _NOTHING) -> Graph:
    """As `parse`, with constants looked up by `stored`, which gives None for a missing one."""
    return _Parser(Tokens(text), stored, externals).program()


class _Parser:
    def __init__(self, tokens: Tokens, stored: Stored, externals: Mapping[int, Any]) -> None:
        self.tokens = tokens
        self.stored = stored
        self.expressions = Expressions(tokens, externals)
        self.files: dict[str, str] = {}
        self.constants: dict[str, Any] = {}
        self._types: dict[str, Type] = {}
        self._literals: dict[tuple[str, str], Literal] = {}
        self._sources: dict[tuple[str, str], Source] = {}

    def program(self) -> Graph:
        tokens = self.tokens
        if tokens.skip("precir") and number(tokens.next()) != VERSION:
            tokens.fail(f"version {VERSION}", tokens.at - 1)
        while tokens.skip("file"):
            short = self.word("a short name for a file")
            tokens.expect("=")
            self.files[short] = self.string("the path of a file")
        if tokens.skip("constants"):
            tokens.expect("{")
            while not tokens.skip("}"):
                self.constant()
        graph = self.graph(0, self.constants)
        if tokens.current != END:
            tokens.fail("the end of the text")
        return graph

    # -- constants -----------------------------------------------------------------------------

    def constant(self) -> None:
        tokens = self.tokens
        name = self.word("the name of a constant")
        if tokens.skip("="):
            given = self.stored(name, Type((), ""), None)
            value = self.expressions.value()
            self.constants[name] = value if given is None else given
            return
        tokens.expect(":", "`:` or `=`")
        at = tokens.at
        type_ = self.type()
        key = self.string("the name of a PRNG") if tokens.skip("prng") else None
        try:
            self.constants[name] = self.inline_or_beside(name, type_, key, at)
        except Unavailable:
            self.constants[name] = External(tokens.since(at))

    def inline_or_beside(self, name: str, type_: Type, key: str | None, at: int) -> Any:
        tokens = self.tokens
        if tokens.skip("="):
            values = self.expressions.value()
            try:
                made = parse_inline(values, type_, key)
            except (ValueError, TypeError, OverflowError):
                tokens.fail(f"numbers of {type_.dtype}{list(type_.shape)}", at)
            given = self.stored(name, type_, key)
            return given if given is not None and same_constant(given, made) else made
        digest = self.string("a digest") if tokens.skip("beside") else None
        given = self.stored(name, type_, key)
        if given is None:
            return External(tokens.since(at))
        if type(given) is not External and not holds(given, type_, key, digest):
            tokens.fail(f"constant {name} as it was given: that is another array", at)
        return given

    # -- graphs --------------------------------------------------------------------------------

    def graph(self, depth: int, constants: Mapping[str, Any] = _NOTHING) -> Graph:
        tokens = self.tokens
        if depth > _DEEPEST:
            tokens.fail("sub-graphs that are nested less deeply")
        tokens.expect("graph")
        name = self.word("the name of a graph")
        values: dict[str, Value] = {}
        tokens.expect("(")
        inputs = []
        while not tokens.skip(")"):
            inputs.append(self.input(values))
            if not tokens.skip(","):
                tokens.expect(")", "`,` or `)`")
                break
        tokens.expect("{")
        nodes = []
        while not tokens.skip("return"):
            nodes.append(self.node(values, depth))
        outputs = self.outputs(values)
        tokens.expect("}")
        return Graph(name, tuple(inputs), tuple(nodes), outputs, dict(constants))

    def input(self, values: dict[str, Value]) -> Value:
        name, hint, type_ = self.definition(values)
        values[name] = made = Value(type_, hint=name[1:] if hint is None else hint)
        return made

    def definition(self, values: dict[str, Value]) -> tuple[str, str | None, Type]:
        """`%name 'hint': type`."""
        tokens = self.tokens
        name = tokens.current
        if len(name) < 2 or name[0] != "%":
            tokens.fail("a value, as %x,")
        if name in values:
            tokens.fail("a name that is not taken")
        tokens.next()
        hint = None if tokens.current == ":" else self.string("a hint or `:`")
        tokens.expect(":")
        return name, hint, self.type()

    def outputs(self, values: dict[str, Value]) -> tuple[Operand, ...]:
        tokens = self.tokens
        wrapped = tokens.skip("(")
        outputs = []
        closing = ")" if wrapped else "}"
        while tokens.current not in (closing, END):
            outputs.append(self.operand(values))
            if not tokens.skip(","):
                break
        if wrapped:
            tokens.expect(")", "`,` or `)`")
        elif tokens.current != "}":
            tokens.fail("`,` or `}`")
        return tuple(outputs)

    def node(self, values: dict[str, Value], depth: int) -> Node:
        tokens = self.tokens
        defined: dict[str, tuple[str | None, Type]] = {}
        if tokens.current[:1] == "%":
            while True:
                at = tokens.at
                name, hint, type_ = self.definition(values)
                if name in defined:
                    tokens.fail("a name that is not taken", at)
                defined[name] = hint, type_
                if not tokens.skip(","):
                    break
            tokens.expect("=", "`,` or `=`")
        op = self.word("a node or `return`")
        inputs, params = self.arguments(values)
        source, scope, phase, effects = self.tail()
        regions = []
        if tokens.skip("{"):
            while not tokens.skip("}"):
                regions.append(self.graph(depth + 1))
        made = Node(
            op,
            inputs,
            [type_ for _, type_ in defined.values()],
            params,
            regions=tuple(regions),
            source=source,
            scope=scope,
            phase=phase,
            effects=effects,
        )
        for value, (name, (hint, _)) in zip(made.outputs, defined.items(), strict=True):
            values[name] = value
            value.hint = hint or ""
        return made

    def arguments(self, values: dict[str, Value]) -> tuple[list[Operand], dict[str, Any]]:
        tokens = self.tokens
        tokens.expect("(")
        inputs: list[Operand] = []
        params: dict[str, Any] = {}
        while not tokens.skip(")"):
            if tokens.following == "=":
                name = self.key()
                tokens.next()
                params[name] = self.expressions.value()
            else:
                inputs.append(self.operand(values))
            if not tokens.skip(","):
                tokens.expect(")", "`,` or `)`")
                break
        return inputs, params

    def key(self) -> str:
        token = self.tokens.current
        if NAME.fullmatch(token):
            return self.tokens.next()
        return self.string("the name of a parameter")

    def operand(self, values: dict[str, Value]) -> Operand:
        tokens = self.tokens
        token = tokens.current
        if token[:1] == "%":
            if token not in values:
                tokens.fail("a value that is defined above")
            tokens.next()
            return values[token]
        return self.literal()

    def literal(self) -> Literal:
        tokens = self.tokens
        if tokens.skip("exact"):
            tokens.expect("(")
            exact = self.scalar()
            tokens.expect(")")
            tokens.expect(":", "`:` and the type of the literal")
            return Literal(exact, self.type())
        at, first = tokens.at, tokens.current
        value = self.scalar()
        simple = tokens.at == at + 1
        tokens.expect(":", "`:` and the type of the literal")
        key = first, tokens.current
        found = self._literals.get(key) if simple else None
        if found is not None:
            tokens.next()
            return found
        type_ = self.type()
        if in_few_digits(value, type_):
            value = float(rounded(repr(value)))
        made = Literal(value, type_)
        if simple:
            self._literals[key] = made
        return made

    def scalar(self) -> Any:
        at = self.tokens.at
        value = self.expressions.value()
        if isinstance(value, (tuple, list, dict, str)):
            self.tokens.fail("an operand: a value or a number with its type", at)
        return value

    def type(self) -> Type:
        tokens = self.tokens
        token = tokens.current
        found = self._types.get(token)
        if found is not None:
            tokens.next()
            return found
        at = tokens.at
        if token == "Type":
            made = self.expressions.value()
            if type(made) is not Type:
                tokens.fail("a type", at)
            return made
        parsed = parse_type(token)
        if parsed is None:
            tokens.fail("a type, as f32[4,8],")
        self._types[token] = parsed
        tokens.next()
        return parsed

    # -- where a node comes from -----------------------------------------------------------------

    def tail(self) -> tuple[Source, str, str, bool]:
        tokens = self.tokens
        source, scope, phase, effects = NOWHERE, "", UNPHASED, False
        if tokens.current[:1] != "@":
            return source, scope, phase, effects
        if tokens.current != "@":
            source = self.source()
            if not tokens.skip(","):
                return source, scope, phase, effects
        else:
            tokens.next()
        while True:
            if tokens.skip("scope"):
                scope = self.word("a scope")
            elif tokens.skip("phase"):
                phase = self.string("a phase")
            elif tokens.current in PHASES:
                phase = tokens.next()
            elif tokens.skip("effects"):
                effects = True
            else:
                tokens.fail("`scope`, a phase or `effects`")
            if not tokens.skip(","):
                return source, scope, phase, effects

    def source(self) -> Source:
        tokens = self.tokens
        key = tokens.current, tokens.following
        found = self._sources.get(key)
        if found is not None:
            tokens.next()
            tokens.next()
            return found
        place = _PLACE.fullmatch(tokens.current)
        if place is None or place[1] not in self.files:
            tokens.fail("a place, as @train.py:12:8-12:20, in a file named above")
        numbers = [number(place[i]) for i in range(2, 6)]
        if not all(type(n) is int for n in numbers):
            tokens.fail("lines and columns")
        tokens.next()
        function = self.word("the name of a function")
        line, column, end_line, end_column = (int(n or 0) for n in numbers)
        where = Where(self.files[place[1]], line, column, end_line, end_column, function)
        made = self._sources[key] = Source(where=where)
        return made

    # -- words ---------------------------------------------------------------------------------

    def word(self, what: str) -> str:
        """A word, quoted or not."""
        token = self.tokens.current
        if _BARE.fullmatch(token):
            return self.tokens.next()
        return self.string(what)

    def string(self, what: str) -> str:
        at = self.tokens.at
        if not self.tokens.current.startswith(("'", '"')):
            self.tokens.fail(what)
        value = self.expressions.string()
        if type(value) is not str:
            self.tokens.fail(what, at)
        return value
