"""A language model of LLM2CLIP by itself, as an encoder of texts: to the space that adapters read."""

from __future__ import annotations

from pathlib import Path

from llm2clip.encoders.catalog.entries import LanguageModelEntry
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import DualEncoder, LoadOptions, pick_device
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.llm2clip.published import FAMILY
from llm2clip.encoders.text.llm_source import LanguageSource, language_source
from llm2clip.encoders.text.llm_text_tower import LlmTextTower
from llm2clip.encoders.weights.memory_fit import held_and_computed


def is_language_folder(path: Path) -> bool:
    """Whether a folder holds a language model of the published layout by itself."""
    config = path / "config.json"
    return config.is_file() and read_object(config).get("model_type") == "llama"


def load_text_only(asked: LanguageModelEntry | Path, options: LoadOptions) -> DualEncoder:
    """Open a language model alone, a published one or that of a folder; it sees no images."""
    place = pick_device(options.device)
    loaded_as, _ = held_and_computed(options.dtype, place)
    if isinstance(asked, LanguageModelEntry):
        source = LanguageSource(name=asked.name, row=asked)
    else:
        source = language_source(asked)
    texts = LlmTextTower(source, choice=loaded_as, device=place, parity=options.parity)
    return DualEncoder(None, texts, describe=lambda: _describe(texts), source=source)


def _describe(texts: LlmTextTower) -> EncoderInfo:
    source, row = texts.source, texts.source.published
    return EncoderInfo(
        name=source.name,
        family=FAMILY,
        dim=source.width or source.plan.config.hidden_size,
        image_size=0,
        max_text_tokens=texts.reader.capacity,
        weights_sha256="",
        settings_sha256=texts.settings_sha256,
        preprocessing="none",
        parameters=row.parameters if row else source.plan.parameters,
        languages=("en",) if row else (),
        licence=row.licence if row else "unknown",
        note=row.note if row else "",
    )
