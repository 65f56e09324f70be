"""LLM2CLIP as it was published: any of the vision towers, the adapter in the same file, and a language model.

The two sides are found, fetched and loaded apart: an index of images is built without the language model, a text
is read without the tower. What was found is reported; nothing of a repository is run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import torch

from llm2clip.encoders.catalog.entries import EncoderEntry, language_of, pairing_problem
from llm2clip.encoders.core.base import Encoder, EncoderInfo, Parity, Runtime
from llm2clip.encoders.core.devices import pick_device
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.fingerprint import settings_sha256
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.text.dual_encoder import ImageTower, to_array
from llm2clip.encoders.text.llm_source import LanguageSource, language_source
from llm2clip.encoders.text.llm_text_tower import LanguageSide, TextTower
from llm2clip.encoders.vision.vision_source import VisionSource, local_vision, published_vision
from llm2clip.encoders.weights.memory_fit import held_and_computed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from llm2clip.encoders.layers.text_adapter import TextAdapter

FAMILY = "llm2clip"
_LANGUAGES_OF_A_WIDTH = {4096: "llama-3-8b-cc", 2048: "llama-3.2-1b-cc"}
"""Width that an adapter reads -> the language model that is taken where nothing says another."""

log = logging.getLogger("llm2clip.encoders")


@final
class PublishedEncoder(Encoder):
    """A published LLM2CLIP encoder; make one with ``load_encoder``."""

    def __init__(
        self,
        vision: VisionSource,
        *,
        language: LanguageSide,
        device: torch.device,
        dtype: torch.dtype,
        parity: Parity = "native",
    ) -> None:
        """Put the sides together; no weight is read yet.

        Args:
            vision: The tower and its adapter.
            language: The language model.
            device: Where the tower and the adapter are.
            dtype: Of their arithmetic.
            parity: What to do with texts and images that the original treats badly.
        """
        self.vision = vision
        self.parity: Parity = parity
        self.device = device
        self.dtype = dtype
        self.images = ImageTower(
            self._load_tower, preprocess=vision.preprocess(parity), dtype=dtype, device=device
        )
        half = vision.plan.layout == "siglip2" if vision.row is None else vision.row.half_features
        self.texts = TextTower(language, adapter=self._load_adapter, half=half)

    @property
    def language(self) -> LanguageSide:
        """The side of the language model."""
        return self.texts.language

    @cached_property
    def _info(self) -> EncoderInfo:
        row, plan = self.vision.row, self.vision.plan
        own = f"{plan.layout} tower of your own"
        return EncoderInfo(
            name=self.vision.name,
            family=FAMILY,
            dim=plan.dim,
            image_size=plan.image_size,
            max_text_tokens=self._max_text_tokens,
            weights_sha256=self.vision.sha256,
            settings_sha256=self._settings_sha256,
            preprocessing=self.images.preprocess.identifier,
            parameters=plan.parameters + self._language_parameters,
            languages=row.languages if row else (),
            licence=row.licence if row else "unknown",
            note=row.note if row else own,
        )

    @property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._info

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision; with ``dtype="auto"`` this opens the language model."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Runtime(device=str(self.device), image_dtype=dtype, text_dtype=self.language.choice)

    @property
    def found(self) -> tuple[str, ...]:
        """What the files turned out to be where several things are possible, in words; opens the language model."""
        return (*self.vision.found, *self.language.source.found)

    @property
    def loaded_sides(self) -> frozenset[str]:
        """Which of ``"vision"`` and ``"text"`` have their weights in memory."""
        sides = {"vision": self.images.module.loaded, "text": self.texts.loaded}
        return frozenset(name for name, loaded in sides.items() if loaded)

    @property
    def logit_scale(self) -> float | None:
        """Learnt logarithm of the factor that turns scores into logits, if the file has it; the cards use ln 100."""
        return self.vision.plan.logit_scale()

    def load_all(self) -> None:
        """Read both sides now rather than when they are first used.

        Raises:
            ModelError: Something is missing, damaged, or does not fit into memory.
        """
        self.images.module()
        self.encode_texts(["."])

    def encode_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of texts whose pooled language-model states were stored; the language model is not loaded.

        Args:
            features: Shape: (n, width), float, any scale: what ``language_features`` gave, or the original's
                ``l2v.encode``.

        Returns:
            Shape: (n, dim), float32, unit rows.
        """
        return self._unit_rows(to_array(self.texts.project(torch.as_tensor(features))), "text")

    def language_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Pooled states of the language model, to be stored. Shape: (len(texts), width), float32, any scale.

        Any number of texts of any length, read in passes of a bounded number of tokens (``parity="upstream"``: in
        one).
        """
        return to_array(self.language.features(texts))

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, language_model: Literal["copy", "reference"] = "copy"
    ) -> None:
        """Write one folder that ``load_encoder`` reads without hub or network; see ``export.save_published``."""
        from llm2clip.encoders.llm2clip.save_load import save_published

        save_published(self, Path(folder), language_model=language_model)

    def save_vision_tower(self, folder: str | os.PathLike[str]) -> None:
        """Write the tower alone as a folder of transformers' CLIPVisionModel; see ``vision_export``."""
        from llm2clip.encoders.vision.vision_export import save_clip_vision

        save_clip_vision(self.vision, Path(folder))

    def as_sentence_transformer(self) -> SentenceTransformer:
        """The text side as sentence-transformers has its models; see ``sentence_view``."""
        from llm2clip.encoders.llm2clip.sentence_transformer_view import sentence_view

        return sentence_view(self)

    def _prepare(self, image: ImageSource) -> PreparedImage:
        return self.images.preprocess.prepare(image)

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.images.vectors(pixels)

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.texts.vectors(texts)

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.texts.count(texts)

    def _load_tower(self) -> nn.Module:
        return self.vision.plan.load(dtype=self.dtype, device=self.device)

    def _load_adapter(self) -> TextAdapter:
        plan = self.vision.plan
        adapter = plan.load_adapter(dtype=self.dtype, device=self.device)
        if adapter is None:
            raise ModelError(
                f"{plan.path} holds a vision tower without the text adapter, so it cannot read texts; the published "
                "files with it are those that llm2clip-index encoders lists"
            )
        if self.vision.row is not None:
            adapter.normalize_input = self.vision.row.normalize_input
        source = self.language.source
        _check_pairing(self.vision, source, width=source.plan.config.hidden_size)
        return adapter

    @property
    def _settings_sha256(self) -> str:
        """Hash of what shapes the vectors besides the tower's file; a published language model is not fetched."""
        plan = self.vision.plan
        adapter = asdict(plan.adapter) if plan.adapter is not None else None
        if adapter is not None and self.vision.row is not None:
            adapter["normalize_input"] = self.vision.row.normalize_input
        settings = {
            "tower": asdict(plan.shape),
            "adapter": adapter,
            "half_features": self.texts.half,
            "language": self.language.settings_sha256,
        }
        return settings_sha256(settings, files=[])

    @property
    def _max_text_tokens(self) -> int:
        row, source = self.vision.row, self.language.source
        if row is not None and source.row is not None and source.row.name == row.language_model:
            return row.max_text_tokens
        return self.language.reader.capacity

    @property
    def _language_parameters(self) -> int:
        source = self.language.source
        return source.row.parameters if source.row else source.plan.parameters


def load_published(
    asked: EncoderEntry | Path,
    *,
    language_model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    parity: Parity = "native",
) -> PublishedEncoder:
    """Open a published encoder, or one of that layout; weights are read when they are first needed.

    Args:
        asked: A line of the catalogue, or a folder or file.
        language_model: Name or folder of another language model than the one it was trained with.
        device: See ``load_encoder``.
        dtype: See ``load_encoder``; int8 and int4 are of the language model alone.
        parity: See ``load_encoder``.

    Raises:
        ModelError: The tower's files are missing, damaged or another's, or it cannot read that language model.
        ValueError: There is no such device, dtype or parity.
    """
    if isinstance(asked, EncoderEntry) and language_model is not None:
        _check_known_pair(asked, language_source(language_model))
    vision = published_vision(asked) if isinstance(asked, EncoderEntry) else local_vision(asked)
    source = language_source(language_model) if language_model is not None else _partner(vision)
    return assemble(vision, source, device=device, dtype=dtype, parity=parity)


def assemble(
    vision: VisionSource, source: LanguageSource, *, device: str, dtype: str, parity: Parity
) -> PublishedEncoder:
    """An encoder of these two parts; see :func:`load_published`."""
    place = pick_device(device)
    held, arithmetic = held_and_computed(dtype, place)
    if parity not in ("native", "upstream"):
        raise ValueError(f"parity must be 'native' or 'upstream', got {parity!r}")
    if source.width is not None:
        _check_pairing(vision, source, width=source.width)
    return PublishedEncoder(
        vision,
        language=LanguageSide(source, choice=held, device=place, parity=parity),
        device=place,
        dtype=arithmetic,
        parity=parity,
    )


def _partner(vision: VisionSource) -> LanguageSource:
    if vision.row is not None:
        row = language_of(vision.row)
        return LanguageSource(name=row.name, row=row)
    adapter = vision.plan.adapter
    known = _LANGUAGES_OF_A_WIDTH.get(adapter.width) if adapter else None
    if adapter is not None and known is None:
        raise ModelError(
            f"{vision.name} reads language models of width {adapter.width}, and none of the published is; "
            "say which: load_encoder(..., language_model=FOLDER), and save_pretrained(FOLDER) of what it gives for "
            "the commands"
        )
    return language_source(known or _LANGUAGES_OF_A_WIDTH[4096])


def _check_known_pair(row: EncoderEntry, source: LanguageSource) -> None:
    """Refuse a pair that cannot work before anything is fetched."""
    width = language_of(row).shape.hidden_size
    if source.width is not None and source.width != width:
        raise ModelError(pairing_problem(row.name, width=width, language=source.name, hidden=source.width))


def _check_pairing(vision: VisionSource, source: LanguageSource, *, width: int) -> None:
    """Refuse a language model that the adapter cannot read; remark on one it was not trained with."""
    adapter = vision.plan.adapter
    if adapter is not None and adapter.width != width:
        raise ModelError(
            pairing_problem(vision.name, width=adapter.width, language=source.name, hidden=width)
        )
    row = vision.row
    known = row is not None and bool(row.repository)  # of a tower of one's own nobody knows it
    if row is not None and known and source.row is not None and source.row.name != row.language_model:
        log.warning(
            "%s was trained with %s, not with %s: the vectors fit in length, but what they find may not",
            row.name,
            row.language_model,
            source.row.name,
        )
