"""What a filter is compiled to: the parser calls these functions of a dialect with the parts of a filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from llm2clip.indexer.filters.fields import Field, Value

C = TypeVar("C")
"""A condition of the dialect: true, false, or neither if a field is missing."""


class InexpressibleError(ValueError):
    """The dialect has no condition of this meaning; the message says what, and what to do."""


class Dialect(Protocol[C]):
    """Conditions on fields. ``filters.fields``, for SQLite, is one and defines what they mean."""

    def joined(self, word: str, clauses: Sequence[C], /) -> C:
        """Conditions joined by ``AND`` or ``OR``."""

    def negated(self, clause: C, /) -> C:
        """The negation; neither stays neither."""

    def missing(self, field: Field, /) -> C:
        """``field IS NULL``."""

    def compared(self, field: Field, sign: str, value: Value, /) -> C:
        """A field compared with a value. Metadata of another type is unequal to it and has no order with it."""

    def compared_fields(self, left: Field, sign: str, right: Field, /) -> C:
        """Two fields of one type compared."""

    def among(self, field: Field, values: Sequence[Value], /) -> C:
        """``field IN (values)``."""

    def like(self, field: Field, pattern: str, /) -> C:
        """LIKE without case: ``%`` matches anything, ``_`` one character; a backslash escapes."""

    def glob(self, field: Field, pattern: str, /) -> C:
        """GLOB: ``*`` matches anything, ``?`` one character, ``[a-z]`` one of a range; case-sensitive."""

    def has(self, field: Field, value: Value, /) -> C:
        """Whether a list in the metadata has a value; a single value counts as a list of one."""
