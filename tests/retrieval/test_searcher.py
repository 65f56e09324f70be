"""Searching against brute force, and what is refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder, ImageError, ModelError
from llm2clip.indexer import EncoderMismatchError, IndexNotFoundError, build_index, open_index
from llm2clip.retrieval import LongTextWarning, Searcher

from .conftest import COLOURS, Corpus, image


@pytest.fixture
def searcher(corpus: Corpus) -> Searcher:
    return Searcher.open(corpus.index, encoder=corpus.encoder)


def names(hits: list[Any]) -> list[str]:
    return [Path(hit.key).stem for hit in hits]


def test_searcher_search_equals_brute_force(corpus: Corpus, searcher: Searcher):
    files = sorted(corpus.folder.rglob("*.png"))
    images = corpus.encoder.encode_images(files).astype(np.float16).astype(np.float32)
    for text in ("red", "a green and yellow thing", "#804020", "no colour at all"):
        scores = images @ corpus.encoder.encode_texts([text])[0]
        expected = sorted(
            zip(-scores, (file.relative_to(corpus.folder).as_posix() for file in files), strict=True)
        )
        hits = searcher.search(text, k=5)
        assert [hit.key for hit in hits] == [key for _, key in expected[:5]]
        assert [hit.score for hit in hits] == pytest.approx([-score for score, _ in expected[:5]], abs=1e-6)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_searcher_search_of_a_list_gives_lists(searcher: Searcher):
    assert names(searcher.search("red", k=1)) == ["red"]
    assert [names(hits) for hits in searcher.search(["blue", "green"], k=1)] == [["blue"], ["green"]]
    assert [names(hits) for hits in searcher.search(("cyan",), k=1)] == [["cyan"]]
    assert searcher.search([]) == []


def test_searcher_search_of_many_equals_one_by_one(searcher: Searcher):
    texts = [f"{name} number {number}" for number in range(9) for name in COLOURS]
    assert searcher.search(texts, k=3) == [searcher.search(text, k=3) for text in texts]


def test_searcher_search_images_finds_the_image_itself(corpus: Corpus, searcher: Searcher):
    file = corpus.folder / "warm" / "red.png"
    with Image.open(file) as opened:
        forms = [file, str(file), file.read_bytes(), opened, np.array(opened)]
        for hits in searcher.search_images(forms, k=2):
            assert names(hits)[0] == "red"
            assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert searcher.search_images([]) == []


def test_searcher_hits_carry_caption_metadata_and_uri(corpus: Corpus, searcher: Searcher):
    red, blue = (searcher.search(name, k=1)[0] for name in ("red", "blue"))
    assert (red.caption, red.metadata) == ("a red square", {})
    assert (blue.caption, blue.metadata) == ("a blue square", {"mood": "calm"})
    assert (blue.width, blue.height) == (24, 16)
    assert Path(blue.uri) == corpus.folder / "cold" / "blue.png"


def test_searcher_search_returns_fewer_hits_than_k(searcher: Searcher):
    assert len(searcher.search("red", k=1000)) == len(COLOURS)


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u3000"])
def test_searcher_search_refuses_a_blank_query(searcher: Searcher, text: str):
    with pytest.raises(ValueError, match=r"^the query is empty; give at least one word"):
        searcher.search(text)
    with pytest.raises(ValueError, match=r"^query 2 of 3 is empty"):
        searcher.search(["red", text, "blue"])


@pytest.mark.parametrize("k", [0, -3])
def test_searcher_search_refuses_k_below_1(searcher: Searcher, k: int):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        searcher.search("red", k=k)
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        searcher.search_images([image("red")], k=k)


def test_searcher_search_refuses_wrong_kinds_of_query(searcher: Searcher):
    with pytest.raises(ValueError, match="query 1 must be text, got bytes"):
        searcher.search([b"red"])
    with pytest.raises(ValueError, match="query 1 must be text, got bytes"):
        searcher.search(b"red")
    with pytest.raises(ValueError, match="images must be a list of images, got str"):
        searcher.search_images("red.png")
    with pytest.raises(ImageError, match="not an image"):
        searcher.search_images([b"words"])


def test_searcher_search_reads_a_long_text_in_parts_with_a_warning(corpus: Corpus, searcher: Searcher):
    limit = corpus.encoder.info.max_text_tokens
    last_word_counts = "thing " * (limit - 1) + "green"
    assert names(searcher.search(last_word_counts, k=1)) == ["green"]
    first, second = "a red thing. " * (limit // 3), "Then many words of the second part, all blue."
    with pytest.warns(LongTextWarning, match=f"the text has {limit // 3 * 3 + 9} tokens.*in 2 parts"):
        found = searcher.search(f"{first}{second}", k=8)
    sentences = f"{first}{second}".split(". ")
    halves = [". ".join(part) for part in (sentences[:12], sentences[12:])]
    weights = [len(half.split()) for half in halves]
    expected = searcher.search_combined(halves, [], weights=weights, k=8)
    assert [hit.key for hit in found] == [hit.key for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)


def test_searcher_loads_the_encoder_once_on_first_use(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    from llm2clip import encoders

    loads: list[tuple[str, str]] = []

    def load(name: str, *, device: str) -> FakeEncoder:
        loads.append((name, device))
        return FakeEncoder()

    monkeypatch.setattr(encoders, "load_encoder", load)
    searcher = Searcher.open(corpus.index, device="cpu")
    assert loads == []
    threads = [threading.Thread(target=searcher.search, args=("red",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [("fake", "cpu")]


def test_searcher_loads_the_encoder_that_the_index_names(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from llm2clip import encoders
    from llm2clip.indexer import BuildOptions

    options = BuildOptions(encoder_source="/models/mine")
    build_index(corpus.folder, tmp_path / "i", encoder=FakeEncoder(), options=options)
    loads: list[str] = []
    monkeypatch.setattr(encoders, "load_encoder", lambda name, *, device: loads.append(name) or FakeEncoder())
    assert names(Searcher.open(tmp_path / "i").search("red", k=1)) == ["red"]
    assert loads == ["/models/mine"]


def test_searcher_refuses_another_encoder(corpus: Corpus, fake_by_name: object):
    with pytest.raises(EncoderMismatchError) as narrower:
        Searcher.open(corpus.index, encoder=FakeEncoder(dim=8))
    assert "was built with encoder 'fake' (dim 16), got 'fake' (dim 8)" in str(narrower.value)
    with pytest.raises(EncoderMismatchError, match=r"'other' \(dim 16\)"):
        Searcher.open(corpus.index, encoder="other").search("red")
    with pytest.raises(EncoderMismatchError, match=r"another version of encoder 'fake' \(weights_sha256 .*"):
        Searcher(open_index(corpus.index), encoder=FakeEncoder(seed=7))


def test_searcher_names_index_and_remedy_if_the_encoder_fails(
    corpus: Corpus, tmp_path: Path, fake_by_name: object
):
    build_index(corpus.folder, tmp_path / "i", encoder=FakeEncoder(name="lost"))
    searcher = Searcher.open(tmp_path / "i")
    with pytest.raises(
        ModelError, match=r"was built with encoder 'lost', which cannot be loaded: .*--encoder"
    ):
        searcher.search("red")


def test_searcher_open_refuses_a_missing_index_first(tmp_path: Path):
    with pytest.raises(IndexNotFoundError, match=r"no index at .*nowhere"):
        Searcher.open(tmp_path / "nowhere")


def test_searcher_close_closes_the_index(corpus: Corpus):
    with Searcher.open(corpus.index, encoder=corpus.encoder) as searcher:
        searcher.search("red")
    with pytest.raises(ValueError, match=r"the searcher is closed: open another with Searcher\.open"):
        searcher.search("red")
    with pytest.raises(ValueError, match="the searcher is closed"):
        searcher.search_images([image("red")])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_searcher_refuses_another_process_at_once(searcher: Searcher):
    searcher.search("red")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            searcher.search("red")
        except ValueError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert "opened before this process was forked" in answer.read()
    os.waitpid(child, 0)
    assert names(searcher.search("red", k=1)) == ["red"]


@pytest.mark.parametrize("where", [None, "width > 1"])
def test_searcher_search_takes_integers_of_numpy(searcher: Searcher, where: str | None):
    assert searcher.search("red", k=np.int64(3), where=where) == searcher.search("red", k=3, where=where)


@pytest.mark.parametrize("k", ["3", 2.0, None])
def test_searcher_search_refuses_k_of_other_types(searcher: Searcher, k: Any):
    with pytest.raises(ValueError, match=f"k must be a whole number, got {k!r}"):
        searcher.search("red", k=k)


def test_searcher_search_refuses_a_filter_that_is_no_text(searcher: Searcher):
    with pytest.raises(ValueError, match="where must be text, such as 'width > 1000', got int"):
        searcher.search("red", where=5)


def test_searcher_search_reads_pasted_text_as_it_was_meant(searcher: Searcher):
    assert searcher.search("\u202aｒｅｄ\u202c\ufeff") == searcher.search("red")
    with pytest.raises(ValueError, match="the query is empty"):
        searcher.search("\u200f\ufeff")
