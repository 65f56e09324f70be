"""What the loaders of the baselines share: converted weights, tokenizer folder, hash of settings, description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import settings_sha256, without_origin
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.text.clip_tokenizer import TextForm, tokenizer_files
from llm2clip.encoders.weights.pickle_conversion import convert_into_home


def converted_weights(files: ModelFiles) -> Path:
    """The one file of weights that the catalogue names, as safetensors; checked if it was asked for by name."""
    entry = files.encoder_entry
    assert entry is not None, "found by the name of its file"
    path = files.folder / entry.weights
    if not path.is_file():
        raise ModelError(f"{files.folder} has no {entry.weights}")
    if files.path is not None:
        return convert_into_home(path)
    size = path.stat().st_size
    if entry.weights_bytes and size != entry.weights_bytes:
        raise ModelError(
            f"{path} has {size:,} bytes, the published file {entry.weights_bytes:,}; fetch it again"
        )
    return convert_into_home(path, sha256=entry.weights_sha256 or None)


def tokenizer_folder(files: ModelFiles) -> Path:
    """The folder of the tokenizer: that of the weights, or that of the encoder it is borrowed from."""
    if tokenizer_files(files.folder):
        return files.folder
    return files.beside("tokenizer", files=("tokenizer.json",))


def settings_hash(files: ModelFiles, config: Mapping[str, Any], *, form: TextForm) -> str:
    """SHA-256 of what shapes the vectors besides weights and preprocessing: configuration, tokenizer, text form.

    A borrowed tokenizer counts by the name of the encoder it belongs to, as it may not be downloaded yet.
    """
    settings: dict[str, Any] = {"config": without_origin(config), "form": asdict(form)}
    found = tokenizer_files(files.folder)
    if not found and files.path is not None:
        found = tokenizer_files(files.folder / "tokenizer")
    if not found and files.encoder_entry is not None:
        settings["tokenizer"] = files.encoder_entry.beside
    return settings_sha256(settings, files=found)


def describe(
    files: ModelFiles,
    preprocess: Preprocess,
    *,
    family: str,
    dim: int,
    max_text_tokens: int,
    weights_sha256: str,
    settings_sha256: str,
    parameters: int,
) -> EncoderInfo:
    """The description of an encoder: measured from its files, the rest from the catalogue."""
    entry = files.encoder_entry
    if entry is not None and entry.family != family:
        entry = None  # a folder that is only called like a published encoder
    return EncoderInfo(
        name=files.name,
        family=family,
        dim=dim,
        image_size=preprocess.size,
        max_text_tokens=max_text_tokens,
        weights_sha256=weights_sha256,
        settings_sha256=settings_sha256,
        preprocessing=preprocess.identifier,
        parameters=parameters,
        languages=entry.languages if entry else (),
        licence=entry.licence if entry else "unknown",
        note=entry.note if entry else f"a {family} model of your own",
    )
