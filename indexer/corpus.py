"""What ``llm2clip-index build CORPUS`` may be given, and which reader reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llm2clip.indexer.containers import expand
from llm2clip.indexer.errors import CorpusError
from llm2clip.indexer.folders import FolderCorpus
from llm2clip.indexer.location import SAMPLE
from llm2clip.indexer.records import Corpus, ending, picture_endings
from llm2clip.indexer.shards import SampleCorpus, TarCorpus

_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


def open_corpus(spec: str | os.PathLike[str]) -> Corpus:
    """Find out what ``spec`` names.

    Args:
        spec: a folder of pictures (with everything below it), a tar, a folder of tars, a brace range of tars like
            ``shards/{00..03}.tar``, or ``sample:``.

    Raises:
        CorpusError: it is none of these, or does not exist.
    """
    given = os.fspath(spec)
    if given == SAMPLE:
        return SampleCorpus()
    path = Path(given).expanduser()
    if path.is_dir():
        return _folder(given, path)
    kind = ending(path.name)
    if path.exists() and kind in picture_endings():
        raise CorpusError(f"{given} is a single picture: expected the folder it is in, or tar shards")
    if path.exists() and kind != ".tar" and kind not in _PACKED:
        raise CorpusError(f"{given} is neither a folder of pictures nor a .tar of them")
    if not path.exists() and len(expand(given)) == 1:
        raise CorpusError(f"no such folder or tar: {given}")
    return TarCorpus(given)


def reopen_corpus(identity: Mapping[str, str]) -> Corpus:
    """The corpus whose ``Corpus.identity`` an index stores, wherever the command now runs.

    Raises:
        CorpusError: it is no longer there.
    """
    if identity["kind"] == SampleCorpus.kind:
        return SampleCorpus()
    if identity["kind"] == TarCorpus.kind:
        return TarCorpus(identity["shards"])
    return FolderCorpus(identity["spec"], Path(identity["root"]))


def _folder(given: str, path: Path) -> Corpus:
    """Tars if the folder holds some and no picture, else its pictures."""
    folder = FolderCorpus(given, Path(os.path.abspath(path)))
    tars = [tar.name for tar in path.glob("*.tar") if not tar.name.startswith(".")]
    if tars and next(folder.records(captions=False), None) is None:
        return TarCorpus(given)
    if tars:
        folder.notes.append(
            f"{len(tars)} tar files in {given} were not read, since there are pictures beside them"
        )
    return folder
