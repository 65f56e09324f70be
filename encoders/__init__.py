"""Models that turn images and texts into comparable unit vectors.

Names are imported on first use, so ``import llm2clip.encoders`` itself loads neither torch nor PIL.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.encoders.catalog.cards import EncoderCard as EncoderCard
    from llm2clip.encoders.core.base import Encoder as Encoder
    from llm2clip.encoders.core.base import EncoderInfo as EncoderInfo
    from llm2clip.encoders.core.errors import EncodingError as EncodingError
    from llm2clip.encoders.core.errors import ImageError as ImageError
    from llm2clip.encoders.core.errors import ModelError as ModelError
    from llm2clip.encoders.core.errors import TextTooLongWarning as TextTooLongWarning
    from llm2clip.encoders.core.image_source import ImageSource as ImageSource
    from llm2clip.encoders.core.image_source import PreparedImage as PreparedImage
    from llm2clip.encoders.fake import FakeEncoder as FakeEncoder
    from llm2clip.encoders.llm2clip.nano_encoder import Llm2ClipEncoder as Llm2ClipEncoder
    from llm2clip.encoders.llm2clip.published import PublishedEncoder as PublishedEncoder
    from llm2clip.encoders.llm2clip.text_only import LanguageEncoder as LanguageEncoder
    from llm2clip.encoders.registry import list_encoders as list_encoders
    from llm2clip.encoders.registry import load_encoder as load_encoder

_HOMES = {
    "Encoder": "core.base",
    "EncoderCard": "catalog.cards",
    "EncoderInfo": "core.base",
    "EncodingError": "core.errors",
    "FakeEncoder": "fake",
    "ImageError": "core.errors",
    "ImageSource": "core.image_source",
    "LanguageEncoder": "llm2clip.text_only",
    "Llm2ClipEncoder": "llm2clip.nano_encoder",
    "ModelError": "core.errors",
    "PreparedImage": "core.image_source",
    "PublishedEncoder": "llm2clip.published",
    "TextTooLongWarning": "core.errors",
    "list_encoders": "registry",
    "load_encoder": "registry",
}

__all__ = [
    "Encoder",
    "EncoderCard",
    "EncoderInfo",
    "EncodingError",
    "FakeEncoder",
    "ImageError",
    "ImageSource",
    "LanguageEncoder",
    "Llm2ClipEncoder",
    "ModelError",
    "PreparedImage",
    "PublishedEncoder",
    "TextTooLongWarning",
    "list_encoders",
    "load_encoder",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
