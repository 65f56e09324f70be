"""Filters as text of a query language other than SQLite's.

A ``Condition`` is two expressions: that the filter is true and that it is false. NOT swaps them, so that an image whose
field is missing passes neither, whatever the engine makes of NULL.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from llm2clip.indexer.filters.dialect import InexpressibleError
from llm2clip.indexer.filters.fields import Field, Type, Value
from llm2clip.indexer.filters.parser import Parser
from llm2clip.indexer.filters.patterns import folded, normal

FOLDED = frozenset(["key", "path", "caption"])
"""Fields that have a case-folded column; ``hash`` and ``time_source`` are lower case anyway."""
_OPPOSITE = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class Condition(NamedTuple):
    """A condition as text."""

    yes: str
    """True exactly for the images that pass."""
    no: str
    """True exactly for those that pass its negation."""


class TextDialect(ABC):
    """Conditions on the columns of ``Row``. What is different in each engine is left to it."""

    AND, OR, NOT, TRUE = " AND ", " OR ", "NOT ", "true"
    """Words of the language, and what is always true."""

    def compile(self, where: str) -> str:
        """The expression of a filter; ``WhereError`` if it is not valid or cannot be expressed."""
        return Parser(where, self).parse().yes

    def joined(self, word: str, clauses: Sequence[Condition], /) -> Condition:
        """Conditions joined by ``AND`` or ``OR``."""
        if len(clauses) == 1:
            return clauses[0]
        one, other = (self.AND, self.OR) if word == "AND" else (self.OR, self.AND)
        yes, no = (clause.yes for clause in clauses), (clause.no for clause in clauses)
        return Condition(f"({one.join(yes)})", f"({other.join(no)})")

    def negated(self, clause: Condition, /) -> Condition:
        """The negation."""
        return Condition(clause.no, clause.yes)

    def missing(self, field: Field, /) -> Condition:
        """``field IS NULL``."""
        there = self.present(field)
        return Condition(f"({self.NOT}{there})", there)

    def compared(self, field: Field, sign: str, value: Value, /) -> Condition:
        """A field compared with a value."""
        value = self.checked(value)
        if field.type is not Type.JSON:
            return self.tested(field, self.operand(field), sign, self.literal(value))
        if not isinstance(value, str | bytes) and abs(value) >= 2**53:
            value = self.large(value)
        if sign in ("=", "<>"):
            equal = self.metadata_equals(field, value)
            return equal if sign == "=" else self.negated(equal)
        return self.metadata_ordered(field, sign, value)

    def compared_fields(self, left: Field, sign: str, right: Field, /) -> Condition:
        """Two fields of one type compared."""
        return self.tested(left, self.operand(left), sign, self.operand(right), also=self.present(right))

    def tested(self, field: Field, left: str, sign: str, right: str, *, also: str = "") -> Condition:
        """A comparison of a field that may be missing; ``also`` holds where it has an answer."""
        rest = [each for each in (self.present(field), also) if each not in ("", self.TRUE)]
        signs = sign, _OPPOSITE[sign]
        yes, no = (self.AND.join([f"{left} {self.sign(each)} {right}", *rest]) for each in signs)
        return Condition(f"({yes})", f"({no})")

    def among(self, field: Field, values: Sequence[Value], /) -> Condition:
        """``field IN (values)``."""
        return self.joined("OR", [self.compared(field, "=", value) for value in values])

    def like(self, field: Field, pattern: str, /) -> Condition:
        """LIKE without case."""
        pattern = folded(str(self.checked(pattern)))
        if field.type is Type.JSON:
            return self.metadata_matches(field, pattern, glob=False)
        column = f"{field.name}_folded" if field.name in FOLDED else field.name
        return self.matched(field, self.pattern(column, pattern))

    def glob(self, field: Field, pattern: str, /) -> Condition:
        """GLOB, with case."""
        pattern = normal(str(self.checked(pattern)))
        if field.type is Type.JSON:
            return self.metadata_matches(field, pattern, glob=True)
        return self.matched(field, self.glob_pattern(field.name, pattern))

    def has(self, field: Field, value: Value, /) -> Condition:
        """Whether a list in the metadata has a value; a single value counts as a list of one."""
        value = self.checked(value)
        test = f"({self.metadata_equals(field, value).yes}{self.OR}{self.metadata_contains(field, value)})"
        return self.matched(field, test)

    def matched(self, field: Field, test: str) -> Condition:
        """A test of a field that may be missing."""
        there = self.present(field)
        begin = "" if there == self.TRUE else f"{there}{self.AND}"
        return Condition(f"({begin}{test})", f"({begin}{self.NOT}{test})")

    def checked(self, value: Value) -> Value:
        """A value as the columns hold it."""
        if isinstance(value, str):
            if "\0" in value:
                raise InexpressibleError("the text has a NUL character, which engines cannot compare")
            return normal(value)
        return value

    def large(self, value: Value) -> Value:
        """A number beyond 2^53 that metadata are compared with; some engines round it."""
        return value

    def sign(self, sign: str) -> str:
        """A sign of comparison."""
        return sign

    @abstractmethod
    def literal(self, value: Value) -> str:
        """A value as it is written; text in quotes, so that nothing in it is read as anything else."""

    @abstractmethod
    def operand(self, field: Field) -> str:
        """A field that is no metadata, to be compared."""

    @abstractmethod
    def present(self, field: Field) -> str:
        """That a field is not missing; ``TRUE`` for one that never is."""

    @abstractmethod
    def pattern(self, column: str, pattern: str) -> str:
        """That a column matches a LIKE pattern."""

    @abstractmethod
    def glob_pattern(self, column: str, pattern: str) -> str:
        """That a column matches a GLOB pattern."""

    @abstractmethod
    def metadata_equals(self, field: Field, value: Value) -> Condition:
        """A value of the metadata equals another: text, number, or TRUE and FALSE, which are 1 and 0."""

    @abstractmethod
    def metadata_ordered(self, field: Field, sign: str, value: Value) -> Condition:
        """A value of the metadata is less or greater than one of its type; neither for others."""

    @abstractmethod
    def metadata_matches(self, field: Field, pattern: str, *, glob: bool) -> Condition:
        """A text or number of the metadata matches a pattern; neither for lists, objects, TRUE and FALSE."""

    @abstractmethod
    def metadata_contains(self, field: Field, value: Value) -> str:
        """That a list in the metadata has a value."""


def quoted(text: str) -> str:
    """Text as standard SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def json_text(value: Value, *, listed: bool = False) -> str:
    """A value as JSON, or a list of it alone."""
    return json.dumps([value] if listed else value, ensure_ascii=False)


def glob_regex(pattern: str) -> str:
    """The regular expression of a GLOB pattern, of what PostgreSQL and Rust both read."""
    made, place = "", 0
    while place < len(pattern):
        char = pattern[place]
        if char == "[":
            first = place + 1 + pattern.startswith("^", place + 1)
            end = pattern.index("]", first + 1)
            made += f"[{'^' if first > place + 1 else ''}{_class(pattern[first:end])}]"
            place = end
        else:
            made += {"*": ".*", "?": "."}.get(char, _escaped(char))
        place += 1
    return f"^{made}$"


def _class(written: str) -> str:
    """What stands in brackets: characters, and ranges such as a-z."""
    made, place = "", 0
    while place < len(written):
        if written[place + 1 : place + 2] == "-" and place + 2 < len(written):
            low, high = written[place], written[place + 2]
            if low > high:
                raise InexpressibleError(f"the range {low}-{high} in brackets is empty: leave it out")
            made += f"{_escaped(low)}-{_escaped(high)}"
            place += 3
        else:
            made += _escaped(written[place])
            place += 1
    return made


def _escaped(char: str) -> str:
    return f"\\{char}" if re.fullmatch(r"[!-/:-@\[-`{-~]", char) and char != "_" else char
