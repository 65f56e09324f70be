"""The file with a vision tower: a published one by name, one in a local folder, or a file.

Its contents are read from its tensors; where the catalogue knows the file, the two must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llm2clip.common.files import models_home
from llm2clip.encoders.catalog.entries import (
    EncoderEntry,
    encoder_entries,
    find_encoder,
    language_of,
)
from llm2clip.encoders.catalog.hub import encoder_files, resolve_files
from llm2clip.encoders.core.base import Parity
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.images.hf_preprocessor import (
    FILES,
    OPENAI_MEAN,
    OPENAI_STD,
    read_preprocess,
    settings_file,
)
from llm2clip.encoders.images.preprocess import Crop, Order, Preprocess, ResizeMode
from llm2clip.encoders.vision.vision_tower import VisionPlan, open_vision
from llm2clip.encoders.weights.pickle_conversion import convert_checkpoint, read_conversion
from llm2clip.encoders.weights.safetensors_io import has_adapter, stored_sha256

PICKLED = (".pt", ".bin", ".pth")
"""Suffixes of files that torch.save wrote; they are converted once."""
_USUAL = {"openai": "clip", "eva02": "eva", "siglip2": "eva"}
"""Layout -> default preprocessing."""


@dataclass(frozen=True, kw_only=True)
class VisionSource:
    """A file with a vision tower, its catalogue entry and its preprocessing."""

    name: str
    """What the encoder is called."""
    plan: VisionPlan
    """What is in it."""
    entry: EncoderEntry | None
    """Its entry in the catalogue."""
    folder: Path
    """Where it was found."""
    converted: bool = False
    """Whether ``plan.path`` was made from a file in ``folder``."""
    copied: tuple[str, str] | None = None
    """Hash of ``plan.path`` when it was saved, and that of the published file it is the same as."""
    preparation: Preprocess | None = None
    """The preprocessing of a saved encoder."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the published file in hexadecimal; of a ``.pt``, not of its conversion."""
        if self.converted:
            return read_conversion(self.plan.path).sha256
        digest = stored_sha256(self.plan.path)
        return self.copied[1] if self.copied is not None and self.copied[0] == digest else digest

    def preprocess(self, parity: Parity) -> Preprocess:
        """How images are prepared: as ``preprocessor_config.json`` says if there is one, else as published."""
        if self.preparation is not None:
            return replace(self.preparation, parity=parity)
        kind = self.kind
        default = Preprocess(
            size=self.plan.image_size,
            mode=ResizeMode.SQUASH if kind == "siglip" else ResizeMode.SHORTEST_CROP,
            mean=(0.5, 0.5, 0.5) if kind == "siglip" else OPENAI_MEAN,
            std=(0.5, 0.5, 0.5) if kind == "siglip" else OPENAI_STD,
            crop=Crop.HALF_EVEN if kind == "eva" else Crop.FLOOR,
            order=Order.RESIZE_FIRST if kind == "eva" else Order.CONVERT_FIRST,
            parity=parity,
        )
        if self.settings_file is None:
            return default
        size = {"vision_config": {"image_size": self.plan.image_size}}
        return read_preprocess(self.folder, size, default)

    @property
    def kind(self) -> str:
        """Kind of preprocessing: ``"clip"``, ``"eva"`` or ``"siglip"``."""
        return (self.entry.preprocessing if self.entry else "") or _USUAL[self.plan.layout]

    @cached_property
    def settings_file(self) -> str | None:
        """Name of the file of image settings beside the weights; None without any."""
        beside = any((self.folder / name).is_file() for name in FILES)
        return settings_file(self.folder) if beside else None

    @property
    def found(self) -> tuple[str, ...]:
        """What the files turned out to be, in words."""
        how = f"as {self.settings_file} says" if self.settings_file else f"those of {self.kind}"
        whose = (self.entry.note,) if self.entry is not None and not self.entry.repository else ()
        return (f"{self.plan.layout} tower", *whose, *self.plan.found, f"images prepared {how}")


def published_vision(entry: EncoderEntry) -> VisionSource:
    """The tower of a published encoder, downloaded if necessary."""
    folder = resolve_files(encoder_files(entry))
    path = _choose(folder, entry.weights)
    size = path.stat().st_size
    if entry.weights_bytes and size != entry.weights_bytes:
        raise ModelError(
            f"{path} has {size:,} bytes, the published file {entry.weights_bytes:,}; fetch it again"
        )
    source = _open(path, folder=folder, entry=entry)
    _check(source.plan, entry)
    return source


def local_vision(path: Path) -> VisionSource:
    """The tower in a folder, or in a file: ``.safetensors``, or ``.pt`` as EVA02's are published."""
    folder = path if path.is_dir() else path.parent
    named = find_encoder(folder.resolve().name)
    pattern = named.weights if named is not None and named.weights else "*"
    file = _choose(folder, pattern) if path.is_dir() else path
    found = _open(file, folder=folder, entry=None)
    name = path.resolve().name if path.is_dir() else path.stem
    entry = _entry_of(found, name)
    return replace(found, name=entry.name if entry else name, entry=entry)


def _open(path: Path, *, folder: Path, entry: EncoderEntry | None) -> VisionSource:
    converted = path.suffix in PICKLED
    file, settings = path, None
    if converted:
        cache = models_home() / "converted" / (entry.name if entry else path.stem)
        file = convert_checkpoint(path, cache, sha256=(entry.weights_sha256 or None) if entry else None)
        settings = _settings_of_training(folder)
    plan = open_vision(file, settings=settings)
    return VisionSource(
        name=entry.name if entry else path.stem, plan=plan, entry=entry, folder=folder, converted=converted
    )


def _settings_of_training(folder: Path) -> dict[str, Any]:
    """The configuration beside a ``.pt``, if it is that of the training code; the hub's describes another file."""
    path = folder / "config.json"
    settings = read_object(path, folder=folder) if path.is_file() else {}
    return settings if "vision_cfg" in settings else {}


def _entry_of(source: VisionSource, name: str) -> EncoderEntry | None:
    """The entry of a local file: a published encoder, or one made up after the published encoder of the same sizes.

    It is the published one if it has its hash or, as most hashes were never published, its name.
    """
    plan = source.plan
    alike = (entry for entry in encoder_entries() if entry.layout == plan.layout)
    sizes = plan.parameters, plan.image_size
    entry = next((entry for entry in alike if (entry.parameters, entry.image_size) == sizes), None)
    if entry is None:
        return None
    checked = source.converted and bool(entry.weights_sha256)
    published = source.sha256 == entry.weights_sha256 if checked else find_encoder(name) == entry
    return entry if published else _own_entry(entry, name)


def _own_entry(like: EncoderEntry, name: str) -> EncoderEntry:
    """An entry for a local tower with the text and image rules of the published one of its sizes."""
    return EncoderEntry(
        name=name,
        family=like.family,
        repository="",
        parameters=like.parameters,
        dim=like.dim,
        image_size=like.image_size,
        max_text_tokens=like.max_text_tokens,
        licence="unknown",
        note=f"of your own, read by the rules of {like.name}, whose shape it has",
        layout=like.layout,
        preprocessing=like.preprocessing,
        language_model=like.language_model,
        normalize_input=like.normalize_input,
        half_features=like.half_features,
    )


def _check(plan: VisionPlan, entry: EncoderEntry) -> None:
    wrong = []
    if plan.layout != entry.layout:
        wrong.append(f"a tower of layout {plan.layout}, expected {entry.layout}")
    for what, got, expected in (
        ("vectors of", plan.dim, entry.dim),
        ("images of", plan.image_size, entry.image_size),
        ("trained numbers:", plan.parameters, entry.parameters),
    ):
        if got != expected:
            wrong.append(f"{what} {got:,}, expected {expected:,}")
    if plan.adapter is None:
        wrong.append("no text adapter")
    elif plan.adapter.width != (width := language_of(entry).shape.hidden_size):
        wrong.append(f"an adapter for language models of width {plan.adapter.width}, expected {width}")
    if entry.layout == "siglip2" and plan.layout == "siglip2" and plan.dim == entry.dim and plan.adapter:
        return  # no description of its file is published
    if wrong:
        traps = f" Known of it: {'; '.join(entry.traps)}." if entry.traps else ""
        raise ModelError(
            f"{plan.path} is not the published {entry.name}: {', '.join(wrong)}. Fetch {entry.weights} again "
            f"from {entry.repository}.{traps}"
        )


def _choose(folder: Path, pattern: str) -> Path:
    """The file of weights in a folder: one with an adapter before one without, safetensors before pickles."""
    files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
    plain = [path for path in files if path.suffix == ".safetensors"]
    ranked = [*filter(has_adapter, plain), *_pickled(files), *plain]
    if not ranked:
        raise ModelError(f"{folder} has no weights: expected a .safetensors or .pt file")
    return ranked[0]


def _pickled(files: list[Path]) -> Iterator[Path]:
    for suffix in PICKLED:
        yield from (path for path in files if path.suffix == suffix)
