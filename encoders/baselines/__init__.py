"""The encoders that LLM2CLIP is compared with."""
