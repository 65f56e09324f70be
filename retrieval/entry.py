"""Where ``llm2clip-search`` begins."""

from __future__ import annotations

import gc

from llm2clip.indexer.entry import start


def main() -> None:
    """Entry point of ``llm2clip-search``."""
    # A search lives for two seconds and imports a thousand modules. Collecting garbage meanwhile, and taking
    # the modules apart at the end, would add a fifth to that and free nothing that its end does not.
    gc.disable()
    try:
        start("llm2clip.retrieval.cli")
    finally:
        gc.freeze()
