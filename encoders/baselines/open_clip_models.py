"""Any model of open_clip as ``open_clip:MODEL/PRETRAINED``, if that library is installed.

The library builds the model and reads texts; images are prepared here, by its settings for the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from llm2clip.encoders.core.base import EncoderInfo, Parity
from llm2clip.encoders.core.dual_encoder import (
    DualEncoder,
    LoadOptions,
    TextTower,
    pick_device,
    pick_dtype,
    to_array,
)
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import settings_sha256
from llm2clip.encoders.images.preprocess import Crop, Order, PixelTower, Preprocess, Resample, ResizeMode
from llm2clip.encoders.text.clip_tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX = "open_clip:"
"""How the names of such encoders begin."""

_LOCAL = "local-dir:"
_WHOLE = ("hf-hub:", _LOCAL)
"""How names of models begin that say where their weights are."""
_SETTINGS = ("open_clip_config.json", *TOKENIZER_FILES)
"""Files of a folder of one's own that the vectors depend on."""
_MODES = {"shortest": ResizeMode.SHORTEST_CROP, "squash": ResizeMode.SQUASH}


def load_open_clip(name: str, options: LoadOptions) -> DualEncoder:
    """Open a model of open_clip; its weights are fetched, or found in its cache, at once."""
    asked = name.removeprefix(PREFIX)
    model_name, _, pretrained = (asked, "", "") if asked.startswith(_WHOLE) else asked.partition("/")
    if not model_name or (not pretrained and not asked.startswith(_WHOLE)):
        raise ModelError(f"{name!r} is incomplete; expected {PREFIX}MODEL/PRETRAINED")
    place = pick_device(options.device)
    precision = pick_dtype(options.dtype, device=place, stored="float16")
    library = _library()
    try:
        model = library.create_model(model_name, pretrained=pretrained or None, require_pretrained=True)
        settings = library.get_model_preprocess_cfg(model)
        tokenizer = library.get_tokenizer(model_name)
    except Exception as error:  # what it and the hub raise has no common type
        reason = " ".join(str(error).split())
        known = [f"{PREFIX}{one}/{other}" for one, other in library.list_pretrained()]
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ModelError(f"open_clip cannot load {asked!r}: {reason}{hint}") from error
    # Before the weights are rounded: an index asks which they are, not how they are held.
    digest = _hash(model)
    model = model.to(device=place, dtype=precision).eval().requires_grad_(False)
    preprocess = read_settings(settings, name=name, parity=options.parity)
    texts = _Texts(model, tokenizer, device=place, dtype=precision)
    return DualEncoder(
        PixelTower(lambda: _Images(model), preprocess=preprocess, device=place, dtype=precision),
        texts,
        describe=lambda: EncoderInfo(
            name=name,
            family="open_clip",
            dim=_dim(model, preprocess.size),
            image_size=preprocess.size,
            max_text_tokens=texts.limit,
            weights_sha256=digest,
            settings_sha256=settings_hash(model_name, tokenizer),
            preprocessing=preprocess.identifier,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            languages=(),
            licence="unknown",
            note="a model of open_clip; both towers are loaded together",
        ),
    )


def read_settings(settings: Mapping[str, Any], *, name: str, parity: Parity) -> Preprocess:
    """What open_clip's settings for a model say of its images."""
    size = settings["size"]
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    mode, resample = str(settings["resize_mode"]), str(settings["interpolation"])
    if len(set(sides)) != 1 or mode not in _MODES or resample not in ("bilinear", "bicubic"):
        raise ModelError(
            f"{name} expects images of {sides} made by {mode!r} and {resample!r}; expected a square, made by "
            f"{' or '.join(map(repr, _MODES))} and 'bicubic' or 'bilinear'"
        )
    return Preprocess(
        size=int(sides[0]),
        mode=_MODES[mode],
        resample=Resample(resample),
        mean=_three(settings["mean"]),
        std=_three(settings["std"]),
        crop=Crop.HALF_EVEN,
        order=Order.RESIZE_FIRST,
        parity=parity,
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _library() -> Any:  # noqa: ANN401
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise ModelError(
            f"open_clip cannot be used here ({error}); install it with: pip install open_clip_torch"
        ) from error


def _hash(model: nn.Module) -> str:
    """SHA-256 over names and values of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def settings_hash(model_name: str, tokenizer: Any) -> str:  # noqa: ANN401
    """SHA-256 of what shapes the vectors besides weights and preprocessing: the model's settings, its tokenizer."""
    kind = {"tokenizer": type(tokenizer).__name__, "context_length": int(tokenizer.context_length)}
    if not model_name.startswith(_LOCAL):
        return settings_sha256({**kind, "model": model_name}, files=[])
    folder = Path(model_name.removeprefix(_LOCAL))
    # A folder may be moved: what is in it counts, not its name.
    files = [folder / name for name in _SETTINGS if (folder / name).is_file()]
    return settings_sha256(kind, files=files)


def _dim(model: nn.Module, size: int) -> int:
    """Length of the vectors, found by trying: open_clip's models do not agree on where they say it."""
    like = next(model.parameters())
    with torch.inference_mode():
        vectors = _Images(model)(torch.zeros(1, 3, size, size, dtype=like.dtype, device=like.device))
    return int(vectors.shape[1])


@final
class _Images(nn.Module):
    """The image half of a model of open_clip."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S) -> (B, dim), not normalised."""
        vectors: Tensor = self.model.encode_image(pixels_B3SS)
        return vectors


@final
class _Texts(TextTower):
    """The text half, with the tokenizer that open_clip has for it."""

    def __init__(self, model: Any, tokenizer: Any, *, device: torch.device, dtype: torch.dtype) -> None:  # noqa: ANN401
        super().__init__(lambda: model, device=device, dtype=dtype)
        self.tokenizer = tokenizer
        self.limit = int(tokenizer.context_length)
        """Tokens of a text that are read."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        # Its own tokenizer gives bare tokens, and adds one at either end; the others are of transformers.
        if type(self.tokenizer).__name__ == "SimpleTokenizer":
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        cleaned = [self.tokenizer.clean_fn(text) for text in texts]
        return [len(ids) for ids in self.tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]]

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        model = self.module()
        with torch.inference_mode():
            return to_array(model.encode_text(self.tokenizer(list(texts)).to(self.device)))
