"""Zip files: members by the list at the end of the file, or one after the other where that list is lost."""

from __future__ import annotations

import bz2
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from llm2clip.indexer.containers.container import Container, ContainerCorpus, Files
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import (
    MAX_IMAGE_BYTES,
    ending,
    image_endings,
    other_image_endings,
    printable,
    read_span,
)
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.sidecars import MAX_SIDECAR_BYTES, Sidecar, parse_sidecar

_LOCAL = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")


class _Member(NamedTuple):
    """A file in a zip."""

    name: str
    place: tuple[int, int, int, int, int]  # offset of its header, bytes packed and unpacked, method, CRC-32
    flags: int


@final
class ZipCorpus(ContainerCorpus):
    """Images of zip files; the key of each is ``album.zip#member``. Captions lie beside them as in a folder.

    Args:
        spec: a zip, a folder of zips, or a brace range of them.
        files: what that is, if it is known.

    Raises:
        CorpusError: a file is missing, or the pattern is malformed.
    """

    kind: Final = "zip"  # type: ignore[misc]
    what: Final = "zip"  # type: ignore[misc]

    def __init__(self, spec: str, files: Files | None = None) -> None:
        super().__init__(spec, files or Files.found(spec, endings=frozenset([".zip"])))

    def _damage(self) -> tuple[type[BaseException], ...]:
        return (zipfile.BadZipFile,)

    def _names(self, container: Container) -> Iterator[str]:
        return (ending(member.name.rpartition("/")[2]) or "no ending" for member in _members(container.file))

    def _inside(self, container: Container) -> Iterator[Record]:
        changed = container.file.stat().st_mtime_ns
        members, lost = _listed(container.file)
        beside = {member.name: member for member in members if ending(member.name) in (".txt", ".json")}
        seen: set[str] = set()
        for member in members:
            kind = ending(member.name.rpartition("/")[2])
            if kind in other_image_endings():
                self.passed_over[kind] += 1
            if kind not in image_endings():
                continue
            stem = member.name.rpartition(".")[0]
            found = [beside.get(f"{stem}{kind}") for kind in (".json", ".txt")]
            describe = partial(_sidecar, container.file, found) if found != [None, None] else None
            problem = _problem(member, seen)
            yield _record(container, member, problem=problem, mtime_ns=changed, describe=describe)
        if lost is not None:
            raise lost


def _listed(file: Path) -> tuple[list[_Member], zipfile.BadZipFile | None]:
    """The members, and what is wrong with the zip as a whole."""
    members: list[_Member] = []
    try:
        members.extend(_members(file))
    except zipfile.BadZipFile as error:
        return members, error
    return members, None


def _members(file: Path) -> Iterator[_Member]:
    try:
        with zipfile.ZipFile(file) as opened:
            listed = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        yield from _from_the_start(file)
        raise zipfile.BadZipFile("cut short or damaged: its list of contents is lost") from None
    for info in listed:
        name = _shown(info.orig_filename, info.flag_bits)
        place = (info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        if _wanted(name):
            yield _Member(name, place, info.flag_bits)


def _from_the_start(file: Path) -> Iterator[_Member]:
    """The members as their own headers tell, up to the first that does not say how long it is."""
    whole = file.stat().st_size
    with open(file, "rb") as stream:
        offset = 0
        while len(header := stream.read(_LOCAL.size)) == _LOCAL.size:
            mark, _, flags, method, _, _, crc, packed, size, named, extra = _LOCAL.unpack(header)
            end = offset + _LOCAL.size + named + extra + packed
            if mark != b"PK\3\4" or flags & _SIZES_FOLLOW or packed == 0xFFFFFFFF or end > whole:
                return
            raw = stream.read(named)
            name = _shown(raw.decode("utf-8" if flags & _UTF8 else "cp437", "replace"), flags)
            if _wanted(name):
                yield _Member(name, (offset, packed, size, method, crc), flags)
            offset = end
            stream.seek(offset)


def _wanted(name: str) -> bool:
    parts = name.split("/")
    return not name.endswith("/") and parts[0] != "__MACOSX" and not any(part[:1] == "." for part in parts)


def _shown(name: str, flags: int) -> str:
    """The name with forward slashes; one that does not say how it is written, as UTF-8, GBK or what zip began with."""
    if not flags & _UTF8 and not name.isascii():
        try:
            raw = name.encode("cp437")
            name = raw.decode("utf-8")
        except UnicodeEncodeError:
            pass
        except UnicodeDecodeError:
            name = _chinese(raw) or name
    name = name.partition("\0")[0].replace("\\", "/")
    return name.lstrip("/").removeprefix("./")


def _chinese(raw: bytes) -> str | None:
    """A name written by a Chinese Windows, if that is what it looks like: most pairs are common characters."""
    pairs = _PAIR.findall(raw)
    common = sum(pair[0] >= 0xB0 and pair[0] <= 0xF7 and pair[1] >= 0xA1 for pair in pairs)
    if 2 * common < len(pairs):
        return None
    try:
        return raw.decode("gb18030")
    except UnicodeDecodeError:
        return None


def _problem(member: _Member, seen: set[str]) -> str | None:
    method = member.place[3]
    if member.name != printable(member.name):
        return "member name is not UTF-8"
    if member.name in seen:
        return "second member of this name"
    seen.add(member.name)
    if member.flags & _ENCRYPTED:
        return "encrypted: unpack it first"
    if method not in (_STORED, _DEFLATED, _BZIP2):
        return f"compressed by method {method}, which is not read: pack it anew without compression"
    return None


def _sidecar(file: Path, found: Sequence[_Member | None]) -> Sidecar:
    if max(member.place[2] for member in found if member is not None) > MAX_SIDECAR_BYTES:
        return Sidecar(note=f"caption or metadata left out: more than {MAX_SIDECAR_BYTES:,} bytes")
    contents = [read_packed(file, member.place) if member is not None else None for member in found]
    return parse_sidecar(contents[0], contents[1])


def _record(
    container: Container,
    member: _Member,
    *,
    problem: str | None,
    mtime_ns: int,
    describe: Callable[[], Sidecar] | None,
) -> Record:
    name = printable(member.name) + (
        f"@{member.place[0]}" if problem and problem.startswith("second") else ""
    )
    return Record(
        key=f"{container.path}#{name}",
        uri=f"{container.uri}#{name}",
        file=container.file,
        path=container.path,
        size=member.place[2],
        mtime_ns=mtime_ns,
        inner={"zip": member.place},
        fetch=partial(read_packed, container.file, member.place),
        problem=problem,
        describe=describe,
    )


def read_packed(file: Path, place: Sequence[Any]) -> bytes:
    """The content of a member of a zip, found by its place alone: the list of contents is not read.

    Args:
        file: the zip.
        place: offset of its header, bytes packed and unpacked, method, CRC-32.

    Raises:
        OSError: the zip cannot be read, or ends before.
        CorpusError: it is damaged or not what the place says.
    """
    offset, packed, size, method, crc = (int(number) for number in place)
    if max(packed, size) > MAX_IMAGE_BYTES:
        raise CorpusError(f"file of {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read")
    header = _LOCAL.unpack(read_span(file, offset=offset, size=_LOCAL.size))
    if header[0] != b"PK\3\4":
        raise CorpusError(f"no member of {file} begins at byte {offset:,}: it is damaged, or was changed")
    content = read_span(file, offset=offset + _LOCAL.size + header[9] + header[10], size=packed)
    try:
        if method == _DEFLATED:
            content = zlib.decompressobj(-15).decompress(content, size + 1)
        elif method == _BZIP2:
            content = bz2.BZ2Decompressor().decompress(content, size + 1)
    except (zlib.error, OSError, EOFError) as error:
        raise CorpusError("damaged: it cannot be unpacked") from error
    if len(content) != size or zlib.crc32(content) != crc:
        raise CorpusError("damaged: its checksum is wrong")
    return content
