"""The images of answers in a folder, as copies or links."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from llm2clip.common.files import counted, create_new
from llm2clip.common.terminal import escape_control
from llm2clip.indexer.core.index_paths import split_key

if TYPE_CHECKING:
    from llm2clip.indexer import Hit
    from llm2clip.retrieval.output.results import Answer

_NAME_BYTES = 150
"""Longest name of a file, of the 255 bytes that file systems allow."""


def copy_images(answers: Sequence[Answer], folder: Path, *, read_image: Callable[[Hit], bytes]) -> str:
    """Copy the images of all hits into a folder, named by rank; returns what was done, in words.

    Args:
        answers: Whose hits; with several, names begin with the number of the query.
        folder: A new or empty folder.
        read_image: The encoded image of a hit, as ``Searcher.read_image``; what cannot be read is left out.

    Raises:
        ValueError: The folder has files already.
        OSError: It cannot be written.
    """
    _make(folder)
    done = left = 0
    for name, hit in _named(answers):
        try:
            data = read_image(hit)
        except (OSError, ValueError):
            left += 1
            continue
        with create_new(folder / name) as file:
            file.write(data)
        done += 1
    return _said(f"{counted(done, 'image')} copied to {folder}", left, "cannot be read")


def link_images(answers: Sequence[Answer], folder: Path) -> str:
    """As ``copy_images``, with symbolic links to local files; what lies in a container or elsewhere is left out."""
    _make(folder)
    done = left = 0
    for name, hit in _named(answers):
        if "://" in hit.uri or not os.path.isfile(hit.uri):
            left += 1
            continue
        os.symlink(os.path.abspath(hit.uri), folder / name)
        done += 1
    return _said(f"{counted(done, 'image')} linked in {folder}", left, "is no file of its own: try --copy-to")


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.iterdir(), None) is not None:
        raise ValueError(
            f"{folder} has files already, and none is to be replaced: name a new or empty folder"
        )


def _named(answers: Sequence[Answer]) -> Iterator[tuple[str, Hit]]:
    """A name without folders for each hit, and the hit."""
    for number, answer in enumerate(answers, start=1):
        query = f"{number:03d}-" if len(answers) > 1 else ""
        for hit in answer.hits:
            own = escape_control(PurePath(split_key(hit.key)[1].replace("\\", "/")).name)
            while len(own.encode(errors="replace")) > _NAME_BYTES:
                own = own[1:]
            yield f"{query}{hit.rank:03d}-{own}", hit


def _said(done: str, left: int, why: str) -> str:
    return f"{done}; {left:,} left out: {'it' if left == 1 else 'each'} {why}" if left else done
