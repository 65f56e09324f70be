"""Reading byte spans of files."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from llm2clip.indexer.core.errors import CorpusError

MAX_IMAGE_BYTES = 256 * 2**20
"""A larger file is not read: it is no image that anybody would search."""


def content_hash(content: bytes) -> bytes:
    """BLAKE2b of the encoded image, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def read_whole(file: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        CorpusError: it is larger than ``MAX_IMAGE_BYTES``, or no file that ends.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CorpusError(f"{file} is not a regular file: expected an image")
    if found.st_size > MAX_IMAGE_BYTES:
        raise CorpusError(f"file of {found.st_size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read")
    return file.read_bytes()


def require_span(offset: int, size: int) -> None:
    """Refuse a place in a file where no image can lie: it may come from an index that is anybody's.

    Raises:
        CorpusError: a number is negative, or the size larger than ``MAX_IMAGE_BYTES``.
    """
    if offset < 0 or not 0 <= size <= MAX_IMAGE_BYTES:
        raise CorpusError(
            f"got a span of {size:,} bytes from byte {offset:,}, expected at most {MAX_IMAGE_BYTES:,} from 0 on: "
            "build the index again"
        )


def read_span(file: Path, *, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset``: one seek.

    Raises:
        OSError: the file cannot be read, or ends before.
        CorpusError: see ``require_span``.
    """
    require_span(offset, size)
    with open(file, "rb", buffering=0) as stream:
        stream.seek(offset)
        content = stream.read(size)
        while len(content) < size and (more := stream.read(size - len(content))):
            content += more
    if len(content) < size:
        raise OSError(f"{file} ends {size - len(content):,} bytes early")
    return content
