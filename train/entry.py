"""Where ``llm2clip-train`` begins."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``llm2clip-train``."""
    from llm2clip.indexer.entry import start

    start("llm2clip.train.cli")
