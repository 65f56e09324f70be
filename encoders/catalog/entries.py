"""Every published encoder as data: files, sizes, requirements, published recall.

``entries.toml`` holds what Microsoft published as LLM2CLIP, ``baselines.toml`` what it is compared with. Imports no
torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json

if TYPE_CHECKING:
    from llm2clip.encoders.core.base import EncoderInfo

Choice = Literal["float32", "bfloat16", "float16", "int8", "int4"]
"""Precision in which a language model is loaded, or to which it is quantised."""

LLAMAS = ("llama", "qwen2", "qwen3")
BERTS = ("bert", "xlm-roberta", "roberta")
"""Language models that are read from folders, by ``model_type`` of their ``config.json``."""

INT4_GROUP = 128
"""Weights that share one scale and one zero point in int4."""

_TABLES = (Path(__file__).with_name("entries.toml"), Path(__file__).with_name("baselines.toml"))
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Published recall at 1 in percent; i2t finds the text of an image, t2i the image of a text."""

    flickr30k_t2i_r1: float | None = None
    flickr30k_i2t_r1: float | None = None
    coco_t2i_r1: float | None = None
    coco_i2t_r1: float | None = None
    sharegpt4v_t2i_r1: float | None = None
    sharegpt4v_i2t_r1: float | None = None
    urban1k_t2i_r1: float | None = None
    urban1k_i2t_r1: float | None = None
    docci_t2i_r1: float | None = None
    docci_i2t_r1: float | None = None
    flickr30k_cn_t2i_r1: float | None = None
    flickr30k_cn_i2t_r1: float | None = None
    coco_cn_t2i_r1: float | None = None
    coco_cn_i2t_r1: float | None = None
    xm3600_t2i_r1: float | None = None
    xm3600_i2t_r1: float | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One published model of images and texts."""

    name: str
    """What ``load_encoder`` takes."""
    family: str
    """Architecture: ``"llm2clip"``, ``"clip"``, ``"siglip"``, ..."""
    repository: str
    """On the Hugging Face hub."""
    revision: str = ""
    """Commit the numbers below belong to: all 40 digits where they are known, else the first ones."""
    files: tuple[str, ...] = ()
    """Required files of the repository; ``*`` as in a shell, ``a|b`` for either."""
    extras: tuple[str, ...] = ()
    """Optional files."""
    download_bytes: int = 0
    """Size of those files; of LLM2CLIP without the language model."""
    parameters: int = 0
    """Trained numbers; of LLM2CLIP the tower, its projection, the adapter and the scale."""
    dim: int
    """Length of its vectors."""
    image_size: int
    """Side of its square input image, in pixels."""
    max_text_tokens: int
    """Tokens of a text that are read."""
    languages: tuple[str, ...] = ()
    """Language codes of the texts it was trained on."""
    licence: str = ""
    """Licence of the weights."""
    published: Recall = field(default_factory=Recall)
    """Recall of these weights."""
    source: str = ""
    """Where the numbers are from."""
    note: str = ""
    """One line on what it is good for."""
    beside: str = ""
    """Another encoder whose tokenizer is needed too, of Long-CLIP and EVA02-CLIP."""
    weights: str = ""
    """The file of weights among ``files``."""
    weights_bytes: int = 0
    """Its exact size; 0 where it is not known."""
    weights_sha256: str = ""
    """Its hash; empty where it is not known."""
    layout: str = ""
    """Of an LLM2CLIP tower: ``"openai"``, ``"eva02"`` or ``"siglip2"``."""
    preprocessing: Literal["", "clip", "eva", "siglip"] = ""
    """How an image becomes pixels, of LLM2CLIP."""
    language_model: str = ""
    """The language model it was trained with, of LLM2CLIP."""
    normalize_input: bool = True
    """Whether the adapter first scales the language model's output to unit length."""
    half_features: bool = False
    """Whether the language model's output is rounded to fp16 before the adapter."""
    nearest: Recall = field(default_factory=Recall)
    """Recall of the nearest published setting, where these weights were not measured."""
    nearest_setting: str = ""
    """What that setting is."""
    traps: tuple[str, ...] = ()
    """Known mistakes of other programs with it."""


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The sizes of a Llama; names as in its ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one block. Shape: (outputs, inputs)."""
        width, inner = self.hidden_size, self.intermediate_size
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (query, width),
            "self_attn.k_proj": (key, width),
            "self_attn.v_proj": (key, width),
            "self_attn.o_proj": (width, query),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }

    @property
    def parameters(self) -> int:
        """Token table, blocks and final norm; no language-model head."""
        block = sum(rows * columns for rows, columns in self.matrices.values()) + 2 * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_hidden_layers * block + self.hidden_size

    def memory(self, choice: Choice) -> int:
        """Bytes of the weights when loaded as ``choice``; int8 and int4 apply to the blocks' matrices only."""
        return weights_memory(self.parameters, list(self.matrices.values()) * self.num_hidden_layers, choice)


def weights_memory(parameters: int, matrices: Sequence[tuple[int, int]], choice: Choice) -> int:
    """Bytes of so many parameters, among them ``matrices`` (outputs, inputs) that int8 and int4 apply to."""
    if choice in _BYTES:
        return parameters * _BYTES[choice]
    weights = sum(rows * columns for rows, columns in matrices)
    if choice == "int8":  # a float32 scale for each row
        small = weights + sum(4 * rows for rows, _ in matrices)
    else:  # two to a byte, and for each group a bfloat16 scale and zero point
        small = weights // 2 + sum(4 * rows * -(-columns // INT4_GROUP) for rows, columns in matrices)
    return small + 2 * (parameters - weights)


@dataclass(frozen=True, kw_only=True)
class LoraPlace:
    """Where the low-rank update of a language model is."""

    repository: str
    subfolder: str
    revision: str = ""


@dataclass(frozen=True, kw_only=True)
class LanguageModelEntry:
    """One published language model."""

    name: str
    """What ``load_encoder(..., language_model=)`` takes."""
    repository: str
    """On the Hugging Face hub."""
    revision: str = ""
    """As of an encoder."""
    files: tuple[str, ...]
    """What is needed of the repository."""
    download_bytes: int
    """Size of those files."""
    parameters: int
    """Numbers that are used."""
    stored: Literal["float32", "bfloat16", "float16"]
    """How the file has them."""
    shape: LlamaShape
    """Its sizes."""
    doc_max_length: int
    """Most tokens of a text itself, as its card has it."""
    max_tokens: int = 512
    """Longest row in tokens, begin token and wrapper included."""
    wrapper: Literal["llama3", "none"] = "llama3"
    """What stands around a text: Llama 3's header of a user's turn and its end token, or nothing."""
    lora: LoraPlace | None = None
    """An update to merge into it."""
    licence: str = ""
    """Licence of the weights."""
    note: str = ""
    """One line on what it is."""
    traps: tuple[str, ...] = ()
    """Known mistakes of other programs with it."""

    def __post_init__(self) -> None:
        if self.parameters != self.shape.parameters:
            raise ValueError(f"{self.name}: parameters are {self.parameters:,}, its shape says otherwise")


@cache
def encoder_entries() -> tuple[EncoderEntry, ...]:
    """All published encoders, in the order of the tables."""
    entries = [entry for table in _TABLES for entry in _entries(table, "encoder", EncoderEntry)]
    if doubled := sorted(
        {entry.name for entry in entries if [other.name for other in entries].count(entry.name) > 1}
    ):
        raise ModelError(f"the catalogue has two encoders of one name: {', '.join(doubled)}")
    languages = {language.name for language in language_models()}
    for entry in entries:
        if entry.language_model and entry.language_model not in languages:
            raise ModelError(
                f"the catalogue has no language model {entry.language_model!r}, which {entry.name} needs"
            )
    return tuple(entries)


def baseline_entries() -> list[EncoderEntry]:
    """The encoders of ``baselines.toml``, in their order."""
    return [entry for entry in encoder_entries() if not entry.language_model]


@cache
def language_models() -> tuple[LanguageModelEntry, ...]:
    """All published language models of LLM2CLIP."""
    return tuple(_entries(_TABLES[0], "language_model", LanguageModelEntry))


def find_encoder(name: str) -> EncoderEntry | None:
    """The encoder of that name, of that repository, or called like that repository; upper case does not count."""
    return next((entry for entry in encoder_entries() if _answers_to(entry, name)), None)


def find_language(name: str) -> LanguageModelEntry | None:
    """The language model of that name or repository."""
    return next((entry for entry in language_models() if _answers_to(entry, name)), None)


def language_of(entry: EncoderEntry) -> LanguageModelEntry:
    """The language model that an LLM2CLIP encoder was trained with."""
    return next(language for language in language_models() if language.name == entry.language_model)


@dataclass(frozen=True, kw_only=True)
class NameCheck:
    """Whether an encoder is the published one that it is called like."""

    state: Literal["", "verified", "unverified", "other"]
    """``verified`` by the hash of the weights, ``unverified`` where the shape is right and no hash is known, ``other``
    where shape or hash differ; empty for a name that is not published."""
    note: str = ""
    """One line for people, unless it is verified."""


def check_name(info: EncoderInfo) -> NameCheck:
    """Compare an encoder with the catalogue's entry of its name, if there is one.

    The parameters of LLM2CLIP include those of any language model.
    """
    entry = find_encoder(info.name)
    if entry is None:
        return NameCheck(state="")
    differences = [
        f"{what} {got}, expected {expected}"
        for what, got, expected in (
            ("family", info.family, entry.family),
            ("vectors of length", info.dim, entry.dim),
        )
        if got != expected
    ]
    fewer, more = 0.99 * entry.parameters, 1.01 * entry.parameters
    if entry.parameters and not fewer <= info.parameters <= (float("inf") if entry.language_model else more):
        differences.append(f"{info.parameters:,} parameters, expected {entry.parameters:,}")
    if entry.weights_sha256 and entry.weights_sha256 != info.weights_sha256:
        got = info.weights_sha256[:12] or "none"
        differences.append(f"weights with SHA-256 {got}, expected {entry.weights_sha256[:12]}")
    if differences:
        note = f"this is not the published {entry.name}: got {'; '.join(differences)}"
        return NameCheck(state="other", note=note)
    if entry.weights_sha256:
        return NameCheck(state="verified")
    note = f"unverified: the sizes are those of the published {entry.name}, whose hash is not known here"
    return NameCheck(state="unverified", note=note)


def pairing_problem(name: str, *, width: int, language: str, hidden: int) -> str:
    """What to say when an adapter that reads ``width`` cannot read a language model that gives ``hidden``."""
    entry = find_encoder(name)
    partner = entry.language_model if entry else ""
    if not partner:
        fitting = [item.name for item in language_models() if item.shape.hidden_size == width]
        partner = " or ".join(fitting)
    message = f"{name} reads language models of width {width}, but {language} is {hidden} wide"
    if partner:
        message += f"; its partner is {partner}"
    others = [
        other.name
        for other in encoder_entries()
        if other.language_model and language_of(other).shape.hidden_size == hidden
    ]
    return f"{message}; {language} goes with {', '.join(others)}" if others else message


def _answers_to(entry: EncoderEntry | LanguageModelEntry, name: str) -> bool:
    asked = name.casefold()
    repository = entry.repository.casefold()
    return asked in (entry.name.casefold(), repository, repository.rpartition("/")[2])


def _entries(table: Path, key: str, kind: type[Any]) -> list[Any]:
    data = tomllib.loads(table.read_text(encoding="utf-8"))
    return [
        from_json(kind, entry, where=f"{table.name}: {key} {number}")
        for number, entry in enumerate(data.get(key, []), 1)
    ]
