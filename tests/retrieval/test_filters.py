"""Searching among the images that a filter lets through."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from typer.testing import Result

from llm2clip.indexer import WhereError, update_index
from llm2clip.retrieval import Searcher

from .conftest import COLOURS, Corpus

Search = Callable[..., Result]


def test_searcher_where_finds_the_best_matching_images(corpus: Corpus):
    with Searcher.open(corpus.index, encoder=corpus.encoder) as searcher:
        everything = searcher.search("red", k=len(COLOURS))
        cold = [hit.key for hit in everything if hit.key.startswith("cold/")]
        assert cold != [hit.key for hit in everything][: len(cold)]
        found = searcher.search("red", k=2, where="key GLOB 'cold/*'")
        assert [hit.key for hit in found] == cold[:2]
        assert [hit.rank for hit in found] == [1, 2]
        (like_blue,) = searcher.search_images([corpus.folder / "cold/blue.png"], where="meta.mood = 'calm'")
        assert [hit.key for hit in like_blue] == ["cold/blue.png"]
        assert searcher.search("red", where="width < 0") == []


def test_searcher_refuses_an_invalid_filter_before_loading(corpus: Corpus):
    with Searcher.open(corpus.index, encoder="no/such/encoder") as searcher:
        with pytest.raises(WhereError, match="no field 'widht'; did you mean 'width'"):
            searcher.search("red", where="widht > 3")
        with pytest.raises(WhereError, match="no field 'widht'"):
            searcher.search_images([b""], where="widht > 3")


def test_search_command_filters(corpus: Corpus, search: Search):
    result = search("red", "--index", corpus.index, "--where", "caption CONTAINS 'BLUE'", "--json")
    (answer,) = map(json.loads, result.stdout.splitlines())
    assert [hit["key"] for hit in answer["hits"]] == ["cold/blue.png"]


def test_search_command_says_that_nothing_matches(corpus: Corpus, search: Search):
    result = search("red", "--index", corpus.index, "--where", "width > 1000", "--paths")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "no image matches the filter\n"
    result = search("red", "--index", corpus.index, "--where", "meta.moods = 'calm'", "--paths")
    assert result.stderr == "no image matches the filter; metadata fields: meta.mood\n"


def test_search_command_points_at_a_wrong_filter(corpus: Corpus, search: Search):
    image = corpus.folder / "cold/blue.png"
    for query in (("red",), ("--image", image)):
        result = search(*query, "--index", corpus.index, "--where", "width > 1 AND caption = 3")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "error: filter, at character 25: caption is compared with text, got a number. "
            "Here: width > 1 AND caption = >>3<<\n"
        )


def test_search_command_takes_whole_periods_of_time(corpus: Corpus, search: Search):
    year = 2019
    for number, file in enumerate(sorted(corpus.folder.rglob("*.png"))):
        moment = datetime(year, 1 + number, 28 if number else 1, 23, 59, tzinfo=UTC).timestamp()
        os.utime(file, (moment, moment))
    update_index(corpus.index, encoder=corpus.encoder)
    everything = ("red", "--index", corpus.index, "--json", "-k", 50)

    def months(*options: str) -> list[str]:
        (answer,) = map(json.loads, search(*everything, *options).stdout.splitlines())
        return sorted(hit["time"][:7] for hit in answer["hits"])

    assert months("--from", "2019-02", "--to", "2019-03") == ["2019-02", "2019-03"]
    assert months("--to", "2019-01-01", "--where", "width < 0 OR width > 0") == ["2019-01"]
    assert months("--from", "2020") == []
    wrong = search(*everything, "--from", "last summer")
    assert wrong.exit_code == 1
    assert (
        wrong.stderr == "error: --from takes a time such as 2019, 2019-06 or 2019-06-15, got 'last summer'\n"
    )
    wrong = search(*everything, "--from", "2019", "--where", "widht > 1")
    assert "filter, at character 1: no field 'widht'" in wrong.stderr
