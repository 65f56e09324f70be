"""Descriptions of every encoder of the catalogue, for choosing one. Opens no weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from llm2clip.common.files import format_bytes
from llm2clip.encoders.catalog.entries import (
    Choice,
    EncoderEntry,
    LanguageModelEntry,
    Recall,
    encoder_entries,
    find_encoder,
    language_of,
)
from llm2clip.encoders.catalog.hub import encoder_available, language_available

RECOMMENDED = (
    "nano",
    "siglip2-b-16-256",
    "llm2clip-llama3.2-1b-eva02-l-14-336",
    "llm2clip-eva02-l-14-336",
    "llm2clip-openai-l-14-336",
    "chinese-clip-b-16",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
)
"""Encoders offered when a command asks for one: those of many languages, of Chinese, of English."""
_ADAPTER_BLOCKS = 4


@dataclass(frozen=True)
class EncoderCard:
    """The description of an encoder, for choosing one."""

    name: str
    """What ``load_encoder`` takes."""
    summary: str
    """One line: what it is."""
    size: str
    """Size of the download, e.g. ``"605 MB"``; of ``nano`` that of its files."""
    quality: str
    """Quality on photographs; recall is text to image."""
    download: str
    """What is downloaded from where; empty if nothing."""
    family: str = ""
    """Architecture."""
    parameters: int = 0
    """Trained numbers, the language model's included."""
    download_bytes: int = 0
    """Bytes to fetch, the language model's included."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes of weights: of both towers in float32; of LLM2CLIP those of ``"images"``, and those of texts by the
    precision of the language model (``"texts as bfloat16"``, ...)."""
    dim: int = 0
    """Length of its vectors."""
    image_size: int = 0
    """Side of its input image, in pixels."""
    max_text_tokens: int = 0
    """Tokens of a text that are read."""
    languages: tuple[str, ...] = ()
    """Language codes of the texts it was trained on; ``"mul"`` for more than can be listed."""
    reads_more: bool = False
    """Whether it was measured to read other languages besides, which its language model knows."""
    recall: dict[str, float] = field(default_factory=dict)
    """Published recall at 1 of these weights in percent: ``"flickr30k_t2i_r1"``, ..."""
    nearest: dict[str, float] = field(default_factory=dict)
    """That of the nearest published setting, where there is one for these weights or not."""
    nearest_setting: str = ""
    """What that setting is."""
    licence: str = ""
    """Licence of the weights, of both parts where they have two."""
    available: bool = False
    """Whether all its files are on this machine."""
    recommended: int = 0
    """Its position among the recommended encoders, from 1; 0 if it is none of them."""


_NANO = EncoderCard(
    name="nano",
    summary="ours, small: everyday things in photographs, 36 languages, long queries, offline",
    size="53 MB",
    quality="fair on photographs",
    download="",
    family="llm2clip",
    parameters=52_487_065,
    memory={"float32": 4 * 52_487_065},
    dim=256,
    image_size=240,
    max_text_tokens=511,
    languages=("mul",),
    licence="MIT AND Apache-2.0",
    available=True,
    recommended=1,
)


def all_cards() -> list[EncoderCard]:
    """One for every name: ``nano``, LLM2CLIP, then what it is compared with."""
    return [_NANO, *(_card(entry) for entry in encoder_entries())]


def _card(entry: EncoderEntry) -> EncoderCard:
    """A line of the catalogue in words and numbers."""
    card = _published_card(entry) if entry.language_model else _baseline_card(entry)
    return replace(
        card,
        family=entry.family,
        dim=entry.dim,
        image_size=entry.image_size,
        max_text_tokens=entry.max_text_tokens,
        languages=entry.languages,
        recall=_known(entry.published),
        nearest=_known(entry.nearest),
        nearest_setting=entry.nearest_setting,
        licence=card.licence or entry.licence,
        recommended=RECOMMENDED.index(entry.name) + 1 if entry.name in RECOMMENDED else 0,
    )


def _published_card(entry: EncoderEntry) -> EncoderCard:
    language = language_of(entry)
    total = entry.download_bytes + language.download_bytes
    reads = f"{format_bytes(entry.download_bytes)} and {format_bytes(language.download_bytes)} for texts"
    return EncoderCard(
        name=entry.name,
        summary=f"LLM2CLIP, texts by {language.name}: {entry.note}",
        size=reads,
        quality=_quality(entry),
        download=f"{entry.repository} and {language.repository} from the Hugging Face hub",
        parameters=entry.parameters + language.parameters,
        download_bytes=total,
        memory=_memory(entry, language),
        reads_more=True,
        licence=f"{entry.licence}; language model: {language.licence}",
        available=encoder_available(entry) and language_available(language),
    )


def _baseline_card(entry: EncoderEntry) -> EncoderCard:
    """A line of the table in words."""
    # A note is what it is, then, after a semicolon, what sets it apart.
    what, _, apart = entry.note.partition("; ")
    languages = "" if entry.languages == ("mul",) else f", {', '.join(entry.languages)}"
    recalls = {
        "Flickr30k R@1": entry.published.flickr30k_t2i_r1 or entry.nearest.flickr30k_t2i_r1,
        "Flickr30k-CN R@1": entry.published.flickr30k_cn_t2i_r1,
    }
    quality = [f"{name} {value:g}" for name, value in recalls.items() if value is not None]
    where = entry.repository
    if beside := find_encoder(entry.beside):
        where += f", and the tokenizer of {beside.repository},"
    return EncoderCard(
        name=entry.name,
        summary=f"{what}{languages}, up to {entry.max_text_tokens} tokens",
        size=format_bytes(entry.download_bytes),
        quality=", ".join([*quality, apart] if apart else quality) or "no published recall on Flickr30k",
        download=f"{where} from the Hugging Face hub",
        download_bytes=entry.download_bytes,
        parameters=entry.parameters,
        memory={"float32": 4 * entry.parameters},
        available=encoder_available(entry),
    )


def _memory(entry: EncoderEntry, language: LanguageModelEntry) -> dict[str, int]:
    """Bytes of weights, tower and adapter in float32."""
    adapter = adapter_parameters(language.shape.hidden_size, entry.dim)
    ways: tuple[Choice, ...] = ("float32", "bfloat16", "int8", "int4")
    texts = {f"texts as {way}": 4 * adapter + language.shape.memory(way) for way in ways}
    return {"images": 4 * (entry.parameters - adapter), **texts}


def adapter_parameters(width: int, dim: int) -> int:
    """Trained numbers of the published adapter: blocks of twice the width, a norm, and the map to ``dim``."""
    block = 2 * width + (width + 1) * 2 * width + (2 * width + 1) * width
    return _ADAPTER_BLOCKS * block + 2 * width + (width + 1) * dim


def _quality(entry: EncoderEntry) -> str:
    measured, near = entry.published.flickr30k_t2i_r1, entry.nearest.flickr30k_t2i_r1
    if measured is not None:
        return f"Flickr30k R@1 {measured:g}"
    return f"Flickr30k R@1 about {near:g}" if near is not None else "not published"


def _known(recall: Recall) -> dict[str, float]:
    return {name: value for name, value in asdict(recall).items() if value is not None}
