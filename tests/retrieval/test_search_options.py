"""Options of the command that change what is found."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from llm2clip.indexer import update_index

from .conftest import Corpus

Search = Callable[..., Result]


def answer(result: Result) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def keys(result: Result) -> list[str]:
    return [hit["key"] for hit in answer(result)["hits"]]


def test_search_command_says_that_nothing_is_like_that(corpus: Corpus, search: Search):
    result = search("red", "--min-confidence", 1, "--index", corpus.index)
    assert result.exit_code == 1
    assert result.stdout.split("\n")[1].strip() == "nothing like that here"
    assert result.stderr == ""
    paths = search("red", "--min-confidence", 1, "--paths", "--index", corpus.index)
    assert (paths.exit_code, paths.stdout, paths.stderr) == (1, "", "nothing like that here\n")
    images = search(
        "--image", corpus.folder / "warm/red.png", "--min-confidence", 0.5, "--index", corpus.index
    )
    assert images.exit_code == 1
    assert images.stderr.startswith("error: confidence is known only for queries of texts")


def test_search_command_turns_pages(corpus: Corpus, search: Search):
    base = ("a red thing", "--index", corpus.index, "--json")
    everything = keys(search(*base, "-k", 8))
    by_number = [key for page in (1, 2, 3) for key in keys(search(*base, "-k", 3, "--page", page))]
    by_cursor, cursor = [], ()
    while True:
        page = answer(search(*base, "-k", 3, *cursor))
        by_cursor += [hit["key"] for hit in page["hits"]]
        assert page["total"] == 8
        if page["cursor"] is None:
            break
        cursor = ("--cursor", page["cursor"])
    assert everything == by_number == by_cursor
    assert search(*base, "--page", 4, "-k", 3).exit_code == 1


def test_search_command_folds_copies_until_asked_for(corpus: Corpus, search: Search):
    (corpus.folder / "copy.png").write_bytes((corpus.folder / "warm" / "red.png").read_bytes())
    update_index(corpus.index, encoder=corpus.encoder)
    base = ("red", "-k", 2, "--index", corpus.index)
    first, second = answer(search(*base, "--json"))["hits"]
    shown = [str(corpus.folder / first["key"]), *first["duplicates"]]
    assert sorted(shown) == [str(corpus.folder / "copy.png"), str(corpus.folder / "warm" / "red.png")]
    assert second["duplicates"] == []
    assert sorted(keys(search(*base, "--json", "--duplicates"))) == ["copy.png", "warm/red.png"]
    assert "(+1)" in search(*base).stdout


def test_search_command_explains(corpus: Corpus, search: Search):
    result = search(
        '"red" + 2*blue NOT "green"', "--where", "width > 1", "--explain", "--index", corpus.index
    )
    said = " ".join(result.stdout.split())
    for step in (
        "read text 'red' with fake, weight 1",
        "read text 'blue' with fake, weight 2",
        "read text 'green' with fake, taken out",
        "8 of 8 images pass the filter",
        "exact search",
        "confidence: not known for queries with images, or that take something away",
    ):
        assert step in said
    assert "unrelated captions" in search("red", "--explain", "--index", corpus.index).stdout.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--sort", "date", "--diverse"),
        ("--cursor", "x", "--page", 2),
        ("--sort", "size"),
        ("--by", "smell"),
        ("--min-confidence", 2),
        ("--page", 0),
    ],
)
def test_search_command_refuses_options_that_do_not_fit(
    corpus: Corpus, search: Search, options: tuple[object, ...]
):
    result = search("red", *options, "--index", corpus.index)
    assert (result.exit_code, result.stdout) == (2, "")
