"""Measuring encoders on data sets: embedding with a cache, counting, breakdowns, classification, cost."""
