"""What the folder of a language model says: which of our modules it is, or a refusal by name, and how texts are read.

The first is in ``config.json``, the second in ``llm2clip.json`` or the files of sentence-transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm2clip.common.files import write_atomic
from llm2clip.encoders.catalog.entries import BERTS, LLAMAS
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import check_keys, from_json, read_object, to_json
from llm2clip.encoders.layers.configs import BertConfig, LlamaConfig, RopeScaling
from llm2clip.encoders.text.caption_tokenizer import (
    LLAMA3_FOOTER,
    LLAMA3_HEADER,
    Pool,
    TextRules,
    read_tokenizer,
)
from llm2clip.encoders.text.packed import LanguageConfig

_NEUTRAL_LLAMA: Mapping[str, object] = {
    "hidden_act": "silu",
    "alibi": False,
    "attention_bias": False,
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "clip_qkv": None,
    "embedding_multiplier": 1,
    "mlp_bias": False,
    "no_rope_layers": None,
    "num_experts": None,
    "num_local_experts": None,
    "partial_rotary_factor": 1,
    "qk_norm": False,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1,
    "rope_interleaved": False,
    "rotary_pct": 1,
    "scale_depth": None,
    "scale_emb": 1,
    "sliding_window": None,
    "use_parallel_residual": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
}
"""Keys with which relatives of Llama (Mistral, Granite, Gemma, ...) change the computation, and the value of each that
changes nothing. A key that is absent or null changes nothing either."""
_NEUTRAL_BERT: Mapping[str, object] = {
    "hidden_act": "gelu",
    "add_cross_attention": False,
    "embedding_size": None,
    "is_decoder": False,
    "position_embedding_type": "absolute",
}
"""The same for relatives of BERT."""


@dataclass(frozen=True)
class Layout:
    """How the tensors of a kind of model are named in published files."""

    prefix: re.Pattern[str]
    """What may stand before the names of our module."""
    unused: re.Pattern[str]
    """Names, without that prefix, of tensors that are left out: heads and tables that are computed."""
    table: str
    """Our module of the token embedding."""


_LLAMA = Layout(
    prefix=re.compile(r"model\."),
    unused=re.compile(r"lm_head\.weight|.*\.rotary_emb\.inv_freq"),
    table="embed_tokens",
)
_BERT = Layout(
    prefix=re.compile(r"(?:bert|roberta)\."),
    unused=re.compile(r"(?:pooler|cls|lm_head)\..*|embeddings\.(?:position_ids|token_type_ids)"),
    table="embeddings.word_embeddings",
)


def layout_of(config: LanguageConfig) -> Layout:
    """The names of its tensors in published files."""
    return _LLAMA if isinstance(config, LlamaConfig) else _BERT


def language_config(config: Mapping[str, Any]) -> LanguageConfig:
    """The shape in a published ``config.json`` (as a dict).

    Raises ``ValueError`` where the architecture is none that we compute.
    """
    kind = config.get("model_type") or "llama"
    if kind not in (*LLAMAS, *BERTS):
        raise ValueError(f"model_type={kind!r}, expected one of {', '.join((*LLAMAS, *BERTS))}")
    return bert_config(config) if kind in BERTS else llama_config(config)


def llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """The shape of a Llama, Qwen2 or Qwen3, as transformers 4 or 5 writes it.

    Raises ``ValueError`` where the architecture is not what ``BidirectionalLlama`` computes.
    """
    kind = config.get("model_type") or "llama"
    if kind not in LLAMAS:
        raise ValueError(f"unsupported Llama config: model_type={kind!r}, expected {' or '.join(LLAMAS)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _refuse_other_llamas(config, rope)
    turns = rope.get("rope_type", rope.get("type", "default"))
    if turns not in ("default", "llama3"):
        raise ValueError(f"unsupported rope type {turns!r}, expected 'default' or 'llama3'")
    scaling = None
    if turns == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    heads = int(config["num_attention_heads"])
    return LlamaConfig(
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        rope_scaling=scaling,
        attention_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def bert_config(config: Mapping[str, Any]) -> BertConfig:
    """The shape of a BERT, RoBERTa or XLM-RoBERTa, as transformers writes it.

    Raises ``ValueError`` where the architecture is not what ``BertEncoder`` computes.
    """
    _refuse("BERT", config, _NEUTRAL_BERT)
    kind = config["model_type"]
    padding = int(config.get("pad_token_id", 1) or 0)
    return BertConfig(
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=int(config["num_attention_heads"]),
        max_position_embeddings=int(config["max_position_embeddings"]),
        type_vocab_size=int(config.get("type_vocab_size", 2)),
        layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        first_position=0 if kind == "bert" else padding + 1,
    )


def _refuse_other_llamas(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    asked = dict(config)
    if asked.get("use_sliding_window") is False:
        asked.pop("sliding_window", None)  # a window that is switched off
    _refuse("Llama", asked, _NEUTRAL_LLAMA)
    found: list[tuple[str, object, object]] = [
        ("layer_types", kind, "full_attention") for kind in config.get("layer_types") or ()
    ]
    found += [(f"rope {key}", rope[key], 1) for key in ("partial_rotary_factor",) if key in rope]
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        ignored = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
        found += [(f"rope {key}", value, None) for key, value in rope.items() if key not in ignored]
    for key, value, expected in found:
        if value != expected:
            raise ValueError(f"unsupported Llama config: {key}={value!r}, expected {expected!r}")


def _refuse(name: str, config: Mapping[str, Any], neutral: Mapping[str, object]) -> None:
    """``ValueError`` where a published configuration is of another architecture."""
    for key, expected in neutral.items():
        if config.get(key) is not None and config[key] != expected:
            raise ValueError(f"unsupported {name} config: {key}={config[key]!r}, expected {expected!r}")


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


def _special(text: str) -> list[str]:
    """Names of special tokens in a wrapper."""
    return [f"<|{part.split('|>')[0]}|>" for part in text.split("<|")[1:]]
