"""Errors and warnings of encoders."""

from __future__ import annotations


class ImageError(ValueError):
    """An image that cannot be read; the message is the reason in a few words (``"truncated file"``)."""


class EncodingError(ValueError):
    """An encoder gave a vector that cannot be normalised: zero, or not finite."""


class ModelError(ValueError):
    """A model that cannot be loaded: unknown name, file missing or damaged, wrong tensor or setting."""


class TextTooLongWarning(UserWarning):
    """A text was longer than its encoder reads; the message says how much of it was read."""
