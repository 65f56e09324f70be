"""A query in a language that the encoder was not trained on is warned of, once, and two encoders are named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
from typer.testing import Result

from llm2clip.encoders import FakeEncoder, list_encoders
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.retrieval import Searcher, UnknownLanguageWarning
from llm2clip.retrieval.query.languages import language_warning

from .conftest import Corpus


class English(FakeEncoder):
    """The same vectors, trained on English only."""

    @property
    def info(self) -> EncoderInfo:
        return replace(super().info, name="clip-vit-b-32", languages=("en",))


def of(name: str) -> EncoderInfo:
    card = next(card for card in list_encoders() if card.name == name)
    return replace(FakeEncoder().info, name=name, family=card.family, languages=card.languages)


@pytest.mark.parametrize(
    ("text", "encoder", "named"),
    [
        ("一只狗在草地上", "clip-vit-b-32", "chinese-clip-b-16 and siglip2-b-16-256"),
        ("собака на траве", "clip-vit-b-32", "siglip2-b-16-256 and metaclip2-b-16"),
        ("ein Hund und eine Katze", "long-clip-b", "siglip2-b-16-256 and metaclip2-b-16"),
        ("the dog and the cat", "chinese-clip-b-16", "siglip2-b-16-256 and metaclip2-b-16"),
        ("고양이", "altclip", "siglip2-b-16-256 and metaclip2-b-16"),
        ("a dog on grass", "clip-vit-b-32", None),
        ("一只狗在草地上", "altclip", None),
        ("一只狗在草地上", "chinese-clip-b-16", None),
        ("고양이", "siglip2-b-16-256", None),
        ("고양이", "llm2clip-openai-l-14-336", None),
        ("perro", "clip-vit-b-32", None),  # one noun does not tell
    ],
)
def test_language_warning_names_two_encoders_that_know_the_language(
    text: str, encoder: str, named: str | None
):
    found = language_warning(text, of(encoder))
    assert (found is None) == (named is None)
    if found is not None:
        assert f"Encoders that know it: {named} (" in found[1]
        assert encoder in found[1]


def test_encoders_that_are_not_known_get_no_warning():
    assert language_warning("一只狗", replace(FakeEncoder().info, languages=())) is None


def test_searcher_warns_once_for_each_language(corpus: Corpus):
    searcher = Searcher.open(corpus.index, encoder=English())
    with pytest.warns(
        UnknownLanguageWarning, match="looks Chinese, and clip-vit-b-32 was trained on English"
    ):
        searcher.search("一只狗")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searcher.search(["两只猫", "red"])
    with pytest.warns(UnknownLanguageWarning, match="looks Korean"):
        searcher.search_combined(["고양이"], [])


def test_search_command_prints_the_warning(
    corpus: Corpus, search: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    from llm2clip import encoders

    monkeypatch.setattr(encoders, "load_encoder", lambda *_, **__: English())
    result = search("一只狗", "--index", corpus.index)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: the query looks Chinese")
    assert "chinese-clip-b-16" in result.stderr
    assert search("red dog", "--index", corpus.index).stderr == ""
