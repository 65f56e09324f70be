"""Indexes as a stranger may make them: any content, under the right checksums."""

import json
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    Selection,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.export import export_index
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.storage.manifest import _checksum

ITEMS = "items-00001.db"
VECTORS = "vectors-00001-00000.npy"
ANN = "candidates-00001.faiss"
QUERY = np.eye(1, 16, dtype=np.float32)
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")


def alter_manifest(index: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it the checksum of what it is then."""
    path = index / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    content["checksum"] = _checksum(content)
    path.write_text(json.dumps(content), "utf-8")


def alter_items(index: Path, script: str) -> None:
    """Run SQL on the items, and let the manifest have the size that they have then."""
    with sqlite3.connect(index / ITEMS) as db:
        db.executescript(script)
    db.close()
    alter_manifest(index, lambda content: content.update(items_bytes=os.path.getsize(index / ITEMS)))


def journal_that_names(index: Path, victim: Path) -> bytes:
    """A rollback journal without a page, of a commit of several files, with ``victim`` as their super-journal."""
    items = (index / ITEMS).read_bytes()
    [page] = struct.unpack(">H", items[16:18])
    head = SUPER_JOURNAL + struct.pack(">IIIII", 0, 1234, len(items) // page, 512, page)
    name = os.fsencode(victim)
    end = struct.pack(">I", 0x40000000 // page + 1) + name + struct.pack(">II", len(name), sum(name))
    return head.ljust(512, b"\0") + end + SUPER_JOURNAL


def operations(index: Path, photos: Path) -> dict[str, Callable[[], object]]:
    """Everything that reads or writes an index."""

    def search(where: str | None = None) -> object:
        with open_index(index) as opened:
            return opened.search(QUERY, k=3, where=where)

    def verify() -> object:
        with open_index(index) as opened:
            return opened.verify()

    def read_image() -> object:
        with open_index(index) as opened:
            return opened.read_image(0)

    return {
        "search": search,
        "filter": lambda: search("width > 1 OR caption CONTAINS 'a' OR meta.a = 1"),
        "read": read_image,
        "verify": verify,
        "export": lambda: export_index(index, index.parent / f"out{os.urandom(4).hex()}"),
        "update": lambda: update_index(index, encoder=FakeEncoder()),
        "build": lambda: build_index(photos, index, encoder=FakeEncoder()),
        "compact": lambda: compact_index(index),
        "repair": lambda: repair_index(index),
        "remove": lambda: remove_images(index, Selection(matching="00*")),
    }


def tree(folder: Path) -> dict[str, bytes | str]:
    """Content of every file below a folder, and where links lead."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found
