"""Engine of HiFi-MambaV2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from direct.nn.loss_keys import KeyedLossFn
from direct.nn.ssl.mri_models import JSSLMRIModelEngine, SSLMRIModelEngine
from direct.utils import communication
from direct.utils.events import get_event_storage
from torch.utils.data import DataLoader

from direct_hifimamba.nn.hifimamba.moe import Router, Routing, watch_routing
from direct_hifimamba.nn.layers.engine import SelfSupervision, SenseEngine
from direct_hifimamba.nn.layers.sense import Measurement


class HiFiMambaV2Engine(SenseEngine):
    """Engine that trains and evaluates :class:`direct_hifimamba.HiFiMambaV2` in DIRECT.

    It adds the load-balancing loss, weighted by `model.load_balancing_weight`, to the configured losses, and logs at
    validation the fraction of pixels of each expert.
    """

    _load_balancing_loss: torch.Tensor

    def reconstruct(self, measurement: Measurement) -> torch.Tensor:
        """Return the network's image (batch, height, width, 2), or those of all coils; keep its load-balancing loss."""
        output = self.model(**measurement._asdict())
        # A vector where DIRECT, for several GPUs in one process, gathers the scalars of the parts of a batch.
        self._load_balancing_loss = output.load_balancing_loss.mean()
        return output.image

    def build_loss(self) -> dict[str, Callable[..., torch.Tensor]]:
        """Return the losses of the configuration, and `load_balancing_loss` if the model has routers.

        Raises
        ------
        ValueError
            If the network uses no sensitivity maps, and there is something that needs them.
        """
        needs_maps = [*self.models, *([type(self).__name__] if isinstance(self, SSLMRIModelEngine) else [])]
        if self.cfg.model.coil_mode == "channels" and needs_maps:
            raise ValueError(
                f'model.coil_mode is "channels", without sensitivity maps, which {needs_maps[0]} needs; expected '
                "coil_mode: sense, or neither additional_models nor a self-supervised engine."
            )
        losses = super().build_loss()
        weight = self.cfg.model.load_balancing_weight
        if weight > 0 and any(isinstance(module, Router) for module in self.model.modules()):
            losses["load_balancing_loss"] = KeyedLossFn(
                lambda *_: weight * self._load_balancing_loss, source_key="output_image", target_key=None
            )
        return losses

    @torch.no_grad()
    def evaluate(self, data_loader: DataLoader[Any], loss_fns: dict[str, Callable[..., Any]] | None) -> Any:
        """Evaluate as DIRECT does, and log the fraction of pixels of every expert of every block."""
        routed_pixels: dict[str, torch.Tensor] = {}

        def count(block: str, routing: Routing) -> None:
            pixels = torch.bincount(routing.experts, minlength=routing.probabilities.shape[-1])
            routed_pixels[block] += pixels.to(self.device)  # from another one, with several GPUs in one process

        with watch_routing(self.model, count) as routers:
            for block, router in routers.items():
                # Before the first pixel, as a process without a volume takes part in the reduction, too.
                routed_pixels[block] = torch.zeros(router.num_experts, dtype=torch.float64, device=self.device)
            results = super().evaluate(data_loader, loss_fns)

        dataset = getattr(data_loader.dataset, "text_description", None)
        prefix = "/".join(filter(None, ("val", dataset, "expert_share")))
        storage = get_event_storage()
        for block, pixels in communication.reduce_tensor_dict(routed_pixels).items():
            shares = (pixels / pixels.sum().clamp(min=1)).tolist()
            for expert, share in enumerate(shares):
                storage.add_scalar(f"{prefix}/{block}/expert_{expert}", share, smoothing_hint=False)
        return results


class HiFiMambaV2SSLEngine(SelfSupervision, HiFiMambaV2Engine, SSLMRIModelEngine):
    """Engine that trains :class:`direct_hifimamba.HiFiMambaV2` without references, on undersampled k-space alone."""


class HiFiMambaV2JSSLEngine(SelfSupervision, HiFiMambaV2Engine, JSSLMRIModelEngine):
    """Engine that trains :class:`direct_hifimamba.HiFiMambaV2` on data sets with references and others without."""
