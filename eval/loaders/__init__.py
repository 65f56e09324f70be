"""Readers of the published data sets in their own formats, and of the user's own images."""
