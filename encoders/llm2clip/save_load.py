"""Encoders as folders: save one that is loaded, load it again without hub or network, write a trained one.

The folder of a published encoder holds ``config.json``, ``model.safetensors`` (tower and adapter, in the layout they
were published in) and ``language_model/``, or the name of one in place of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from safetensors.torch import save_file

from llm2clip.common.files import file_sha256
from llm2clip.encoders.catalog.entries import EncoderEntry, LanguageModelEntry, find_language, language_models
from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.base import Encoder
from llm2clip.encoders.core.dual_encoder import DualEncoder, LoadOptions
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json, refuse_outside, to_json
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.llm2clip.encoder_folder import load_folder
from llm2clip.encoders.llm2clip.folder_config import Llm2ClipConfig, StoredDtype, read_config, write_config
from llm2clip.encoders.llm2clip.folder_modules import pack_int8
from llm2clip.encoders.llm2clip.published import FAMILY, PublishedFiles, assemble
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.text.language_config import RULES_FILE
from llm2clip.encoders.text.llm_text_tower import LORA_FOLDER, LanguageSource, language_source
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_export import check_clip_vision, save_clip_vision, write_clip_vision
from llm2clip.encoders.vision.vision_source import VisionSource
from llm2clip.encoders.vision.vision_tower import open_vision
from llm2clip.encoders.weights.tensor_names import (
    ADAPTER,
    CONFIG_FILE,
    FORMAT,
    LANGUAGE_MODEL,
    LOGIT_SCALE,
    PROJECTION,
    PUBLISHED,
    README_FILE,
    TOKENIZER_FILE,
    VERSION,
    VISION,
    WEIGHTS_FILE,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llm2clip.encoders.core.base import EncoderInfo

LANGUAGE_FOLDER = "language_model"
_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", RULES_FILE)


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Settings of a tower that its tensors do not tell."""

    heads: int
    """Attention heads."""
    head_width: int
    """Width of one of them."""
    activation: str
    """Of the hidden layers, as transformers calls it."""
    rope_grid: int
    """EVA02: patches per side of the grid of the rotary frequencies."""


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """Everything about a saved encoder but its weights: what ``config.json`` holds beside format and family."""

    encoder: EncoderEntry
    """Its entry in the catalogue, or one made for it."""
    tower: TowerSettings
    """Settings that its tensors do not tell."""
    preprocessing: Preprocess
    """Image preprocessing."""
    text_rules: TextRules
    """Wrapper and length limits of texts."""
    language_model: str
    """Name of the language model."""
    language_row: LanguageModelEntry | None = None
    """Its entry in the catalogue, if it has one."""
    copied: bool
    """Whether it is in the folder."""
    file_sha256: str
    """Hash of ``model.safetensors``."""
    published_sha256: str
    """Hash of the published file it was made from."""
    language_files_sha256: str = ""
    """Hash of what is in ``language_model/``."""
    language_sha256: str = ""
    """Hash of the language model that was copied there."""


def save_encoder(
    encoder: Encoder,
    folder: str | os.PathLike[str],
    *,
    language_model: Literal["copy", "reference"] = "copy",
) -> None:
    """Write an LLM2CLIP encoder to one folder that ``load_encoder`` reads without hub or network.

    Args:
        encoder: What to save. Its weights are copied from file to file, not from memory.
        folder: Where to; made if need be, and only with everything in it.
        language_model: ``"copy"`` puts it into the folder; ``"reference"`` only its name, to be found by it.

    Raises:
        ModelError: The language model is not on this machine and cannot be fetched.
        ValueError: The encoder is not an LLM2CLIP, ``folder`` is there and not empty or the folder that it was loaded
            from, a model of one's own was to be referred to, or there is no such choice.
        OSError: A file cannot be written.
    """
    if language_model not in ("copy", "reference"):
        raise ValueError(f"language_model must be 'copy' or 'reference', got {language_model!r}")
    source = encoder.source if isinstance(encoder, DualEncoder) else None
    if isinstance(source, Path):
        _copy_folder(source, Path(folder))
    else:
        _save_published(_files(encoder), encoder.info, Path(folder), copies=language_model == "copy")


def save_vision_tower(encoder: Encoder, folder: str | os.PathLike[str]) -> None:
    """Write the vision tower of an LLM2CLIP alone, as a folder of transformers' ``CLIPVisionModel``.

    Raises:
        ModelError: The tower is not one of OpenAI's layout.
        ValueError: The encoder is not an LLM2CLIP, or ``folder`` is there and not empty.
        OSError: A file cannot be written.
    """
    source = encoder.source if isinstance(encoder, DualEncoder) else None
    if isinstance(source, Path) and isinstance(encoder, DualEncoder):
        _save_vision_of_folder(encoder, source, Path(folder))
    else:
        save_clip_vision(_files(encoder).vision, Path(folder))


def _save_vision_of_folder(encoder: DualEncoder, source: Path, folder: Path) -> None:
    config, tower = read_config(source), encoder.image_tower
    shape = config.vision
    if not isinstance(shape, TowerShape) or tower is None:
        check_clip_vision("efficientnet-lite", name=config.name)
        return
    check_clip_vision(shape.layout, name=config.name)
    prefix = "model."  # the class of transformers within the module
    tensors = {
        name.removeprefix(prefix): tensor.contiguous()
        for name, tensor in tower.module().vision.state_dict().items()
    }
    write_clip_vision(folder, tensors, shape=shape, preprocess=config.preprocessing)


def _files(encoder: Encoder) -> PublishedFiles:
    source = encoder.source if isinstance(encoder, DualEncoder) else None
    if not isinstance(source, PublishedFiles):
        raise ValueError(f"{encoder.info.name!r} is not a published LLM2CLIP encoder, and cannot be saved")
    return source


def _copy_folder(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the folder this encoder was loaded from; name another one")
    target.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_FILE, TOKENIZER_FILE, README_FILE, CONFIG_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _save_published(files: PublishedFiles, info: EncoderInfo, folder: Path, *, copies: bool) -> None:
    source = files.language
    if not copies and (source.given is not None or source.entry is None):
        raise ValueError(f"{source.name} is no published language model, and can only be copied")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        draft = Path(name) / "draft"
        draft.mkdir()
        shutil.copyfile(files.vision.plan.path, draft / WEIGHTS_FILE)
        if copies:
            _copy_language(source, draft / LANGUAGE_FOLDER)
        config = replace(
            _config(files, info, copied=copies, digest=file_sha256(draft / WEIGHTS_FILE)),
            language_files_sha256=source.files_sha256 if copies else "",
            language_sha256=source.sha256 if copies else "",
        )
        data = {"format": FORMAT, "version": VERSION, "family": PUBLISHED} | to_json(config)
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        (draft / CONFIG_FILE).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)


def load_saved(files: ModelFiles, options: LoadOptions) -> DualEncoder:
    """Open what :func:`save_encoder` wrote; see ``load_encoder``."""
    folder, data, path = files.folder, files.config, files.folder / CONFIG_FILE
    if data.get("version") != VERSION:
        raise ModelError(
            f"{path}: format version {data.get('version')!r}, this release reads {VERSION}; "
            "use the release that wrote it, or save the encoder again"
        )
    own = {key: value for key, value in data.items() if key not in ("format", "version", "family")}
    config = from_json(SavedConfig, own, where=str(path))
    vision = VisionSource(
        name=config.encoder.name,
        plan=open_vision(folder / WEIGHTS_FILE, settings=_settings(config)),
        entry=config.encoder,
        folder=folder,
        copied=(config.file_sha256, config.published_sha256),
        preparation=config.preprocessing,
    )
    chosen = options.language_model
    return assemble(vision, language_source(chosen) if chosen else _language(config, folder), options)


def _language(config: SavedConfig, folder: Path) -> LanguageSource:
    if not config.copied:
        entry = find_language(config.language_model)
        if entry is None:  # Not a path: an untrusted folder must not choose what else is read.
            known = ", ".join(item.name for item in language_models())
            raise ModelError(
                f"{folder / CONFIG_FILE}: language_model is {config.language_model!r}, expected one of {known}; "
                "name another in load_encoder(..., language_model=FOLDER)"
            )
        return LanguageSource(name=entry.name, entry=entry)
    refuse_outside(folder / LANGUAGE_FOLDER, folder=folder)
    return LanguageSource(
        name=config.language_model,
        entry=config.language_row,
        given=folder / LANGUAGE_FOLDER,
        rules=config.text_rules,
        copied=(config.language_files_sha256, config.language_sha256),
    )


def _copy_language(source: LanguageSource, target: Path) -> None:
    plan = source.plan
    target.mkdir()
    names = {CONFIG_FILE, *(place.path.name for place in plan.places.values())}
    names |= {path.name for path in plan.folder.glob("*.safetensors.index.json")}
    names |= {name for name in _TOKENIZER_FILES if (plan.folder / name).is_file()}
    for name in sorted(names):
        shutil.copyfile(plan.folder / name, target / name)
    if plan.update is not None:
        (target / LORA_FOLDER).mkdir()
        for path in sorted(plan.update.glob("adapter_*")):
            shutil.copyfile(path, target / LORA_FOLDER / path.name)


def _config(files: PublishedFiles, info: EncoderInfo, *, copied: bool, digest: str) -> SavedConfig:
    vision, source, shape = files.vision, files.language, files.vision.plan.shape
    return SavedConfig(
        encoder=vision.entry or _own_entry(files, info),
        tower=TowerSettings(
            heads=shape.heads,
            head_width=shape.head_width,
            activation=shape.activation,
            rope_grid=shape.rope_grid,
        ),
        preprocessing=vision.preprocess("native"),
        text_rules=source.text_rules("native"),
        language_model=source.name,
        language_row=source.entry,
        copied=copied,
        file_sha256=digest,
        published_sha256=vision.sha256,
    )


def _own_entry(files: PublishedFiles, info: EncoderInfo) -> EncoderEntry:
    """A catalogue entry for an encoder that is not in the catalogue."""
    plan = files.vision.plan
    return EncoderEntry(
        name=info.name,
        family=FAMILY,
        repository="",
        parameters=plan.parameters,
        dim=info.dim,
        image_size=info.image_size,
        max_text_tokens=info.max_text_tokens,
        licence=info.licence,
        note=info.note,
        layout=plan.layout,
        language_model=files.language.name,
        normalize_input=plan.adapter.normalize_input if plan.adapter else True,
        half_features=plan.layout == "siglip2",
    )


def _settings(config: SavedConfig) -> dict[str, Any]:
    """The tower settings in the form of a published configuration."""
    tower = config.tower
    if config.encoder.layout == "eva02":
        return {"vision_cfg": {"pt_hw_seq_len": tower.rope_grid, "head_width": tower.head_width}}
    return {"vision_config": {"num_attention_heads": tower.heads, "hidden_act": tower.activation}}


def save_llm2clip(
    folder: str | Path,
    *,
    config: Llm2ClipConfig,
    vision: nn.Module,
    projection: nn.Module,
    language_model: nn.Module,
    adapter: nn.Module,
    logit_scale: float | Tensor,
    tokenizer_json: str | Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write trained parts as an encoder folder, once they have proved to load; replaces files of the same names.

    ``vision`` has its batch normalisation folded and no projection, ``language_model`` the parameter names of
    ``BidirectionalLlama`` or ``BertEncoder``. ``logit_scale`` is the learnt logarithm of the scale, ``tokenizer_json``
    a file or its text.
    """
    if dtype is not None:
        config = dataclasses.replace(config, dtype=_dtype_name(dtype))
    parts = {VISION: vision, PROJECTION: projection, LANGUAGE_MODEL: language_model, ADAPTER: adapter}
    whole = {
        prefix + name: tensor.detach().cpu()
        for prefix, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    if config.dtype == "int8":
        tensors = pack_int8(whole)
    else:
        tensors = {name: tensor.to(getattr(torch, config.dtype)) for name, tensor in whole.items()}
    tensors[LOGIT_SCALE] = torch.as_tensor(logit_scale).detach().cpu().to(torch.float32).reshape(())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_text = isinstance(tokenizer_json, str) and tokenizer_json.lstrip().startswith("{")
    tokenizer = str(tokenizer_json) if is_text else Path(tokenizer_json).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        draft = Path(name)
        (draft / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
        # Not by way of bytes in memory: an 8B model has 16 GB of them.
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / WEIGHTS_FILE)
        write_config(draft, config)
        load_folder(draft, device="cpu").load_all()
        for file in (WEIGHTS_FILE, TOKENIZER_FILE, CONFIG_FILE):
            (draft / file).replace(folder / file)


def _dtype_name(dtype: torch.dtype) -> StoredDtype:
    for name in get_args(StoredDtype):
        if dtype == getattr(torch, name):
            return cast("StoredDtype", name)
    raise ValueError(f"weights are stored as {' or '.join(get_args(StoredDtype))}, got {dtype}")
