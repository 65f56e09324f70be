"""Fields of filters, their values, and conditions on them as SQL. Text of a filter is only ever bound, never spelt."""

from __future__ import annotations

import re
from calendar import isleap, monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum

from llm2clip.indexer.filters.patterns import folded, normal
from llm2clip.indexer.records.values import EMBEDDED

Value = str | int | float | bytes
"""A value bound in an SQL statement."""


class Type(StrEnum):
    """Type of the values of a field."""

    TEXT = "text"
    NUMBER = "a number"
    TIME = "a time"
    JSON = "metadata"


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A field of an image."""

    name: str
    """As written in a filter."""
    type: Type
    sql: str
    """SQL over the columns of ``items``; with ``path``, a call of ``json_extract``."""
    path: str | None = None
    """Its JSON path in the metadata; None for other fields."""
    steps: tuple[str | int, ...] = ()
    """That path as names in objects and positions in lists, from the outermost."""

    @property
    def values(self) -> tuple[Value, ...]:
        """Values to bind for ``sql``."""
        return () if self.path is None else (self.path,)


def _field(name: str, type: Type, sql: str) -> Field:
    return Field(name=name, type=type, sql=sql)


def _told(name: str) -> str:
    """What the image file says of its capture time (``EMBEDDED``), once that time is a number."""
    kind = f"json_type(metadata, '$.\"{EMBEDDED}\".ns')"
    return f"WHEN {kind} = 'integer' THEN json_extract(metadata, '$.\"{EMBEDDED}\".{name}')"


# An unknown size or time is stored as 0.
FIELDS = {
    field.name: field
    for field in (
        _field("key", Type.TEXT, "key"),
        _field("path", Type.TEXT, "coalesce(path, key)"),
        _field("time", Type.TIME, f"(CASE {_told('ns')} ELSE nullif(mtime_ns, 0) END)"),
        _field("size", Type.NUMBER, "nullif(size, 0)"),
        _field("width", Type.NUMBER, "width"),
        _field("height", Type.NUMBER, "height"),
        _field("pixels", Type.NUMBER, "(width * height)"),
        _field("caption", Type.TEXT, "caption"),
        _field("hash", Type.TEXT, "lower(hex(hash))"),
        _field("copies", Type.NUMBER, "copies"),
        _field("time_source", Type.TEXT, f"(CASE {_told('source')} WHEN mtime_ns <> 0 THEN 'file' END)"),
    )
}
"""Fields other than metadata, by name."""
META = "meta"
"""Prefix of metadata fields."""
COLUMNS = frozenset(
    {"id", "key", "path", "mtime_ns", "size", "width", "height", "caption", "hash", "metadata"}
)
"""Columns of ``items`` that filters read."""
KNOWN = f"{', '.join(FIELDS)}, and {META}.NAME for metadata"
"""All fields, for messages."""


def metadata_field(steps: list[str | int]) -> Field:
    """A field of the metadata, by names in objects and positions in lists, from the outermost."""
    path = "$"
    for step in steps:
        if isinstance(step, str) and (set(step) & {'"', "\\", "\0"} or not step):
            raise ValueError(f"a metadata name without quotes and backslashes is expected, got {step!r}")
        path += f"[{step}]" if isinstance(step, int) else f'."{step}"'
    name = META + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return Field(name=name, type=Type.JSON, sql="json_extract(metadata, ?)", path=path, steps=tuple(steps))


UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
"""Units of sizes, lower case -> bytes."""


def number(digits: str) -> int | float:
    """A number for SQLite: integers of up to 64 bits, others as the nearest double."""
    if re.fullmatch(r"[+-]?\d{1,19}", digits) and -(2**63) <= int(digits) < 2**63:
        return int(digits)
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) < 2**62 else value


def long_integer(digits: str) -> str | None:
    """An integer of more than 64 bits as metadata hold it: as text; None for other numbers."""
    if not re.fullmatch(r"[+-]?\d+", digits) or isinstance(number(digits), int):
        return None
    return digits.removeprefix("+").lstrip("0") if digits[0] != "-" else f"-{digits[1:].lstrip('0')}"


@dataclass(frozen=True, slots=True)
class Span:
    """The time from ``start`` to before ``end``, nanoseconds since 1970."""

    start: int
    end: int


_TIME = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(\.\d{1,9})?)?\s*(Z|[+-]\d\d:?\d\d)?)?)?)?",
    re.IGNORECASE | re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = 2**63 - 1


def span(text: str) -> Span:
    """The year, month, day, minute or second that a text names, in UTC unless it has a time zone."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    begin = datetime(
        int(year),
        int(month or 1),
        int(day or 1),
        int(hour or 0),
        int(minute or 0),
        int(second or 0),
        tzinfo=_zone(zone),
    )
    nanoseconds = _nanoseconds(begin)
    if fraction:
        exact = nanoseconds + int(fraction[1:].ljust(9, "0"))
        return Span(_held(exact), _held(exact + 10 ** (10 - len(fraction))))
    return Span(_held(nanoseconds), _held(_nanoseconds(begin) + _length(begin, match)))


def _length(begin: datetime, match: re.Match[str]) -> int:
    """Length of the span, in nanoseconds."""
    _, month, day, hour, _, second, *_ = match.groups()
    if hour is not None:
        return (1 if second else 60) * 10**9
    if month is None:
        days = 365 + isleap(begin.year)
    else:
        days = 1 if day else monthrange(begin.year, begin.month)[1]
    return days * 86_400 * 10**9


def _zone(written: str | None) -> timezone:
    if written is None or written in "Zz":
        return UTC
    hours, minutes = int(written[1:3]), int(written[-2:])
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if written[0] == "-" else offset)


def _nanoseconds(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def _held(nanoseconds: int) -> int:
    return max(-_LAST, min(_LAST, nanoseconds))


LIKE, GLOB = "llm2clip_like", "llm2clip_glob"
"""Names of the SQL functions for LIKE without case in every script, and for GLOB; of a pattern and a value."""
NFC = "llm2clip_nfc"
"""Name of the SQL function that brings text into Unicode normal form C; other values stay."""
_NATIVE = 100_000
"""Characters of a pattern times those of a text, up to which SQLite's own functions take about a millisecond."""


@dataclass(frozen=True, slots=True)
class Clause:
    """A condition: true, false, or NULL if a field is missing."""

    sql: str
    """With a ``?`` for each value."""
    values: tuple[Value, ...] = ()
    """What to bind, in order."""


def joined(word: str, clauses: Sequence[Clause]) -> Clause:
    """Conditions joined by AND or OR, or values by a sign, as a balanced tree."""
    if len(clauses) == 1:
        return clauses[0]
    middle = len(clauses) // 2
    left, right = joined(word, clauses[:middle]), joined(word, clauses[middle:])
    return Clause(f"({left.sql} {word} {right.sql})", left.values + right.values)


def negated(clause: Clause) -> Clause:
    """The negation; NULL stays NULL."""
    return Clause(f"(NOT {clause.sql})", clause.values)


def missing(field: Field) -> Clause:
    """``field IS NULL``."""
    return Clause(f"({field.sql} IS NULL)", field.values)


def _composed(field: Field, value: Value = "") -> Clause:
    """A field as ``value`` is compared with: text in NFC, as macOS stores names decomposed (NFD)."""
    if field.type not in (Type.TEXT, Type.JSON) or not isinstance(value, str):
        return Clause(field.sql, field.values)
    return Clause(_in_nfc(field.sql), field.values * 4)


def _in_nfc(sql: str) -> str:
    """SQL: a value with its text in NFC; our function, being slower, is called for text that is not ASCII only."""
    return f"(CASE WHEN {_is_ascii(sql)} THEN {sql} ELSE {NFC}({sql}) END)"


def _is_ascii(sql: str) -> str:
    """SQL: whether a text has one byte for each character."""
    return f"length({sql}) = length(CAST({sql} AS BLOB))"


def _bound(value: Value) -> Value:
    return normal(value) if isinstance(value, str) else value


def compared(field: Field, sign: str, value: Value) -> Clause:
    """A field compared with a value. Metadata of another type is unequal to it and has no order with it."""
    left = _composed(field, value)
    clause = Clause(f"({left.sql} {sign} ?)", (*left.values, _bound(value)))
    if field.type is not Type.JSON:
        return clause
    if sign in ("=", "<>"):
        return _simple(field, clause, otherwise=sign == "<>")
    kinds = "'text'" if isinstance(value, str) else "'integer', 'real', 'true', 'false'"
    sql = f"(CASE WHEN json_type(metadata, ?) IN ({kinds}) THEN {clause.sql} END)"
    return Clause(sql, field.values + clause.values)


def _simple(field: Field, clause: Clause, *, otherwise: bool) -> Clause:
    """A condition on metadata that is neither a list nor an object; those would be compared as their JSON text."""
    kinds = "json_type(metadata, ?) IN ('array', 'object')"
    sql = f"(CASE WHEN {kinds} THEN {int(otherwise)} ELSE {clause.sql} END)"
    return Clause(sql, field.values + clause.values)


def compared_fields(left: Field, sign: str, right: Field) -> Clause:
    """Two fields of one type compared."""
    return joined(sign, [_composed(left), _composed(right)])


def among(field: Field, values: Sequence[Value]) -> Clause:
    """``field IN (values)``."""
    marks = ", ".join("?" * len(values))
    text = next((value for value in values if isinstance(value, str)), values[0])
    left = _composed(field, text)
    clause = Clause(f"({left.sql} IN ({marks}))", (*left.values, *map(_bound, values)))
    return _simple(field, clause, otherwise=False) if field.type is Type.JSON else clause


def like(field: Field, pattern: str) -> Clause:
    """LIKE without case: ``%`` matches anything, ``_`` one character; a backslash escapes."""
    ours = Clause(f"{LIKE}(?, {field.sql})", (folded(pattern), *field.values))
    if not pattern.isascii():
        return ours
    return _where_short(field, Clause(f"{field.sql} LIKE ? ESCAPE '\\'", (pattern,)), ours)


def _where_short(field: Field, native: Clause, ours: Clause) -> Clause:
    """A function of SQLite on short ASCII texts: on others it ignores case differently, or may take minutes."""
    if field.type is Type.JSON:
        return ours
    (pattern,) = native.values
    longest = _NATIVE // max(1, len(str(pattern)))
    short = f"length({field.sql}) <= {longest} AND {_is_ascii(field.sql)}"
    return Clause(f"(CASE WHEN {short} THEN {native.sql} ELSE {ours.sql} END)", (pattern, *ours.values))


def escaped(text: str) -> str:
    """The LIKE pattern of a literal text."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def glob(field: Field, pattern: str) -> Clause:
    """GLOB: ``*`` matches anything, ``?`` one character, ``[a-z]`` one of a range; case-sensitive."""
    pattern = normal(pattern)
    ours = Clause(f"{GLOB}(?, {field.sql})", (pattern, *field.values))
    return _where_short(field, Clause(f"{field.sql} GLOB ?", (pattern,)), ours)


def has(field: Field, value: Value) -> Clause:
    """Whether a list in the metadata has a value; a single value counts as a list of one."""
    atom = _in_nfc("element.atom") if isinstance(value, str) else "element.atom"
    elements = f"SELECT 1 FROM json_each(metadata, ?) AS element WHERE {atom} = ?"
    kind = "json_type(metadata, ?)"
    sql = f"(CASE WHEN {kind} = 'object' THEN 0 WHEN {kind} <> 'null' THEN EXISTS ({elements}) END)"
    return Clause(sql, (*field.values, *field.values, *field.values, _bound(value)))
