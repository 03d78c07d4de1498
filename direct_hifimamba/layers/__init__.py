"""The parts of HiFi-MambaV2, one idea per module. Feature maps are channels-last: (batch, height, width, channels)."""
