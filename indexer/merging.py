"""Keeping vector files few: small ones at the end are joined, so that many additions do not make many files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm2clip.indexer.earlier import sha256_of
from llm2clip.indexer.manifest import FileRecord, Segment
from llm2clip.indexer.segments import SegmentWriter, map_segment

JOINED_ROWS = 65_536
"""Files of more rows than this are never copied."""


def join_small(
    folder: Path,
    old: Sequence[Segment],
    new: Sequence[tuple[str, int]],
    *,
    files: Mapping[str, FileRecord],
    generation: int,
    dim: int,
) -> tuple[Segment, ...]:
    """The segments of a generation: those there were, then the new ones, with small neighbours at the end made one.

    A file is joined with those after it while it is no larger than they are together, as a counter carries: n
    additions of one picture copy each row about log2(n) times and leave about log2(n) files.

    Args:
        folder: the index.
        old: segments of the generation before.
        new: (file, rows) of what was appended, in order.
        files: checksums of the old ones: what was damaged is left as it is, where it will be noticed.
        generation: the one being written.
        dim: length of the vectors.

    Raises:
        OSError: the disk is full, or worse.
    """
    rows = sum(segment.rows for segment in old)
    found = list(old)
    for file, count in new:
        found.append(Segment(file=file, first_id=rows, rows=count))
        rows += count
    if not new or sum(count for _, count in new) > JOINED_ROWS:
        return tuple(found)
    start, together = len(old), rows - sum(segment.rows for segment in old)
    while start and found[start - 1].rows <= together and found[start - 1].rows + together <= JOINED_ROWS:
        name = found[start - 1].file
        if sha256_of(folder / name) != files[name].sha256:
            break
        start -= 1
        together += found[start].rows
    if start == len(found) - 1:
        return tuple(found)
    writer = SegmentWriter(folder, generation=generation, dim=dim, begin=len(new))
    with writer:
        for segment in found[start:]:
            writer.append(map_segment(folder / segment.file, rows=segment.rows, dim=dim))
        writer.close(finish=True)
    joined = Segment(file=writer.name(0), first_id=found[start].first_id, rows=together)
    return (*found[:start], joined)
