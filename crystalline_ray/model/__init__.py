"""The GPT-2 model: one flat buffer of parameters, its forward and backward pass, and generation."""
