"""Readers of the published data sets, each in its own format, and of pictures of one's own."""
