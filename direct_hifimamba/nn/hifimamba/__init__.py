"""HiFi-MambaV2: its configuration, network, engine and layers."""
