"""What LLM2CLIP claims, measured on real models and real photographs: ``make claim CLAIM_DATA=FOLDER``."""
