"""llm2clip.indexer"""
