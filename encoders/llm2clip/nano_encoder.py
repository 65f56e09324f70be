"""The LLM2CLIP composition: a vision tower with its projection, and a language model with its adapter.

Each side is read from the one weights file when it is first used: building an index never loads the language
model, a text query never loads the vision tower.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from llm2clip.common.files import file_sha256
from llm2clip.encoders.core.base import Encoder, EncoderInfo, Runtime
from llm2clip.encoders.core.devices import pick_device, pick_dtype
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.fingerprint import settings_sha256
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.layers.nano_vision import NanoVisionTower
from llm2clip.encoders.layers.text_adapter import TextAdapter
from llm2clip.encoders.llm2clip.encoder_folder import Llm2ClipConfig, read_config
from llm2clip.encoders.text.caption_tokenizer import TextReader
from llm2clip.encoders.weights import tensor_names
from llm2clip.encoders.weights.safetensors_io import (
    DTYPES,
    TensorSpec,
    check_tensors,
    read_header,
    read_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_FILLS = frozenset(
    {
        init.kaiming_uniform_,
        init.normal_,
        init.uniform_,
        Tensor.fill_,
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.zero_,
    }
)


class _NoInit(TorchFunctionMode):
    """Leave new parameters unfilled, as they are about to be replaced.

    The meta device would do the same, at a second for what it imports.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        if func in _FILLS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


Side = TypeVar("Side", bound=nn.Module)


class VisionSide(nn.Module):
    """Pixels to vectors: tower and projection."""

    def __init__(self, config: Llm2ClipConfig) -> None:
        super().__init__()
        self.vision = NanoVisionTower(config.vision)
        self.visual_projection = nn.Linear(self.vision.width, config.adapter.dim, bias=False)
        self.preprocessing = config.preprocessing

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """Shape: (B, S, S, 3), uint8 -> (B, dim), not normalised."""
        mean, std = (
            torch.tensor(values, device=pixels_BSS3.device).mul_(255)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        # In this order of axes the image lies in memory channels last, which convolutions like best.
        pixels = pixels_BSS3.float().sub_(mean).div_(std).permute(0, 3, 1, 2)
        vectors: Tensor = self.visual_projection(self.vision(pixels.to(self.visual_projection.weight.dtype)))
        return vectors


class TextSide(nn.Module):
    """Language model and adapter; between them the states of the caption's own tokens are averaged."""

    def __init__(self, config: Llm2ClipConfig) -> None:
        super().__init__()
        shape = config.adapter
        self.language_model = BidirectionalLlama(config.text)
        self.text_adapter = TextAdapter(
            shape.width,
            shape.dim,
            blocks=shape.blocks,
            expansion=shape.expansion,
            normalize_input=shape.normalize_input,
        )


@final
class Llm2ClipEncoder(Encoder):
    """An LLM2CLIP encoder from a local folder; make one with :meth:`from_folder` or ``load_encoder``."""

    def __init__(
        self, folder: Path, *, config: Llm2ClipConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Check the weights file against the configuration; no weight is read yet.

        Raises:
            ModelError: The file is damaged, or a tensor is missing, unexpected or of another shape or dtype.
        """
        self.folder = folder
        self.config = config
        self.device = device
        self.dtype = dtype
        self._lock = threading.Lock()
        self._header = read_header(self._weights)
        with _NoInit():
            self._vision, self._text = VisionSide(config), TextSide(config)
        self._loaded: set[nn.Module] = set()
        check_tensors(self._header, self._expected(), path=self._weights)

    @classmethod
    def from_folder(cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> Llm2ClipEncoder:
        """Open a folder of the format that ``save_llm2clip`` writes.

        Args:
            folder: Holds config.json, model.safetensors and tokenizer.json.
            device: ``"auto"`` (CUDA if there is any), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
            dtype: Of the arithmetic: ``"auto"`` (float32 on a CPU, as stored elsewhere), ``"float32"``, ...

        Raises:
            ModelError: A file is missing, damaged, of another version, or does not fit the others.
            ValueError: No such device or dtype.
        """
        path = Path(folder)
        config = read_config(path)
        place = pick_device(device)
        return cls(
            path, config=config, device=place, dtype=pick_dtype(dtype, device=place, stored=config.dtype)
        )

    @cached_property
    def _info(self) -> EncoderInfo:
        config = self.config
        return EncoderInfo(
            name=config.name,
            family=tensor_names.FAMILY,
            dim=config.adapter.dim,
            image_size=config.preprocessing.size,
            max_text_tokens=self._reader.capacity,
            weights_sha256=file_sha256(self._weights),
            settings_sha256=settings_sha256(
                config.settings(), files=[self.folder / tensor_names.TOKENIZER_FILE]
            ),
            preprocessing=config.preprocessing.identifier,
            parameters=sum(spec.size for spec in self._header.values()),
            languages=config.languages,
            licence=config.licence,
            note=config.note,
        )

    @property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._info

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Runtime(device=str(self.device), image_dtype=dtype, text_dtype=dtype)

    @property
    def loaded_sides(self) -> frozenset[str]:
        """Which of ``"vision"`` and ``"text"`` have their weights in memory."""
        sides = {"vision": self._vision, "text": self._text}
        return frozenset(name for name, side in sides.items() if side in self._loaded)

    @cached_property
    def logit_scale(self) -> float:
        """Learnt logarithm of the factor that turns scores into logits; a search has no use for it."""
        return float(
            read_tensors(self._weights, [tensor_names.LOGIT_SCALE], dtype=torch.float32)[
                tensor_names.LOGIT_SCALE
            ]
        )

    def load_all(self) -> None:
        """Read both sides now rather than when they are first used.

        Raises:
            ModelError: The weights or the tokenizer cannot be read.
        """
        self._load(self._vision)
        self._load(self._text)
        self._count_tokens(["."])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the same encoder to another folder, byte for byte.

        Raises:
            ValueError: ``folder`` is the folder it was loaded from.
            OSError: A file cannot be written.
        """
        target = Path(folder)
        if target.exists() and target.samefile(self.folder):
            raise ValueError(f"{target} is the folder this encoder was loaded from; name another one")
        target.mkdir(parents=True, exist_ok=True)
        for name in (
            tensor_names.WEIGHTS_FILE,
            tensor_names.TOKENIZER_FILE,
            tensor_names.README_FILE,
            tensor_names.CONFIG_FILE,
        ):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, target / name)

    def _prepare(self, image: ImageSource) -> PreparedImage:
        return self.config.preprocessing.prepare(image)

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        side = self._load(self._vision)
        with torch.inference_mode():
            # A copy: torch warns of arrays that are read-only, such as memory maps.
            batch = torch.tensor(np.ascontiguousarray(pixels), device=self.device)
            return _numpy(side(batch))

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        side = self._load(self._text)
        input_ids, attention_mask, embed_mask = (part.to(self.device) for part in self._reader.batch(texts))
        with torch.inference_mode():
            hidden = side.language_model(input_ids, attention_mask)
            return _numpy(side.text_adapter(self._reader.pool(hidden, embed_mask)))

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return list(self._reader.count_tokens(texts))

    @property
    def _weights(self) -> Path:
        return self.folder / tensor_names.WEIGHTS_FILE

    @cached_property
    def _reader(self) -> TextReader:
        from tokenizers import Tokenizer

        path = self.folder / tensor_names.TOKENIZER_FILE
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise ModelError(f"{path} is not a tokenizer file: {error}") from error
        if tokenizer.get_vocab_size() > self.config.text.vocab_size:
            raise ModelError(
                f"{path} has {tokenizer.get_vocab_size()} tokens, but {tensor_names.CONFIG_FILE} says "
                f"text.vocab_size is {self.config.text.vocab_size}; they are not of the same model"
            )
        try:
            return TextReader(tokenizer, self.config.text_rules)
        except ValueError as error:
            raise ModelError(f"{self.folder / tensor_names.CONFIG_FILE}: text_rules: {error}") from error

    def _expected(self) -> dict[str, TensorSpec]:
        dtype = DTYPES[self.config.dtype]
        specs = {
            name: TensorSpec(tuple(tensor.shape), dtype)
            for side in (self._vision, self._text)
            for name, tensor in side.state_dict().items()
        }
        return specs | {tensor_names.LOGIT_SCALE: TensorSpec((), "F32")}

    def _load(self, side: Side) -> Side:
        if side not in self._loaded:
            with self._lock:
                if side not in self._loaded:
                    tensors = read_tensors(self._weights, list(side.state_dict()), dtype=self.dtype)
                    for name, tensor in tensors.items():
                        if tensor.ndim == 4:
                            tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
                    side.load_state_dict(tensors, assign=True)
                    side.requires_grad_(False).eval().to(self.device)
                    self._loaded.add(side)
        return side


def _numpy(vectors: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array
