"""Queries as people paste them, against words written by hand."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.retrieval.query.texts import cleaned


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        ("ＤＯＧ", "DOG"),
        ("\u202adog\u202c", "dog"),
        ("\u200fكلب", "كلب"),
        ("d\u00adog", "dog"),
        ("\ufeffa\u200b dog\u2060", "a dog"),
        ("ｶﾒﾗ", "カメラ"),
        ("ﻛﻠﺐ", "كلب"),
        ("a\u00a0red\u2028dog", "a red dog"),
        ("e\u0301te\u0301", "été"),
        ("d\u200do\u200cg", "dog"),
        ("👩\u200d🚀 👩🏽\u200d⚕\ufe0f 🏳\ufe0f\u200d🌈", "👩\u200d🚀 👩🏽\u200d⚕\ufe0f 🏳\ufe0f\u200d🌈"),
        ("👩\u200d rocket", "👩 rocket"),
        ("🈚 ㊗ ™\ufe0f ™", "🈚 ㊗ ™\ufe0f TM"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ක්\u200dෂ", "ක්\u200dෂ"),
        ("น้ำ", "น้ำ"),
        ("两只猫在睡觉", "两只猫在睡觉"),
    ],
)
def test_cleaned_gives_what_was_meant(pasted, meant):
    assert cleaned(pasted) == meant


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_cleaned_is_stable_and_shows_no_marks(text):
    once = cleaned(text)
    assert cleaned(once) == once
    assert not any(
        unicodedata.bidirectional(char) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "PDI")
        for char in once
    )
