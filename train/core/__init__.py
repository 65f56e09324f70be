"""Training without emoji: losses, parameter groups, the run folder and its loop, text states."""
