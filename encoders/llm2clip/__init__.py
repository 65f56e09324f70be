"""LLM2CLIP encoders: in a folder of our own, as published, and saving them."""
