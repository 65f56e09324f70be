"""Makes encoders: the losses, loops and recipes of LLM2CLIP's two stages, and nano, made with them."""
