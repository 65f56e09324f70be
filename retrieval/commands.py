"""What ``llm2clip-search`` does with its arguments: search and print."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Protocol

from llm2clip.common.files import counted
from llm2clip.common.terminal import graceful_interrupt, log_stderr
from llm2clip.indexer.commands.session import counting_bar, progress_bar
from llm2clip.indexer.core.index_paths import locate
from llm2clip.retrieval.output.printing import Output, print_answers
from llm2clip.retrieval.output.results import Answer, Query, combined_query, text_query
from llm2clip.retrieval.output.thumbnails import Thumbnails, choose_protocol, draw_thumbnails
from llm2clip.retrieval.query.expression import join
from llm2clip.retrieval.query.vector_cache import VectorCache
from llm2clip.retrieval.ranking.options import SearchOptions
from llm2clip.retrieval.searcher import Searcher

if TYPE_CHECKING:
    from llm2clip.indexer import Progress


_QUERIES_AT_ONCE = 64
"""Queries whose texts are encoded together; where there are more, progress is shown."""
_FETCHED = 40
"""Hits that are fetched at once for ``--interactive``."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The arguments of one ``llm2clip-search``."""

    texts: tuple[str, ...] = ()
    """Words of one query."""
    images: tuple[Path, ...] = ()
    """Images of the same query."""
    each: bool = False
    """Whether every text and every image is a query of its own."""
    queries_file: str | None = None
    """File with one text query per line, ``-`` for standard input."""
    options: SearchOptions = field(default_factory=SearchOptions)
    """What is shown of the ranked images."""
    begin: str | None = None
    """First year, month, day, ... of the images; ``None`` for any."""
    end: str | None = None
    """Last one, included."""
    indexes: tuple[str, ...] = ()
    """Folders or names of the indexes to search together; none for the default one."""
    encoder: str | None = None
    """Encoder name or folder; ``None`` for the one the index names."""
    device: str = "auto"
    """Where to encode; a named CUDA device also searches."""
    interactive: bool = False
    """Whether one looks through the answer at the terminal; what is selected there is printed and written."""
    output: Output = "table"
    """With ``interactive``, a table is only paths."""
    thumbnails: Thumbnails = "never"
    """Pictures below a table."""
    html: Path | None = None
    """File to write a gallery to."""
    copy_to: Path | None = None
    """Empty folder to copy the images of hits to."""
    symlink_to: Path | None = None
    """Empty folder to link them from."""


class Searchers(Protocol):
    """Opens searchers: the daemon's keep what they opened."""

    def open(
        self,
        index_path: Sequence[str] | None = None,
        *,
        encoder: str | None = None,
        device: str = "auto",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> AbstractContextManager[Searcher]:
        """As ``Searcher.open``, until the context ends."""


def run(request: SearchRequest, *, searchers: Searchers | None = None) -> bool:
    """Search and print; returns whether anything was found.

    Args:
        request: What to search for.
        searchers: Opens the indexes; None: ``Searcher``.
    """
    queries = _queries(request)
    where = _within(request.options.where, begin=request.begin, end=request.end)
    options = replace(request.options, where=where)
    with (
        _one_line_warnings(),
        open_searcher(
            request.indexes, encoder=request.encoder, device=request.device, searchers=searchers
        ) as searcher,
    ):
        if request.interactive:
            answers = [_browse(searcher, queries, options, thumbnails=request.thumbnails)]
        elif len(queries) > _QUERIES_AT_ONCE:
            answers = _find_many(searcher, queries, options)
        else:
            answers = _find(searcher, queries, options, say=_say)
        written = _write(searcher, answers, request)
        output = "paths" if request.interactive and request.output == "table" else request.output
        print_answers(answers, output=output, pictures=_pictures(searcher, request.thumbnails))
        found = any(answer.hits for answer in answers)
        notes = {note: None for answer in answers if not answer.hits for note in answer.notes}
        if notes and output != "table":  # which says it itself
            log_stderr("; ".join(notes))
        elif where and not (notes or found or request.interactive):
            log_stderr(_no_match_note(searcher, where))
        if missing := frozenset().union(*(answer.missing for answer in answers)):
            log_stderr(_missing_note(searcher, missing, answers))
        for line in written:
            log_stderr(line)
    return found


def _find_many(searcher: Searcher, queries: Sequence[Query], options: SearchOptions) -> list[Answer]:
    """``_find``, a part of the queries at a time, with progress on a terminal."""
    answers: list[Answer] = []
    with counting_bar("searching", total=len(queries)) as count:
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            answers += _find(searcher, queries[start : start + _QUERIES_AT_ONCE], options, say=_say)
            count(len(answers))
    return answers


def _find(
    searcher: Searcher,
    queries: Sequence[Query],
    options: SearchOptions,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> list[Answer]:
    """The answers; vectors of texts come from the disk where they are there."""
    pages = searcher.find_all(
        [query.terms for query in queries],
        images={name: image for query in queries for name, image in query.images.items()},
        options=options,
        known=VectorCache(),
        say=say,
    )
    return [Answer.of(query, page) for query, page in zip(queries, pages, strict=True)]


def _browse(
    searcher: Searcher, queries: Sequence[Query], options: SearchOptions, *, thumbnails: Thumbnails
) -> Answer:
    """What somebody selects who looks through answers."""
    from llm2clip.retrieval.output.browse import browse

    options = replace(options, k=max(options.k, _FETCHED))

    def find(query: Query, cursor: str | None) -> Answer:
        asked = replace(options, cursor=cursor)
        if any(part.kind == "image" for part in query.parts or (query,)):
            asked = replace(asked, min_confidence=None, by="auto")  # which only texts have
        return _find(searcher, [query], asked)[0]

    first = queries[0] if queries else None
    with graceful_interrupt():
        hits = browse(first, find=find, read_image=searcher.read_image, thumbnails=thumbnails)
    return Answer(query=first or text_query(""), hits=hits)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        log_stderr(text)


def _pictures(searcher: Searcher, thumbnails: Thumbnails) -> Callable[[Answer, int], Iterator[str]] | None:
    protocol = None if thumbnails == "never" else choose_protocol(thumbnails)
    if protocol is None:
        return None
    return lambda answer, width: draw_thumbnails(
        answer.hits, protocol=protocol, width=width, read_image=searcher.read_image
    )


def _write(searcher: Searcher, answers: Sequence[Answer], request: SearchRequest) -> list[str]:
    """Write the files that were asked for; says what was written."""
    from llm2clip.retrieval.output.collecting import copy_images, link_images

    lines = []
    if request.html:
        lines.append(f"gallery written to {save_gallery(searcher, answers, path=request.html)}")
    if request.copy_to:
        lines.append(copy_images(answers, request.copy_to, read_image=searcher.read_image))
    if request.symlink_to:
        lines.append(link_images(answers, request.symlink_to))
    return lines


def _within(where: str | None, *, begin: str | None, end: str | None) -> str | None:
    """A filter that also asks for a range of time; both ends are periods, and included."""
    if begin is None and end is None:
        return where
    from llm2clip.indexer.filters.fields import span

    parts = [] if where is None else [f"({where})"]
    for option, sign, text in (("--from", ">=", begin), ("--to", "<=", end)):
        try:
            if text is not None and span(text):
                parts.append(f"time {sign} '{text}'")
        except ValueError as error:
            raise ValueError(
                f"{option} takes a time such as 2019, 2019-06 or 2019-06-15, got {text!r}"
            ) from error
    if where is not None:
        from llm2clip.indexer import compile_where

        compile_where(where)  # so that a mistake is shown where it stands
    return " AND ".join(parts)


def _no_match_note(searcher: Searcher, where: str) -> str:
    """What to say if no image matches a filter: also the names of the metadata, if it asks for some."""
    names = searcher.index.metadata_names() if "meta" in where.lower() else []
    known = f"; metadata fields: {', '.join(names[:40])}" if names else ""
    return f"no image matches the filter{known}"


def _missing_note(searcher: Searcher, missing: frozenset[str], answers: Sequence[Answer]) -> str:
    """What to say of hits whose files are not there, and of their folder if that is gone."""
    shown = len({hit.uri for answer in answers for hit in answer.hits})
    note = f"note: the files of {len(missing):,} of {shown:,} images are missing"
    roots = [str(source.get("root", "")) for index in searcher.indexes for source in index.manifest.sources]
    gone = next((root for root in roots if os.path.isabs(root) and not os.path.exists(root)), None)
    if gone is None:
        return f"{note}; bring the index up to date with  llm2clip-index update"
    return f"{note}: {gone} is gone. If it was moved:  llm2clip-index move {quote(gone)} NEW"


def _queries(request: SearchRequest) -> list[Query]:
    """What is searched for: the command line's one query, or each of its parts, then those of the file."""
    images = [(str(path), path.read_bytes()) for path in request.images]
    listed = [text_query(text) for text in read_queries(request.queries_file)]
    if request.queries_file is not None and not (request.texts or images or listed):
        raise ValueError(f"{request.queries_file} has no query: it is empty or all its lines are blank")
    if request.each:
        texts = [text_query(text) for text in request.texts]
        return [*texts, *listed, *(Query(kind="image", label=name, image=data) for name, data in images)]
    own = [combined_query(join(request.texts), images)] if request.texts or images else []
    return [*own, *listed]


def read_queries(source: str | None) -> list[str]:
    """The stripped, non-blank lines of a UTF-8 file (``-``: standard input)."""
    if source is None:
        return []
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = "standard input" if source == "-" else source
        raise ValueError(
            f"{name} must be UTF-8 text, got byte 0x{data[error.start]:02x} at offset {error.start}: "
            "convert it, such as with iconv -t UTF-8"
        ) from error
    # Not splitlines, which also splits at characters inside a line, such as U+2028 of a text from the web.
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]


def open_searcher(
    indexes: Sequence[str] = (),
    *,
    encoder: str | None = None,
    device: str = "auto",
    searchers: Searchers | None = None,
) -> AbstractContextManager[Searcher]:
    """``Searcher.open``, with a note on standard error if the sample images are searched because there is no index."""
    place = locate(indexes[0] if indexes else None)
    subject = "no index was built yet: " if place.fallback else ""
    subject += "searching the sample images"
    with BuildProgress(f"{subject} (building their index first)") as progress:
        source: Searchers = searchers or Searcher
        searcher = source.open(list(indexes) or None, encoder=encoder, device=device, on_progress=progress)
    if place.fallback and not progress.begun:
        log_stderr(subject)
    return searcher


class BuildProgress:
    """Reports a build that may not happen: the line ``begin`` when it begins, then a progress bar."""

    def __init__(self, begin: str) -> None:
        self._begin = begin
        self._open = ExitStack()
        self._show: Callable[[Progress], None] | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was reported."""
        return self._show is not None

    def __call__(self, progress: Progress) -> None:
        """Show a progress report of ``build_index``."""
        if self._show is None:
            log_stderr(self._begin)
            self._open.enter_context(graceful_interrupt())
            self._show = self._open.enter_context(progress_bar())
        self._show(progress)

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def save_gallery(searcher: Searcher, answers: Sequence[Answer], *, path: Path) -> Path:
    """Write answers as an HTML gallery; return its absolute path."""
    from llm2clip.retrieval.output.gallery import write_gallery

    subtitle = f"{counted(len(searcher), 'image')}, encoder {searcher.encoder.info.name}"
    return write_gallery(path, answers, read_image=searcher.read_image, subtitle=subtitle)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_rest, **_named: log_stderr(f"warning: {message}")
        yield
