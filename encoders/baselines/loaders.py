"""The encoders LLM2CLIP is compared with, each prepared and read in its own way, behind the same class.

``baselines.toml`` lists them; ``st:NAME`` is any multimodal sentence-transformers model, and
``open_clip:MODEL/PRETRAINED`` anything open_clip has, where that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from llm2clip.encoders.baselines.eva02_clip import load_eva02_clip
from llm2clip.encoders.baselines.hf_dual import Checkpoint
from llm2clip.encoders.baselines.hf_families import FAMILIES, family_of
from llm2clip.encoders.baselines.load_request import Parity, Request, image_side, request, text_side
from llm2clip.encoders.baselines.long_clip import load_long_clip
from llm2clip.encoders.baselines.open_clip_models import PREFIX as OPEN_CLIP
from llm2clip.encoders.baselines.open_clip_models import load_open_clip
from llm2clip.encoders.baselines.sentence_transformer import PREFIX as SENTENCE
from llm2clip.encoders.baselines.sentence_transformer import load_sentence
from llm2clip.encoders.catalog.cards import baseline_rows
from llm2clip.encoders.catalog.entries import EncoderEntry, find_encoder
from llm2clip.encoders.core.base import Encoder
from llm2clip.encoders.core.config_io import read_object
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.text.dual_encoder import DualEncoder


def load_baseline(
    name: str, *, device: str = "auto", dtype: str = "auto", parity: Parity = "native"
) -> Encoder:
    """Open a baseline; its weights are read when they are first needed.

    Args:
        name: A name or a repository of ``baselines.toml``, ``st:NAME`` or ``open_clip:MODEL/PRETRAINED``.
        device: See ``load_encoder``.
        dtype: See ``load_encoder``.
        parity: ``"upstream"`` prepares images that are no upright 8-bit RGB as the original program does,
            mistakes included; see ``Preprocess``.

    Raises:
        ModelError: The name is unknown, or files are missing, damaged or cannot be fetched.
        ValueError: There is no such device or dtype.
    """
    if name.startswith(OPEN_CLIP):
        return load_open_clip(name, device=device, dtype=dtype, parity=parity)
    if name.startswith(SENTENCE):
        if parity != "native":
            raise ValueError(f"{name}: images are prepared by sentence-transformers; parity must be 'native'")
        return load_sentence(name, device=device, dtype=dtype)
    row = find_encoder(name)
    if row is None or row.language_model:
        names = [row.name for row in baseline_rows()]
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ModelError(f"unknown baseline {name!r}; {hint}known: {', '.join(names)}")
    return _LOADERS[row.family](request(row.name, row=row, device=device, dtype=dtype, parity=parity))


def load_baseline_folder(
    folder: Path, *, device: str = "auto", dtype: str = "auto", parity: Parity = "native"
) -> Encoder:
    """Open a baseline from a folder its files were put in by hand, called like the folder.

    Raises:
        ModelError: It is none of our families, or files are missing or damaged.
        ValueError: There is no such device or dtype.
    """
    name = folder.resolve().name
    family = folder_family(folder)
    if family is None:
        raise ModelError(f"{folder} holds no model of a known family")
    row = find_encoder(name)
    if row is None or row.family != family:
        row = _row_of_weights(folder)
    return _LOADERS[family](request(name, row=row, given=folder, device=device, dtype=dtype, parity=parity))


def folder_family(folder: Path) -> str | None:
    """The family of the baseline in a folder; ``None`` if there is none. Only small files are looked at."""
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "format" in config:
        return None
    if "model_type" in config:
        try:
            family = family_of(folder, config)
        except ModelError:
            return None
        # Microsoft's LLM2CLIP says that it is a clip, too.
        classes = config.get("architectures") or [family.classes]
        return family.name if str(classes[0]).startswith(family.classes) else None
    row = _row_of_weights(folder)
    return row.family if row else None


def _row_of_weights(folder: Path) -> EncoderEntry | None:
    """The line of the table whose file of weights has a name of its own and is in a folder."""
    return next((row for row in baseline_rows() if row.weights and (folder / row.weights).is_file()), None)


def _load_dual(asked: Request) -> DualEncoder:
    checkpoint = Checkpoint(asked.folder, family=asked.row.family if asked.row else None)
    images = image_side(checkpoint, asked)
    return DualEncoder(
        images=images,
        texts=text_side(checkpoint, asked),
        describe=lambda: asked.info(
            family=checkpoint.family.name,
            dim=checkpoint.dim,
            preprocess=images.preprocess,
            limit=checkpoint.limit,
            sha256=checkpoint.weights.sha256,
            settings_sha256=asked.settings_hash(checkpoint.config, form=checkpoint.family.form),
            parameters=checkpoint.weights.parameters,
        ),
    )


_LOADERS: dict[str, Callable[[Request], Encoder]] = {
    **dict.fromkeys(FAMILIES, _load_dual),
    "eva02-clip": load_eva02_clip,
    "long-clip": load_long_clip,
}
"""Family -> how to open a model of it."""
