"""Images in zip files."""

from __future__ import annotations

import bz2
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from llm2clip.indexer.containers.container import Container, ContainerCorpus, Files, member_problem
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import (
    MAX_IMAGE_BYTES,
    START,
    ending,
    image_endings,
    may_be_image,
    other_image_endings,
    printable,
    read_span,
    starts_like_image,
)
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.sidecars import Beside, Sidecar, chinese, limited, read_sidecar

_LOCAL = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_ENCRYPTED, _UTF8 = 0x1, 0x800
_UNICODE_PATH = 0x7075  # extra field of Info-ZIP and WinRAR


class _Member(NamedTuple):
    """A member of a zip."""

    name: str
    place: tuple[int, int, int, int, int]  # offset of its header, packed and unpacked bytes, method, CRC-32
    flags: int


@final
class ZipCorpus(ContainerCorpus):
    """Images of zip files; the key of each is ``album.zip#member``. Captions lie beside them as in a folder."""

    kind: Final = "zip"  # type: ignore[misc]
    what: Final = "zip"  # type: ignore[misc]

    def __init__(self, spec: str, files: Files | None = None) -> None:
        super().__init__(spec, files or Files.found(spec, endings=frozenset([".zip"])))

    def _names(self, container: Container) -> Iterator[str]:
        return (ending(member.name.rpartition("/")[2]) for member in _members(container.file))

    def _inside(self, container: Container) -> Iterator[Record]:
        file = container.file
        changed = file.stat().st_mtime_ns
        members = _members(file)
        named = {member.name: member for member in members if ending(member.name) in (".txt", ".json")}
        beside = Beside(named)
        seen: set[int] = set()
        for member in members:
            kind = ending(member.name.rpartition("/")[2])
            if kind in other_image_endings():
                self.skipped[kind] += 1
            if kind not in image_endings() and not _is_image(file, member):
                continue
            problem = member_problem(member.name, seen, size=member.place[2]) or _unsupported(member)
            # A member that cannot be told apart by its name gets its offset as well: keys must differ.
            name = printable(member.name) + (
                f"@{member.place[0]}" if problem and problem.startswith("second") else ""
            )
            yield Record(
                key=f"{container.path}#{name}",
                uri=f"{container.uri}#{name}",
                file=file,
                path=container.path,
                size=member.place[2],
                mtime_ns=changed,
                inner={"zip": member.place},
                fetch=partial(read_packed, file, member.place),
                problem=problem,
                describe=_sidecar_reader(file, [named[name] for name in beside.of(member.name).values()]),
            )
        self._unclaimed(beside.unused)


def _members(file: Path) -> list[_Member]:
    try:
        with zipfile.ZipFile(file) as opened:
            listed = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise zipfile.BadZipFile("truncated or damaged: no central directory") from error
    members = []
    for info in listed:
        name = _unicode_name(info) or _shown(info.orig_filename, info.flag_bits)
        place = (info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        if _wanted(name):
            members.append(_Member(name, place, info.flag_bits))
    return members


def _wanted(name: str) -> bool:
    parts = name.split("/")
    return not name.endswith("/") and parts[0] != "__MACOSX" and not any(part[:1] == "." for part in parts)


def _shown(name: str, flags: int) -> str:
    """The name with forward slashes. One without the UTF-8 flag is UTF-8, GBK (Chinese Windows) or else cp437."""
    if not flags & _UTF8 and not name.isascii():
        try:
            raw = name.encode("cp437")
            name = raw.decode("utf-8")
        except UnicodeEncodeError:
            pass
        except UnicodeDecodeError:
            name = chinese(raw) or name
    return _cleaned(name)


def _unicode_name(info: zipfile.ZipInfo) -> str | None:
    """The name in the extra field for Unicode names, unless it belongs to another name; None without one."""
    extra, place = info.extra, 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        field = extra[place + 4 : place + 4 + size]
        place += 4 + size
        if kind == _UNICODE_PATH and len(field) > 5 and field[0] == 1:
            plain = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
            if struct.unpack_from("<I", field, 1)[0] == zlib.crc32(plain):
                try:
                    return _cleaned(field[5:].decode("utf-8"))
                except UnicodeDecodeError:
                    return None
    return None


def _cleaned(name: str) -> str:
    return name.partition("\0")[0].replace("\\", "/").lstrip("/").removeprefix("./")


def _unsupported(member: _Member) -> str | None:
    method = member.place[3]
    if member.flags & _ENCRYPTED:
        return "encrypted: unpack it first"
    if method not in (_STORED, _DEFLATED, _BZIP2):
        return f"compressed by method {method}, which is not supported: pack it again without compression"
    return None


def _sidecar_reader(file: Path, found: Sequence[_Member]) -> Callable[[], Sidecar] | None:
    if not found:
        return None
    parts = {
        ending(member.name): partial(limited, partial(read_packed, file, member.place), member.place[2])
        for member in found
    }
    return partial(read_sidecar, parts)


def _is_image(file: Path, member: _Member) -> bool:
    """Whether a member whose name says nothing begins like an image."""
    offset, packed, _, method, _ = member.place
    if not may_be_image(member.name.rpartition("/")[2]) or method not in (_STORED, _DEFLATED):
        return False
    try:
        header = _LOCAL.unpack(read_span(file, offset=offset, size=_LOCAL.size))
        size = min(packed, 2**12)
        start = read_span(file, offset=offset + _LOCAL.size + header[9] + header[10], size=size)
        if method == _DEFLATED:
            start = zlib.decompressobj(-15).decompress(start, START)
        return starts_like_image(start[:START])
    except (OSError, ValueError, struct.error, zlib.error):
        return False


def read_packed(file: Path, place: Sequence[Any]) -> bytes:
    """The content of a member, without reading the central directory; see ``_Member.place``."""
    offset, packed, size, method, crc = (int(number) for number in place)
    if max(packed, size) > MAX_IMAGE_BYTES:
        raise CorpusError(f"file of {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
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
