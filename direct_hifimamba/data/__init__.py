"""Data sets in the form that DIRECT reads."""
