"""Readers of the published data sets, each in its own format, and of images of one's own."""
