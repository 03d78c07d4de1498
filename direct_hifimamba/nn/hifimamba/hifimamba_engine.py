"""Engine of HiFi-MambaV2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from direct.data.transforms import expand_operator
from direct.engine import DoIterationOutput
from direct.nn.loss_keys import KeyedLossFn
from direct.nn.mri_models import MRIModelEngine
from direct.utils import communication
from direct.utils.events import get_event_storage
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from direct_hifimamba.nn.hifimamba.moe import Router, Routing, watch_routing
from direct_hifimamba.nn.layers.sense import Measurement, check_fully_sampled, check_values
from direct_hifimamba.training.distributed import average_gradients, broadcast_weights
from direct_hifimamba.training.learning_rate import CosineSchedule
from direct_hifimamba.training.weight_decay import exclude_from_weight_decay


class HiFiMambaV2Engine(MRIModelEngine):
    """Engine that trains and evaluates :class:`direct_hifimamba.HiFiMambaV2` in DIRECT.

    It adds the load-balancing loss, weighted by `model.load_balancing_weight`, to the configured losses, logs at
    validation the fraction of pixels of each expert, and trains with `model.learning_rate_schedule` and
    `model.decayed_parameters`. Unlike in other engines of DIRECT, additional models, such as
    `additional_models.sensitivity_model`, stay equal in all processes
    (:mod:`direct_hifimamba.training.distributed`).
    """

    _load_balancing_loss: torch.Tensor

    def _Engine__bind_sigint_signal(self) -> None:  # noqa: N802
        """Do nothing: DIRECT's constructor would replace the handler of SIGINT, which :meth:`train` does instead."""

    def forward_function(self, data: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct a batch.

        Parameters
        ----------
        data : dict
            `masked_kspace` (batch, coil, height, width, 2), `sampling_mask` (batch, 1, height, width, 1) and
            `sensitivity_map` (batch, coil, height, width, 2). DIRECT's `padding` is checked if `acceleration`
            shows that DIRECT has drawn the mask.

        Returns
        -------
        image : torch.Tensor
            Coil-combined image of shape (batch, height, width, 2).
        kspace : torch.Tensor
            Its k-space of shape (batch, coil, height, width, 2).

        Raises
        ------
        ValueError
            If k-space or maps are not finite, if nothing is sampled in a slice, or if k-space was undersampled before
            the mask was drawn.
        """
        measurement = Measurement(data["masked_kspace"], data["sampling_mask"], data["sensitivity_map"])
        check_values(measurement)
        if "acceleration" in data and "padding" in data:  # DIRECT has drawn the mask and cleared it in the padding
            check_fully_sampled(~data["padding"])
        output = self.model(**measurement.reduce_mask()._asdict())
        # A vector where DIRECT, for several GPUs in one process, gathers the scalars of the parts of a batch.
        self._load_balancing_loss = output.load_balancing_loss.mean()
        # DIRECT takes the magnitude, whose derivative is NaN at exactly 0, as where all sensitivities are 0.
        image = output.image.where((output.image != 0).any(dim=-1, keepdim=True), 0.0)
        coil_images = expand_operator(image, data["sensitivity_map"], dim=self._coil_dim)
        return image, self.forward_operator(coil_images, dim=self._spatial_dims)

    def train(self, optimizer: Optimizer, lr_scheduler: LRScheduler, *args: Any, **kwargs: Any) -> None:
        """Train as DIRECT does, with the configured learning-rate schedule and weight decay."""
        super()._Engine__bind_sigint_signal()  # Ctrl-C writes a checkpoint first
        if self.cfg.model.decayed_parameters == "matrices":
            exclude_from_weight_decay(optimizer, lr_scheduler, self.model)
        if self.cfg.model.learning_rate_schedule == "cosine":
            lr_scheduler = CosineSchedule(optimizer, self.cfg.training)
        super().train(optimizer, lr_scheduler, *args, **kwargs)

    def training_loop(self, *args: Any, **kwargs: Any) -> None:
        """Train as DIRECT does; in every process, additional models start from the weights of the first one."""
        broadcast_weights(self.models.values())
        super().training_loop(*args, **kwargs)

    def _do_iteration(self, *args: Any, **kwargs: Any) -> DoIterationOutput:
        """Run one iteration as DIRECT does, and average the gradients of additional models over the processes."""
        output = super()._do_iteration(*args, **kwargs)
        if self.model.training:
            average_gradients(self.models.values())
        return output

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as DIRECT does.

        Raises
        ------
        ValueError
            If an image is not finite; nothing is written.
        """
        output = super().predict(*args, **kwargs)
        for volume, _, filename in output[0]:
            if not torch.isfinite(volume).all():
                raise ValueError(
                    f"The images of {filename} have values that are NaN or infinite; expected finite ones. Is the "
                    "checkpoint from a training that diverged?"
                )
        return output

    def build_loss(self) -> dict[str, Callable[..., torch.Tensor]]:
        """Return the losses of the configuration, and `load_balancing_loss` if the model has routers."""
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
