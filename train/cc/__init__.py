"""Stage 1: a text model learns to place captions of one image close together."""
