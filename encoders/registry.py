"""Encoders by name or folder."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm2clip.encoders.catalog.cards import RECOMMENDED, EncoderCard, all_cards
from llm2clip.encoders.catalog.entries import (
    EncoderEntry,
    LanguageModelEntry,
    encoder_entries,
    find_encoder,
    find_language,
    language_rows,
)
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.weights.tensor_names import PUBLISHED

if TYPE_CHECKING:
    from llm2clip.encoders.core.base import Encoder

Parity = Literal["native", "upstream"]

FORMAT = "llm2clip-encoder"
"""What ``config.json`` of a folder that this library wrote says of its format."""

NANO = "nano"
_NANO_FOLDER = Path(__file__).parent / NANO
_OTHERS = ("st:", "open_clip:")
"""How names begin that another library is asked for."""
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def list_encoders() -> list[EncoderCard]:
    """The built-in encoders: ``nano``, LLM2CLIP, then what it is compared with. Nothing is loaded or fetched."""
    return all_cards()


def load_encoder(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    language_model: str | os.PathLike[str] | None = None,
    parity: Parity = "native",
) -> Encoder:
    """Open an encoder; its weights are read when they are first needed.

    Args:
        name_or_path: A name that ``list_encoders`` gives; its repository on the Hugging Face hub; ``st:NAME`` for
            a model of sentence-transformers, ``open_clip:MODEL/PRETRAINED`` for one of open_clip; or a folder:
            one that ``save_pretrained`` wrote, or a published model put there by hand. A published ``.pt`` or
            ``.safetensors`` file of LLM2CLIP will do, too.
        device: ``"auto"`` (CUDA if there is any), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: Of the arithmetic: ``"auto"`` (float32 on a CPU), ``"float32"``, ``"float16"``, ``"bfloat16"``. A
            published language model is held as that, or as ``"int8"`` or ``"int4"`` (with torchao); ``"auto"``
            takes the most faithful that fits into memory, and says so.
        language_model: LLM2CLIP: name or folder of another language model than the one it was trained with.
        parity: ``"upstream"`` repeats what the original does to texts and images where that is a
            mistake, for comparing numbers with its own (docs/encoders.md).

    Raises:
        ModelError: The name is unknown; files are missing, damaged, cannot be fetched, or do not fit each other
            or into memory.
        ValueError: There is no such device, dtype or parity, or the encoder has no such choice.
    """
    name = os.fspath(name_or_path)
    if name.startswith(_OTHERS):
        from llm2clip.encoders.baselines.loaders import load_baseline

        _refuse(name, language_model=language_model)
        return load_baseline(name, device=device, dtype=dtype, parity=parity)
    found = _find(name_or_path)
    if isinstance(found, Path):
        return _load_path(found, device=device, dtype=dtype, language_model=language_model, parity=parity)
    if isinstance(found, LanguageModelEntry):
        from llm2clip.encoders.llm2clip.text_only import load_text_only

        _refuse(name, language_model=language_model)
        return load_text_only(found, device=device, dtype=dtype, parity=parity)
    if found.language_model:
        from llm2clip.encoders.llm2clip.published import load_published

        return load_published(found, device=device, dtype=dtype, language_model=language_model, parity=parity)
    from llm2clip.encoders.baselines.loaders import load_baseline

    _refuse(name, language_model=language_model)
    return load_baseline(found.name, device=device, dtype=dtype, parity=parity)


def _find(asked: str | os.PathLike[str]) -> EncoderEntry | LanguageModelEntry | Path:
    """What a name stands for: its own name before a folder of that name, and that before a repository's name."""
    name = os.fspath(asked)
    path = Path(name).expanduser()
    if not name:
        raise ModelError(_unknown(name))
    if name == NANO:
        return _NANO_FOLDER
    if os.sep in name and path.is_dir():
        return path
    row = find_encoder(name) if isinstance(asked, str) else None
    if row is not None and row.name == name:
        return row
    if path.is_dir() or (path.is_file() and path.suffix in _WEIGHTS):
        return path
    if not isinstance(asked, str) or path.is_absolute() or path.exists():
        if path.is_file():
            raise ModelError(f"{path} is no encoder; expected a folder, or a file {', '.join(_WEIGHTS)}")
        raise ModelError(f"no such encoder folder: {path}")
    found = row or find_language(name)
    if found is None:
        raise ModelError(_unknown(name))
    return found


def _load_path(
    path: Path, *, device: str, dtype: str, language_model: str | os.PathLike[str] | None, parity: Parity
) -> Encoder:
    ours = saved_family(path)
    if ours == PUBLISHED:
        from llm2clip.encoders.llm2clip.save_load import load_saved

        return load_saved(path, device=device, dtype=dtype, language_model=language_model, parity=parity)
    if not ours:
        from llm2clip.encoders.vision.vision_source import holds_tower

        if holds_tower(path):
            from llm2clip.encoders.llm2clip.published import load_published

            return load_published(
                path, device=device, dtype=dtype, language_model=language_model, parity=parity
            )
    _refuse(path.name, language_model=language_model)
    if not ours:
        from llm2clip.encoders.baselines.loaders import folder_family, load_baseline_folder

        if folder_family(path) is not None:
            return load_baseline_folder(path, device=device, dtype=dtype, parity=parity)
    if not ours and _is_language_model(path):
        from llm2clip.encoders.llm2clip.text_only import load_text_only

        return load_text_only(path, device=device, dtype=dtype, parity=parity)
    _refuse(path.name, parity=parity)
    from llm2clip.encoders.llm2clip.nano_encoder import Llm2ClipEncoder

    return Llm2ClipEncoder.from_folder(path, device=device, dtype=dtype)


def _is_language_model(path: Path) -> bool:
    from llm2clip.encoders.llm2clip.text_only import is_language_folder

    return path.is_dir() and is_language_folder(path)


def saved_family(path: Path) -> str:
    """The family of a folder that this library wrote; empty if it is none."""
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    ours = isinstance(data, dict) and data.get("format") == FORMAT
    return str(data.get("family", "")) if ours else ""


def _refuse(name: str, *, language_model: object = None, parity: str = "native") -> None:
    """Refuse choices that an encoder does not have."""
    if language_model is not None:
        raise ValueError(f"{name} has no choice of language models; only published LLM2CLIP towers have")
    if parity != "native":
        raise ValueError(f"parity={parity!r} is of encoders that others published; {name} is ours")


def _unknown(name: str) -> str:
    names = [NANO, *(row.name for row in encoder_entries()), *(row.name for row in language_rows())]
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    offered = ", ".join(RECOMMENDED)
    return (
        f"unknown encoder {name!r}, and no folder of that name; {hint}known: {offered}, and "
        f"{len(names) - len(RECOMMENDED)} more that llm2clip-index encoders lists"
    )
