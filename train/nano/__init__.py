"""The recipe of nano, stage by stage, and its export."""
