"""Results as files, and what others printed about the same encoders."""
