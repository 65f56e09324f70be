"""Conditions of a filter as SQL over the columns of ``items``. What a person wrote is only ever bound, never spelt."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from llm2clip.indexer.filters.fields import Field, Type, Value

FOLDED = "llm2clip_like"
"""Name of the SQL function that compares letters of every script without their case."""


@dataclass(frozen=True, slots=True)
class Clause:
    """A condition: true, false, or NULL where something it asks about is not known."""

    sql: str
    """With ``?`` for each value."""
    values: tuple[Value, ...] = ()
    """What to bind, in order."""


def joined(word: str, clauses: Sequence[Clause]) -> Clause:
    """Several conditions with AND or OR between them, as a tree that is no deeper than it must be."""
    if len(clauses) == 1:
        return clauses[0]
    middle = len(clauses) // 2
    left, right = joined(word, clauses[:middle]), joined(word, clauses[middle:])
    return Clause(f"({left.sql} {word} {right.sql})", left.values + right.values)


def negated(clause: Clause) -> Clause:
    """The opposite; what is not known stays unknown."""
    return Clause(f"(NOT {clause.sql})", clause.values)


def missing(field: Field) -> Clause:
    """Whether an image lacks a field."""
    return Clause(f"({field.sql} IS NULL)", field.values)


def compared(field: Field, sign: str, value: Value) -> Clause:
    """A field beside a value; an order exists only between values of one type."""
    clause = Clause(f"({field.sql} {sign} ?)", (*field.values, value))
    if field.type is not Type.JSON or sign in ("=", "<>"):
        return clause
    kinds = "'text'" if isinstance(value, str) else "'integer', 'real'"
    sql = f"(CASE WHEN typeof({field.sql}) IN ({kinds}) THEN {clause.sql} END)"
    return Clause(sql, field.values + clause.values)


def compared_fields(left: Field, sign: str, right: Field) -> Clause:
    """Two fields of one type beside each other."""
    return Clause(f"({left.sql} {sign} {right.sql})", left.values + right.values)


def among(field: Field, values: Sequence[Value]) -> Clause:
    """Whether a field is one of some values."""
    marks = ", ".join("?" * len(values))
    return Clause(f"({field.sql} IN ({marks}))", (*field.values, *values))


def like(field: Field, pattern: str) -> Clause:
    """``%`` stands for anything, ``_`` for one character, a backslash makes the next a plain one; case is ignored."""
    if pattern.isascii():
        return Clause(f"({field.sql} LIKE ? ESCAPE '\\')", (*field.values, pattern))
    return Clause(f"{FOLDED}(?, {field.sql})", (folded(pattern), *field.values))


def escaped(text: str) -> str:
    """A LIKE pattern that stands for a text as it is."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def glob(field: Field, pattern: str) -> Clause:
    """``*`` stands for anything, ``?`` for one character, ``[a-z]`` for one of a range; case counts."""
    return Clause(f"({field.sql} GLOB ?)", (*field.values, pattern))


def has(field: Field, value: Value) -> Clause:
    """Whether a list in the metadata holds a value; a single value counts as a list of one."""
    elements = "SELECT 1 FROM json_each(metadata, ?) AS element WHERE element.atom = ?"
    kind = "json_type(metadata, ?)"
    sql = f"(CASE WHEN {kind} = 'object' THEN 0 WHEN {kind} <> 'null' THEN EXISTS ({elements}) END)"
    return Clause(sql, (*field.values, *field.values, *field.values, value))


def folded(text: str) -> str:
    """A text without its case and without the choice between composed and combining letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
