"""llm2clip.eval"""
