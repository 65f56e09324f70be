"""Several words are one query, text and images are combined, several indexes are searched together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from llm2clip.encoders import FakeEncoder, ImageError
from llm2clip.indexer import EncoderMismatchError, build_index
from llm2clip.retrieval import Searcher
from llm2clip.retrieval.output.results import Answer, combined_query, text_query

from .conftest import Corpus, hit, image

Search = Callable[..., Result]


def records(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def other(corpus: Corpus, tmp_path: Path) -> Path:
    """A second index of the same encoder: two shades of red and a copy of an image of the first."""
    folder = tmp_path / "more"
    folder.mkdir()
    for name, colour in (("crimson", "#dc143c"), ("maroon", "#800000")):
        (folder / f"{name}.png").write_bytes(image(colour))
    build_index(folder, tmp_path / "more.index", encoder=corpus.encoder)
    return tmp_path / "more.index"


def test_searcher_search_combined_is_the_mean_of_both(corpus: Corpus):
    files = sorted(corpus.folder.rglob("*.png"))
    rows = corpus.encoder.encode_images(files).astype(np.float16).astype(np.float64)
    asked = [
        *corpus.encoder.encode_texts(["red", "white"]),
        *corpus.encoder.encode_images([image("#00ff00")]),
    ]
    mean = np.sum(asked, axis=0, dtype=np.float64)
    scores = dict(
        zip((file.name for file in files), (rows @ (mean / np.linalg.norm(mean))).tolist(), strict=True)
    )
    with Searcher.open(corpus.index, encoder=corpus.encoder) as searcher:
        hits = searcher.search_combined(["red", "white"], [image("#00ff00")], k=8)
        assert [Path(hit.key).name for hit in hits] == sorted(scores, key=lambda name: -scores[name])
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-6)
        alone = searcher.search_combined(["red"], [], k=3)
        assert [(hit.id, round(hit.score, 5)) for hit in alone] == [
            (hit.id, round(hit.score, 5)) for hit in searcher.search("red", k=3)
        ]
        with pytest.raises(ValueError, match="neither a text nor an image"):
            searcher.search_combined([], [])
        with pytest.raises(ImageError, match="2 of 2"):
            searcher.search_combined([], [image("#00ff00"), b"no image"])


def test_search_command_takes_words_and_images_as_one_query(corpus: Corpus, search: Search):
    [found] = records(search("a", "red", "square", "--json", "--index", corpus.index))
    assert (found["query"], found["kind"]) == ("a red square", "text")
    blue = corpus.folder / "cold/blue.png"
    [found] = records(search("red", "--image", blue, "-k", 3, "--json", "--index", corpus.index))
    assert (found["query"], found["kind"]) == (f"red + {blue}", "combined")
    assert Path(found["hits"][0]["key"]).stem == "magenta"  # red and blue
    lines = search("red", "--image", blue, "--index", corpus.index).stdout.splitlines()
    assert lines[0].startswith("images like red +")
    [found] = records(search("--image", blue, "-k", 1, "--json", "--index", corpus.index))
    assert (found["query"], found["kind"]) == (str(blue), "image")
    both = (
        "--image",
        blue,
        "--image",
        corpus.folder / "warm/red.png",
        "-k",
        1,
        "--json",
        "--index",
        corpus.index,
    )
    assert Path(records(search(*both))[0]["hits"][0]["key"]).stem == "magenta"
    assert [Path(each["hits"][0]["key"]).stem for each in records(search("--each", *both))] == ["blue", "red"]


def test_search_command_shows_the_images_of_a_combined_query(corpus: Corpus, search: Search, tmp_path: Path):
    blue = corpus.folder / "cold/blue.png"
    search("red", "--image", blue, "-k", 1, "--html", tmp_path / "g.html", "--index", corpus.index)
    page = (tmp_path / "g.html").read_text("utf-8")
    assert 'alt="The query image, blue.png"' in page
    assert "<bdi>red + blue.png</bdi>" in page


def test_combined_query_of_one_part_is_that_part():
    assert combined_query("词", []).language == "zh"
    assert combined_query("", [("a.png", b"a")]).kind == "image"
    assert [part.kind for part in combined_query("w", [("a.png", b"a"), ("b.png", b"b")]).parts] == [
        "text",
        "image",
        "image",
    ]


def test_searcher_merges_several_indexes_by_score(corpus: Corpus, other: Path, tmp_path: Path):
    paths = [corpus.index, other]
    with Searcher.open(paths, encoder=corpus.encoder) as together:
        alone = [
            hit for path in paths for hit in Searcher.open(path, encoder=corpus.encoder).search("red", k=99)
        ]
        hits = together.search("red", k=5)
        expected = sorted(alone, key=lambda hit: -hit.score)[:5]
        assert [(hit.uri, hit.score) for hit in hits] == [(hit.uri, hit.score) for hit in expected]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
        assert {Path(hit.key).stem: Path(hit.index or "").name for hit in hits[:2]} == {
            "red": "images.index",
            "maroon": "more.index",
        }
        assert [together.read_image(hit) for hit in hits] == [Path(hit.uri).read_bytes() for hit in hits]
        assert len(together) == 10
        assert [hit.key for hit in together.search("red", where="path = 'maroon.png'")] == ["maroon.png"]


def test_searcher_shows_an_image_of_two_indexes_once(corpus: Corpus, tmp_path: Path):
    build_index(corpus.folder / "warm", tmp_path / "warm.index", encoder=corpus.encoder)
    for paths in ([corpus.index, tmp_path / "warm.index"], [corpus.index, corpus.index]):
        with Searcher.open(paths, encoder=corpus.encoder) as searcher:
            found = [hit.uri for hit in searcher.search("red", k=20)]
        assert len(found) == len(set(found)) == 8


def test_search_command_searches_several_indexes(corpus: Corpus, other: Path, search: Search, tmp_path: Path):
    options = ("--index", corpus.index, "--index", other, "-k", 3, "--json")
    [found] = records(search("red", *options, "--html", tmp_path / "g.html"))
    assert {Path(hit["key"]).stem: hit["index"] for hit in found["hits"][:2]} == {
        "red": str(corpus.index),
        "maroon": str(other),
    }
    page = (tmp_path / "g.html").read_text("utf-8")
    assert page.count("data:image/webp") == 3
    assert "10 images" in page


def test_search_refuses_indexes_of_different_encoders(corpus: Corpus, search: Search, tmp_path: Path):
    build_index(corpus.folder, tmp_path / "b", encoder=FakeEncoder(name="other", seed=1))
    with pytest.raises(EncoderMismatchError, match="fake and other, whose scores cannot be compared"):
        Searcher.open([corpus.index, tmp_path / "b"])
    result = search("red", "--index", corpus.index, "--index", tmp_path / "b")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1


def test_search_says_which_originals_are_missing(corpus: Corpus, search: Search, tmp_path: Path):
    options = ("red", "-k", 3, "--index", corpus.index)
    assert "missing" not in search(*options).stderr
    (corpus.folder / "warm" / "red.png").unlink()
    result = search(*options)
    assert result.stderr == (
        "note: the files of 1 of 3 images are missing; bring the index up to date with  llm2clip-index update\n"
    )
    assert [line.split()[3] for line in result.stdout.splitlines() if "is missing" in line] == [
        "warm/red.png"
    ]
    [found] = records(search(*options, "--json"))
    assert [hit["missing"] for hit in found["hits"]] == [True, False, False]
    corpus.folder.rename(tmp_path / "renamed")
    result = search(*options)
    assert result.stderr == (
        f"note: the files of 3 of 3 images are missing: {corpus.folder} is gone. If it was moved:  "
        f"llm2clip-index move {corpus.folder} NEW\n"
    )


def test_a_member_of_a_tar_is_missing_only_with_its_tar(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b#c.png").write_bytes(b"")
    uris = ["a.tar#x.png", "b#c.png", "d.tar#x.png", "e.png"]
    answer = Answer(query=text_query("q"), hits=[hit(uri=str(tmp_path / uri)) for uri in uris])
    assert answer.missing == {str(tmp_path / uri) for uri in ("d.tar#x.png", "e.png")}
    assert not Answer(query=text_query("q"), hits=[hit(uri="s3://bucket/a.png")]).missing


def test_search_command_weighs_and_subtracts_terms(corpus: Corpus, search: Search, tmp_path: Path):
    green = tmp_path / "green.png"
    green.write_bytes(image("#00ff00"))
    common = ("--index", corpus.index, "--encoder", "fake", "--json", "-k", 8)
    (found,) = records(search("2*red", "-", "white", "+", f"image:{green}", *common))
    red, white = corpus.encoder.encode_texts(["red", "white"])
    wanted = 2 * red - white + corpus.encoder.encode_images([green])[0]
    files = sorted(corpus.folder.rglob("*.png"))
    rows = corpus.encoder.encode_images(files).astype(np.float16).astype(np.float64)
    expected = [files[row].stem for row in np.argsort(-(rows @ wanted), kind="stable")]
    assert [Path(hit["key"]).stem for hit in found["hits"]] == expected
    assert found["query"] == f"2*red - white + {green}"
    page = tmp_path / "found.html"
    search("2*red", "-", "white", "+", f"image:{green}", *common, "--html", page)
    assert "<bdi>2*red - white + green.png</bdi>" in page.read_text(encoding="utf-8")
    assert "at character 8" in search('"red" +', *common).stderr
