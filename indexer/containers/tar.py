"""Tar shards in the WebDataset layout: consecutive members of one name are one sample."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, final

from llm2clip.indexer.containers.container import Container, ContainerCorpus, Files, member_problem
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.core.index_paths import SAMPLE, sample_folder, sample_shards
from llm2clip.indexer.records.files import ending, image_endings, other_image_endings, printable, read_span
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.sidecars import Sidecar, read_sidecar


class _Member(NamedTuple):
    """A member of a tar."""

    name: str
    offset: int  # of its content, from the start of the tar
    size: int


@dataclass(kw_only=True)
class _Sample:
    """Consecutive members whose names are equal up to the first dot."""

    stem: str
    images: list[_Member] = field(default_factory=list)
    sidecars: dict[str, _Member] = field(default_factory=dict)


class _Shards(ContainerCorpus):
    """Images of tar files; the key of each is ``shard.tar#member``."""

    what: Final = "tar"  # type: ignore[misc]

    def _damage(self) -> tuple[type[BaseException], ...]:
        return (tarfile.TarError,)

    def _names(self, container: Container) -> Iterator[str]:
        return (ending(member.name.rpartition("/")[2]) for member in _members(container.file))

    def _inside(self, container: Container) -> Iterator[Record]:
        file = container.file
        changed = file.stat().st_mtime_ns
        seen: set[int] = set()
        for sample in _samples(file, self.skipped):
            describe = _sidecar_reader(file, sample.sidecars)
            for image in sample.images:
                problem = member_problem(image.name, seen)
                # A member that cannot be told apart by its name gets its offset as well: keys must differ.
                name = printable(image.name) + (f"@{image.offset}" if problem else "")
                yield Record(
                    key=f"{container.path}#{name}",
                    uri=f"{container.uri}#{name}",
                    file=file,
                    path=container.path,
                    offset=image.offset,
                    size=image.size,
                    mtime_ns=changed,
                    problem=problem,
                    describe=describe,
                )


@final
class TarCorpus(_Shards):
    """Tar shards: one, the ones directly in a folder, or a brace range of them."""

    kind: Final = "tar"  # type: ignore[misc]

    def __init__(self, spec: str, files: Files | None = None) -> None:
        super().__init__(spec, files or Files.found(spec, endings=frozenset([".tar"])))
        for name in self.files.names:
            if os.path.splitext(name)[1].lower() != ".tar":
                raise CorpusError(
                    f"{name} is not a plain .tar: compressed shards have no random access. Unpack it once: "
                    f"gunzip {os.path.basename(name)}, or zstd -d, xz -d"
                )


@final
class SampleCorpus(_Shards):
    """The images that ship with the package."""

    kind: Final = "sample"  # type: ignore[misc]

    def __init__(self) -> None:
        names = [str(shard) for shard in sample_shards()]
        super().__init__(SAMPLE, Files(root=str(sample_folder()), pattern=SAMPLE, names=names))
        if not names:
            raise CorpusError(f"this installation has no sample images: expected *.tar in {self.root}")

    def identity(self) -> dict[str, str]:
        """What the manifest stores: without the folder, which moves with the installation."""
        return {"kind": self.kind, "spec": self.spec}


def _members(file: Path) -> Iterator[_Member]:
    """The regular members of a tar.

    Plain headers, which nearly all are, are parsed here; tarfile, ten times as slow, parses the others.
    """
    offset = 0
    with open(file, "rb", buffering=0) as stream, tarfile.open(file, "r:") as tar:
        while (header := _block(stream, offset)).strip(b"\0"):
            plain = _plain(header)
            if plain is not None:
                name, size = plain
                yield _Member(name.removeprefix("./"), offset + tarfile.BLOCKSIZE, size)
                offset += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                continue
            tar.firstmember, tar.offset, tar.members = None, offset, []  # type: ignore[attr-defined]
            if tar.fileobj is not None:
                tar.fileobj.seek(offset)
            member = tar.next()
            if member is None:
                raise tarfile.ReadError(f"damaged at byte {offset:,}")
            if member.isreg() and not member.issparse():
                yield _Member(member.name.removeprefix("./"), member.offset_data, member.size)
            offset = tar.offset


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


def _samples(file: Path, skipped: Counter[str]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    try:
        for member in _members(file):
            folder, _, base = member.name.rpartition("/")
            if base.startswith("."):
                continue
            stem = f"{folder}/{base.partition('.')[0]}"
            if sample is None or sample.stem != stem:
                if sample is not None:
                    yield sample
                sample = _Sample(stem=stem)
            kind = ending(base)
            if kind in image_endings():
                sample.images.append(member)
            elif kind in (".json", ".txt"):
                sample.sidecars.setdefault(kind, member)
            elif kind in other_image_endings():
                skipped[kind] += 1
    except (OSError, tarfile.TarError):
        if sample is not None:
            yield sample  # what comes before the damage is read
        raise
    if sample is not None:
        yield sample


def _sidecar_reader(file: Path, beside: Mapping[str, _Member]) -> Callable[[], Sidecar] | None:
    if not beside:
        return None
    parts = {
        kind: partial(read_span, file, offset=each.offset, size=each.size) for kind, each in beside.items()
    }
    return partial(read_sidecar, parts, max(member.size for member in beside.values()))
