"""Language guesses and captions by language."""

from __future__ import annotations

import pytest

from llm2clip.indexer import Hit
from llm2clip.retrieval.results import caption_for, guess_language, text_query


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("两只猫在睡觉", "zh"),
        ("長い首の動物のえ", "ja"),
        ("カメラ", "ja"),
        ("고양이", "ko"),
        ("زرافة طويلة", "ar"),
        ("گربه‌ی سیاه", "fa"),
        ("чёрная кошка", "ru"),
        ("чорна кішка, їжак", "uk"),
        ("लंबी गर्दन वाला जानवर", "hi"),
        ("ยีราฟ", "th"),
        ("καμηλοπάρδαλη", "el"),
        ("a red bicycle", None),
        ("una bicicleta roja", None),
        ("the Chinese word 猫 and what it means", None),
        ("🦒 42", None),
        ("", None),
    ],
)
def test_guess_language_by_script(text: str, language: str | None):
    assert guess_language(text) == language


def test_text_query_prefers_a_stated_language():
    assert text_query("猫", language="ja").language == "ja"
    assert text_query("猫").language == "zh"


def hit(**changes: object) -> Hit:
    values = {
        "id": 1,
        "key": "a/b.jpg",
        "score": 0.5,
        "rank": 1,
        "uri": "/x/a/b.jpg",
        "width": 4,
        "height": 3,
    }
    return Hit(**{**values, **changes})


def test_caption_for_prefers_the_language_of_the_query():
    names = hit(caption="giraffe", metadata={"names": {"en": "giraffe", "zh": "长颈鹿", "hi": "  "}})
    assert caption_for(names, "zh") == ("长颈鹿", "zh")
    assert caption_for(names, "hi") == ("giraffe", None)
    assert caption_for(names, "ar") == ("giraffe", None)
    assert caption_for(names, None) == ("giraffe", None)
    assert caption_for(hit(metadata={"captions": {"ja": "きりん"}}), "ja") == ("きりん", "ja")


@pytest.mark.parametrize("metadata", [{"names": "zh"}, {"names": {"zh": 3}}, {"captions": ["zh"]}, {}])
def test_caption_for_ignores_metadata_of_another_shape(metadata: dict[str, object]):
    assert caption_for(hit(caption="c", metadata=metadata), "zh") == ("c", None)
