"""Files of the Hugging Face hub: from its cache, from the hub, or a message that says how to bring them here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm2clip.encoders.errors import ModelError

SAFETENSORS = "model.safetensors"
"""The usual file of weights."""
PICKLED = "pytorch_model.bin"
"""What stands in for it in older repositories; read with ``weights_only``, so no code in it runs."""

_WHOLE = 40
"""Digits of a commit; a shorter one cannot be asked for."""


def fetch(repository: str, *, files: Sequence[str], name: str, revision: str = "", place: str = "") -> Path:
    """The folder of a repository in the hub's cache, downloaded if it is not there.

    Args:
        repository: ``owner/name``.
        files: What is needed of it; ``*`` as in a shell. ``pytorch_model.bin`` stands in for ``model.safetensors``.
        name: What the encoder is called.
        revision: Commit; fewer than 40 digits, or none, mean the newest.
        place: Folder to tell people to put the files in; ``name`` if empty.

    Raises:
        ModelError: The files are not here and cannot be downloaded; the message says how to bring them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    commit = revision if len(revision) == _WHOLE else "main"
    older = [PICKLED if file == SAFETENSORS else file for file in files]
    reason = "download incomplete"
    # What is cached first, without asking the hub; then the hub, and its older file format only if need be.
    for wanted, cached in (([*files, PICKLED], True), (list(files), False), (older, False)):
        try:
            folder = Path(
                snapshot_download(repository, revision=commit, allow_patterns=wanted, local_files_only=cached)
            )
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            continue
        if absent := missing_files(folder, files):
            reason = f"{repository} has no {', '.join(absent)}"
            continue
        return folder
    include = " ".join(f"--include '{file}'" for file in files)
    raise ModelError(
        f"{name} is not on this machine (looked in {HF_HUB_CACHE}) and could not be downloaded: {reason}. "
        f"It needs {', '.join(files)} from {repository} at revision {commit}. Where there is internet, run: "
        f"hf download {repository} --revision {commit} --local-dir {place or name} {include}; "
        f"then copy the folder here and give its path as the encoder, for example ./{name}. "
        "The encoder nano needs no download"
    )


def missing_files(folder: Path, files: Sequence[str]) -> list[str]:
    """Which of the files are not in a folder."""
    return [
        file
        for file in files
        if not any(folder.glob(file)) and not (file == SAFETENSORS and (folder / PICKLED).is_file())
    ]
