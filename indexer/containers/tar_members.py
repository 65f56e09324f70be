"""The members of tar files."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_LARGEST_EXTENSION = 2**20
_MOST_ZEROS = 2**26


class Member(NamedTuple):
    """A member of a tar."""

    name: str
    offset: int
    """Of its content, from the start of the tar."""
    size: int
    link: str | None = None
    """The name that it stands for, if it is a link."""
    problem: str | None = None
    """Why it cannot be read."""


def members(file: Path) -> Iterator[Member]:
    """The files and links of a tar, and of tars that were appended to it.

    Plain headers, which nearly all are, are parsed here; tarfile, ten times as slow, parses the others.
    """
    offset: int | None = 0
    with open(file, "rb", buffering=0) as stream, tarfile.open(file, "r:") as tar:
        while offset is not None:
            header = _block(stream, offset)
            if not header.strip(b"\0"):
                offset = _next_tar(stream, offset)
                continue
            plain = _plain(header)
            if plain is not None:
                name, size = plain
                yield Member(name.removeprefix("./"), offset + tarfile.BLOCKSIZE, size)
                offset += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                continue
            _check_extension(header)
            tar.firstmember, tar.offset, tar.members = None, offset, []  # type: ignore[attr-defined]
            if tar.fileobj is not None:
                tar.fileobj.seek(offset)
            member = tar.next()
            if member is None or tar.offset <= offset:
                raise tarfile.ReadError(f"damaged at byte {offset:,}")
            if member.isreg() or member.issym() or member.islnk():
                yield _member(member)
            offset = tar.offset


def _member(member: tarfile.TarInfo) -> Member:
    name, link = member.name.removeprefix("./"), None
    if member.islnk():
        link = member.linkname.removeprefix("./")
    elif member.issym():
        link = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    problem = "sparse: unpack the tar, and pack it again without --sparse" if member.issparse() else None
    return Member(name, member.offset_data, member.size, link, problem)


def _check_extension(header: bytes) -> None:
    """Refuse a header that names an extension, such as a long name, of an absurd size."""
    try:
        size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        return  # which is reported with its place
    if header[156:157] in b"xgLKX" and not 0 <= size <= _LARGEST_EXTENSION:
        raise tarfile.ReadError(f"a header of {size:,} bytes, more than the limit of {_LARGEST_EXTENSION:,}")


def _next_tar(stream: BinaryIO, offset: int) -> int | None:
    """Where a tar begins after the zeros at ``offset``; None if nothing else does."""
    for start in range(offset, offset + _MOST_ZEROS, 2**20):
        stream.seek(start)
        block = stream.read(2**20)
        rest = block.lstrip(b"\0")
        if rest:
            begin = (start + len(block) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            stream.seek(begin)
            try:
                tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return None  # something else follows
            return begin
        if len(block) < 2**20:
            return None
    return None


def _block(stream: BinaryIO, offset: int) -> bytes:
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"truncated: the end marker is missing at byte {offset:,}")
    return block


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size of a regular file from a header without extensions; None for any other header."""
    try:
        whole = int(header[148:156].strip(b" \0"), 8) == sum(header) - sum(header[148:156]) + 8 * 32
        size = int(header[124:136].strip(b" \0"), 8)
    except ValueError:
        return None
    if not whole or header[156] not in b"0\0" or header[257:262] not in (b"ustar", b"\0" * 5) or size < 0:
        return None
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return None if name.endswith(b"/") else (name.decode("utf-8", "surrogateescape"), size)
