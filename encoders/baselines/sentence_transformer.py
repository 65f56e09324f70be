"""Models of sentence-transformers that read images and texts, as ``st:NAME``, with their own prompts.

The library loads both towers together and computes; no code of a model's repository is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from PIL import Image

from llm2clip.encoders.catalog.hub import HubFiles, resolve_files
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import (
    DualEncoder,
    ImageTower,
    LoadOptions,
    TextTower,
    pick_device,
    pick_dtype,
    to_array,
)
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import refuse_outside, settings_sha256, without_origin
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.images.decode import decode
from llm2clip.encoders.weights.safetensors_io import stored_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX = "st:"
"""Prefix of the names of these encoders."""
_FIT = (1024, 1023)
"""Width and height that images are reduced to fit into, in pixels; vectors of existing indexes depend on them."""

_SAFE = "sentence_transformers."
"""Prefix of the classes that may be loaded."""
_WHOLE = "Tokenizer and weights are saved with it, under any name."
"""Hint for a model that is not on this machine."""
_FILES = (
    "*.txt",
    "*.model",
    "*.jinja",
    "*.safetensors",
    "*/*.json",
    "*/*.txt",
    "*/*.model",
    "*/*.jinja",
    "*/*.safetensors",
)
"""Optional files to download besides the settings."""
_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files that shape the vectors besides the weights."""
_ENDLESS = 1_000_000
"""Tokenizers give larger numbers for "no limit"."""


def load_sentence(name: str, options: LoadOptions) -> DualEncoder:
    """Open a multimodal model of sentence-transformers.

    Texts are encoded as queries and images as documents, each with the model's prompt for it, if it has one.
    """
    asked = name.removeprefix(PREFIX)
    folder = Path(asked).expanduser()
    if not asked or not folder.is_dir():
        if not asked or folder.is_absolute() or asked.startswith("."):
            raise ModelError(f"no such folder: {asked!r}; expected {PREFIX} and a repository or a folder")
        folder = resolve_files(
            HubFiles(name=name, repository=asked, files=("*.json",), extras=_FILES, hint=_WHOLE)
        )
    place = pick_device(options.device)
    kind = pick_dtype(options.dtype, device=place, stored="bfloat16")
    check_modules(folder)
    texts = _TextTower(lambda: _open_both(folder, name, device=place, dtype=kind), device=place, dtype=kind)
    images = _ImageTower(texts.module, device=place, dtype=kind)
    return DualEncoder(images, texts, describe=lambda: _describe(folder, name, texts.module()))


def _describe(folder: Path, name: str, model: Any) -> EncoderInfo:  # noqa: ANN401
    return EncoderInfo(
        name=name,
        family="sentence-transformers",
        dim=int(model.get_embedding_dimension()),
        image_size=0,
        max_text_tokens=_text_limit(model),
        weights_sha256=weights_hash(folder),
        settings_sha256=settings_sha256(model_settings(folder), files=[]),
        preprocessing=f"rgb-on-white/fit-{_FIT[0]}/{type(model.processor).__name__}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        languages=(),
        licence="unknown",
        note="a model of sentence-transformers; both towers are loaded together",
    )


def _open_both(folder: Path, name: str, *, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401
    model = open_model(folder, device=device, dtype=dtype)
    if lacks := [kind for kind in ("image", "text") if not model.supports(kind)]:
        raise ModelError(f"{name} does not read {' and '.join(lacks)}; it reads {model.modalities}")
    return model


def open_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """A ``SentenceTransformer`` from a folder, in evaluation mode; nothing is fetched, no code of its own is run."""
    check_modules(folder)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype},
        )
    except Exception as error:  # what the many model classes behind it raise has no common type
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder} cannot be loaded by sentence-transformers: {reason}") from error
    # Modules after the transformer, such as a linear layer, are created in float32 in any case.
    for module in list(model)[1:]:
        module.to(dtype)
    return model.eval().requires_grad_(False)


def check_modules(folder: Path) -> None:
    """Raise ``ModelError`` if a model's settings name a class that sentence-transformers itself does not have."""
    kinds = set()
    for path in (folder / "modules.json", *sorted(folder.rglob("router_config.json"))):
        if path.is_file():
            data = _json(path, folder=folder)
            kinds |= _types(data)
            for place in _places(data):
                refuse_outside(folder / place, folder=folder)
    if strange := sorted(kind for kind in kinds if not kind.startswith(_SAFE)):
        raise ModelError(f"{folder} requires code of its own ({', '.join(strange)}); none is run here")


def _types(data: object) -> set[str]:
    """Every class that a module declares: below ``type`` in a list, below ``types`` in a router."""
    if isinstance(data, list):
        return {str(module.get("type")) for module in data if isinstance(module, dict)}
    types = data.get("types", {}) if isinstance(data, dict) else {}
    return {str(kind) for kind in types.values()} if isinstance(types, dict) else {str(types)}


def weights_hash(folder: Path) -> str:
    """SHA-256 in hexadecimal over the names and hashes of all weights in a folder."""
    paths = sorted(path for kind in ("*.safetensors", "*.bin") for path in folder.rglob(kind))
    for path in paths:
        refuse_outside(path, folder=folder)
    lines = [f"{path.relative_to(folder).as_posix()} {stored_sha256(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_settings(folder: Path) -> dict[str, str]:
    """Every file but the weights that shapes the vectors, by its place, with a hash: settings, tokenizer, prompts.

    Only the folders that its list of modules names are read: a repository may hold copies for other programs.
    """
    listed = folder / "modules.json"
    places = _places(_json(listed, folder=folder)) if listed.is_file() else set()
    paths = {path for pattern in _SETTINGS for path in folder.glob(pattern)}
    paths |= {path for place in places for pattern in _SETTINGS for path in (folder / place).rglob(pattern)}
    return {path.relative_to(folder).as_posix(): _file_hash(path, folder) for path in sorted(paths)}


def _places(modules: object) -> set[str]:
    """The folders below a model's own that its list of modules names."""
    entries = modules if isinstance(modules, list) else []
    return {str(module.get("path", "")) for module in entries if isinstance(module, dict)} - {""}


def _json(path: Path, *, folder: Path) -> Any:  # noqa: ANN401
    refuse_outside(path, folder=folder)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _file_hash(path: Path, folder: Path) -> str:
    if path.suffix != ".json":
        refuse_outside(path, folder=folder)
        return settings_sha256({}, files=[path])
    content = _json(path, folder=folder)
    return settings_sha256({"": without_origin(content) if isinstance(content, dict) else content}, files=[])


def _text_limit(model: Any) -> int:  # noqa: ANN401
    """Tokens of a text that a model reads."""
    limits = (model.max_seq_length, model.tokenizer.model_max_length)
    return min((int(limit) for limit in limits if limit and limit < _ENDLESS), default=_ENDLESS)


@final
class _TextTower(TextTower):
    """Texts as queries."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        # Without a prompt, as the limit is told without one.
        tokenizer = self.module().tokenizer
        return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return _encoded(self.module().encode_query, list(texts))


@final
class _ImageTower(ImageTower):
    """Images as documents; the model resizes and collates them in its own way."""

    def prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        whole, width, height = decode(image, draft=max(_FIT) if draft else 0)
        return PreparedImage(pixels=np.asarray(_fitted(whole)), width=width, height=height)

    def vectors(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return _encoded(self.module().encode_document, [Image.fromarray(image) for image in pixels])


def _fitted(image: Image.Image) -> Image.Image:
    """An image that is no larger than the models need, its aspect kept."""
    scale = min(1.0, _FIT[0] / image.width, _FIT[1] / image.height)
    if scale == 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((min(width, _FIT[0]), min(height, _FIT[1])), Image.Resampling.BICUBIC)


def _encoded(encode: Callable[..., Any], inputs: list[Any]) -> NDArray[np.float32]:
    return to_array(encode(inputs, batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False))
