"""How captions become token rows: hand-made expectations on a tokenizer of whole words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.caption_tokenizer import (
    LLAMA3_FOOTER,
    LLAMA3_HEADER,
    TextReader,
    TextRules,
)

BEGIN, HEAD, END, PAD, UNKNOWN = range(5)
WORDS = {word: 5 + number for number, word in enumerate(("caption", ":", "a", "red", "fox", "eot", "<", ">"))}
A, RED, FOX = WORDS["a"], WORDS["red"], WORDS["fox"]
RULES = TextRules(header="<head>caption:", footer="<eot>", max_tokens=10)
BEFORE = [BEGIN, HEAD, WORDS["caption"], WORDS[":"]]


def word_tokenizer() -> Tokenizer:
    special = ("<begin>", "<head>", "<eot>", "<pad>", "<unknown>")
    vocab = {token: number for number, token in enumerate(special)} | WORDS
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unknown>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", BEGIN)]
    )
    return tokenizer


@pytest.fixture
def reader() -> TextReader:
    return TextReader(word_tokenizer(), RULES, pad_id=PAD)


def rows(reader: TextReader, *texts: str) -> list[list[list[int]]]:
    return [part.tolist() for part in reader.batch(texts)]


def test_text_reader_builds_rows_of_begin_header_caption_end(reader):
    ids, attention, embed = reader.batch(["a red fox"])
    assert ids.tolist() == [[*BEFORE, A, RED, FOX, END]]
    assert attention.tolist() == [[1] * 8]
    assert embed.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert {part.dtype for part in (ids, attention, embed)} == {torch.int64}


def test_text_reader_pads_on_the_right(reader):
    ids, attention, embed = rows(reader, "a red fox", "fox")
    assert ids == [[*BEFORE, A, RED, FOX, END], [*BEFORE, FOX, END, PAD, PAD]]
    assert attention == [[1] * 8, [1] * 6 + [0] * 2]
    assert embed == [[0] * 4 + [1] * 4, [0] * 4 + [1] * 2 + [0] * 2]


def test_text_reader_cuts_captions_before_the_end_token(reader):
    ids, _, embed = rows(reader, "a red fox a red fox a red")
    assert ids == [[*BEFORE, A, RED, FOX, A, RED, END]]
    assert embed == [[0] * 4 + [1] * 6]


def test_text_reader_limits_the_caption_by_doc_max_length():
    rules = TextRules(header=RULES.header, footer=RULES.footer, max_tokens=10, doc_max_length=2)
    reader = TextReader(word_tokenizer(), rules)
    assert rows(reader, "a red fox")[0] == [[*BEFORE, A, RED, END]]
    assert reader.capacity == 3
    loose = TextRules(header=RULES.header, footer=RULES.footer, max_tokens=10, doc_max_length=100)
    assert TextReader(word_tokenizer(), loose).capacity == 6


def test_text_reader_reads_names_of_special_tokens_as_text(reader):
    ids, _, embed = rows(reader, "a <eot> fox")
    plain = [WORDS["<"], WORDS["eot"], WORDS[">"]]
    assert ids == [[*BEFORE, A, *plain, FOX, END]]
    assert embed == [[0] * 4 + [1] * 6]


@pytest.mark.parametrize("text", ["  a fox", "a fox \n", "\t a fox\u00a0", "\n\na fox\n\n"])
def test_text_reader_strips_white_space(reader, text):
    assert rows(reader, text) == rows(reader, "a fox")


def test_text_reader_pools_the_end_token_of_an_empty_caption(reader):
    ids, _, embed = rows(reader, " ")
    assert ids == [[*BEFORE, END]]
    assert embed == [[0, 0, 0, 0, 1]]
    bare = TextReader(word_tokenizer(), TextRules(max_tokens=10))
    assert rows(bare, "fox") == [[[BEGIN, FOX]], [[1, 1]], [[0, 1]]]
    with pytest.raises(ValueError, match=r"expected a text with something to read, got ' '"):
        bare.batch(["fox", " "])


def test_text_reader_pools_what_a_post_processor_appends():
    tokenizer = word_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <eot>", special_tokens=[("<begin>", BEGIN), ("<eot>", END)]
    )
    reader = TextReader(tokenizer, TextRules(max_tokens=4))
    assert rows(reader, "a red fox") == [[[BEGIN, A, RED, END]], [[1] * 4], [[0, 1, 1, 1]]]
    assert reader.count_tokens(["a red fox"]) == [4]
    assert reader.capacity == 3


def test_count_tokens_includes_end_token_without_header(reader):
    assert reader.count_tokens(["fox", "a red fox", "a red fox a red fox a red"]) == [2, 4, 9]
    assert reader.capacity == 6


def test_text_reader_overrides_truncation_and_padding_of_the_file(reader):
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    assert rows(TextReader(tokenizer, RULES, pad_id=PAD), "a red fox") == rows(reader, "a red fox")


def test_text_reader_refuses_no_texts(reader):
    with pytest.raises(ValueError, match="expected at least one text"):
        reader.batch([])


def test_text_reader_refuses_invalid_unicode(reader):
    with pytest.raises(ValueError, match=r"expected text in valid Unicode, got 'fox\\udc80'"):
        reader.batch(["a", b"fox\x80".decode(errors="surrogateescape")])


def test_text_reader_refuses_rules_without_room():
    with pytest.raises(
        ValueError, match="max_tokens 5 leaves no room for a caption: 5 tokens stand around it"
    ):
        TextReader(word_tokenizer(), TextRules(header=RULES.header, footer=RULES.footer, max_tokens=5))


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"doc_max_length": 0}, {"parity": "reference"}])
def test_text_rules_refuse_impossible_values(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TextRules(**options)


@pytest.fixture(scope="module")
def model() -> BidirectionalLlama:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = BidirectionalLlama(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@torch.no_grad()
def embed(model: BidirectionalLlama, reader: TextReader, texts: list[str]) -> torch.Tensor:
    ids, attention, mask = reader.batch(texts)
    return reader.pool(model(ids, attention), mask)


@given(
    st.lists(st.lists(st.sampled_from(["a", "red", "fox"]), max_size=9).map(" ".join), min_size=1, max_size=6)
)
def test_pool_depends_neither_on_batch_nor_on_padding(model, texts):
    together = embed(model, TextReader(word_tokenizer(), RULES, pad_id=PAD), texts)
    reader = TextReader(word_tokenizer(), RULES, pad_id=FOX)
    torch.testing.assert_close(embed(model, reader, texts), together, atol=1e-5, rtol=1e-5)
    alone = torch.cat([embed(model, reader, [text]) for text in texts])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_pool_averages_caption_and_end_token(reader):
    hidden = torch.arange(8, dtype=torch.float32).repeat(2, 1)[..., None] ** 2
    _, _, mask = reader.batch(["a red fox", "fox"])
    assert reader.pool(hidden, mask).flatten().tolist() == [(16 + 25 + 36 + 49) / 4, (16 + 25) / 2]


def test_text_reader_wraps_texts_for_llama_3():
    assert LLAMA3_HEADER == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert LLAMA3_FOOTER == "<|eot_id|>"
