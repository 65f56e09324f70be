"""The recipe of nano: an LLM2CLIP made of pretrained parts that packages hold, without a training photograph."""
