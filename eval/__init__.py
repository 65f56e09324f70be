"""Measuring encoders and indexes: metrics as pure functions, image and caption sets, the report on nano."""

import lazy_loader

# The public names are those of __init__.pyi; each is imported on first use.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    return _public("TieBounds" if name == "ByTies" else name)  # its old name
