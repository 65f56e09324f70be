"""The commands of ``llm2clip-index``: one call each, then print."""
