"""Patterns of LIKE, CONTAINS and GLOB on whole texts, in time that grows with the text alone."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache

Test = Callable[[str], bool]
"""Whether a character matches one place of a pattern."""
Piece = tuple["str | Test", ...]
"""What a pattern has between two of its stars: literal characters, and tests of others."""


def folded(text: str) -> str:
    """A text case-folded and in Unicode normal form C: ß is ss, and e with a combining accent one character."""
    return text.lower() if text.isascii() else normal(normal(text).casefold())


def normal(text: str) -> str:
    """A text in Unicode normal form C."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def text_of(value: object) -> str:
    """A value of the metadata as LIKE, CONTAINS and GLOB read it: JSON text, TRUE and FALSE as 1 and 0."""
    return value if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=512)
def like_matcher(pattern: str) -> Test:
    """Whether a whole text matches a LIKE pattern; both were folded before."""
    pieces: list[list[str | Test]] = [[]]
    place = 0
    while place < len(pattern):
        char = pattern[place]
        if char == "\\" and place + 1 < len(pattern):
            place += 1
            pieces[-1].append(pattern[place])
        elif char == "%":
            pieces.append([])
        else:
            pieces[-1].append(_any if char == "_" else char)
        place += 1
    return _matcher([tuple(piece) for piece in pieces])


@lru_cache(maxsize=512)
def glob_matcher(pattern: str) -> Test:
    """Whether a whole text matches a GLOB pattern.

    Raises:
        ValueError: a bracket in it is never closed.
    """
    pieces: list[list[str | Test]] = [[]]
    place = 0
    while place < len(pattern):
        char = pattern[place]
        if char == "[":
            # A bracket that comes first is one of the characters.
            first = place + 1 + pattern.startswith("^", place + 1)
            end = pattern.find("]", first + 1)
            if end < 0:
                raise ValueError(f"the [ at character {place + 1} of the pattern is never closed by ]")
            pieces[-1].append(_one_of(pattern[first:end], negative=first > place + 1))
            place = end
        elif char == "*":
            pieces.append([])
        else:
            pieces[-1].append(_any if char == "?" else char)
        place += 1
    return _matcher([tuple(piece) for piece in pieces])


def _any(char: str) -> bool:
    return bool(char)


def _one_of(written: str, *, negative: bool) -> Test:
    """A test of what stands in brackets: characters, and ranges such as a-z."""
    singles, ranges, place = set[str](), list[tuple[str, str]](), 0
    while place < len(written):
        if written[place + 1 : place + 2] == "-" and place + 2 < len(written):
            ranges.append((written[place], written[place + 2]))
            place += 3
        else:
            singles.add(written[place])
            place += 1

    def test(char: str) -> bool:
        return (char in singles or any(low <= char <= high for low, high in ranges)) != negative

    return test


def _matcher(pieces: list[Piece]) -> Test:
    """Whether a whole text is these pieces with anything between them: the first match of a piece is as good as any."""
    if len(pieces) == 1:
        return lambda text: len(text) == len(pieces[0]) and _stands(pieces[0], text, 0)
    first, *between, last = pieces
    finders = [_finder(piece) for piece in between if piece]

    def matches(text: str) -> bool:
        end = len(text) - len(last)
        place = len(first)
        if place > end or not _stands(first, text, 0) or not _stands(last, text, end):
            return False
        for find in finders:
            place = find(text, place, end)
            if place < 0:
                return False
        return True

    return matches


def _stands(piece: Piece, text: str, place: int) -> bool:
    """Whether a piece stands at a place of a text that is long enough."""
    return all(
        each == text[at] if isinstance(each, str) else each(text[at]) for at, each in enumerate(piece, place)
    )


def _finder(piece: Piece) -> Callable[[str, int, int], int]:
    """Finds the end of the first match of a piece in a part of a text; -1 without one."""
    literal = [each for each in piece if isinstance(each, str)]
    if len(literal) == len(piece):
        return _literal_finder("".join(literal))
    full = 1 << (len(piece) - 1)

    @cache
    def places(char: str) -> int:
        return sum(
            1 << at
            for at, each in enumerate(piece)
            if (each == char if isinstance(each, str) else each(char))
        )

    def find(text: str, start: int, end: int) -> int:
        # Bit i: the first i + 1 places of the piece match the characters up to here.
        state = 0
        for at in range(start, end):
            state = ((state << 1) | 1) & places(text[at])
            if state & full:
                return at + 1
        return -1

    return find


def _literal_finder(literal: str) -> Callable[[str, int, int], int]:
    """Finds the end of a literal text."""

    def find(text: str, start: int, end: int) -> int:
        found = text.find(literal, start, end)
        return found + len(literal) if found >= 0 else -1

    return find
