"""A query in, ranked hits out: joins encoders and an index."""

import lazy_loader

# The public names are those of __init__.pyi; each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
