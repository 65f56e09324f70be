"""What all training shares: configurations, losses, parameter groups, optimisers, the loop, run folder and report."""
