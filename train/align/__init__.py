"""Stage 2: a vision tower and two adapters aligned with a frozen text model."""
