"""Measuring encoders and indexes: metrics as pure functions; image and caption sets, runs, results, the leaderboard."""

import lazy_loader

# The public names are those of __init__.pyi; each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
