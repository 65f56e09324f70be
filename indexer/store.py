"""An index folder as a place: which file is whose, who writes, what was left unfinished, how a change is committed.

    manifest.json                  names every file below; replaced in one step by each commit
    items-00001.db                 one SQLite row per picture
    vectors-00001-00000.npy        float16 rows; the row number is the id
    candidates-00001.faiss         derived from the vectors
    lock                           held while something writes

Names carry the generation that wrote them. Files that the manifest does not name belong to a
build that has not finished: the next build takes their vectors over, and deletes them when it has committed.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import IO, Any

from llm2clip.indexer.errors import IndexConflictError, IndexerError
from llm2clip.indexer.items import ItemsReader
from llm2clip.indexer.manifest import FORMAT, MANIFEST, read_manifest
from llm2clip.indexer.records import printable

LOCK = "lock"
_OURS = re.compile(r"(?:items-(\d{5,})\.db|vectors-(\d{5,})-\d{5,}\.npy|candidates-(\d{5,})\.faiss)")
_DRAFTS = (f"{MANIFEST}.tmp",)
_LITTER = ("Thumbs.db", "desktop.ini")  # of file managers


def items_name(generation: int) -> str:
    """File name of the items of a generation."""
    return f"items-{generation:05d}.db"


def faiss_name(generation: int) -> str:
    """File name of the FAISS index of a generation."""
    return f"candidates-{generation:05d}.faiss"


def generation_of(name: str) -> int | None:
    """Which generation a file belongs to; None if it is no file of an index."""
    match = _OURS.fullmatch(re.sub(r"-(?:journal|wal|shm)$", "", name))
    return int(next(group for group in match.groups() if group)) if match else None


def unfinished(folder: Path, *, after: int = 0) -> list[int]:
    """Generations later than ``after`` that left an items file, in order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = {generation_of(name) for name in names if name.endswith(".db")}
    return sorted(number for number in found if number is not None and number > after)


def describe_unfinished(folder: Path) -> str | None:
    """One sentence about a build that was never finished, and how to finish it; None if there is none."""
    generations = unfinished(folder)
    if not generations:
        return None
    for generation in reversed(generations):
        with (
            suppress(IndexerError),
            closing(ItemsReader(folder / items_name(generation))) as items,
        ):
            corpus, encoder = read_meta(items, "corpus")["spec"], read_meta(items, "encoder_source")
            return (
                f"the index at {folder} is not finished: {items.count():,} pictures so far. "
                f"Go on with: llm2clip-index build {quote(corpus)} --index {quote(str(folder))} "
                f"--encoder {quote(encoder)}"
            )
    return f"the index at {folder} is not finished. Go on with the command that began it"


def remove_generations(folder: Path, *, keep: frozenset[str]) -> None:
    """Delete the files of an index that are not among ``keep``; those that cannot be deleted are left."""
    for name in os.listdir(folder):
        if name not in keep and (generation_of(name) is not None or name in _DRAFTS):
            with suppress(
                OSError
            ):  # on Windows a reader may hold an old file open: the next commit tries again
                os.unlink(folder / name)


def remove_generation(folder: Path, generation: int) -> None:
    """Delete the files of one generation."""
    others = (name for name in os.listdir(folder) if generation_of(name) != generation)
    remove_generations(folder, keep=frozenset(others))


def recorded_encoder(folder: Path) -> str | None:
    """What ``load_encoder`` was given for the index in ``folder``, finished or not; None if there is none."""
    with suppress(IndexerError):
        return read_manifest(folder).encoder_source
    for generation in reversed(unfinished(folder)):
        with suppress(IndexerError), closing(ItemsReader(folder / items_name(generation))) as items:
            return str(read_meta(items, "encoder_source"))
    return None


def claim(folder: Path) -> bool:
    """Make ``folder`` if needed, and refuse one that holds anything but an index. Returns whether it was made.

    Raises:
        IndexConflictError: there are other files in it, or it is a file.
        OSError: it cannot be made.
    """
    if printable(str(folder)) != str(folder):
        raise IndexConflictError(
            f"{printable(str(folder))} is no name for an index: it is not UTF-8. Choose another with --index"
        )
    try:
        os.makedirs(folder)
        return True
    except FileExistsError:
        if not folder.is_dir():
            raise IndexConflictError(f"{folder} is a file: expected a folder for the index") from None
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    known = {LOCK, *_DRAFTS, *_LITTER}
    if _is_ours(folder / MANIFEST) or any(generation_of(name) for name in names):
        known.add(MANIFEST)
    foreign = sorted(name for name in names if name not in known and generation_of(name) is None)
    if foreign and not _is_ours(folder / MANIFEST):
        raise IndexConflictError(
            f"{folder} holds other files ({foreign[0]}, ...): expected an index, an empty folder or none. "
            "Choose another place with --index"
        )
    return False


def _is_ours(manifest: Path) -> bool:
    try:
        return f'"{FORMAT}"' in manifest.read_text("utf-8", "replace")
    except OSError:
        return False


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock of an index while it is written. It goes with the process, however that ends.

    Raises:
        IndexConflictError: another process holds it.
    """
    with open(folder / LOCK, "a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                yield  # a file system without locks
                return
            raise IndexConflictError(
                f"another process is writing {folder}: wait for it, or stop it, then run the command again"
            ) from error
        yield


def _lock(file: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        locking: Any = msvcrt
        file.seek(0)
        locking.locking(file.fileno(), locking.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def encoder_mismatch(built: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """What is different between two encoder identities, as the end of a sentence; None if they are the same.

    The name is for people: a folder may be moved and renamed.
    """
    keys = built.keys() | given.keys()
    different = sorted(key for key in keys - {"name"} if built.get(key) != given.get(key))
    if not different:
        return None
    if built.get("name") != given.get("name") or built.get("dim") != given.get("dim"):
        return (
            f"was built with encoder '{built.get('name')}' (dim {built.get('dim')}), "
            f"got '{given.get('name')}' (dim {given.get('dim')})"
        )
    details = "; ".join(
        f"{name} {_short(name, built.get(name))}, got {_short(name, given.get(name))}" for name in different
    )
    return f"was built with another version of encoder '{built.get('name')}' ({details})"


def _short(name: str, value: Any) -> str:  # noqa: ANN401
    return str(value)[:12] if name.endswith("sha256") else str(value)


def read_meta(items: ItemsReader, name: str) -> Any:  # noqa: ANN401
    """An entry of the ``meta`` table that holds JSON.

    Raises:
        IndexerError: it is not there.
    """
    try:
        return json.loads(items.meta[name])
    except (KeyError, ValueError) as error:
        raise IndexerError(f"{items.path} has no {name}") from error
