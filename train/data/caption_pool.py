"""All groups of captions in memory, compactly: texts as UTF-8 one behind the other, so that millions fit."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llm2clip.train.data.captions import Caption, CaptionFileError, CaptionGroup, SkipReport


class CaptionPool:
    """Groups by number, in the order in which they were read.

    A group whose key its source has had before is left out and counted: two groups of one image in a batch would count
    each other's captions as wrong.
    """

    def __init__(
        self, groups: Iterable[CaptionGroup], *, least: int = 2, report: SkipReport | None = None
    ) -> None:
        """Take over groups of at least ``least`` captions; ``CaptionFileError`` if there is none."""
        self._blob = bytearray()
        self._ends, self._tags = array("q"), array("i")
        """Of each text: where it ends in the blob, and number of its language, kind or part."""
        self._stops, self._of = array("q"), array("i")
        """Of each group: number of the text behind its last, and of its source."""
        self._tag_names: dict[tuple[str | None, str], int] = {}
        self._source_names: dict[str, int] = {}
        report = report or SkipReport()
        seen: set[int] = set()
        for group in groups:
            if len(group.captions) < least:
                report.skip(f"fewer than {least} captions", group.key)
                continue
            name = hash((group.source, group.key))
            if name in seen:
                report.skip("key twice in one source", group.key)
                continue
            seen.add(name)
            self._add(group)
        if not self._of:
            reasons = "; ".join(report.lines())
            raise CaptionFileError(
                f"no group of at least {least} captions to train on{f': {reasons}' if reasons else ''}"
            )
        self._tag_list = list(self._tag_names)
        self.sources = tuple(self._source_names)
        """Names of the sources, in the order in which they came."""

    def __len__(self) -> int:
        return len(self._of)

    @property
    def texts(self) -> int:
        """Number of captions, negatives not counted."""
        tags = np.frombuffer(self._tags, np.int32)
        named = np.array([kind not in (_KEY, _NEGATIVE) for _, kind in self._tag_list])
        return int(named[tags].sum())

    def __getitem__(self, number: int) -> CaptionGroup:
        """The group of that number, from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"group {number} of {len(self)}")
        start = self._stops[number - 1] if number else 0
        key, negatives = "", []
        captions = []
        for place in range(start, self._stops[number]):
            language, kind = self._tag_list[self._tags[place]]
            text = self._blob[self._ends[place - 1] if place else 0 : self._ends[place]].decode()
            if kind == _KEY:
                key = text
            elif kind == _NEGATIVE:
                negatives.append(text)
            else:
                captions.append(Caption(text, language, kind))
        return CaptionGroup(key, tuple(captions), self.sources[self._of[number]], tuple(negatives))

    def of_source(self, name: str) -> NDArray[np.int64]:
        """Numbers of a source's groups. Shape: (groups,)."""
        return np.flatnonzero(np.frombuffer(self._of, np.int32) == self._source_names[name])

    def _add(self, group: CaptionGroup) -> None:
        self._append(group.key, (None, _KEY))
        for caption in group.captions:
            self._append(caption.text, (caption.language, caption.kind))
        for text in group.negatives:
            self._append(text, (None, _NEGATIVE))
        self._stops.append(len(self._ends))
        self._of.append(self._source_names.setdefault(group.source, len(self._source_names)))

    def _append(self, text: str, tag: tuple[str | None, str]) -> None:
        self._blob += text.encode()
        self._ends.append(len(self._blob))
        self._tags.append(self._tag_names.setdefault(tag, len(self._tag_names)))


_KEY, _NEGATIVE = "\0key", "\0negative"
