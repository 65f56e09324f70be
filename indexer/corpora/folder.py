"""A folder of images, with all folders below it."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, final

from llm2clip.common.files import counted
from llm2clip.indexer.containers.container import Container
from llm2clip.indexer.records.files import (
    VIDEOS,
    ending,
    image_endings,
    may_be_image,
    other_image_endings,
    printable,
    start_of,
    starts_like_image,
)
from llm2clip.indexer.records.record import Corpus, Record, describe_empty
from llm2clip.indexer.records.sidecars import Beside, sidecar_of

LISTS_BESIDE = ("metadata.jsonl", "metadata.csv")
"""Lists of captions in folders of images, as Hugging Face has them."""


def note_of_list(file: Path, *, first: str = "") -> str:
    """What is said of a list of captions that is not read; ``first`` has to be done before it can be."""
    name = printable(str(file))
    return f"captions in {name} were skipped: {first}index that file instead of the folder to include them"


_LITTER = frozenset(
    [
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "lost+found",
    ]
)
"""Folders of Synology, QNAP, macOS and Windows, in lower case: thumbnails and what was deleted."""
_THUMBNAILS = "SYNOPHOTO_THUMB"
"""How the names of Synology's thumbnails begin."""


class _Folder(NamedTuple):
    """A folder of the corpus."""

    path: Path
    below: str  # path below the root with a trailing slash; empty for the root
    names: list[str]  # of the files in it, sorted
    problem: str | None = None  # why it cannot be read


@final
class FolderCorpus(Corpus):
    """Images of a folder and the folders in it, by name, without hidden ones.

    A file ``name.txt`` or ``name.json`` beside an image ``name.*`` is its caption or metadata, see ``Beside``. A file
    whose ending says nothing is an image if its first bytes are those of one. Links to folders outside
    of the corpus are followed; no folder is read twice, so that loops end.
    Videos are skipped unless ``every``, the seconds between frames, is given. Folders that NAS systems, macOS and
    Windows make for themselves are left out, and what ``exclude`` names: patterns (``*``, ``?``) of names, or of paths
    below the root with forward slashes.
    """

    kind: Final = "folder"  # type: ignore[misc]

    def __init__(
        self, spec: str, root: Path, *, every: float | None = None, exclude: Sequence[str] = ()
    ) -> None:
        super().__init__(spec, root)
        self._exclude, self._litter = tuple(exclude), Counter[str]()
        self._every, self._start = every, f"{self.root}{os.sep}"
        self.within = self.root
        """Links to folders below this one are not followed: their images have keys of their own."""
        if every is not None:
            from llm2clip.indexer.containers.video import checked

            checked(every)

    def identity(self) -> dict[str, str]:
        """What the manifest stores."""
        every = {} if self._every is None else {"every": f"{self._every:g}"}
        return super().identity() | every | ({"exclude": "\n".join(self._exclude)} if self._exclude else {})

    def _list(self) -> Iterator[Record]:
        """All images, folder by folder, in order of their names."""
        self._restart()
        self._litter.clear()
        images = image_endings()
        for folder in self._folders():
            if folder.problem is not None:
                key, uri = printable(folder.below.rstrip("/")), printable(str(folder.path))
                yield Record(key=key, uri=uri, file=folder.path, problem=f"folder: {folder.problem}")
            beside = Beside(folder.names)
            for name in folder.names:
                kind = ending(name)
                if kind in images:
                    yield self._record(folder, name, beside)
                elif kind in VIDEOS and self._every is not None:
                    beside.of(name)
                    yield from self._frames(folder, name, self._every)
                elif kind in VIDEOS or kind in other_image_endings():
                    beside.of(name)
                    self.skipped[kind] += 1
                elif may_be_image(name) and starts_like_image(start_of(folder.path / name)):
                    yield self._record(folder, name, beside)
                elif folder.below and name.lower() in LISTS_BESIDE:
                    self.read_notes.append(note_of_list(folder.path / name))
            self._unclaimed(folder.below + name for name in beside.unused)
        if self._litter:
            count = self._litter.total()
            names = ", ".join(sorted(self._litter)[:4])
            self.read_notes.append(f"{counted(count, 'folder')} of other programs left out ({names})")

    def _folders(self) -> Iterator[_Folder]:
        seen: set[tuple[int, int]] = set()
        waiting = [(self.root, "")]  # no recursion: folders may be nested a thousand deep
        while waiting:
            path, below = waiting.pop()
            try:
                where = path.stat()
                if (where.st_dev, where.st_ino) in seen:
                    continue
                seen.add((where.st_dev, where.st_ino))
                with os.scandir(path) as entries:
                    visible = [
                        (each.name, is_folder)
                        for each in entries
                        if not each.name.startswith(".")
                        and not self._left_out(below, each.name, is_folder := each.is_dir())
                    ]
            except OSError as error:
                if not below:
                    raise
                yield _Folder(path, below, [], error.strerror or str(error))
                continue
            yield _Folder(path, below, sorted(name for name, is_folder in visible if not is_folder))
            for name in sorted((name for name, is_folder in visible if is_folder), reverse=True):
                inner = path / name
                if not (inner.is_symlink() and self._inside(inner)):
                    waiting.append((inner, f"{below}{name}/"))

    def _left_out(self, below: str, name: str, is_folder: bool) -> bool:
        """Whether a file or folder is litter of another program, or was excluded."""
        if is_folder and name.lower() in _LITTER:
            self._litter[name] += 1
            return True
        if not is_folder and name.startswith(_THUMBNAILS):
            return True
        return any(fnmatchcase(name, each) or fnmatchcase(below + name, each) for each in self._exclude)

    def _inside(self, link: Path) -> bool:
        """Whether a link leads to a folder that is listed anyway."""
        root, target = os.path.realpath(self.within), os.path.realpath(link)
        if target != root and not target.startswith(os.path.join(root, "")):
            return False
        return not any(
            part.startswith(".") for part in os.path.relpath(target, root).split(os.sep) if part != "."
        )

    def _record(self, folder: _Folder, name: str, beside: Beside) -> Record:
        # An update without changes consists of this, so it does no more than it must.
        file, key = folder.path / name, folder.below + name
        uri = f"{self._start}{key}"
        if not key.isascii() and key != (shown := printable(key)):
            return Record(key=shown, uri=shown, file=file, problem="file name is not UTF-8: rename it")
        try:
            found = os.stat(uri)
        except OSError as error:
            reason = "broken link" if file.is_symlink() else str(error.strerror or error)
            return Record(key=key, uri=uri, file=file, problem=reason)
        if not stat.S_ISREG(found.st_mode):
            return Record(key=key, uri=uri, file=file, problem="not a regular file")
        stamp, describe = None, None
        if beside:
            stamp, describe = sidecar_of(folder.path, name, beside, root=self.root)
        return Record(
            key=key,
            uri=uri,
            file=file,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            sidecars=stamp,
            describe=describe,
        )

    def _frames(self, folder: _Folder, name: str, every: float) -> Iterator[Record]:
        from llm2clip.indexer.containers.video import frames_of

        file, key = folder.path / name, printable(folder.below + name)
        try:
            yield from frames_of(Container(file, key, f"{self.root}{os.sep}{key}"), every=every)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield Record(key=key, uri=str(file), file=file, problem=f"video cannot be read: {reason}")

    def explain_empty(self) -> str:
        """What the folder holds instead."""
        names = (name for folder in self._folders() for name in folder.names)
        endings = Counter(ending(name) for name in islice(names, 100_000))
        found = describe_empty(str(self.root), endings, empty="the folder is empty")
        note = self.skipped_note()
        return f"{found}; {note}" if note else found
