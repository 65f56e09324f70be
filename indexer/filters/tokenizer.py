"""Tokens of a filter, and the error that points at one of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from llm2clip.indexer.core.errors import IndexerError

MAX_LENGTH = 20_000
"""Maximum length of a filter."""
_SHOWN = 24


class WhereError(IndexerError):
    """A filter that is not valid or cannot be run.

    Args:
        problem: What is wrong, without the position.
        text: The whole filter.
        start: Where its invalid part begins, in characters from 0.
        end: Where that part ends, exclusive.
    """

    def __init__(self, problem: str, *, text: str, start: int, end: int) -> None:
        self.problem, self.text, self.start, self.end = problem, text, start, end
        super().__init__(f"filter, at character {start + 1}: {problem}. Here: {self._marked()}")

    def _marked(self) -> str:
        before, after = self.text[max(0, self.start - _SHOWN) : self.start], self.text[self.end :]
        before = ("..." if self.start > _SHOWN else "") + before
        after = after[:_SHOWN] + ("..." if len(after) > _SHOWN else "")
        return f"{before}>>{self.text[self.start : self.end][: 4 * _SHOWN]}<<{after}"

    def pointer(self) -> str:
        """The filter, with carets below the invalid part."""
        return f"{self.text}\n{' ' * self.start}{'^' * max(1, self.end - self.start)}"


class Kind(StrEnum):
    """Type of a token."""

    WORD = "a word"
    NAME = "a name"
    TEXT = "text"
    NUMBER = "a number"
    SIGN = "a sign"
    END = "the end"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a filter and its position."""

    kind: Kind
    value: str
    """As written; a quoted name or text without its quotes; empty at the end."""
    start: int
    """In characters from 0."""
    end: int
    """After its last character."""
    unit: str = ""
    """Letters after a number, lower case: ``mb`` in ``2MB``."""

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these words, which are given in capitals."""
        return self.kind is Kind.WORD and self.value.upper() in words

    def is_sign(self, *signs: str) -> bool:
        """Whether it is one of these signs."""
        return self.kind is Kind.SIGN and self.value in signs


_PATTERN = re.compile(
    r"""\s*(?:
    (?P<text>'(?:[^']|'')*')
    |(?P<name>"(?:[^"]|"")*")
    |(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?P<unit>[^\W\d_]*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|[=<>(),.\[\]])
    |(?P<end>\Z)
    )""",
    re.VERBOSE,
)


def tokens(text: str) -> list[Token]:
    """The tokens of a filter; the last one is its end."""
    if len(text) > MAX_LENGTH:
        raise WhereError(
            f"a filter has at most {MAX_LENGTH:,} characters, got {len(text):,}",
            text=text,
            start=MAX_LENGTH,
            end=MAX_LENGTH + 1,
        )
    found: list[Token] = []
    place = 0
    while not found or found[-1].kind is not Kind.END:
        match = _PATTERN.match(text, place)
        if match is None:
            raise _stray(text, place)
        found.append(_token(match))
        place = match.end()
    return found


def _token(match: re.Match[str]) -> Token:
    kind = match.lastgroup or "end"
    if kind == "unit":
        start, unit = match.start("number"), match["unit"].lower()
        return Token(Kind.NUMBER, match["number"], start, match.end(), unit)
    value = match[kind]
    if kind in ("text", "name"):
        value = value[1:-1].replace(value[0] * 2, value[0])
    return Token(Kind[kind.upper()], value, match.start(kind), match.end())


def _stray(text: str, place: int) -> WhereError:
    start = place + len(text[place:]) - len(text[place:].lstrip())
    char = text[start]
    if char in "'\"":
        problem = f"the quote {char} is never closed (a quote inside is written twice)"
        return WhereError(problem, text=text, start=start, end=len(text))
    if char in "‘’“”`":
        problem = f"expected a straight quote ', got {char}"
    elif (straight := unicodedata.normalize("NFKC", char)) != char and straight in "<>=!(),.[]":
        problem = f"expected {straight!r}, got {char!r}, which is a look-alike character"
    elif char in "&|":
        problem = f"expected AND, OR or NOT in words, got {char}"
    else:
        problem = f"{char!r} has no meaning in a filter; write text in quotes: 'like this'"
    return WhereError(problem, text=text, start=start, end=start + 1)


def nearest(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'width'?`` if one of the known words is similar, else empty."""
    from difflib import get_close_matches

    close = get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    return f"; did you mean '{close[0]}'?" if close else ""
