"""Images of a corpus as records, with captions and metadata."""
