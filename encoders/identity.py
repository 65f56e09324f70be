"""What tells two encoders of the same weights apart: one hash over everything else that shapes their vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


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
