"""Features of captions written to disk once, to train against a frozen language model."""
