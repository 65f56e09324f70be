"""From a corpus to vectors: list, decode, encode, reuse."""
