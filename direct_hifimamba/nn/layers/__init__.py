"""Layers that several networks share. Feature maps are channels-last: (batch, height, width, channels)."""
