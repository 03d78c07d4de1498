"""Numerical kernels; nothing here knows about MRI."""
