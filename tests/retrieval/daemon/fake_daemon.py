"""The daemon, with ``FakeEncoder`` for every name; run with ``-m``. The text "wait" takes until a file appears."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2clip import encoders
from llm2clip.encoders import FakeEncoder
from llm2clip.retrieval.daemon import server


def load(name: str, *, device: str = "auto", dtype: str = "auto") -> FakeEncoder:
    return FakeEncoder()


def encode(self: FakeEncoder, texts: Sequence[str], **options: Any) -> Any:
    if "wait" in texts:
        Path(os.environ["STARTED"]).touch()
        while not Path(os.environ["GO_ON"]).exists():
            time.sleep(0.01)
    if "no memory" in texts:
        raise MemoryError("there is none")
    return encoded(self, texts, **options)


encoded = FakeEncoder.encode_texts
FakeEncoder.encode_texts = encode  # type: ignore[method-assign]
encoders.load_encoder = load  # type: ignore[assignment]

if __name__ == "__main__":
    server.main()
