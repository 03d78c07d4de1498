"""Numerical operators, which know nothing about MRI: definitions in PyTorch and compiled kernels."""
