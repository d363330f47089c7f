"""Measuring one core: a leaf's step, its kernels, the best matrix product."""
