"""Load an encoder by name or path: ``resolve`` finds its files, ``FORMATS`` says who loads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm2clip.encoders.catalog.cards import RECOMMENDED, EncoderCard, all_cards
from llm2clip.encoders.catalog.entries import (
    BERTS,
    LLAMAS,
    LanguageModelEntry,
    baseline_entries,
    encoder_entries,
    find_encoder,
    find_language,
    language_models,
)
from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.dual_encoder import LoadOptions, Preprocessing
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.weights.safetensors_io import has_adapter
from llm2clip.encoders.weights.tensor_names import FORMAT, PUBLISHED

if TYPE_CHECKING:
    from llm2clip.encoders.core.base import Encoder

NANO = "nano"
_NANO_FOLDER = Path(__file__).parent / NANO
_OPEN_CLIP, _SENTENCE = "open_clip:", "st:"
"""Prefixes of names that another library resolves."""
_GGUF = ".gguf"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", _GGUF)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of model: how to recognise it and how to load it."""

    matches: Callable[[ModelFiles], bool]
    """Whether the files are of this kind; formats are tried in order."""
    load: Callable[[ModelFiles, LoadOptions], Encoder]
    """Makes the encoder; weights are read when they are first needed."""
    language_model: bool = False
    """Whether ``LoadOptions.language_model`` applies."""
    preprocessing: bool = True
    """Whether ``LoadOptions.preprocessing`` applies."""


def list_encoders() -> list[EncoderCard]:
    """The built-in encoders: ``nano``, LLM2CLIP, then the baselines. Loads and downloads nothing."""
    return all_cards()


def load_encoder(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    language_model: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing = "native",
    parity: Literal["native", "upstream"] | None = None,
) -> Encoder:
    """Open an encoder; its weights are read when they are first needed.

    Args:
        name_or_path: A name that ``list_encoders`` gives; its repository on the Hugging Face hub; ``st:NAME`` for
            a model of sentence-transformers, ``open_clip:MODEL/PRETRAINED`` for one of open_clip; or a folder:
            one that ``save_encoder`` wrote, or a local copy of a published model. A published ``.pt`` or
            ``.safetensors`` file of LLM2CLIP works too, and a language model in a ``.gguf`` file (texts only).
        device: ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: Precision of weights and computation: ``"auto"`` (float32 on a CPU), ``"float32"``, ``"float16"``,
            ``"bfloat16"``. A published language model can also be quantised to ``"int8"`` or ``"int4"`` (with
            torchao); ``"auto"`` picks the most precise form that fits into memory, and logs it.
        language_model: LLM2CLIP: name or folder of another language model than the one it was trained with.
        preprocessing: ``"reference"`` prepares texts and images exactly as the original implementation, mistakes
            included, to reproduce its numbers (docs/encoders.md).
        parity: Old spelling of ``preprocessing`` (``"upstream"`` means ``"reference"``).

    Raises:
        ModelError: The name is unknown; files are missing, damaged, cannot be downloaded, or do not fit each other
            or into memory.
        ValueError: There is no such device, dtype or preprocessing, or the encoder has no such option.
    """
    options = LoadOptions(
        device=device,
        dtype=dtype,
        language_model=language_model,
        preprocessing=preprocessing if parity is None else _preprocessing(parity, given=preprocessing),
    )
    files = resolve(name_or_path)
    kind = next(kind for kind in FORMATS if kind.matches(files))
    if options.language_model is not None and not kind.language_model:
        raise ValueError(
            f"{files.name} has no choice of language models; only published LLM2CLIP towers have"
        )
    if options.preprocessing != "native" and not kind.preprocessing:
        raise ValueError(
            f"preprocessing={options.preprocessing!r} exists only where a reference implementation prepares images; "
            f"{files.name} has only 'native'"
        )
    return kind.load(files, options)


def _preprocessing(parity: str, *, given: Preprocessing) -> Preprocessing:
    """The value of ``preprocessing`` that an old ``parity`` means."""
    meant: dict[str, Preprocessing] = {"native": "native", "upstream": "reference"}
    if parity not in meant:
        raise ValueError(
            f"parity must be 'native' or 'upstream', got {parity!r}; its new name is preprocessing: 'native' or "
            "'reference'"
        )
    if given not in ("native", meant[parity]):
        raise ValueError(f"got preprocessing={given!r} and parity={parity!r}; set preprocessing only")
    return meant[parity]


def resolve(name_or_path: str | os.PathLike[str]) -> ModelFiles:
    """Find what a name or path stands for: a name before a folder of that name, a folder before a repository."""
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if name.startswith((_OPEN_CLIP, _SENTENCE)):
        return ModelFiles(name=name)
    if name == NANO:
        return ModelFiles(name=NANO, path=_NANO_FOLDER)
    entry = find_encoder(name) if isinstance(name_or_path, str) else None
    is_path = path.is_dir() or (path.is_file() and path.suffix in _WEIGHTS)
    if name and is_path and (os.sep in name or entry is None or entry.name != name):
        return _local_files(path)
    if entry is not None:
        return ModelFiles(name=entry.name, entry=entry)
    if name and (not isinstance(name_or_path, str) or path.is_absolute() or path.exists()):
        if path.is_file():
            raise ModelError(f"{path} is no encoder; expected a folder, or a file {', '.join(_WEIGHTS)}")
        raise ModelError(f"no such encoder folder: {path}")
    language = find_language(name) if name else None
    if language is None:
        raise ModelError(_unknown(name))
    return ModelFiles(name=language.name, entry=language)


def _local_files(path: Path) -> ModelFiles:
    """A local folder or file, with the entry of the catalogue that it is named like or whose weights it holds."""
    name = path.resolve().name
    if path.is_file():
        return ModelFiles(name=path.stem, path=path)
    named = find_encoder(name)
    held = next(
        (entry for entry in baseline_entries() if entry.weights and (path / entry.weights).is_file()), None
    )
    same = named is not None and (held is None or named.family == held.family)
    return ModelFiles(name=name, entry=named if same else held, path=path)


def _unknown(name: str) -> str:
    names = [NANO, *(entry.name for entry in encoder_entries()), *(entry.name for entry in language_models())]
    begun = [known for known in names if known.startswith(f"{name}-")]
    close = begun or get_close_matches(name, names, n=1)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return (
        f"unknown encoder {name!r}, and no folder of that name; {hint}known: {', '.join(RECOMMENDED)}, and "
        f"{len(names) - len(RECOMMENDED)} more that llm2clip-index encoders lists"
    )


def saved_family(files: ModelFiles) -> str:
    """The family of a folder that this library wrote; empty if it is none."""
    ours = files.local_folder is not None and files.config.get("format") == FORMAT
    return str(files.config.get("family", "")) if ours else ""


def _is_published(files: ModelFiles) -> bool:
    """Whether it is LLM2CLIP as published: by its entry, or a local tower."""
    if files.path is None:
        return files.encoder_entry is not None and bool(files.encoder_entry.language_model)
    if files.path.is_file():
        return files.path.suffix != _GGUF
    if saved_family(files):
        return False
    if files.encoder_entry is not None and files.encoder_entry.layout:
        return True
    if any(has_adapter(file) for file in sorted(files.path.glob("*.safetensors"))):
        return True
    # A pickle tells nothing before it is converted: without a configuration, and not called like the file of a
    # baseline, it is taken for a tower.
    pickles = {file.name for file in files.path.glob("*.pt")} - {
        entry.weights for entry in baseline_entries()
    }
    return not (files.path / "config.json").is_file() and bool(pickles)


def _dual_classes() -> dict[str, str]:
    """``model_type`` of the dual encoders of transformers -> prefix of their class names."""
    from llm2clip.encoders.baselines.hf_families import FAMILIES

    return {family.model_type: family.classes for family in FAMILIES.values()}


def _baseline(files: ModelFiles) -> str:
    """Which loader of the baselines fits: ``"transformers"``, a family with a loader of its own, or none."""
    entry, config = files.encoder_entry, files.config if files.local_folder else {}
    if "format" in config:
        return ""
    if "model_type" in config:
        # LLM2CLIP's own configurations have the model_type of CLIP, but other classes.
        prefix = _dual_classes().get(config["model_type"])
        classes = config.get("architectures") or [prefix]
        return "transformers" if prefix and str(classes[0]).startswith(prefix) else ""
    if entry is None or (
        files.path is not None and not (entry.weights and (files.path / entry.weights).is_file())
    ):
        return ""
    return entry.family if entry.weights else "transformers"


def _is_language_model(files: ModelFiles) -> bool:
    if files.path is None:
        return isinstance(files.entry, LanguageModelEntry)
    if files.path.is_file():
        return files.path.suffix == _GGUF
    return files.local_folder is not None and files.config.get("model_type") in (*LLAMAS, *BERTS)


def _load_open_clip(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.baselines.open_clip_models import load_open_clip

    return load_open_clip(files.name, options)


def _load_sentence(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.baselines.sentence_transformer import load_sentence

    return load_sentence(files.name, options)


def _load_saved(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.llm2clip.save_load import load_saved

    return load_saved(files, options)


def _load_published(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.llm2clip.published import load_published

    return load_published(files, options)


def _load_dual(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.baselines.hf_dual import load_dual

    return load_dual(files, options)


def _load_long_clip(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.baselines.openai_checkpoint import load_long_clip

    return load_long_clip(files, options)


def _load_eva02_clip(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.baselines.openai_checkpoint import load_eva02_clip

    return load_eva02_clip(files, options)


def _load_text_only(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.llm2clip.published import load_text_only

    asked = files.path or files.entry
    assert isinstance(asked, Path | LanguageModelEntry), "it matched by its path or its entry"
    return load_text_only(asked, options)


def _load_nano(files: ModelFiles, options: LoadOptions) -> Encoder:
    from llm2clip.encoders.llm2clip.encoder_folder import load_folder

    return load_folder(files.path or files.folder, device=options.device, dtype=options.dtype)


FORMATS = (
    Format(matches=lambda files: files.path == _NANO_FOLDER, load=_load_nano, preprocessing=False),
    Format(matches=lambda files: files.name.startswith(_OPEN_CLIP), load=_load_open_clip),
    Format(matches=lambda files: files.name.startswith(_SENTENCE), load=_load_sentence, preprocessing=False),
    Format(matches=lambda files: saved_family(files) == PUBLISHED, load=_load_saved, language_model=True),
    Format(matches=_is_published, load=_load_published, language_model=True),
    Format(matches=lambda files: _baseline(files) == "transformers", load=_load_dual),
    Format(matches=lambda files: _baseline(files) == "long-clip", load=_load_long_clip),
    Format(matches=lambda files: _baseline(files) == "eva02-clip", load=_load_eva02_clip),
    Format(matches=_is_language_model, load=_load_text_only),
    Format(matches=lambda files: True, load=_load_nano, preprocessing=False),
)
"""Every kind of model, in the order in which they are tried; the last one also reports folders of no known kind."""
