"""Using a trained model: load it, evaluate it, let it write."""
