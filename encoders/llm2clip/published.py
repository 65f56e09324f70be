"""LLM2CLIP as it was published: a vision tower, the adapter in the same file, and a language model, or that alone.

The towers are found, downloaded and loaded separately: building an index needs no language model, a text query no
vision tower. No code of a repository is run.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm2clip.encoders.catalog.entries import EncoderEntry, LanguageModelEntry, language_of, pairing_problem
from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import DualEncoder, LoadOptions, pick_device
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import settings_sha256
from llm2clip.encoders.images.preprocess import PixelTower
from llm2clip.encoders.text.llm_text_tower import LanguageSource, LlmTextTower, language_source
from llm2clip.encoders.vision.vision_source import VisionSource, local_vision, published_vision
from llm2clip.encoders.weights.memory_fit import pick_precision

if TYPE_CHECKING:
    import torch

    from llm2clip.encoders.layers.llama import TextAdapter

FAMILY = "llm2clip"
_LANGUAGES_OF_A_WIDTH = {4096: "llama-3-8b-cc", 2048: "llama-3.2-1b-cc"}
"""Width that an adapter reads -> default language model."""

log = logging.getLogger("llm2clip.encoders")


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a published encoder."""

    vision: VisionSource
    """The vision tower and its adapter."""
    language: LanguageSource
    """The language model."""


def load_published(files: ModelFiles, options: LoadOptions) -> DualEncoder:
    """Open a published encoder, or a local one of that layout; weights are read when they are first needed."""
    entry, chosen = files.encoder_entry, options.language_model
    if files.path is not None:
        vision = local_vision(files.path)
    else:
        assert entry is not None, "a model without a path is one of the catalogue"
        if chosen is not None:
            _check_known_pair(entry, language_source(chosen))
        vision = published_vision(entry)
    source = language_source(chosen) if chosen is not None else _partner(vision)
    return assemble(vision, source, options)


def assemble(vision: VisionSource, source: LanguageSource, options: LoadOptions) -> DualEncoder:
    """An encoder of these two parts; see :func:`load_published`."""
    place = pick_device(options.device)
    loaded_as, computed_in = pick_precision(options.dtype, place)
    parity = options.parity
    if source.width is not None:
        _check_pairing(vision, source, width=source.width)
    images = PixelTower(
        lambda: vision.plan.load(dtype=computed_in, device=place),
        preprocess=vision.preprocess(parity),
        device=place,
        dtype=computed_in,
        found=vision.found,
    )
    texts = LlmTextTower(
        source,
        choice=loaded_as,
        device=place,
        parity=parity,
        load_adapter=lambda: _load_adapter(vision, source, dtype=computed_in, device=place),
        half=vision.plan.layout == "siglip2" if vision.entry is None else vision.entry.half_features,
    )
    return DualEncoder(
        images,
        texts,
        describe=lambda: _describe(vision, images, texts),
        source=PublishedFiles(vision, source),
    )


def _load_adapter(
    vision: VisionSource, source: LanguageSource, *, dtype: torch.dtype, device: torch.device
) -> TextAdapter:
    adapter = vision.plan.load_adapter(dtype=dtype, device=device)
    if adapter is None:
        raise ModelError(
            f"{vision.plan.path} holds a vision tower without the text adapter, so it cannot read texts; the published "
            "files with it are those that llm2clip-index encoders lists"
        )
    if vision.entry is not None:
        adapter.normalize_input = vision.entry.normalize_input
    _check_pairing(vision, source, width=source.plan.config.hidden_size)
    return adapter


def _describe(vision: VisionSource, images: PixelTower, texts: LlmTextTower) -> EncoderInfo:
    entry, plan, language = vision.entry, vision.plan, texts.source
    partner = entry is not None and language.entry is not None and language.entry.name == entry.language_model
    return EncoderInfo(
        name=vision.name,
        family=FAMILY,
        dim=plan.dim,
        image_size=plan.image_size,
        max_text_tokens=entry.max_text_tokens if entry and partner else texts.reader.capacity,
        weights_sha256=vision.sha256,
        settings_sha256=_settings_sha256(vision, texts),
        preprocessing=images.preprocess.identifier,
        parameters=plan.parameters
        + (language.entry.parameters if language.entry else language.plan.parameters),
        languages=entry.languages if entry else (),
        licence=entry.licence if entry else "unknown",
        note=entry.note if entry else f"{plan.layout} tower of your own",
    )


def _settings_sha256(vision: VisionSource, texts: LlmTextTower) -> str:
    """Hash of what shapes vectors besides the tower; a published language model is not downloaded."""
    adapter = asdict(vision.plan.adapter) if vision.plan.adapter is not None else None
    if adapter is not None and vision.entry is not None:
        adapter["normalize_input"] = vision.entry.normalize_input
    settings = {
        "tower": asdict(vision.plan.shape),
        "adapter": adapter,
        "half_features": texts.half,
        "language": texts.settings_sha256,
    }
    return settings_sha256(settings, files=[])


def _partner(vision: VisionSource) -> LanguageSource:
    if vision.entry is not None:
        entry = language_of(vision.entry)
        return LanguageSource(name=entry.name, entry=entry)
    adapter = vision.plan.adapter
    known = _LANGUAGES_OF_A_WIDTH.get(adapter.width) if adapter else None
    if adapter is not None and known is None:
        raise ModelError(
            f"{vision.name} reads language models of width {adapter.width}, and none of the published is; "
            "say which: load_encoder(..., language_model=FOLDER), and save_encoder(encoder, FOLDER) for the commands"
        )
    return language_source(known or _LANGUAGES_OF_A_WIDTH[4096])


def _check_known_pair(entry: EncoderEntry, source: LanguageSource) -> None:
    """Refuse a pair that cannot work before anything is downloaded."""
    width = language_of(entry).shape.hidden_size
    if source.width is not None and source.width != width:
        raise ModelError(pairing_problem(entry.name, width=width, language=source.name, hidden=source.width))


def _check_pairing(vision: VisionSource, source: LanguageSource, *, width: int) -> None:
    """Refuse a language model that the adapter cannot read; warn of one that it was not trained with."""
    adapter = vision.plan.adapter
    if adapter is not None and adapter.width != width:
        raise ModelError(
            pairing_problem(vision.name, width=adapter.width, language=source.name, hidden=width)
        )
    entry = vision.entry
    known = entry is not None and bool(entry.repository)  # not known for a local tower
    if entry is not None and known and source.entry is not None and source.entry.name != entry.language_model:
        log.warning(
            "%s was trained with %s, not with %s: the dimensions match, but results may be poor",
            entry.name,
            entry.language_model,
            source.entry.name,
        )


def load_text_only(asked: LanguageModelEntry | Path, options: LoadOptions) -> DualEncoder:
    """Open a language model alone, as an encoder of texts to the space that adapters read; it sees no images."""
    place = pick_device(options.device)
    loaded_as, _ = pick_precision(options.dtype, place)
    if isinstance(asked, LanguageModelEntry):
        source = LanguageSource(name=asked.name, entry=asked)
    else:
        source = language_source(asked)
    texts = LlmTextTower(source, choice=loaded_as, device=place, parity=options.parity)
    return DualEncoder(None, texts, describe=lambda: _describe_texts(texts), source=source)


def _describe_texts(texts: LlmTextTower) -> EncoderInfo:
    source, entry = texts.source, texts.source.published
    return EncoderInfo(
        name=source.name,
        family=FAMILY,
        dim=source.width or source.plan.config.hidden_size,
        image_size=0,
        max_text_tokens=texts.reader.capacity,
        weights_sha256="",
        settings_sha256=texts.settings_sha256,
        preprocessing="none",
        parameters=entry.parameters if entry else source.plan.parameters,
        languages=("en",) if entry else (),
        licence=entry.licence if entry else "unknown",
        note=entry.note if entry else "",
    )
