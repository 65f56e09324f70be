"""Query expressions, such as ``"2*beach at sunset" - "people" + image:photo.jpg``.

Grammar (docs/searching.md)::

    expression = [sign] term {sign term}
    sign       = "+" | "-" | "NOT"                alone between spaces
    term       = [number "*"] (text | image | item)
    text       = '"' ... '"' | words              a quote or backslash within quotes follows a backslash
    image      = "image:" name                    up to the next sign; in quotes if it holds one
    item       = "item:" number                   an image of the index, by its id

A query is an expression only if its first term has a quote, a weight, ``image:`` or ``item:``. Everything else is plain
text, whatever signs it holds, so that a sentence with a dash or a plus is searched as it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_TERMS = 32
"""Most terms of an expression."""
MOST_WEIGHT = 100.0
"""Largest weight of a term."""

_SHOWN = 24
_WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\*\s*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPERAND = re.compile(r"(image|item):")
_SIGN = re.compile(r"([+-]|NOT)(?=\s|$)")
_NEXT = re.compile(r"\s(?:[+-]|NOT)(?=\s|$)")
_EXPLICIT = re.compile(r'\s*(?:[+-]\s+)?(?:(?:\d+(?:\.\d*)?|\.\d+)\*\s*\S|"|(?:image|item):)')


class ExpressionError(ValueError):
    """A query expression is invalid; the message points at the column."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a query."""

    kind: Literal["text", "image", "item"]
    """What ``value`` is: a text, the name of an image, or the id of an image in the index."""
    value: str
    """The text, name or id."""
    weight: float = 1.0
    """Factor on its unit vector; negative to move away from it."""
    excluded: bool = False
    """Whether its direction is taken out of the other terms' sum, so that the query says nothing of it; the weight does
    not matter then."""


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query; a query that is no expression is one text.

    Raises:
        ExpressionError: It begins like an expression and is not one.
    """
    if not _EXPLICIT.match(query):
        return (Term(kind="text", value=query),)
    return _Parser(query).terms()


def is_plain(terms: Sequence[Term]) -> bool:
    """Whether a query is of texts alone and takes nothing away, so that its scores can be calibrated."""
    return all(term.kind == "text" and term.weight > 0 and not term.excluded for term in terms)


def join(arguments: Sequence[str]) -> str:
    """One query from the words of a command line, in which ``+`` and ``-`` alone are signs of an expression."""
    if not any(word in ("+", "-") for word in arguments):
        return " ".join(arguments)
    terms: list[str] = []
    words: list[str] = []
    for word in (*arguments, "+"):
        if word in ("+", "-"):
            if words:
                terms.append(_spelt(" ".join(words)))
            words = []
            terms.append(word)
        else:
            words.append(word)
    return " ".join(terms[:-1])


def query_vector(terms: Sequence[Term], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The unit vector of a query: the weighted sum of its terms, less its projection on the excluded ones.

    Args:
        terms: The terms.
        vectors: Their unit vectors. Shape: (len(terms), dim), float32.

    Returns:
        Shape: (dim,), float32, of unit length.

    Raises:
        ExpressionError: The terms cancel out.
    """
    import numpy as np

    if len(vectors) == 1 and terms[0].weight > 0 and not terms[0].excluded:
        one: NDArray[np.float32] = vectors[0]
        return one
    exact = vectors.astype(np.float64)
    weights = np.array([0.0 if term.excluded else term.weight for term in terms])
    total = weights @ exact
    excluded = exact[[term.excluded for term in terms]]
    if len(excluded):
        directions, sizes, _ = np.linalg.svd(excluded.T, full_matrices=False)
        directions = directions[:, sizes > 1e-3]
        total = total - directions @ (directions.T @ total)
    length = float(np.linalg.norm(total))
    if not length > 1e-6 * float(np.abs(weights).sum()):
        raise ExpressionError(
            "the terms of the query cancel out, so nothing is left to search for; change a weight"
        )
    unit: NDArray[np.float32] = (total / length).astype(np.float32)
    return unit


def _spelt(text: str) -> str:
    """A term as it stands where it says what it is, else as a quoted text."""
    if _EXPLICIT.match(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Parser:
    def __init__(self, query: str) -> None:
        self._query, self._at = query, 0

    def terms(self) -> tuple[Term, ...]:
        found = []
        self._skip()
        sign = self._sign() or "+"
        while True:
            term = self._term(-1.0 if sign == "-" else 1.0)
            found.append(replace(term, excluded=True) if sign == "NOT" else term)
            if len(found) > MOST_TERMS:
                raise self._error(f"a query has at most {MOST_TERMS} terms")
            self._skip()
            if self._at == len(self._query):
                return tuple(found)
            next_sign = self._sign()
            if next_sign is None:
                raise self._error("expected +, - or NOT between spaces before the next term")
            sign = next_sign

    def _skip(self) -> None:
        while self._at < len(self._query) and self._query[self._at].isspace():
            self._at += 1

    def _sign(self) -> str | None:
        match = _SIGN.match(self._query, self._at)
        if match is None:
            return None
        self._at = match.end()
        self._skip()
        return match[1]

    def _term(self, sign: float) -> Term:
        weight, start = 1.0, self._at
        if match := _WEIGHT.match(self._query, self._at):
            self._at = match.end()
            weight = float(match[1])
            if not 0 < weight <= MOST_WEIGHT or not math.isfinite(weight):
                self._at = start
                raise self._error(
                    f"a weight must be above 0 and at most {MOST_WEIGHT:g}, got {match[1][:20]}"
                )
        kind: Literal["text", "image", "item"] = "text"
        if operand := _OPERAND.match(self._query, self._at):
            kind = "image" if operand[1] == "image" else "item"
            self._at = operand.end()
        begun = self._at
        value = self._value()
        if not value:
            self._at = begun
            raise self._error(f"expected {'a text' if kind == 'text' else 'a name after ' + kind + ':'}")
        if kind == "item" and not re.fullmatch(r"\d{1,18}", value, re.ASCII):
            self._at = begun
            raise self._error(f"item: expects the id of an image, a number, got {value[:40]!r}")
        return Term(kind=kind, value=value, weight=sign * weight)

    def _value(self) -> str:
        if self._query.startswith('"', self._at):
            match = _QUOTED.match(self._query, self._at)
            if match is None:
                raise self._error("this quote is not closed")
            self._at = match.end()
            return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL).strip()
        if _SIGN.match(self._query, self._at):
            return ""
        match = _NEXT.search(self._query, self._at)
        end = match.start() if match else len(self._query)
        value = self._query[self._at : end].strip()
        if '"' in value:
            self._at += self._query[self._at : end].index('"')
            raise self._error(
                "a quote within words; put the whole text in quotes, and \\ before a quote in it"
            )
        self._at = end
        return value

    def _error(self, problem: str) -> ExpressionError:
        before, here = self._query[max(0, self._at - _SHOWN) : self._at], self._query[self._at :][:_SHOWN]
        return ExpressionError(f"query, at character {self._at + 1}: {problem}. Here: {before}>>{here}<<")
