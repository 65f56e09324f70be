"""Errors, results, the encoder protocol, paths of indexes."""
