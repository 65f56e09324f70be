"""What wants a GPU; ``benchmarks/gpu/run.sh`` runs all of it."""
