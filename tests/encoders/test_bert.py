"""BERT and XLM-RoBERTa: the module against transformers', a folder against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.text.language_config import RULES_FILE, bert_config, write_text_rules
from llm2clip.encoders.text.llm_checkpoint import open_language

pytestmark = pytest.mark.filterwarnings("ignore::llm2clip.encoders.TextTooLongWarning")

TEXTS = [
    "a red bicycle",
    "Ein rotes Fahrrad steht vor einem Haus, daneben liegt ein großer, müder Hund im Schatten.",
    "ﬁne  ½ cups of tea ",  # a ligature and a fraction, which NFKC takes apart
    "自転車",
    "</s> is no end",
]
WORDS = [
    "▁a",
    "▁red",
    "▁bicycle",
    "▁query",
    ":",
    "▁Ein",
    "▁rotes",
    "▁Hund",
    "▁fi",
    "ne",
    "▁tea",
    "▁",
    "e",
    "i",
    "n",
    "a",
    "r",
    "o",
    "t",
    "d",
    "s",
    "u",
    "h",
    "m",
    "ü",
    "ß",
    "自",
    "転",
    "車",
    ",",
    ".",
    "1",
    "2",
    "⁄",
]


def tokenizer_json(*, kind: str) -> str:
    """A Unigram tokenizer as XLM-R has it, or WordPiece as BERT has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if kind == "xlm-roberta":
        names = ["<s>", "<pad>", "</s>", "<unk>"]
        pieces = [(name, 0.0) for name in names] + [(word, -1.0 - n / 10) for n, word in enumerate(WORDS)]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        tokenizer.decoder = decoders.Metaspace()
        begin, end = "<s>", "</s>"
    else:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        words = [*names, "a", "red", "bicycle", "ein", "##es", "tea", "query", ":", "hund", "e", "##e", "##i"]
        tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        begin, end = "[CLS]", "[SEP]"
    tokenizer.add_special_tokens(names)
    ends = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ends)
    return tokenizer.to_str()


def reference(kind: str) -> torch.nn.Module:
    """transformers' model with random weights that all matter."""
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "attn_implementation": "eager",
    }
    torch.manual_seed(3)
    model = (
        BertModel(BertConfig(**sizes, max_position_embeddings=40))
        if kind == "bert"
        else XLMRobertaModel(
            XLMRobertaConfig(**sizes, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5)
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def folder(request, tmp_path_factory) -> Path:
    """A folder of sentence-transformers with a tiny random checkpoint and a prompt."""
    kind = request.param
    folder = tmp_path_factory.mktemp("models") / f"tiny-{kind}"
    reference(kind).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(kind=kind))
    special = (
        {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        if kind == "bert"
        else {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    write_pooling(folder, "mean_tokens")
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def write_pooling(folder: Path, mode: str) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    data = {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True}
    if mode != "mean_tokens":
        data["pooling_mode_mean_tokens"] = False
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@torch.no_grad()
def test_bert_equals_transformers(kind):
    model = reference(kind)
    ours = BertEncoder(bert_config(model.config.to_dict())).eval()
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")}
    ours.load_state_dict(kept, strict=True)
    padding = model.config.pad_token_id
    lengths = [40, 23, 1, 7]
    ids = torch.randint(5, 60, (4, 40))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        ids[row, length:] = padding
    expected = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours(ids, mask)[mask == 1], expected[mask == 1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours(ids[:1]), expected[:1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
def test_folder_gives_the_vectors_of_sentence_transformers(folder, mode):
    from sentence_transformers import SentenceTransformer

    write_pooling(folder, mode)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = model.encode(TEXTS[:4], prompt_name="query", normalize_embeddings=True)
    encoder = load_encoder(folder)
    assert np.abs(encoder.encode_texts(TEXTS[:4]) - expected).max() < 1e-5
    assert encoder.loaded_sides == {"text"}
    assert encoder.info.dim == 32


def test_vectors_of_a_bert_do_not_depend_on_their_neighbours(folder):
    encoder = load_encoder(folder)
    together = encoder.encode_texts(TEXTS * 3, batch_size=15)
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS] * 3)
    assert (together * alone).sum(1).min() >= 0.99999


def test_open_language_gives_config_module_and_reader(folder):
    write_pooling(folder, "mean_tokens")
    plan = open_language(folder)
    assert plan.rules == TextRules(prompt="query: ", pool="all", max_tokens=16)
    reader = plan.reader()
    ids, mask, pooled = reader.batch(["a red bicycle", "tea"])
    assert torch.equal(mask, pooled)
    tokens = [reader._tokenizer.id_to_token(number) for number in ids[0].tolist()]
    assert [token.strip("▁") for token in tokens[1:-1]] == ["query", ":", "a", "red", "bicycle"]
    states = plan.load()(ids, mask)
    assert states.shape == (*ids.shape, 32)
    stored = load_file(folder / "model.safetensors")
    assert plan.parameters == sum(v.numel() for k, v in stored.items() if not k.startswith("pooler."))
    assert plan.memory("float32") == 4 * plan.parameters


def test_rules_of_a_folder_win_over_those_of_sentence_transformers(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    assert open_language(copy).rules == TextRules(pool="all", max_tokens=16)
    rules = TextRules(prompt="passage: ", pool="first", max_tokens=12)
    before = load_encoder(copy).info.settings_sha256
    write_text_rules(copy, rules)
    assert open_language(copy).rules == rules
    assert load_encoder(copy).info.settings_sha256 != before
    renamed = copy.rename(tmp_path / "multilingual-e5-small")
    (renamed / RULES_FILE).unlink()
    assert open_language(renamed).rules.prompt == "query: "


@pytest.mark.parametrize("choice", ["int8", "bfloat16"])
def test_bert_in_lower_precision_is_close(folder, choice):
    if choice == "int8":
        pytest.importorskip("torchao", reason="torchao is not installed")
    exact = load_encoder(folder, dtype="float32").encode_texts(TEXTS[:1] + TEXTS[3:4])
    close = load_encoder(folder, dtype=choice).encode_texts(TEXTS[:1] + TEXTS[3:4])
    assert (exact * close).sum(1).min() > 0.99


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "pooling_mode_max_tokens is not read"),
        ("1_Pooling/config.json", '{"pooling_mode": "weightedmean"}', "weightedmean is not read"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}',
            "not read",
        ),
        ("sentence_bert_config.json", '{"max_seq_length": "many"}', "expected a prompt and max_seq_length"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 3}}', "expected a prompt"),
        (RULES_FILE, "{}", "expected format 'llm2clip-language-model' version 1, got None version None"),
        (RULES_FILE, '{"text_rule": {}}', "unknown keys"),
        (
            RULES_FILE,
            '{"format": "llm2clip-language-model", "version": 1, "text_rules": {"pool": "max"}}',
            "pool: expected one of",
        ),
        (
            RULES_FILE,
            '{"format": "llm2clip-language-model", "version": 1, "text_rules": {"max_tokens": 99}}',
            "has positions for 40 tokens, but its text rules allow 99",
        ),
        ("tokenizer.json", "{}", "is not a tokenizer file"),
    ],
)
def test_folder_with_settings_that_are_not_read(folder, tmp_path, file, content, message):
    copy = tmp_path / "copy"
    (copy / "1_Pooling").mkdir(parents=True)
    for path in (*folder.glob("*.json"), folder / "model.safetensors", folder / "1_Pooling" / "config.json"):
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    (copy / file).write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_encoder(copy).encode_texts(["a"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key', expected"),
        ({"hidden_act": "relu"}, "hidden_act='relu', expected 'gelu'"),
        ({"is_decoder": True}, "is_decoder=True, expected False"),
        ({"num_attention_heads": 5}, "hidden_size must be a multiple"),
        ({"model_type": "electra"}, "model_type='electra', expected one of"),
        ({"hidden_size": 10**30}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers must be a whole number from 1 to 1,024"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be a whole number"),
        ({"vocab_size": None}, "no language model that can be read"),
    ],
)
def test_open_language_refuses_other_architectures(folder, tmp_path, change, message):
    data = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | change))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=message):
        open_language(tmp_path)


@pytest.mark.parametrize("prefix", ["", "bert.", "roberta."])
def test_open_language_leaves_out_heads(folder, tmp_path, prefix):
    weights = load_file(folder / "model.safetensors")
    named = {prefix + name: value for name, value in weights.items()}
    named |= {
        "cls.predictions.bias": torch.ones(60),
        "lm_head.bias": torch.ones(60),
        f"{prefix}embeddings.position_ids": torch.arange(40)[None],
    }
    save_file(named, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(open_language(tmp_path).load()(ids), open_language(folder).load()(ids))
    save_file(named | {"encoder.layer.9.output.dense.bias": torch.ones(32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"unexpected tensors: encoder\.layer\.9\.output\.dense\.bias"):
        open_language(tmp_path)
