"""Names of files and tensors in an encoder folder."""

from __future__ import annotations

from typing import Final

FORMAT: Final = "llm2clip-encoder"
VERSION: Final = 1
FOLDER_VERSIONS: Final = (1, 2)
FAMILY: Final = "llm2clip"
PUBLISHED: Final = "llm2clip-published"
"""``config.json``: format, its versions of saved published encoders and of our own (those that are read, the last one
is written), and the families of our own and of saved published ones."""

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TOKENIZER_FILE, README_FILE = "tokenizer.json", "README.md"

VISION, PROJECTION = "vision.", "visual_projection."
LANGUAGE_MODEL, ADAPTER = "language_model.", "text_adapter."
LOGIT_SCALE = "logit_scale"
"""Prefixes of tensors, and the scale. All have the dtype of the configuration but the scale, which is float32."""
