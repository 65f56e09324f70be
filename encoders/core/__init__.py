"""The encoder interface, its composition from towers, and reading of model files."""
