"""Reconstruction of single files with trained weights."""
