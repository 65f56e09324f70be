"""How a language model's folder says that texts are read: ``llm2clip.json``, or the files of sentence-transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm2clip.common.files import write_atomic
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import check_keys, from_json, read_object, refuse_outside, to_json
from llm2clip.encoders.layers.bert import BertConfig
from llm2clip.encoders.text.caption_tokenizer import LLAMA3_FOOTER, LLAMA3_HEADER, Pool, TextReader, TextRules

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from llm2clip.encoders.text.language_config import LanguageConfig

TOKENIZER: Final = "tokenizer.json"
RULES_FILE: Final = "llm2clip.json"
"""Holds the rules of a language model beside its weights."""
_FORMAT, _VERSION = "llm2clip-language-model", 1
_POOLING = "1_Pooling"
_POOLS: dict[str, Pool] = {
    "pooling_mode_mean_tokens": "all",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_POOL_MODES: dict[str, Pool] = {"mean": "all", "cls": "first", "lasttoken": "last"}
_E5 = re.compile(r"(?:.*[-_])?e5-(?:small|base|large)(?:-v2)?", re.IGNORECASE)
"""Names of models whose queries begin with a prompt that no file of theirs tells (their model cards do)."""
_E5_PROMPT = "query: "


def write_text_rules(folder: Path, rules: TextRules) -> None:
    """Write ``llm2clip.json``, so that whoever opens the folder reads texts by these rules."""
    data = {"format": _FORMAT, "version": _VERSION, "text_rules": to_json(rules)}
    write_atomic(folder / RULES_FILE, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def stored_rules(folder: Path) -> TextRules | None:
    """The rules in ``llm2clip.json``, if there is one."""
    path = folder / RULES_FILE
    if not path.is_file():
        return None
    data = read_object(path)
    check_keys(data, dict.fromkeys(("format", "version", "text_rules")), where=str(path))
    if (data.get("format"), data.get("version")) != (_FORMAT, _VERSION):
        got = f"{data.get('format')!r} version {data.get('version')!r}"
        raise ModelError(f"{path}: expected format {_FORMAT!r} version {_VERSION}, got {got}")
    return from_json(TextRules, data.get("text_rules"), where=f"{path}.text_rules")


def inferred_rules(folder: Path, config: LanguageConfig) -> TextRules:
    """The rules that a folder's other files suggest: those of sentence-transformers, or Llama 3's tokenizer."""
    if isinstance(config, BertConfig):
        return _sentence_rules(folder, config)
    if (folder / _POOLING).is_dir():
        return _sentence_rules(folder, None)
    names = read_tokenizer(folder).get_vocab()
    wraps = all(name in names for name in _special(LLAMA3_HEADER + LLAMA3_FOOTER))
    header, footer = (LLAMA3_HEADER, LLAMA3_FOOTER) if wraps else ("", "")
    return TextRules(header=header, footer=footer)


def _sentence_rules(folder: Path, bert: BertConfig | None) -> TextRules:
    prompts = _settings(folder, "config_sentence_transformers.json")
    named = prompts.get("prompts") or {}
    prompt = named.get("query", named.get(prompts.get("default_prompt_name"))) if named else None
    if prompt is None:
        prompt = _E5_PROMPT if _E5.fullmatch(folder.resolve().name) else ""
    limit = _settings(folder, "sentence_bert_config.json").get("max_seq_length")
    most = bert.most_tokens if bert is not None else 512
    if not isinstance(prompt, str) or not (limit is None or (type(limit) is int and limit > 0)):
        raise ModelError(
            f"{folder}: expected a prompt and max_seq_length, got {prompt!r:.40} and {limit!r:.40}"
        )
    return TextRules(prompt=prompt, pool=_pool(folder), max_tokens=min(limit or most, most))


def _pool(folder: Path) -> Pool:
    """What sentence-transformers' pooling layer does; the mean of all tokens if there is none."""
    path = folder / _POOLING / "config.json"
    settings = _settings(folder, f"{_POOLING}/config.json")
    mode = settings.get("pooling_mode")
    asked = (
        [mode] if mode else [key for key, on in settings.items() if key.startswith("pooling_mode_") and on]
    )
    known = {**_POOLS, **_POOL_MODES}
    if len(asked) > 1 or not all(isinstance(name, str) and name in known for name in asked):
        raise ModelError(
            f"{path}: pooling {', '.join(map(str, asked))} is not read; expected one of {', '.join(known)}"
        )
    if settings.get("include_prompt") is False:
        raise ModelError(
            f"{path}: include_prompt=false is not read; expected pooling with the prompt's tokens"
        )
    return known[asked[0]] if asked else "all"


def _settings(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_object(path, folder=folder) if path.is_file() else {}


def open_reader(folder: Path, rules: TextRules, *, config: LanguageConfig, name: str) -> TextReader:
    """The tokenizer of a folder, under rules that its model must be able to follow."""
    tokenizer, known = read_tokenizer(folder), config.vocab_size
    if (size := tokenizer.get_vocab_size()) > known:
        raise ModelError(
            f"{folder / TOKENIZER} has {size} tokens, but {folder / 'config.json'} says vocab_size is {known}; "
            "they are not of the same model"
        )
    if isinstance(config, BertConfig) and rules.max_tokens > config.most_tokens:
        raise ModelError(
            f"{name} has positions for {config.most_tokens} tokens, but its text rules allow {rules.max_tokens}"
        )
    try:
        return TextReader(tokenizer, rules, pad_id=_pad_id(folder, tokenizer))
    except ValueError as error:
        raise ModelError(f"{folder / TOKENIZER} does not fit the rules of {name}: {error}") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in ``tokenizer.json``, of any kind."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        raise ModelError(f"{folder} has no {TOKENIZER}; copy it from the model's repository")
    refuse_outside(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelError(f"{path} is not a tokenizer file: {error}") from error


def _pad_id(folder: Path, tokenizer: Tokenizer) -> int:
    """Id of the padding token in the tokenizer settings, else of the end token."""
    settings = _settings(folder, "tokenizer_config.json")
    for key in ("pad_token", "eos_token"):
        name = settings.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        number = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if number is not None:
            return number
    return 0


def _special(text: str) -> list[str]:
    """Names of special tokens in a wrapper."""
    return [f"<|{part.split('|>')[0]}|>" for part in text.split("<|")[1:]]
