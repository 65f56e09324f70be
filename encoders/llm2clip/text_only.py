"""A language model of LLM2CLIP by itself, as an encoder of texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, final

from llm2clip.encoders.catalog.entries import LanguageModelEntry
from llm2clip.encoders.core.base import Encoder, EncoderInfo, Parity, Runtime
from llm2clip.encoders.core.config_io import read_object
from llm2clip.encoders.core.devices import pick_device
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.llm2clip.published import FAMILY
from llm2clip.encoders.text.llm_source import LanguageSource, language_source
from llm2clip.encoders.text.llm_text_tower import LanguageSide, TextTower
from llm2clip.encoders.weights.memory_fit import held_and_computed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@final
class LanguageEncoder(Encoder):
    """A language model of LLM2CLIP without a tower: texts to the space that adapters read. It sees no images."""

    def __init__(self, language: LanguageSide) -> None:
        """Put it together; nothing is loaded yet."""
        self.texts = TextTower(language, adapter=None)

    @property
    def language(self) -> LanguageSide:
        """The language model and its tokenizer."""
        return self.texts.language

    def language_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Pooled states, to be stored. Shape: (len(texts), width), float32, any scale.

        Any number of texts of any length, read in passes of a bounded number of tokens.
        """
        return self.texts.vectors(texts)

    @cached_property
    def _info(self) -> EncoderInfo:
        source = self.texts.language.source
        row = source.published
        return EncoderInfo(
            name=source.name,
            family=FAMILY,
            dim=source.width or source.plan.config.hidden_size,
            image_size=0,
            max_text_tokens=self.texts.language.reader.capacity,
            weights_sha256="",
            settings_sha256=self.texts.language.settings_sha256,
            preprocessing="none",
            parameters=row.parameters if row else source.plan.parameters,
            languages=("en",) if row else (),
            licence=row.licence if row else "unknown",
            note=row.note if row else "",
        )

    @property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._info

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision; with ``dtype="auto"`` this opens the language model."""
        language = self.texts.language
        return Runtime(device=str(language.device), image_dtype="float32", text_dtype=language.choice)

    def _prepare(self, image: ImageSource) -> PreparedImage:
        name = self.texts.language.source.name
        raise ModelError(f"{name} is a language model alone and sees no images; load an encoder that uses it")

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ModelError(f"{self.texts.language.source.name} sees no images")

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.texts.vectors(texts)

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.texts.count(texts)


def is_language_folder(path: Path) -> bool:
    """Whether a folder holds a language model of the published layout by itself."""
    config = path / "config.json"
    return config.is_file() and read_object(config).get("model_type") == "llama"


def load_text_only(
    asked: LanguageModelEntry | Path, *, device: str = "auto", dtype: str = "auto", parity: Parity = "native"
) -> LanguageEncoder:
    """Open a language model alone, a published one or that of a folder; see :class:`LanguageEncoder`."""
    place = pick_device(device)
    held, _ = held_and_computed(dtype, place)
    if isinstance(asked, LanguageModelEntry):
        source = LanguageSource(name=asked.name, row=asked)
    else:
        source = language_source(asked)
    return LanguageEncoder(LanguageSide(source, choice=held, device=place, parity=parity))
