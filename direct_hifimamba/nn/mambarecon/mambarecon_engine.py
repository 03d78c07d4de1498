"""Engine of MambaRecon."""

from __future__ import annotations

from direct_hifimamba.nn.layers.engine import SenseEngine


class MambaReconEngine(SenseEngine):
    """Engine that trains and evaluates :class:`direct_hifimamba.nn.mambarecon.mambarecon.MambaRecon` in DIRECT."""
