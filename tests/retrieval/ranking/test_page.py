"""Pages against brute force over the same vectors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index, update_index
from llm2clip.retrieval import Searcher, SearchOptions
from llm2clip.retrieval.ranking.calibration import null_captions
from llm2clip.retrieval.ranking.cursor import Cursor

IMAGES = 60


class BlockEncoder(FakeEncoder):
    """Sees where an image is light and dark, so that only copies have similar vectors; reads texts as its parent."""

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        seen = pixels.reshape(len(pixels), -1) / 127.5 - 1
        spread = np.random.default_rng(0).standard_normal((seen.shape[1], self.info.dim))
        return (seen @ spread).astype(np.float32)


def blocks(seed: int) -> Image.Image:
    """An image of 8 by 8 random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST)


def save(image: Image.Image, path: Path, *, taken: str | None = None, quality: int = 95) -> None:
    exif = Image.Exif()
    if taken:
        exif[0x0132] = taken
        exif.get_ifd(0x8769)[0x9003] = taken
    image.save(path, exif=exif, quality=quality)


def day(number: int) -> str:
    return f"20{10 + number % 9:02}:06:{1 + number * 7 % 28:02} 12:00:{number:02}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of different days, copies of four of them, and one that looks the same at another time."""
    folder = tmp_path_factory.mktemp("pages")
    for number in range(IMAGES):
        save(blocks(number), folder / f"n{number:02}.jpg", taken=day(number))
    (folder / "equal.jpg").write_bytes((folder / "n00.jpg").read_bytes())
    save(blocks(1), folder / "again.jpg", quality=70)
    save(blocks(2).resize((128, 128)), folder / "larger.png")
    save(blocks(3), folder / "n03.webp", quality=50, taken=day(3))
    save(blocks(4), folder / "burst.jpg", taken="2014:06:01 13:00:00")
    return folder


@pytest.fixture(scope="module")
def searcher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    encoder = BlockEncoder(dim=64)
    index = tmp_path_factory.mktemp("index") / "pages.index"
    build_index(folder, index, encoder=encoder)
    return Searcher.open(index, encoder=encoder)


def everything(searcher: Searcher, query: str, **options: object) -> tuple[list[str], list[int]]:
    """Keys and ranks of all pages."""
    keys, ranks, cursor = [], [], None
    while True:
        page = searcher.find(query, options=SearchOptions(cursor=cursor, **options))
        keys += [hit.key for hit in page.hits]
        ranks += [hit.rank for hit in page.hits]
        cursor = page.cursor
        if cursor is None:
            return keys, ranks
        assert page.hits


def brute_force(searcher: Searcher, query: str) -> list[tuple[float, int, str]]:
    index, encoder = searcher.index, searcher.encoder
    rows = index.vectors.take(np.arange(len(index))).astype(np.float64)
    scores = (rows @ encoder.encode_texts([query])[0].astype(np.float64)).astype(np.float32)
    keys = {row.id: row.key for rows in index.items.each() for row in rows}
    return sorted((-float(score), id, keys[id]) for id, score in enumerate(scores))


@pytest.mark.parametrize("k", [1, 7, 64, 100])
def test_find_turns_pages_to_the_end_in_the_order_of_brute_force(searcher: Searcher, k: int):
    keys, ranks = everything(searcher, "a green thing", k=k, fold=False)
    assert keys == [key for *_, key in brute_force(searcher, "a green thing")]
    assert ranks == list(range(1, len(searcher) + 1))
    assert searcher.find("a green thing", options=SearchOptions(k=k)).total == len(searcher)


@pytest.mark.parametrize("k", [3, 100])
def test_find_folds_copies_and_no_others(searcher: Searcher, k: int):
    keys, _ = everything(searcher, "red", k=k)
    page = searcher.find("red", options=SearchOptions(k=100))
    together = {
        frozenset([hit.key, *(each.key for each in hit.duplicates)]) for hit in page.hits if hit.duplicates
    }
    assert together == {
        frozenset(pair)
        for pair in (
            ("n00.jpg", "equal.jpg"),
            ("n01.jpg", "again.jpg"),
            ("n02.jpg", "larger.png"),
            ("n03.jpg", "n03.webp"),
        )
    }
    assert keys == [hit.key for hit in page.hits]
    best = [key for *_, key in brute_force(searcher, "red")]
    assert sorted(keys, key=best.index) == keys
    assert len(keys) == IMAGES + 1


def test_find_of_another_generation_shows_no_image_twice(folder: Path, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20):
        (photos / f"{number:02}.jpg").write_bytes((folder / f"n{number:02}.jpg").read_bytes())
    encoder = BlockEncoder(dim=64)
    build_index(photos, tmp_path / "index", encoder=encoder)
    with Searcher.open(tmp_path / "index", encoder=encoder) as before:
        first = before.find("blue", options=SearchOptions(k=8))
        expected = [hit.key for hit in before.find("blue", options=SearchOptions(k=20)).hits]
    for hit in first.hits[:3]:
        (photos / hit.key).unlink()
    update_index(tmp_path / "index", encoder=encoder)
    with Searcher.open(tmp_path / "index", encoder=encoder) as after:
        second = after.find("blue", options=SearchOptions(k=100, cursor=first.cursor))
    assert second.generation != first.generation
    assert [hit.key for hit in second.hits] == expected[8:]


OUTSIDE = str(Cursor(seen=-1, generation="1", score=0, id=0))


@pytest.mark.parametrize("cursor", ["x", "MTo1", "a" * 150, "é", OUTSIDE])
def test_find_refuses_a_cursor_that_is_none(searcher: Searcher, cursor: str):
    with pytest.raises(ValueError, match=r"cursor is not one that a search gave|pages end after"):
        searcher.find("red", options=SearchOptions(cursor=cursor))


def test_find_sorts_by_capture_time(searcher: Searcher):
    page = searcher.find(
        "red", options=SearchOptions(k=12, sort="date", where="time_source = 'exif'", fold=False)
    )
    best = searcher.find("red", options=SearchOptions(k=12, where="time_source = 'exif'", fold=False))
    times = [str(hit.time) for hit in page.hits]
    assert times == sorted(times, reverse=True)
    assert {hit.key for hit in page.hits} == {hit.key for hit in best.hits}
    assert [hit.rank for hit in page.hits] == list(range(1, 13))


def middle_confidence(searcher: Searcher, query: str, place: int) -> float:
    """A confidence that ``place`` images reach, and no more."""
    whole = searcher.find(query, options=SearchOptions(k=100, fold=False))
    last, next_one = sorted((hit.confidence for hit in whole.hits), reverse=True)[place - 1 : place + 1]
    return (last + next_one) / 2


def test_find_with_a_least_confidence_sorts_all_that_passed_by_time(searcher: Searcher):
    least = middle_confidence(searcher, "red", 12)
    keys, _ = everything(searcher, "red", k=5, sort="date", min_confidence=least, fold=False)
    passed = searcher.find("red", options=SearchOptions(k=100, min_confidence=least, fold=False))
    assert len(keys) == passed.total == len(passed.hits) == 12
    times = {hit.key: str(hit.time)[:19] for hit in passed.hits}
    assert [times[key] for key in keys] == sorted(times.values(), reverse=True)


def test_find_leaves_out_exactly_what_is_less_confident(searcher: Searcher):
    whole = searcher.find("yellow", options=SearchOptions(k=100, fold=False))
    confidences = {hit.key: hit.confidence for hit in whole.hits}
    for place in (1, 9, 14):
        least = middle_confidence(searcher, "yellow", place)
        page = searcher.find("yellow", options=SearchOptions(k=100, fold=False, min_confidence=least))
        assert [hit.key for hit in page.hits] == [key for key, sure in confidences.items() if sure >= least]
        assert page.total == len(page.hits) == place
        assert [hit.score for hit in page.hits] == [
            hit.score for hit in whole.hits if hit.confidence >= least
        ]


def test_find_says_so_if_nothing_is_like_that(searcher: Searcher):
    page = searcher.find("red", options=SearchOptions(min_confidence=1.0))
    assert (page.hits, page.total, page.cursor) == ([], 0, None)
    assert page.notes == ("nothing like that here",)
    assert searcher.find("red", options=SearchOptions(min_confidence=0.0, k=100, fold=False)).total == len(
        searcher
    )


def test_find_has_confidences_for_texts_only(searcher: Searcher, folder: Path):
    assert all(hit.confidence is not None for hit in searcher.find('"red" + "blue"').hits)
    for query in (f"image:{folder / 'n05.jpg'}", '"red" - "blue"', '"red" NOT "blue"', "item:3"):
        assert all(hit.confidence is None for hit in searcher.find(query).hits)
        with pytest.raises(ValueError, match="only for queries of texts"):
            searcher.find(query, options=SearchOptions(min_confidence=0.5))


def test_find_reads_images_that_were_sent(searcher: Searcher):
    buffer = io.BytesIO()
    blocks(7).save(buffer, "PNG")
    assert searcher.find("image:sent", images={"sent": buffer.getvalue()}).hits[0].key == "n07.jpg"
    assert searcher.find("item:5").hits[0].id == 5
    with pytest.raises(ValueError, match="no image has the id 99999"):
        searcher.find("item:99999")


def test_find_all_equals_find_one_by_one(searcher: Searcher):
    queries = ["red", "a blue thing", '"red" - "blue"', "red"]
    assert searcher.find_all(queries) == [searcher.find(query) for query in queries]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"k": 1.5}, "k must be a whole number"),
        ({"min_confidence": 1.5}, "from 0 to 1"),
        ({"min_confidence": float("nan")}, "from 0 to 1"),
        ({"by": "smell"}, "by must be one of"),
        ({"sort": "size"}, "sort must be one of"),
        ({"sort": "date", "diverse": True}, "exclude each other"),
    ],
)
def test_search_options_refuse_values_outside_their_range(options: dict[str, object], problem: str):
    with pytest.raises(ValueError, match=problem):
        SearchOptions(**options)


def test_find_of_several_indexes_shows_each_image_once(searcher: Searcher, folder: Path, tmp_path: Path):
    encoder = BlockEncoder(dim=64)
    build_index(folder, tmp_path / "second.index", encoder=encoder)
    with Searcher.open([searcher.index.path, tmp_path / "second.index"], encoder=encoder) as both:
        keys, _ = everything(both, "green", k=9)
        assert keys == everything(searcher, "green", k=9)[0]
        found = both.find("green", options=SearchOptions(min_confidence=0.6, k=100))
        assert [hit.key for hit in found.hits] == [
            hit.key for hit in searcher.find("green", options=SearchOptions(min_confidence=0.6, k=100)).hits
        ]


def test_null_captions_are_many_and_distinct():
    captions = null_captions()
    assert 200 <= len(captions) <= 400
    assert all(caption.strip() == caption and caption for caption in captions)
