"""Scores of the reconstructions, and their statistics."""
