"""An encoder in a folder of this library's own format: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

Each tower is built and read from the one weights file when it is first used: building an index never loads the
language model, a text query never loads the vision tower. Unknown keys and tensors are errors. Opening a folder loads
no torch, and neither do texts on a CPU where the language model is a BERT: NumPy reads them (``text.numpy_bert``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from llm2clip.common.files import file_sha256
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import DualEncoder, ReaderTower, device_name, dtype_name, to_array
from llm2clip.encoders.core.files import settings_sha256
from llm2clip.encoders.images.preprocess import PixelTower
from llm2clip.encoders.layers.configs import BertConfig
from llm2clip.encoders.llm2clip.folder_config import IMAGES, TEXTS, FolderWeights, read_config
from llm2clip.encoders.text.caption_tokenizer import TextReader, open_reader
from llm2clip.encoders.weights.safetensors_io import read_arrays, read_header
from llm2clip.encoders.weights.tensor_names import FAMILY, TOKENIZER_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from llm2clip.encoders.llm2clip.folder_modules import TextModule
    from llm2clip.encoders.text.numpy_bert import NumpyBert


@final
class FolderTextTower(ReaderTower[TextReader]):
    """Texts through the tokenizer, the language model and the adapter of the folder."""

    def __init__(
        self,
        load: Callable[[], Any],
        *,
        reader: Callable[[], TextReader],
        light: Callable[[], NumpyBert] | None,
        width: int,
        device: str,
        dtype: str,
    ) -> None:
        """``light`` reads the weights for NumPy, ``load`` for torch; ``width`` is that of the language model."""
        super().__init__(load, reader=reader, device=device, dtype=dtype)
        self.width = width
        self._load_light = light

    @cached_property
    def _light(self) -> NumpyBert | None:
        with self._lock:
            return self._load_light() if self._load_light is not None else None

    def load(self) -> None:
        """Read the weights that texts need."""
        if self._light is None:
            self.module()

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return super().loaded or self.__dict__.get("_light") is not None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return list(self.reader.count_tokens(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        return to_array(self.project(self.features(texts)))

    def features(self, texts: Sequence[str]) -> Any:  # noqa: ANN401
        """Pooled states of the language model. Shape: (len(texts), width), float32, any scale; tensor or array."""
        rows = self.reader.rows(texts)
        if self._light is not None:
            return self._light.states(rows)
        import torch

        from llm2clip.encoders.text.packed import pooled_states

        module: TextModule = self.module()
        return pooled_states(module.language_model, rows, device=torch.device(self.device))

    def pooled(self, ids_BL: Tensor, attention_BL: Tensor, pooled_BL: Tensor) -> Tensor:
        """States of what ``TextReader.batch`` gave. Shape: (B, width), float32, any scale."""
        import torch

        module: TextModule = self.module()
        with torch.inference_mode():
            return self.reader.pool(module.language_model(ids_BL, attention_BL).float(), pooled_BL)

    def project(self, features: Any) -> Any:  # noqa: ANN401
        """Stored states in the shared space. Shape: (B, width) -> (B, dim), not normalised; a tensor or an array."""
        if self._light is not None:
            return self._light.project(to_array(features))
        import torch

        module: TextModule = self.module()
        weight = next(module.text_adapter.parameters())
        features = torch.as_tensor(features).to(weight.device, weight.dtype)
        with torch.inference_mode():
            return module.text_adapter(features)


def load_folder(folder: Path, *, device: str = "auto", dtype: str = "auto") -> DualEncoder:
    """Open a folder of the format that ``save_llm2clip`` writes; a tower is built and read when it is first used."""
    config = read_config(folder)
    place = device_name(device)
    stored = "float16" if config.dtype == "int8" else config.dtype
    precision = dtype_name(dtype, device=place, stored=stored)
    weights = FolderWeights(
        path=folder / WEIGHTS_FILE, header=read_header(folder / WEIGHTS_FILE), config=config
    )
    weights.check_sizes()

    def load_images() -> Any:  # noqa: ANN401
        from llm2clip.encoders.llm2clip.folder_modules import VisionModule, load_module

        return load_module(weights, VisionModule, prefixes=IMAGES, device=place, dtype=precision)

    def load_texts() -> Any:  # noqa: ANN401
        from llm2clip.encoders.llm2clip.folder_modules import TextModule, load_module

        return load_module(weights, TextModule, prefixes=TEXTS, device=place, dtype=precision)

    texts = FolderTextTower(
        load_texts,
        reader=lambda: open_reader(folder, config.text_rules, config=config.text, name=config.name),
        light=_light(weights, device=place, dtype=precision),
        width=config.text.hidden_size,
        device=place,
        dtype=precision,
    )
    return DualEncoder(
        PixelTower(load_images, preprocess=config.preprocessing, device=place, dtype=precision),
        texts,
        describe=lambda: _describe(folder, weights, capacity=texts.reader.capacity),
        source=folder,
    )


def _light(weights: FolderWeights, *, device: str, dtype: str) -> Callable[[], NumpyBert] | None:
    """What reads the text side for NumPy, where that can be."""
    config = weights.config
    text = config.text
    if (
        not isinstance(text, BertConfig)
        or (device, dtype) != ("cpu", "float32")
        or config.dtype == "bfloat16"
    ):
        return None

    def load() -> NumpyBert:
        from llm2clip.encoders.text.numpy_bert import NumpyBert, shapes_of

        expected = weights.check(shapes_of(text, config.adapter), prefixes=TEXTS)
        return NumpyBert(read_arrays(weights.path, expected), text, config.adapter)

    return load


def _describe(folder: Path, weights: FolderWeights, *, capacity: int) -> EncoderInfo:
    config = weights.config
    return EncoderInfo(
        name=config.name,
        family=FAMILY,
        dim=config.adapter.dim,
        image_size=config.preprocessing.size,
        max_text_tokens=capacity,
        weights_sha256=file_sha256(weights.path),
        settings_sha256=settings_sha256(config.settings(), files=[folder / TOKENIZER_FILE]),
        preprocessing=config.preprocessing.identifier,
        parameters=weights.parameters,
        languages=config.languages,
        licence=config.licence,
        note=config.note,
    )
