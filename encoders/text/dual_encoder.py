"""Former names of the towers; being replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import DualEncoder as _Dual
from llm2clip.encoders.core.dual_encoder import TextTower, to_array
from llm2clip.encoders.images.preprocess import PixelTower as ImageTower
from llm2clip.encoders.text.clip_tokenizer import TokenTower

__all__ = ["AbstractTextSide", "DualEncoder", "ImageTower", "LazyModule", "TowerTextSide", "to_array"]


class LazyModule:  # noqa: D101
    def __init__(self, load: Callable) -> None:  # type: ignore[type-arg]
        self._load = load
        self._module = None

    @property
    def loaded(self) -> bool:  # noqa: D102
        return self._module is not None

    def __call__(self) -> object:  # noqa: D102
        if self._module is None:
            self._module = self._load()
        return self._module


class TowerTextSide(TokenTower):  # type: ignore[misc]  # noqa: D101
    def __init__(self, load, *, reader, device) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().__init__(load, reader=reader, device=device, dtype="float32")


class AbstractTextSide(TextTower):  # noqa: D101
    device = "cpu"
    _dtype = "float32"

    def __init__(self) -> None:
        pass

    def count_tokens(self, texts: Sequence[str]) -> list[int]:  # noqa: D102
        return self.count(texts)  # type: ignore[attr-defined, no-any-return]


class DualEncoder(_Dual):  # type: ignore[misc]  # noqa: D101
    def __init__(self, *, images: ImageTower, texts: TextTower, describe: Callable[[], EncoderInfo]) -> None:
        super().__init__(images, texts, describe=describe)
        texts._dtype, texts.device = images.dtype, images.device

    @property
    def images(self) -> ImageTower:  # noqa: D102
        return self.image_tower  # type: ignore[return-value]

    @property
    def texts(self) -> TextTower:  # noqa: D102
        return self.text_tower
