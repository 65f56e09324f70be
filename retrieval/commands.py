"""What ``llm2clip-search`` does with its arguments: search and print."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm2clip.common.terminal import graceful_interrupt, log_stderr
from llm2clip.indexer.commands.session import progress_bar
from llm2clip.retrieval.results import Answer, Query, answer_json, answer_paths, answer_table, text_query
from llm2clip.retrieval.searcher import Searcher, locate

if TYPE_CHECKING:
    from llm2clip.indexer import Progress

Output = Literal["table", "json", "paths"]

_TRAILING_SPACES = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
"""Padding of the last column, before escape sequences that end a style."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The arguments of one ``llm2clip-search``."""

    texts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    queries_file: str | None = None
    """File with one text query per line, ``-`` for standard input."""
    k: int = 10
    where: str | None = None
    """Filter on the images; ``None`` for all."""
    index: Path | str | None = None
    """Index folder; ``None`` for the default one."""
    encoder: str | None = None
    """Encoder name or folder; ``None`` for the one the index names."""
    device: str = "auto"
    """Where to encode; a named CUDA device also searches."""
    output: Output = "table"
    html: Path | None = None
    """File to write a gallery to."""


def run(request: SearchRequest) -> None:
    """Search and print."""
    texts = [*request.texts, *read_queries(request.queries_file)]
    images = [(path, path.read_bytes()) for path in request.images]
    if not texts and not images:
        raise ValueError(f"{request.queries_file} has no query: it is empty or all its lines are blank")
    queries = [text_query(text) for text in texts]
    queries += [Query(kind="image", label=str(path), image=data) for path, data in images]
    with (
        _one_line_warnings(),
        open_searcher(request.index, encoder=request.encoder, device=request.device) as searcher,
    ):
        found = searcher.search(texts, k=request.k, where=request.where)
        for path, data in images:
            try:
                found += searcher.search_images([data], k=request.k, where=request.where)
            except ValueError as error:
                raise ValueError(f"cannot search with the image {path}: {error}") from error
        answers = [Answer(query=query, hits=hits) for query, hits in zip(queries, found, strict=True)]
        written = save_gallery(searcher, answers, path=request.html) if request.html else None
        print_answers(answers, output=request.output)
        if request.where and not any(found):
            names = searcher.index.metadata_names() if "meta" in request.where.lower() else []
            known = f"; metadata fields: {', '.join(names[:40])}" if names else ""
            log_stderr(f"no image matches the filter{known}")
        if written:
            log_stderr(f"gallery written to {written}")


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
    return [line.strip() for line in text.splitlines() if line.strip()]


def open_searcher(
    index: Path | str | None = None, *, encoder: str | None = None, device: str = "auto"
) -> Searcher:
    """``Searcher.open``, with a note on standard error if the sample images are searched because there is no index."""
    place = locate(index)
    subject = "no index was built yet: " if place.fallback else ""
    subject += "searching the sample images"
    with BuildProgress(f"{subject} (building their index first)") as progress:
        searcher = Searcher.open(index, encoder=encoder, device=device, on_progress=progress)
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


def print_answers(answers: Sequence[Answer], *, output: Output = "table") -> None:
    """Print answers to standard output."""
    if output == "table":
        from rich.console import Console

        _encode(errors="replace")
        console = Console(highlight=False)
        with console.capture() as printed:
            for answer in answers:
                console.print(answer_table(answer, width=console.width))
        console.file.write(_TRAILING_SPACES.sub(r"\1", printed.get()))
    elif output == "json":
        ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
        print("\n".join(answer_json(answer, ascii_only=ascii_only) for answer in answers))
    else:
        # The bytes of the file's name, even if they are not UTF-8.
        _encode(errors="surrogateescape", encoding="utf-8" if os.name == "posix" else None)
        for answer in answers:
            for place in answer_paths(answer):
                print(place)
    sys.stdout.flush()


def save_gallery(searcher: Searcher, answers: Sequence[Answer], *, path: Path) -> Path:
    """Write answers as an HTML gallery; return its absolute path."""
    from llm2clip.retrieval.gallery import write_gallery

    subtitle = f"{len(searcher.index):,} images, encoder {searcher.encoder.info.name}"
    return write_gallery(path, answers, read_image=searcher.index.read_image, subtitle=subtitle)


def _encode(*, errors: Literal["replace", "surrogateescape"], encoding: str | None = None) -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors=errors)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_rest, **_named: log_stderr(f"warning: {message}")
        yield
