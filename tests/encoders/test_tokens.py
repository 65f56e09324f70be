"""How the baselines clean, cut and fill texts."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llm2clip.encoders.text.clip_tokenizer import Cleaning, TextForm, TokenReader, clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Photo, of 2 CATS!", "a photo of 2 cats"),
        ("  tabs\tand\nlines  ", "tabs and lines"),
        ("naïve café — ÉCOLE", "naïve café — école"),
        ("under_score-hyphen", "underscorehyphen"),
        ("“curly” quotes…", "“curly” quotes…"),
        ("中文，标点。", "中文，标点。"),
        ("ÅNGSTRÖM\u00a0x", "ångström x"),
        ("İstanbul ß", "i̇stanbul ß"),
        ("a.b;c:d?e(f)[g]{h}\\i/j|k@l#m$n%o^p&q*r~s`t'u\"v<w>x=y+z", "abcdefghijklmnopqrstuvwxyz"),
        ("!!!", ""),
    ],
)
def test_clean_canonical_is_what_siglips_tokenizer_does(text: str, expected: str):
    """Recorded from ``SiglipTokenizer.canonicalize_text`` of transformers 5.23, which needs sentencepiece."""
    assert clean(text, Cleaning.CANONICAL) == expected


def test_clean_lower_and_chinese():
    text = "“ABC”, Ä  x"
    assert clean(text, Cleaning.NONE) == text
    assert clean(text, Cleaning.LOWER) == "“abc”, ä  x"
    assert clean(text, Cleaning.CHINESE) == '"abc", ä  x'


def letters() -> Tokenizer:
    """A token a letter, <s> before and </s> after; a limit and a fill of its own."""
    words = ["<pad>", "<s>", "</s>", *"abcdef"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    return tokenizer


def test_token_reader_cuts_before_the_end_and_pads_after_it():
    reader = TokenReader(letters(), form=TextForm(end="</s>", pad="<pad>"), limit=5)
    assert reader.count(["a", "abcdef"]) == [3, 8]
    ids, mask = reader.batch(["a", "abcdef"])
    assert ids.tolist() == [[1, 3, 2, 0, 0], [1, 3, 4, 5, 2]]
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    ids, mask = reader.batch(["a"])
    assert ids.tolist() == [[1, 3, 2]]


def test_token_reader_gives_no_mask_for_fixed_lengths():
    form = TextForm(end="</s>", pad="</s>", cleaning=Cleaning.LOWER, fixed=True)
    ids, mask = TokenReader(letters(), form=form, limit=6).batch(["AB"])
    assert ids.tolist() == [[1, 3, 4, 2, 2, 2]]
    assert mask is None
