"""MambaRoll: its configuration, network, engine and selective scan."""
