"""Base of corpora of container files: tars, zips, tables and videos, which hold many images each."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from llm2clip.common.files import data_home
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import printable
from llm2clip.indexer.records.record import Corpus, Record, describe_empty

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST_FILES = 1_000_000
EMPTY = "the file is empty"
"""The problem of a member without content."""
_MOST_EMPTY = 1000  # that are listed one by one


class Container(NamedTuple):
    """A file that holds images."""

    file: Path
    """The local file."""
    path: str
    """Its path below the root of the corpus, with forward slashes."""
    uri: str
    """Its path or URL, for messages."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The containers of a corpus."""

    root: str
    """Folder or URL that all of them are below."""
    pattern: str
    """The path, pattern or URL that names them, absolute."""
    names: Sequence[str]
    """Their absolute paths or URLs, in order."""
    local: Callable[[str], Path] = Path
    """Returns the local file of a name; a URL is downloaded, once."""
    fetched: Mapping[str, int] = field(default_factory=dict)
    """URL -> bytes, of those that ``local`` downloaded."""

    @classmethod
    def found(cls, spec: str, *, endings: frozenset[str], deep: bool = False) -> Files:
        """Files of a folder by their endings, or those that a path or brace range names.

        Endings are lower case with their dot; with ``deep``, folders in the folder are searched too.
        """
        place = os.path.abspath(os.path.expanduser(spec))
        if os.path.isdir(place):
            names = sorted(_inside(place, endings, deep))
            return cls(root=place, pattern=place, names=names)
        names = [place] if os.path.isfile(place) else list(dict.fromkeys(expand(place)))
        for name in names:
            if not os.path.isfile(name):
                what = "shard" if len(names) > 1 or name.endswith(".tar") else "file"
                of = f" (of {spec})" if len(names) > 1 else ""
                raise CorpusError(f"no such {what}: {name}{of}")
        root = os.path.commonpath([os.path.dirname(name) for name in names])
        return cls(root=root, pattern=place, names=names)

    def path(self, name: str) -> str:
        """The path of one of the ``names`` below the root, with forward slashes."""
        if "://" in name:
            return name.removeprefix(self.root).lstrip("/")
        return Path(name).relative_to(self.root).as_posix()

    def container(self, name: str) -> Container:
        """One of the ``names``; a URL is downloaded."""
        return Container(file=self.local(name), path=self.path(name), uri=name)


def _inside(folder: str, endings: frozenset[str], deep: bool) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.splitext(entry.name)[1].lower() in endings and entry.is_file():
                    yield entry.path
                elif deep and entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


class ContainerCorpus(Corpus):
    """Images of containers; the key of each is the path of the file, ``#`` and its place in it.

    Of a damaged file what comes before the damage is read; a record with a ``problem`` stands for the rest.
    """

    what: str
    """What a container is called in messages."""

    def __init__(self, spec: str, files: Files) -> None:
        super().__init__(spec, Path(files.root))
        self.files = files

    def identity(self) -> dict[str, str]:
        """What the manifest stores."""
        return {"kind": self.kind, "spec": self.spec, "root": self.files.root, "shards": self.files.pattern}

    def _list(self) -> Iterator[Record]:
        """All images, file by file, in their order."""
        self._restart()
        for name in self.files.names:
            done = empty = 0
            try:
                for record in self._inside(self.files.container(name)):
                    empty += record.problem == EMPTY
                    if record.problem != EMPTY or empty <= _MOST_EMPTY:
                        yield record
                        done += 1
            except Exception as error:  # a damaged container may make its reader raise anything
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
                reason = reason or type(error).__name__
                path = self.files.path(name)
                problem = f"{self.what} cannot be read after {done} images: {reason}"
                yield Record(key=printable(path), uri=printable(name), file=Path(name), problem=problem)
            else:
                if empty > _MOST_EMPTY:
                    key, uri = printable(self.files.path(name)), printable(name)
                    problem = f"{empty - _MOST_EMPTY:,} more images in it are empty"
                    yield Record(key=key, uri=uri, file=Path(name), problem=problem)
        if fetched := self.files.fetched:
            size = sum(fetched.values()) / 2**20
            self.read_notes.append(
                f"fetched {len(fetched):,} files ({size:,.1f} MB), kept in {data_home() / 'fetched'}"
            )

    @abstractmethod
    def _inside(self, container: Container) -> Iterator[Record]:
        """The images of a file."""

    @abstractmethod
    def _names(self, container: Container) -> Iterator[str]:
        """What a file holds, by ending or column, for ``explain_empty``."""

    def explain_empty(self) -> str:
        """What the files hold instead."""
        if not self.files.names:
            return f"no {self.what} in {self.spec}"
        found: Counter[str] = Counter()
        for name in self.files.names:
            with suppress(Exception):
                found.update(self._names(self.files.container(name)))
        return describe_empty(f"the {len(self.files.names)} shards of {self.spec}", found)


def member_problem(name: str, seen: set[int], *, size: int) -> str | None:
    """Why a member of an archive is no image, or has no name of its own; None if it may be one.

    Adds the name to ``seen``.
    """
    if name != printable(name):
        return "member name is not UTF-8"
    if hash(name) in seen:
        return "second member of this name"
    seen.add(hash(name))  # hashes, not names: an archive may have millions of members
    return None if size else EMPTY


def expand(pattern: str) -> list[str]:
    """Expand brace ranges and lists: ``a{08..10}.tar`` -> ``a08.tar``, ``a09.tar``, ``a10.tar``."""
    expanded = [pattern]
    while any(match := _RANGE.search(each) or _LIST.search(each) for each in expanded):
        grown: list[str] = []
        for each in expanded:
            match = _RANGE.search(each) or _LIST.search(each)
            parts = _parts(match) if match else [""]
            head, tail = (each[: match.start()], each[match.end() :]) if match else (each, "")
            grown += [f"{head}{part}{tail}" for part in parts]
        expanded = grown
        if len(expanded) > _MOST_FILES:
            raise CorpusError(f"{pattern} names more than {_MOST_FILES:,} shards")
    return expanded


def _parts(match: re.Match[str]) -> list[str]:
    if match.re is _LIST:
        return match[1].split(",")
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MOST_FILES:
        raise CorpusError(f"{match[0]} is not a range of shards: expected {{first..last}} like {{00..03}}")
    return [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
