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

from llm2clip.common.terminal import GroupedCommand, make_app, one_line_errors
from llm2clip.retrieval.output.results import Answer, Query, text_query

if TYPE_CHECKING:
    from llm2clip.indexer import Record
    from llm2clip.retrieval.searcher import Searcher

QUERIES = (
    ("en", "sunset over the sea", None),
    ("zh", "雪山", "Chinese: snowy mountains"),
    ("es", "una taza de café", "Spanish: a cup of coffee"),
    ("ar", "قطة", "Arabic: a cat"),
    ("ja", "吊り橋", "Japanese: a suspension bridge"),
    ("hi", "समुद्र तट", "Hindi: a beach"),
    ("de", "zwei Hunde", "German: two dogs"),
    ("fr", "une abeille sur une fleur", "French: a bee on a flower"),
    ("ru", "вулкан", "Russian: a volcano"),
    ("ko", "은하", "Korean: a galaxy"),
    ("sw", "mlima wenye theluji", "Swahili: a snowy mountain"),
)
"""Language, text and translation."""
PARAGRAPH = (
    "The picture was taken indoors, very close to the animal, so that its head fills the whole frame. It is a "
    "domestic cat with short striped fur in brown, grey and a little orange, the kind that people call a tabby. "
    "Its green eyes are wide open and look slightly past the camera; the ears stand up, the nose is pink, and "
    "long white whiskers spread out on both sides. The fur of the chin and the chest is paler. There is nothing "
    "else to see: no furniture, no people, no toys, only the face of this calm pet and a dark, blurred "
    "background."
)
"""The long query, in English."""
PARAGRAPH_IMAGE, IMAGE_QUERY = "sk-chelsea.webp", "sl-flower.webp"
"""The image that the paragraph describes, and the one that is the image query."""
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
    from llm2clip.retrieval.commands import BuildProgress, save_gallery
    from llm2clip.retrieval.output.printing import print_answers
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
    described, shown = _chosen()
    (tokens,) = searcher.encoder.count_tokens([PARAGRAPH])
    gloss = f"{tokens} tokens, CLIP reads {CLIP_TOKENS}; it describes {_name(described)}"
    queries = [text_query(text, language=language, gloss=meaning) for language, text, meaning in QUERIES]
    queries.append(text_query(PARAGRAPH, language="en", gloss=gloss))
    image = shown.read()
    began = time.perf_counter()
    found = searcher.search([query.label for query in queries], k=k)
    found += searcher.search_images([image], k=k)
    seconds = time.perf_counter() - began
    queries.append(Query(kind="image", label=_name(shown), image=image))
    return [Answer(query=query, hits=hits) for query, hits in zip(queries, found, strict=True)], seconds


def _chosen() -> tuple[Record, Record]:
    """The image that the paragraph describes, and the image query."""
    from llm2clip.indexer import open_corpus
    from llm2clip.indexer.core.index_paths import SAMPLE

    found = {_name(record): record for record in open_corpus(SAMPLE).records()}
    if PARAGRAPH_IMAGE in found and IMAGE_QUERY in found:
        return found[PARAGRAPH_IMAGE], found[IMAGE_QUERY]
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
        (f"{index} build YOUR_PHOTOS", "an index of your own"),
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
