"""Retrieval metrics as pure functions of scores or vectors; nothing here knows an encoder or a data set."""
