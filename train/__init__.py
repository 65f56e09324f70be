"""llm2clip.train"""
