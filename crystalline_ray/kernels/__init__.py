"""NumPy kernels in `x_forward` / `x_backward` pairs: arrays in, arrays out, no configuration."""
