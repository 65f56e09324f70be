"""llm2clip.retrieval"""
