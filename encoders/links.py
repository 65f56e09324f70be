"""Where a file really lies: a model's folder may have come from anybody, and its links may point anywhere."""

from __future__ import annotations

from pathlib import Path

from llm2clip.encoders.errors import ModelError


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
