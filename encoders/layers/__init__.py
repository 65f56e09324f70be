"""Bare torch modules: Llama with adapter, EVA02, the vision tower of nano."""
