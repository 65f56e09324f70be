"""llm2clip.encoders"""
