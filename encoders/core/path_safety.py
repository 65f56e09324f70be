"""Where a file really lies: a model's folder may have come from anybody, and its links may point anywhere."""

from __future__ import annotations

from pathlib import Path

from llm2clip.encoders.core.errors import ModelError

_POINTER = b"version https://git-lfs"
"""How a note begins that Git LFS leaves in the place of a large file."""


def refuse_outside(path: Path, *, folder: Path | None = None) -> None:
    """Raise ``ModelError`` where a file is a link, or lies behind one, that leads out of the model's folder.

    The cache of the Hugging Face hub is let through: its ``snapshots`` are links to the ``blobs`` beside them.

    Args:
        path: A file of the model; it need not exist.
        folder: The model's folder, if the file lies deeper; its parent otherwise. It may itself be a link, as
            whoever named it chose it.
    """
    home, target = (folder or path.parent).resolve(), path.resolve()
    blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
    if not any(target.is_relative_to(place) for place in (home, *blobs)):
        raise ModelError(f"{path} is a link that leads out of its folder, to {target}; put the file there")


def refuse_pointer(path: Path) -> None:
    """Refuse what a clone without Git LFS has in the place of a large file.

    Raises:
        ModelError: It is such a note.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if start == _POINTER:
        raise ModelError(
            f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull in the clone, or download the file"
        )
