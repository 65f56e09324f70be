"""Corpus to index on disk to nearest neighbours. Knows vectors, ids and metadata, and no model."""

import lazy_loader

# The public names are those of __init__.pyi; each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
