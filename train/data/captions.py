"""Captions of one image as a group, and the account of what could not be used."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

FIRST_NAMES = 3
"""How many of those skipped for one reason are named."""
MOST_CHARACTERS = 100_000
"""A longer text is no caption."""


class CaptionFileError(ValueError):
    """A file of captions cannot be used."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One text about an image."""

    text: str
    language: str | None = None
    """Code such as ``en``, if the file says."""
    kind: str = ""
    """What sort it is, if the file says: ``short``, ``long``, ``raw``, ``query``, ``positive``, ``human_written``."""


@dataclass(frozen=True, slots=True)
class CaptionGroup:
    """Texts that mean the same: the captions of one image, or a query and its answers."""

    key: str
    """Name of the image, or of the row."""
    captions: tuple[Caption, ...]
    source: str = ""
    """Data set it comes from; a batch is of one source."""
    negatives: tuple[str, ...] = ()
    """Texts that look alike and mean something else (hard negatives)."""


@dataclass
class SkipReport:
    """What was read and what was not, by reason."""

    groups: int = 0
    """Groups that were read."""
    captions: int = 0
    """Their captions."""
    counts: Counter[str] = field(default_factory=Counter)
    """Reason -> how many."""
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> the first of them."""

    def skip(self, reason: str, name: str) -> None:
        """Count one that is skipped."""
        self.counts[reason] += 1
        if len(self.names[reason]) < FIRST_NAMES and name not in self.names[reason]:
            self.names[reason].append(name)

    def lines(self) -> list[str]:
        """What was skipped, one line per reason; empty if nothing was."""
        return [
            f"skipped {count:,}: {reason} ({', '.join(self.names[reason])}{', ...' if count > FIRST_NAMES else ''})"
            for reason, count in self.counts.most_common()
        ]


def checked_text(value: object) -> tuple[str, str]:
    """A text without surrounding white space, and why it cannot be used (empty if it can)."""
    if value is None:
        return "", "empty caption"
    if not isinstance(value, str):
        return "", f"caption is no text but {type(value).__name__}"
    text = value.strip()
    if not text:
        return "", "empty caption"
    if len(text) > MOST_CHARACTERS:
        return "", f"caption over {MOST_CHARACTERS:,} characters"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "", "caption is not valid Unicode"
    return text, ""
