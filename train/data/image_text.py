"""Images with captions: what the indexer's corpus readers find, joined to captions beside the images or in files.

Images without a caption, captions without an image and unreadable images are counted, named and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.records.record import Record
from llm2clip.train.data.caption_files import read_groups
from llm2clip.train.data.caption_rows import PLAIN, Columns, group_of
from llm2clip.train.data.captions import Caption, CaptionFileError, SkipReport

NO_CAPTION, NO_IMAGE = "image without caption", "caption without image"
_LOOK = 1000
"""Images without a caption after which a set without any is refused."""


@dataclass(frozen=True)
class Pair:
    """An image and its captions."""

    record: Record
    """The image, not yet read."""
    captions: tuple[Caption, ...]
    """At least one."""

    @property
    def key(self) -> str:
        """Name of the image, unique in its corpus."""
        return self.record.key


def read_pairs(
    images: Sequence[str],
    captions: Sequence[str] = (),
    *,
    columns: Columns | None = None,
    report: SkipReport | None = None,
) -> Iterator[Pair]:
    """The images of corpora that have captions, in the order of the corpora.

    Args:
        images: Folders, tars, Parquet files, lists: whatever ``llm2clip-index build`` takes.
        captions: Files of captions; empty: those beside the images (``.txt``, ``.json``, columns of a table).
        columns: Which fields hold captions and the name of the image, where their names do not say.
        report: Counts what is left out.

    Raises:
        CaptionFileError: No image has a caption, or a column does not exist.
        CorpusError: A corpus does not exist or is none.
    """
    columns, report = columns or Columns(), report if report is not None else SkipReport()
    known = _Named(captions, columns, report) if captions else None
    found = looked = 0
    for spec in images:
        for record in open_corpus(spec).records():
            looked += 1
            texts = known.of(record.key) if known else _beside(record, columns, report)
            if record.problem is not None:
                report.skip(f"image: {record.problem}", record.key)
            elif not texts:
                report.skip(NO_CAPTION, record.key)
                if not found and looked >= _LOOK:
                    raise CaptionFileError(_nothing(images, captions, record, report))
            else:
                found += 1
                report.groups, report.captions = found, report.captions + len(texts)
                yield Pair(record, texts)
    if known:
        known.count_unused()
    if not found:
        raise CaptionFileError(_nothing(images, captions, None, report))


class _Named:
    """Captions from files, found by the name of their image."""

    def __init__(self, paths: Sequence[str], columns: Columns, report: SkipReport) -> None:
        self._captions: dict[str, tuple[Caption, ...]] = {}
        self._by_stem: dict[str, str] = {}
        self._used: set[str] = set()
        self._report = report
        inner = SkipReport()
        for group in read_groups(paths, columns=columns, report=inner):
            before = self._captions.get(group.key, ())
            self._captions[group.key] = before + tuple(c for c in group.captions if c not in before)
            for name in _names(group.key):
                # A name that two images share names neither.
                self._by_stem[name] = group.key if self._by_stem.get(name, group.key) == group.key else ""
        report.counts.update(inner.counts)
        for reason, names in inner.names.items():
            report.names[reason] += names

    def of(self, key: str) -> tuple[Caption, ...]:
        """The captions of an image: by its whole key, else by its file name with and without ending."""
        name = key if key in self._captions else next(filter(None, map(self._by_stem.get, _names(key))), None)
        if name is None:
            return ()
        self._used.add(name)
        return self._captions[name]

    def count_unused(self) -> None:
        for name in self._captions.keys() - self._used:
            self._report.skip(NO_IMAGE, name)


def _names(key: str) -> tuple[str, ...]:
    path = PurePosixPath(key.rpartition("#")[2] if "#" in key else key)
    return path.name, path.name.partition(".")[0]


def _beside(record: Record, columns: Columns, report: SkipReport) -> tuple[Caption, ...]:
    row: dict[str, object] = dict(record.metadata or {})
    # A field with all texts counts more than the first of them, which a reader has taken as the caption.
    if record.caption is not None and not any(isinstance(row.get(n), list | Mapping) for n in PLAIN):
        row["caption"] = record.caption
    if record.note is not None:
        report.skip(record.note, record.key)
    if not row:
        return ()
    quiet = SkipReport()
    group = group_of(row, name=record.key, source=record.key, columns=columns, report=quiet)
    for reason, count in quiet.counts.items():
        if reason != "no caption":
            for _ in range(count):
                report.skip(reason, record.key)
    return group.captions if group else ()


def _nothing(
    images: Sequence[str], captions: Sequence[str], record: Record | None, report: SkipReport
) -> str:
    where, seen = ", ".join(images), f"the first {_LOOK} images" if record else "no image"
    if record:
        head = f"none of {seen} in {where} has a caption"
    else:
        head = f"no image in {where} has a caption"
    fields = f" Fields of the last one: {', '.join(record.metadata)}." if record and record.metadata else ""
    if captions:
        hint = f"The names in {', '.join(captions)} fit none of them; name the column: columns.key"
    else:
        hint = (
            "Expected a .txt or .json file beside each image or a column caption; or name files of captions"
        )
    skipped = "; ".join(report.lines()[:3])
    return f"{head}.{fields} {hint}{f' ({skipped})' if skipped else ''}"
