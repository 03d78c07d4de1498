"""HiFi-MambaV2 for DIRECT, the MRI reconstruction framework.

Importing the package makes DIRECT see the model as ``hifimamba.hifimamba.HiFiMambaV2``. It imports neither PyTorch nor
DIRECT: that is left to the first use of a public name.
"""

import importlib
from typing import TYPE_CHECKING, Any

from direct_hifimamba.plugin import register

if TYPE_CHECKING:
    from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
    from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
    from direct_hifimamba.nn.hifimamba.hifimamba_engine import HiFiMambaV2Engine
    from direct_hifimamba.nn.hifimamba.reference import from_reference

__version__ = "0.1.0"

__all__ = ["HiFiMambaV2", "HiFiMambaV2Config", "HiFiMambaV2Engine", "__version__", "from_reference"]

_MODULE_OF = {
    "HiFiMambaV2": "nn.hifimamba.hifimamba",
    "HiFiMambaV2Config": "nn.hifimamba.config",
    "HiFiMambaV2Engine": "nn.hifimamba.hifimamba_engine",
    "from_reference": "nn.hifimamba.reference",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
