"""Training of encoders: losses, loops and recipes of LLM2CLIP's two stages; nano is made with them."""
