"""What ``import torch`` calls in every program of an environment that has direct_hifimamba installed.

The entry point in group `torch.backends` names this module and not `direct_hifimamba`, so that ``import torch``
succeeds even if the package is broken.
"""


def register() -> None:
    """Make DIRECT see HiFi-MambaV2; never raises."""
    try:
        import direct_hifimamba  # noqa: F401  (importing it registers it)
    except Exception as error:
        import logging

        logging.getLogger(__name__).warning("DIRECT will not find HiFi-MambaV2: %r", error)
