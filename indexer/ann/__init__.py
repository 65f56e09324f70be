"""Approximate and exact nearest-neighbour search: FAISS indexes, exact scans, re-ranking."""
