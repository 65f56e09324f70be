"""``delete_index``: delete an index, and nothing else that lies in its folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from llm2clip.indexer.core.errors import IndexNotFoundError, IndexWriteError
from llm2clip.indexer.core.index_paths import generation_of
from llm2clip.indexer.storage.index_folder import is_manifest, items_files
from llm2clip.indexer.storage.lock import LOCK, lock
from llm2clip.indexer.storage.manifest import MANIFEST


def index_files(path: str | os.PathLike[str]) -> dict[str, int]:
    """Name -> bytes of the files of the index in a folder, the manifest first; files of others are left out.

    Raises:
        IndexNotFoundError: there is no index, finished or not.
    """
    folder = Path(path).expanduser().absolute()
    if not is_manifest(folder / MANIFEST) and not items_files(folder):
        raise IndexNotFoundError(f"no index at {folder}: nothing was deleted. See  llm2clip-index list")
    names = [name for name in os.listdir(folder) if generation_of(name) is not None]
    names += [name for name in (f"{MANIFEST}.tmp",) if (folder / name).exists()]
    if is_manifest(folder / MANIFEST):
        names.insert(0, MANIFEST)
    return {name: os.lstat(folder / name).st_size for name in names}


def delete_index(path: str | os.PathLike[str]) -> int:
    """Delete an index; returns the bytes that were freed. Its images, and other files in the folder, stay.

    Raises:
        IndexNotFoundError: there is no index, finished or not.
        IndexConflictError: another process writes it.
        IndexWriteError: a file cannot be deleted.
    """
    folder = Path(path).expanduser().absolute()
    files = index_files(folder)
    with lock(folder):
        files = index_files(folder)
        for name in files:
            try:
                os.unlink(folder / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise IndexWriteError(f"cannot delete {folder / name}: {error.strerror or error}") from error
    with suppress(OSError):
        os.unlink(folder / LOCK)
        folder.rmdir()
    return sum(files.values())
