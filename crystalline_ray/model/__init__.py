"""The GPT-2 model: one flat buffer of parameters, and its forward and backward pass, component by component."""
