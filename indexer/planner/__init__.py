"""Chooses and tunes an ANN index within a budget of memory, recall and latency."""
