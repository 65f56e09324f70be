"""Models that turn pictures and texts into comparable unit vectors.

Names are imported on first use, so ``import llm2clip.encoders`` itself loads neither torch nor PIL.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.encoders.base import Encoder as Encoder
    from llm2clip.encoders.base import EncoderInfo as EncoderInfo
    from llm2clip.encoders.base import ImageSource as ImageSource
    from llm2clip.encoders.base import PreparedImage as PreparedImage
    from llm2clip.encoders.cards import EncoderCard as EncoderCard
    from llm2clip.encoders.errors import EncodingError as EncodingError
    from llm2clip.encoders.errors import ImageError as ImageError
    from llm2clip.encoders.errors import ModelError as ModelError
    from llm2clip.encoders.errors import TextTooLongWarning as TextTooLongWarning
    from llm2clip.encoders.fake import FakeEncoder as FakeEncoder
    from llm2clip.encoders.language_encoder import LanguageEncoder as LanguageEncoder
    from llm2clip.encoders.llm2clip import Llm2ClipEncoder as Llm2ClipEncoder
    from llm2clip.encoders.published import PublishedEncoder as PublishedEncoder
    from llm2clip.encoders.registry import list_encoders as list_encoders
    from llm2clip.encoders.registry import load_encoder as load_encoder

_HOMES = {
    "Encoder": "base",
    "EncoderCard": "cards",
    "EncoderInfo": "base",
    "EncodingError": "errors",
    "FakeEncoder": "fake",
    "ImageError": "errors",
    "ImageSource": "base",
    "LanguageEncoder": "language_encoder",
    "Llm2ClipEncoder": "llm2clip",
    "ModelError": "errors",
    "PreparedImage": "base",
    "PublishedEncoder": "published",
    "TextTooLongWarning": "errors",
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
