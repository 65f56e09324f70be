"""Recursive-descent parser of filters (docs/filters.md); yields one condition of a dialect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NoReturn

from llm2clip.indexer.filters.dialect import C, Dialect, InexpressibleError
from llm2clip.indexer.filters.fields import (
    FIELDS,
    KNOWN,
    META,
    UNITS,
    Field,
    Type,
    Value,
    escaped,
    long_integer,
    metadata_field,
    number,
    span,
)
from llm2clip.indexer.filters.patterns import glob_matcher
from llm2clip.indexer.filters.tokenizer import Kind, Token, WhereError, nearest, tokens

MAX_CONDITIONS = 256
"""Maximum number of comparisons."""
MAX_VALUES = 4096
"""Maximum number of values in all IN lists."""
MAX_PATTERN = 1_000
"""Maximum length of a pattern or of the text of CONTAINS."""
MAX_DEPTH = 40
"""Maximum nesting of parentheses and NOT."""

_SIGNS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WORDS = ("BETWEEN", "CONTAINS", "GLOB", "HAS", "IN", "IS", "LIKE", "NOT")
_OPERATORS = "expected a comparison: =, !=, <, <=, >, >=, BETWEEN, CONTAINS, GLOB, HAS, IN, IS NULL or LIKE"
_RESERVED = ("AND", "FALSE", "NULL", "OR", "TRUE", *_WORDS)


class Parser(Generic[C]):
    """Parses one filter."""

    def __init__(self, text: str, dialect: Dialect[C]) -> None:
        self._text, self._to = text, dialect
        self._tokens = tokens(text)
        self._at = self._depth = self._conditions = self._values = 0
        self.fields: set[str] = set()
        """Names of the fields in it."""

    def parse(self) -> C:
        """The whole filter as a condition."""
        if self._ended():
            self._fail("the filter is empty: write for example  width > 1000")
        clause = self._either()
        if not self._ended():
            self._fail("expected AND, OR or the end")
        return clause

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _ended(self) -> bool:
        return self._next.kind is Kind.END

    def _take(self) -> Token:
        token = self._next
        self._at += token.kind is not Kind.END
        return token

    def _took(self, *words: str) -> bool:
        found = self._next.is_word(*words) or self._next.is_sign(*words)
        self._at += found
        return found

    def _fail(self, problem: str, token: Token | None = None, *, until: int | None = None) -> NoReturn:
        token = token or self._next
        end = token.end if until is None else until
        raise WhereError(problem, text=self._text, start=token.start, end=end)

    def _expect(self, word: str, why: str) -> None:
        if not self._took(word):
            self._fail(f"expected {word} {why}")

    def _either(self) -> C:
        clauses = [self._both()]
        while self._took("OR"):
            clauses.append(self._both())
        return self._to.joined("OR", clauses)

    def _both(self) -> C:
        clauses = [self._opposite()]
        while self._took("AND"):
            clauses.append(self._opposite())
        return self._to.joined("AND", clauses)

    def _opposite(self) -> C:
        if self._took("NOT"):
            return self._to.negated(self._deeper(self._opposite))
        if self._took("("):
            clause = self._deeper(self._either)
            self._expect(")", "to close the parenthesis")
            return clause
        return self._condition()

    def _deeper(self, rule: Callable[[], C]) -> C:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} nested parentheses and NOTs")
        clause = rule()
        self._depth -= 1
        return clause

    def _condition(self) -> C:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            self._fail(f"more than {MAX_CONDITIONS} comparisons in one filter")
        first = self._next
        try:
            return self._comparison()
        except InexpressibleError as error:
            self._fail(str(error), first, until=self._tokens[self._at - 1].end)

    def _comparison(self) -> C:
        if self._next.kind in (Kind.TEXT, Kind.NUMBER):
            return self._reversed()
        first = self._next
        field = self._field()
        sign = self._next
        if self._took(*_SIGNS):
            return self._beside(field, sign.value, first)
        if self._took("IS"):
            negative = self._took("NOT")
            self._expect("NULL", "after IS")
            return self._to.negated(self._to.missing(field)) if negative else self._to.missing(field)
        negative = self._took("NOT")
        word = self._take()
        if not word.is_word("BETWEEN", "CONTAINS", "GLOB", "HAS", "IN", "LIKE"):
            self._fail(f"{_OPERATORS}{nearest(word.value, [each.lower() for each in _WORDS])}", word)
        clause = self._worded(field, word.value.upper(), word)
        return self._to.negated(clause) if negative else clause

    def _reversed(self) -> C:
        """A value first: ``1000 < width``."""
        place = self._at
        self._take()
        sign = self._next
        if not self._took(*_SIGNS):
            self._fail("expected a field here, or a sign such as < after the value", self._tokens[place])
        first = self._next
        field = self._field()
        behind, self._at = self._at, place
        clause = self._compared(field, _FLIPPED.get(sign.value, sign.value), first)
        self._at = behind
        return clause

    def _beside(self, field: Field, sign: str, first: Token) -> C:
        second = self._next
        if second.kind is not Kind.WORD or second.is_word("TRUE", "FALSE", "NULL"):
            return self._compared(field, sign, first)
        other = self._field()
        if field.type is not other.type or field.type is Type.JSON:
            both = f"{field.name} is {field.type} and {other.name} is {other.type}"
            self._fail(
                f"two fields can be compared if both are numbers, texts or times, but {both}",
                first,
                until=second.end,
            )
        return self._to.compared_fields(field, _plain(sign), other)

    def _compared(self, field: Field, sign: str, first: Token) -> C:
        if field.type is Type.TIME:
            begin, end = self._span(field)
            return self._within(field, _plain(sign), begin, end)
        token = self._next
        ordered = _plain(sign) not in ("=", "<>")
        value = self._value(field, ordered=ordered)
        if isinstance(value, bool) and ordered:
            self._fail("TRUE and FALSE have no order: compare with = or !=", first, until=token.end)
        return self._to.compared(field, _plain(sign), value)

    def _worded(self, field: Field, word: str, at: Token) -> C:
        if word == "BETWEEN":
            return self._between(field)
        if word == "IN":
            return self._among(field)
        if word == "HAS":
            if field.type is not Type.JSON:
                self._fail(f"HAS tests lists in the metadata, but {field.name} is {field.type}", at)
            return self._to.has(field, self._value(field))
        if field.type in (Type.NUMBER, Type.TIME):
            self._fail(f"{word} compares text, but {field.name} is {field.type}", at)
        token = self._take()
        if token.kind is not Kind.TEXT:
            quotes = f"; write '{token.value}'" if token.kind in (Kind.WORD, Kind.NAME) else ""
            self._fail(f"expected text in single quotes after {word}, got {_described(token)}{quotes}", token)
        if len(token.value) > MAX_PATTERN:
            self._fail(f"{word} takes at most {MAX_PATTERN:,} characters, got {len(token.value):,}", token)
        if word == "CONTAINS":
            return self._to.like(field, f"%{escaped(token.value)}%")
        if word == "GLOB":
            try:
                glob_matcher(token.value)
            except ValueError as error:
                self._fail(str(error), token)
            return self._to.glob(field, token.value)
        if (len(token.value) - len(token.value.rstrip("\\"))) % 2:
            self._fail("the pattern ends in a backslash that escapes nothing: write two", token)
        return self._to.like(field, token.value)

    def _between(self, field: Field) -> C:
        low = self._compared(field, ">=", self._next)
        self._expect("AND", "between the two ends")
        return self._to.joined("AND", [low, self._compared(field, "<=", self._next)])

    def _among(self, field: Field) -> C:
        self._expect("(", "after IN")
        spans: list[C] = []
        values: list[Value] = []
        while True:
            self._values += 1
            if self._values > MAX_VALUES:
                self._fail(f"more than {MAX_VALUES:,} values in IN lists")
            if field.type is Type.TIME:
                spans.append(self._within(field, "=", *self._span(field)))
            else:
                values.append(self._value(field))
            if not self._took(","):
                break
        self._expect(")", "to close the list")
        return self._to.joined("OR", spans) if spans else self._to.among(field, values)

    def _field(self) -> Field:
        token = self._take()
        name = token.value.lower()
        if token.kind not in (Kind.WORD, Kind.NAME) or token.is_word(*_RESERVED):
            self._fail(f"expected a field, got {_described(token)}. Fields: {KNOWN}", token)
        if name == META:
            return self._metadata(token)
        if name not in FIELDS:
            hint = nearest(name, [*FIELDS, META]) or f"; for metadata write {META}.{token.value}."
            self._fail(f"no field '{token.value}'{hint} Fields: {KNOWN}", token)
        self.fields.add(name)
        return FIELDS[name]

    def _metadata(self, first: Token) -> Field:
        steps: list[str | int] = []
        while self._next.is_sign(".", "["):
            dotted = self._take().value == "."
            step = self._take()
            if dotted and step.kind in (Kind.WORD, Kind.NAME):
                steps.append(step.value)
            elif not dotted and step.kind is Kind.NUMBER and step.value.isdecimal() and not step.unit:
                steps.append(int(step.value[:18]))
                self._expect("]", "after the list index, which counts from 0")
            else:
                expected = "a name after the dot" if dotted else "a list index, from 0"
                self._fail(f"expected {expected}, got {_described(step)}", step)
        if not steps:
            self._fail(f"expected a dot and a name after {META}, such as {META}.author")
        try:
            field = metadata_field(steps)
        except ValueError as error:
            self._fail(str(error), first, until=self._tokens[self._at - 1].end)
        self.fields.add(field.name)
        return field

    def _value(self, field: Field, *, ordered: bool = False) -> Value:
        token = self._take()
        if token.is_word("NULL"):
            self._fail("NULL cannot be compared: write IS NULL or IS NOT NULL", token)
        if field.type is Type.JSON and token.is_word("TRUE", "FALSE"):
            return token.is_word("TRUE")
        if token.kind is Kind.TEXT and field.type is not Type.NUMBER:
            return self._whole_text(token)
        if token.kind is Kind.NUMBER and field.type is not Type.TEXT:
            exact = long_integer(token.value) if field.type is Type.JSON and not ordered else None
            return exact or self._number(token, field)
        expected = "text, a number, TRUE or FALSE" if field.type is Type.JSON else field.type
        quotes = " (write text in single quotes)" if token.kind in (Kind.WORD, Kind.NAME) else ""
        self._fail(f"{field.name} is compared with {expected}, got {_described(token)}{quotes}", token)

    def _whole_text(self, token: Token) -> str:
        if any("\ud800" <= char <= "\udfff" for char in token.value):
            self._fail("the text has a lone surrogate", token)
        return token.value

    def _number(self, token: Token, field: Field) -> int | float:
        if token.unit and (field.name != "size" or token.unit not in UNITS):
            units = "B, kB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB (1024s)"
            self._fail(f"no unit '{token.unit}' for {field.name}: only size has units, {units}", token)
        value = number(token.value) * UNITS.get(token.unit, 1)
        if not math.isfinite(value):
            self._fail("a number of at most 1e308 is expected", token)
        return value if abs(value) < 2**63 else float(value)

    def _span(self, field: Field) -> tuple[int, int]:
        token = self._take()
        written = token.value if token.kind is Kind.TEXT else ""
        try:
            found = span(written)
        except (ValueError, OverflowError):
            self._fail(
                f"{field.name} is compared with a time in quotes such as '2024', '2024-05-31' or "
                f"'2024-05-31 18:30:00+02:00', got {_described(token)}",
                token,
            )
        return found.start, found.end

    def _within(self, field: Field, sign: str, start: int, end: int) -> C:
        """A time compared with a span: > means after its end, < before its start."""
        if sign in ("=", "<>"):
            inside = self._to.joined(
                "AND", [self._to.compared(field, ">=", start), self._to.compared(field, "<", end)]
            )
            return inside if sign == "=" else self._to.negated(inside)
        edge, sign = {"<": (start, "<"), "<=": (end, "<"), ">": (end, ">="), ">=": (start, ">=")}[sign]
        return self._to.compared(field, sign, edge)


def _plain(sign: str) -> str:
    return {"==": "=", "!=": "<>"}.get(sign, sign)


def _described(token: Token) -> str:
    if token.kind in (Kind.WORD, Kind.SIGN):
        return f"'{token.value}'"
    return str(token.kind)
