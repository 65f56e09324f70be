"""What tells two encoders of the same weights apart: one hash over everything else that shapes their vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_FOR_PEOPLE = frozenset(
    {
        "__version__",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
    }
)
"""Entries of a model's ``config.json`` that say where it came from, not what it computes."""
_SAMPLES, _SAMPLE = 64, 4096
"""How many places of a large file are looked at, and bytes of each."""


def settings_sha256(settings: Mapping[str, Any], *, files: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal, of settings and of files such as a tokenizer.

    Args:
        settings: What JSON can hold; the order of keys does not count. Leave out what is only for people.
        files: Read whole; their names count, their folder does not.

    Raises:
        OSError: A file cannot be read.
    """
    contents = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    canonical = json.dumps({"settings": settings, "files": contents}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def without_origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as transformers and its kin store them, without what says where a model came from."""
    return {
        key: without_origin(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in _FOR_PEOPLE
    }


def sampled_sha256(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's size and of samples all over it; gigabytes take milliseconds.

    Training changes every matrix of a model, so two of the same shapes differ in some sample. A file that was altered
    in one place on purpose may not; where that matters, hash the whole.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
