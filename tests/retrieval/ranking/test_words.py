"""Captions, file names and metadata, alone and beside the ranking of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index
from llm2clip.retrieval import Searcher, SearchOptions
from llm2clip.retrieval.ranking.words import fused, is_name

COLOURS = {
    "IMG_2041": "#0000ff",
    "IMG_20415": "#000080",
    "holiday": "#ff0000",
    "sunrise": "#ffff00",
    "mountain": "#00ff00",
    "Café_à_Paris": "#00ffff",
}
CAPTIONS = {
    "holiday": "A fisherman mends his red net",
    "sunrise": "雪山上的日出",
    "mountain": "A net of rivers in the snow, and a net of roads",
}


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("words")
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.jpg", quality=95)
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.txt").write_text(caption, "utf-8")
    (folder / "Café_à_Paris.json").write_text(json.dumps({"camera": {"lens": "Summilux 35"}}))
    encoder = FakeEncoder()
    index = tmp_path_factory.mktemp("index") / "words.index"
    build_index(folder, index, encoder=encoder)
    return Searcher.open(index, encoder=encoder)


def names(searcher: Searcher, query: str, **options: object) -> list[str]:
    return [Path(hit.key).stem for hit in searcher.find(query, options=SearchOptions(**options)).hits]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("net", ["mountain", "holiday"]),
        ("red NET", ["holiday"]),
        ("雪山", ["sunrise"]),
        ("山上", ["sunrise"]),
        ("雪日", []),
        ("summilux", []),
        ("IMG_2041", []),
        ('net"; DROP TABLE words --', []),
        ("a", []),
    ],
)
def test_find_by_caption_finds_captions_with_all_words(searcher: Searcher, query: str, found: list[str]):
    assert names(searcher, query, by="caption") == found


def test_find_by_all_puts_words_first_and_the_other_images_after_them(searcher: Searcher):
    by_image = names(searcher, "net red", by="image")
    assert names(searcher, "net red", by="all") == [
        "holiday",
        *(name for name in by_image if name != "holiday"),
    ]
    assert names(searcher, "summilux", by="all")[0] == "Café_à_Paris"
    assert names(searcher, "cafe paris", by="all")[0] == "Café_à_Paris"
    assert sorted(names(searcher, "snow", by="all")) == sorted(COLOURS)


@pytest.mark.parametrize("query", ["IMG_2041", "img_2041", "IMG_2041.jpg"])
@pytest.mark.parametrize("by", ["auto", "all"])
def test_find_puts_the_file_of_that_name_first(searcher: Searcher, query: str, by: str):
    assert names(searcher, query, by=by)[:2] == ["IMG_2041", "IMG_20415"]
    assert names(searcher, query, by="image") == [Path(hit.key).stem for hit in searcher.search(query, k=10)]


def test_find_of_words_keeps_to_the_filter_and_turns_pages(searcher: Searcher):
    assert names(searcher, "net", by="all", where="key != 'mountain.jpg'")[0] == "holiday"
    everything = names(searcher, "net", by="all")
    paged = [name for page in (1, 2, 3) for name in names(searcher, "net", by="all", k=2, page=page)]
    assert paged == everything
    page = searcher.find("net", options=SearchOptions(by="caption", k=1))
    assert page.total == 2
    following = searcher.find("net", options=SearchOptions(by="caption", k=1, cursor=page.cursor))
    assert [Path(hit.key).stem for hit in following.hits] == ["holiday"]
    assert following.cursor is None


def test_find_of_words_has_scores_of_the_image(searcher: Searcher):
    by_image = {hit.id: hit.score for hit in searcher.search("net", k=10)}
    for by in ("caption", "all"):
        for hit in searcher.find("net", options=SearchOptions(by=by)).hits:
            assert hit.score == by_image[hit.id]


def test_find_by_caption_refuses_what_is_no_text(searcher: Searcher):
    with pytest.raises(ValueError, match="only a query of one text"):
        searcher.find("item:0", options=SearchOptions(by="caption"))


def test_fused_equals_its_formula():
    by_score, by_words = [3, 1, 4, 5], [9, 4]
    points = {
        3: 1 / 61,
        1: 1 / 62,
        4: 1 / 63 + 2 / 62,
        5: 1 / 64,
        9: 2 / 61,
    }
    assert fused(by_score, by_words) == sorted(points, key=points.__getitem__, reverse=True)
    assert fused(by_score, []) == by_score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IMG_2041", True),
        ("DSC01234.ARW", True),
        ("holiday.jpeg", True),
        ("dog", False),
        ("two dogs", False),
        ("IMG_2041 dog", False),
        ("3", False),
        ("e.g.", False),
    ],
)
def test_is_name_tells_names_of_files(text: str, expected: bool):
    assert is_name(text) is expected
