"""``python -m llm2clip.retrieval.demo``: search the sample images in many languages, print tables, write a gallery."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from llm2clip.common.command_line import GroupedCommand, make_app
from llm2clip.common.terminal import one_line_errors
from llm2clip.retrieval.results import Answer, Query, text_query

if TYPE_CHECKING:
    from llm2clip.indexer import Record
    from llm2clip.retrieval.searcher import Searcher

QUERIES = (
    ("en", "an animal with a long neck", None),
    ("zh", "下雨天用的东西", "Chinese: something used on rainy days"),
    ("es", "una bebida caliente", "Spanish: a hot drink"),
    ("ar", "حيوان يعيش في الصحراء", "Arabic: an animal that lives in the desert"),
    ("ja", "海に住む大きな動物", "Japanese: a big animal that lives in the sea"),
    ("hi", "जन्मदिन का केक", "Hindi: birthday cake"),
    ("de", "damit schneidet man Papier", "German: paper is cut with it"),
    ("fr", "le camion rouge des pompiers", "French: the firefighters' red truck"),
    ("ru", "музыкальный инструмент с клавишами", "Russian: a musical instrument with keys"),
    ("ko", "밤하늘에 빛나는 것", "Korean: something that shines in the night sky"),
    ("sw", "nyumba ndogo", "Swahili: a small house"),
)
"""Language, text and translation."""
QUERY_EMOJI = "🦒"
"""The image query is the sample image of this emoji."""
CLIP_TOKENS = 77
"""Token limit of CLIP's text towers; the long query exceeds it."""

app = make_app()


@app.command(cls=GroupedCommand)
def demo(
    k: Annotated[
        int, typer.Option("-k", min=1, metavar="N", help="Hits per query.", rich_help_panel="Search")
    ] = 5,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder of the index.",
            show_default="in the data home",
            rich_help_panel="Index",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the gallery.", rich_help_panel="Output")
    ] = Path("demo-output"),
) -> None:
    """Index the sample images with the shipped encoder, and search them in many languages."""
    with one_line_errors():
        run(out, index=index, k=k)


def run(out: Path, *, index: Path | None = None, k: int = 5) -> list[Answer]:
    """Build or reuse the index, search, print tables and write the gallery; returns the answers shown."""
    from llm2clip.encoders import load_encoder
    from llm2clip.retrieval.commands import BuildProgress, print_answers, save_gallery
    from llm2clip.retrieval.sample_index import SAMPLE_ENCODER, open_sample
    from llm2clip.retrieval.searcher import Searcher

    encoder = load_encoder(SAMPLE_ENCODER)
    began = time.perf_counter()
    with BuildProgress("building the index of the sample images") as progress:
        opened = open_sample(encoder, path=index, on_progress=progress)
    took = time.perf_counter() - began
    with Searcher(opened, encoder=encoder) as searcher:
        how = f"indexed in {took:.1f} s" if progress.begun else "their index was up to date"
        print(f"{len(opened):,} sample images, {how}: {opened.path}\n")
        answers, seconds = _answers(searcher, k=k)
        written = save_gallery(searcher, answers, path=out / "gallery.html")
    print_answers(answers)
    print(f"{len(answers)} queries in {seconds:.2f} s, the encoder's start included.")
    print(f"The same with images: {written}\n")
    print(_next())
    return answers


def _answers(searcher: Searcher, *, k: int) -> tuple[list[Answer], float]:
    """All answers, and the seconds that the search took."""
    scene, shown = _choose(searcher)
    long = scene.caption or ""
    (tokens,) = searcher.encoder.count_tokens([long])
    gloss = f"{tokens} tokens, CLIP reads {CLIP_TOKENS}; it describes {_name(scene)}"
    queries = [text_query(text, language=language, gloss=meaning) for language, text, meaning in QUERIES]
    queries.append(text_query(long, language="en", gloss=gloss))
    image = shown.read()
    began = time.perf_counter()
    found = searcher.search([query.label for query in queries], k=k)
    found += searcher.search_images([image], k=k)
    seconds = time.perf_counter() - began
    queries.append(Query(kind="image", label=_name(shown), image=image))
    return [Answer(query=query, hits=hits) for query, hits in zip(queries, found, strict=True)], seconds


def _choose(searcher: Searcher) -> tuple[Record, Record]:
    """The first scene whose caption is longer than CLIP reads, and the first image of ``QUERY_EMOJI``."""
    scene = image = None
    from llm2clip.indexer import open_corpus
    from llm2clip.indexer.core.index_paths import SAMPLE

    for record in open_corpus(SAMPLE).records():
        metadata = record.metadata or {}
        if scene is None and metadata.get("kind") == "scene" and record.caption:
            if searcher.encoder.count_tokens([record.caption])[0] > CLIP_TOKENS:
                scene = record
        elif image is None and metadata.get("emoji") == QUERY_EMOJI:
            image = record
        if scene is not None and image is not None:
            return scene, image
    raise ValueError(
        "the sample corpus lacks the images that the demo uses as queries: reinstall the package"
    )


def _name(record: Record) -> str:
    return record.key.rpartition("#")[2]


def _next() -> str:
    """Commands to try next."""
    search, index = program("llm2clip-search"), program("llm2clip-index")
    rows = (
        (f'{search} "a red flower"', "the sample images, with your own words"),
        (f'{search} "一只猫" --html cats.html', "as a page with images"),
        (f"{index} build YOUR_PHOTOS", "an index of your own; it asks which encoder to use"),
        (f"{search} --help", "images as queries, JSON, many queries at once"),
    )
    width = max(cell_len(command) for command, _ in rows)
    lines = (f"  {command}{' ' * (width - cell_len(command))}  {what}" for command, what in rows)
    return "\n".join(("Try next:", *lines))


def program(name: str) -> str:
    """How to type a command of the running environment: its name if the shell finds it, else its path."""
    own = shutil.which(name, path=str(Path(sys.executable).parent))
    found = shutil.which(name)
    if own is None or (found is not None and os.path.samefile(own, found)):
        return name
    try:
        short = os.path.relpath(own)
    except ValueError:  # another drive of Windows
        short = own
    return shlex.quote(min(short, own, key=len))


if __name__ == "__main__":
    app()
