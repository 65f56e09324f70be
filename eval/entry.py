"""Where ``llm2clip-eval`` begins."""

from __future__ import annotations

from llm2clip.indexer.entry import start


def main() -> None:
    """Entry point of ``llm2clip-eval``."""
    start("llm2clip.eval.cli")
