"""Where models and indexes are kept by default."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path


def data_home() -> Path:
    """The folder of everything made without a path given: ``$LLM2CLIP_HOME``, else the platform's data folder."""
    if told := os.environ.get("LLM2CLIP_HOME"):
        return Path(told).expanduser().absolute()
    return user_data_path("llm2clip", appauthor=False)


def models_home() -> Path:
    """The folder for models put there by hand: ``models`` in :func:`data_home`."""
    return data_home() / "models"
