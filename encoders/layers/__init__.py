"""Bare torch modules: Llama with adapter, BERT, EVA02, EfficientNet-Lite."""
