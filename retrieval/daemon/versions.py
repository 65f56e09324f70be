"""Whether the code on the disk is still what this process runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_AREAS = ("common", "encoders", "indexer", "retrieval")


def file_times() -> dict[str, int]:
    """When our sources, and the folders that packages are installed to, were changed last: path to nanoseconds."""
    found = {}
    for place in filter(os.path.isdir, sys.path):
        found[place] = os.stat(place).st_mtime_ns
    root = Path(__file__).parents[2]
    waiting = [str(root / area) for area in _AREAS]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        waiting.append(entry.path)
                elif entry.name.endswith((".py", ".html", ".toml")):
                    found[entry.path] = entry.stat().st_mtime_ns
    return found
