"""Simulation of random multi-coil slices as training data."""
