"""Vision towers of published checkpoints: layouts, detection, loading, export."""
