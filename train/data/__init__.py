"""Captions and images to train with: reading files of captions, and which of them are in the batch of a step."""
