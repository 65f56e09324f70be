"""Names of files and tensors in an encoder folder."""

from __future__ import annotations

from typing import Final

FORMAT: Final = "llm2clip-encoder"


VERSION: Final = 1


FAMILY: Final = "llm2clip"


CONFIG_FILE = "config.json"


WEIGHTS_FILE = "model.safetensors"


TOKENIZER_FILE = "tokenizer.json"


README_FILE = "README.md"


VISION = "vision."


PROJECTION = "visual_projection."


LANGUAGE_MODEL = "language_model."


ADAPTER = "text_adapter."


LOGIT_SCALE = "logit_scale"
"""Names and prefixes of tensors. All are of the configuration's dtype but the scale, which is one float32."""


PUBLISHED = "llm2clip-published"
"""What it says of the family, where ``PublishedEncoder.save_pretrained`` wrote it."""
