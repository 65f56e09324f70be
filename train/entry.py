"""Where ``llm2clip-train`` begins."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``llm2clip-train``."""
    try:
        from llm2clip.indexer.entry import start
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    start("llm2clip.train.cli")
