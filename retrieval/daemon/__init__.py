"""The process that keeps an encoder and indexes in memory for ``llm2clip-search``."""
