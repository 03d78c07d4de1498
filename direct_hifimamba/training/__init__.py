"""Additions to DIRECT's training, for any model."""
