"""OpenAI's CLIP as a baseline, computed by transformers' own modules.

The two sides are loaded apart and late. A model comes from the Hugging Face hub's cache, from the hub, or from a
folder as the hub lays it out (``config.json``, ``preprocessor_config.json``, ``tokenizer.json``,
``model.safetensors``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from llm2clip.encoders.base import Encoder, EncoderInfo, ImageSource, PreparedImage
from llm2clip.encoders.clip_files import (
    TEXT,
    VISION,
    check_tokenizer,
    count_weights,
    fetch,
    find_weights,
    read_json,
    read_preprocess,
    read_side,
    settings_hash,
    weights_sha256,
)
from llm2clip.encoders.devices import pick_device, pick_dtype
from llm2clip.encoders.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import CLIPTokenizer

CLIP_MODELS = {
    "clip-vit-b-32": "openai/clip-vit-base-patch32",
    "clip-vit-b-16": "openai/clip-vit-base-patch16",
    "clip-vit-l-14": "openai/clip-vit-large-patch14",
}
"""Built-in name -> repository on the Hugging Face hub."""

_BUILDING = threading.Lock()
"""Held while a module is built: that replaces torch's initialisers for the whole process for a moment."""


def load_clip(source: str | Path, *, name: str, device: str = "auto", dtype: str = "auto") -> ClipEncoder:
    """Open a CLIP model; its weights are read when they are first needed.

    Args:
        source: A folder (as a ``Path``), or a repository on the Hugging Face hub (as a string).
        name: What the encoder is to be called.
        device: See ``load_encoder``.
        dtype: See ``load_encoder``.

    Raises:
        ModelError: Files are missing, damaged or cannot be fetched, or it is no CLIP model.
        ValueError: There is no such device or dtype.
    """
    folder = source if isinstance(source, Path) else fetch(source, name=name)
    picked = pick_device(device)
    return ClipEncoder(
        folder, name=name, device=picked, dtype=pick_dtype(dtype, device=picked, stored="float16")
    )


@final
class ClipEncoder(Encoder):
    """A CLIP model from a folder; make one with ``load_encoder``."""

    def __init__(self, folder: Path, *, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Read the settings and look at the names of the weights; no weight is read yet."""
        self.folder = folder
        self.name = name
        self.device = device
        self.dtype = dtype
        self.config = read_json(folder / "config.json")
        if self.config.get("model_type") != "clip":
            raise ModelError(
                f"{folder / 'config.json'} is of model_type {self.config.get('model_type')!r}, expected 'clip'"
            )
        self.preprocess = read_preprocess(folder, self.config)
        self.weights = find_weights(folder)

    @cached_property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        builtin = self.name in CLIP_MODELS
        return EncoderInfo(
            name=self.name,
            family="clip",
            dim=int(self.config.get("projection_dim", 512)),
            image_size=self.preprocess.size,
            max_text_tokens=self._max_tokens,
            weights_sha256=weights_sha256(self.weights),
            settings_sha256=settings_hash(self.folder, self.config),
            preprocessing=self.preprocess.identifier,
            parameters=count_weights(self.weights),
            languages=("en",) if builtin else (),
            licence="MIT" if builtin else "unknown",
            note="photographs, in English; reads short texts only" if builtin else "a CLIP model of your own",
        )

    @property
    def _max_tokens(self) -> int:
        return int(self.config.get("text_config", {}).get("max_position_embeddings", 77))

    def _prepare(self, image: ImageSource) -> PreparedImage:
        return self.preprocess.prepare(image)

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        module = self._vision
        # In steps as CLIPImageProcessor takes them: to 0..1, then mean and standard deviation.
        mean, std = (
            torch.tensor(values, device=self.device) for values in (self.preprocess.mean, self.preprocess.std)
        )
        with torch.inference_mode():
            # A copy: torch warns of arrays that are read-only.
            scaled = (torch.tensor(pixels, device=self.device).float() / 255 - mean) / std
            embedded: Tensor = module(pixel_values=scaled.permute(0, 3, 1, 2).to(self.dtype)).image_embeds
        return _array(embedded)

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        module = self._text
        with torch.inference_mode():
            embedded: Tensor = module(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            ).text_embeds
        return _array(embedded)

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        # verbose=False: its own warning of long texts, where ours has not been given yet.
        return [
            len(ids) for ids in self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        ]

    @cached_property
    def _tokenizer(self) -> CLIPTokenizer:
        check_tokenizer(self.folder)
        from transformers import CLIPTokenizer

        try:
            tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.folder} has no tokenizer that can be read: {error}") from error
        return tokenizer

    @cached_property
    def _text(self) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        settings = CLIPTextConfig.from_dict(self._side_config("text_config"))
        return self._filled(lambda: CLIPTextModelWithProjection(settings), prefixes=TEXT)

    @cached_property
    def _vision(self) -> nn.Module:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        settings = CLIPVisionConfig.from_dict(self._side_config("vision_config"))
        return self._filled(lambda: CLIPVisionModelWithProjection(settings), prefixes=VISION)

    def _side_config(self, key: str) -> dict[str, Any]:
        # The width of the shared space is said once, at the top; what a side says of it is a leftover.
        return {**self.config.get(key, {}), "projection_dim": self.config.get("projection_dim", 512)}

    def _filled(self, build: Callable[[], nn.Module], *, prefixes: tuple[str, ...]) -> nn.Module:
        from transformers.initialization import no_init_weights

        with _BUILDING, no_init_weights():
            module = build()
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        module.load_state_dict(read_side(self.weights, shapes, prefixes=prefixes, dtype=self.dtype))
        module.to(device=self.device, dtype=self.dtype).eval()
        return module


def _array(vectors: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array
