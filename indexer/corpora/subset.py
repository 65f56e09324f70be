"""Single images, and subfolders, of a corpus that an index has already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, final

from llm2clip.indexer.corpora.folder import FolderCorpus
from llm2clip.indexer.corpora.list_file import ListedCorpus
from llm2clip.indexer.records.record import Corpus, Record
from llm2clip.indexer.records.tabular import Row


@final
class PathListCorpus(ListedCorpus):
    """Images given by path; those below the root of a source have the keys of that source.

    With ``missing``, missing images are problems; otherwise they are skipped.
    """

    kind: Final = "named"  # type: ignore[misc]

    def __init__(
        self, paths: Callable[[], Iterable[str]], *, source: Mapping[str, str], missing: bool = True
    ) -> None:
        super().__init__(source["spec"], source["root"])
        self._paths, self._source, self._missing = paths, dict(source), missing

    def _rows(self) -> Iterator[Row]:
        for number, path in enumerate(self._paths(), 1):
            whole = path if "://" in path else os.path.join(self._source["root"], path)
            if self._missing or "://" in whole or os.path.exists(whole):
                yield Row(line=number, path=whole)

    @property
    def folders_are_there(self) -> bool:
        """Whether the folder of one of the images exists; none does if a disk is not mounted."""
        folders = {os.path.dirname(os.path.join(self._source["root"], path)) for path in self._paths()}
        return any(os.path.isdir(folder) for folder in folders)

    def identity(self) -> dict[str, str]:
        """The source of the images."""
        return self._source


@final
class SubfolderCorpus(Corpus):
    """A folder inside a source of an index: its images with the keys of that source."""

    kind: Final = "part"  # type: ignore[misc]

    def __init__(self, inner: Corpus, *, source: Mapping[str, str]) -> None:
        super().__init__(inner.spec, inner.root)
        self._inner, self._source, self.notes = inner, dict(source), inner.notes
        if isinstance(inner, FolderCorpus):
            inner.within = Path(source["root"])
        self._below = os.path.relpath(inner.root, source["root"]).replace(os.sep, "/")

    def _list(self) -> Iterator[Record]:
        """All images of the folder."""
        for record in self._inner.listing():
            yield replace(record, key=f"{self._below}/{record.key}".rstrip("/"))
        self.skipped = self._inner.skipped

    def explain_empty(self) -> str:
        """What the folder holds instead."""
        return self._inner.explain_empty()

    def identity(self) -> dict[str, str]:
        """The source of the images."""
        return self._source
