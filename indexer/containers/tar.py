"""Tar shards in the WebDataset layout: consecutive members of one name are one sample."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, final

from llm2clip.indexer.containers.container import Container, ContainerCorpus, Files, member_problem
from llm2clip.indexer.containers.tar_members import Member, members
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.core.index_paths import SAMPLE, sample_folder, sample_shards
from llm2clip.indexer.records.files import (
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
from llm2clip.indexer.records.sidecars import Sidecar, composed, limited, read_sidecar

_KINDS = (".json", ".txt")
_DOTTED = (
    "names with several dots: captions were matched by an image's whole name, not by WebDataset's rule "
    "(up to the first dot)"
)


@dataclass(kw_only=True)
class _Sample:
    """Consecutive members whose names are equal up to the first dot."""

    stem: str
    images: list[Member] = field(default_factory=list)
    sidecars: list[Member] = field(default_factory=list)

    def of(self, image: Member) -> dict[str, Member]:
        """The captions and metadata of an image, by their ending.

        Those of its own name (``2024.05.01 beach``) come first, then those of the sample (``0001`` for
        ``0001.left.png``), then a single one of the sample if no image has it as its own.
        """
        found: dict[str, Member] = {}
        own, names = _stem(image.name), {_stem(each.name) for each in self.images}
        for kind in _KINDS:
            there = [each for each in self.sidecars if ending(each.name) == kind]
            chosen = [each for each in there if composed(_stem(each.name)) == composed(own)]
            chosen = chosen or [each for each in there if self.stem in (_stem(each.name), own)]
            if not chosen and len(there) == 1 and _stem(there[0].name) not in names:
                chosen = there
            if chosen:
                found[kind] = chosen[0]
        return found

    def dotted(self, image: Member, beside: Mapping[str, Member]) -> bool:
        """Whether captions were found by the whole name of an image, where WebDataset's rule would go by less."""
        own = _stem(image.name)
        return own != self.stem and any(
            composed(_stem(each.name)) == composed(own) for each in beside.values()
        )


class _Shards(ContainerCorpus):
    """Images of tar files; the key of each is ``shard.tar#member``."""

    what: Final = "tar"  # type: ignore[misc]

    def _names(self, container: Container) -> Iterator[str]:
        return (ending(member.name.rpartition("/")[2]) for member in members(container.file))

    def _inside(self, container: Container) -> Iterator[Record]:
        file = container.file
        changed = file.stat().st_mtime_ns
        seen: set[int] = set()
        apart = _Apart(file)
        dotted = False
        for sample in _samples(file, self.skipped):
            used = set[str]()
            for image in sample.images:
                beside = sample.of(image)
                used.update(each.name for each in beside.values())
                dotted = dotted or sample.dotted(image, beside)
                beside = {
                    kind: each if each.link is None else apart.linked(each)[0]
                    for kind, each in beside.items()
                }
                image, problem = (image, image.problem) if image.link is None else apart.linked(image)
                problem = member_problem(image.name, seen, size=1 if problem else image.size) or problem
                # A member that cannot be told apart by its name gets its offset as well: keys must differ.
                twice = problem is not None and problem.startswith(("second", "member name"))
                name = printable(image.name) + (f"@{image.offset}" if twice else "")
                yield Record(
                    key=f"{container.path}#{name}",
                    uri=f"{container.uri}#{name}",
                    file=file,
                    path=container.path,
                    offset=image.offset,
                    size=image.size,
                    mtime_ns=changed,
                    problem=problem,
                    describe=_sidecar_reader(file, beside or apart.of(image)),
                )
            apart.left += [each.name for each in sample.sidecars if each.name not in used]
        self._unclaimed(name for name in apart.left if name not in apart.used)
        if dotted and _DOTTED not in self.read_notes:
            self.read_notes.append(_DOTTED)


class _Apart:
    """What lies elsewhere in a tar: captions that do not follow their image, members that links stand for.

    The tar is read a second time for them, when the first image needs it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.left: list[str] = []
        """Names of captions and metadata that are not beside an image of theirs."""
        self.used: set[str] = set()
        """Names of those that ``of`` gave."""
        self._captions: dict[str, dict[str, Member]] | None = None
        self._members: dict[str, Member] | None = None

    def of(self, image: Member) -> dict[str, Member]:
        """The captions and metadata of an image that has none beside it."""
        if self._captions is None:
            self._captions = {}
            with suppress(Exception):  # the first reading reports it
                for sample in _samples(self._file, Counter()):
                    for each in () if sample.images else sample.sidecars:
                        self._captions.setdefault(composed(_stem(each.name)), {})[ending(each.name)] = each
        found = self._captions.get(composed(_stem(image.name)), {})
        self.used.update(each.name for each in found.values())
        return found

    def linked(self, link: Member) -> tuple[Member, str | None]:
        """A link with the place of the member that it stands for, and what is wrong with it."""
        if self._members is None:
            with suppress(Exception):  # the first reading reports it
                self._members = {}
                for each in members(self._file):
                    self._members[each.name] = each
        target = link
        for _ in range(8):
            found = (self._members or {}).get(target.link or "")
            if found is None:
                return link, f"a link to {printable(link.link or '')}, which is not in the tar"
            if found.link is None:
                return link._replace(offset=found.offset, size=found.size), found.problem
            target = found
        return link, "a link to links"


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


def _samples(file: Path, skipped: Counter[str]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    try:
        with open(file, "rb") as stream:
            for member in members(file):
                folder, _, base = member.name.rpartition("/")
                if base.startswith("."):
                    continue
                stem = f"{folder}/{base.partition('.')[0]}".removeprefix("/")
                if sample is None or sample.stem != stem:
                    if sample is not None:
                        yield sample
                    sample = _Sample(stem=stem)
                kind = ending(base)
                if kind in image_endings() or (may_be_image(base) and _begins(stream, member)):
                    sample.images.append(member)
                elif kind in _KINDS:
                    sample.sidecars.append(member)
                elif kind in other_image_endings():
                    skipped[kind] += 1
    except Exception:
        if sample is not None:
            yield sample  # what comes before the damage is read
        raise
    if sample is not None:
        yield sample


def _begins(stream: BinaryIO, member: Member) -> bool:
    """Whether the content of a member begins like an image."""
    if member.link is not None or member.problem is not None:
        return False
    stream.seek(member.offset)
    return starts_like_image(stream.read(min(START, member.size)))


def _stem(name: str) -> str:
    return name[: len(name) - len(ending(name.rpartition("/")[2]))]


def _sidecar_reader(file: Path, beside: Mapping[str, Member]) -> Callable[[], Sidecar] | None:
    if not beside:
        return None
    parts = {
        kind: partial(limited, partial(read_span, file, offset=each.offset, size=each.size), each.size)
        for kind, each in beside.items()
    }
    return partial(read_sidecar, parts)
