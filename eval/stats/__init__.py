"""Confidence intervals, paired tests and means over languages; images are drawn with all their queries."""
