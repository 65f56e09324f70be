"""Reading weights: safetensors, pickle conversion, LoRA, quantisation, what fits into memory."""
