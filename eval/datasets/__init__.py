"""Data sets to measure on: declared protocols, images with captions, images by class."""
