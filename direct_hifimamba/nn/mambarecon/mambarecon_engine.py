"""Engines of MambaRecon."""

from __future__ import annotations

from direct.nn.ssl.mri_models import JSSLMRIModelEngine, SSLMRIModelEngine

from direct_hifimamba.nn.layers.engine import SelfSupervision, SenseEngine


class MambaReconEngine(SenseEngine):
    """Engine that trains and evaluates :class:`direct_hifimamba.nn.mambarecon.mambarecon.MambaRecon` in DIRECT."""


class MambaReconSSLEngine(SelfSupervision, MambaReconEngine, SSLMRIModelEngine):
    """Engine that trains MambaRecon without references, on undersampled k-space alone."""


class MambaReconJSSLEngine(SelfSupervision, MambaReconEngine, JSSLMRIModelEngine):
    """Engine that trains MambaRecon on data sets with references and others without."""
