"""Corpus to index on disk to nearest neighbours. Knows vectors, ids and metadata, and no model."""

import lazy_loader

_OLD_NAMES = {"add_pictures": "add_images", "remove_pictures": "remove_images", "BadPicture": "BadImage"}

# The public names are those of __init__.pyi; each is imported on first use.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    return _public(_OLD_NAMES.get(name, name))
