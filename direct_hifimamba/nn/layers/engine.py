"""Base of the engines: what training, evaluation and prediction in DIRECT need for any network of this package."""

from __future__ import annotations

from typing import Any

import torch
from direct.data.transforms import expand_operator, root_sum_of_squares
from direct.engine import DoIterationOutput
from direct.nn.mri_models import MRIModelEngine
from direct.nn.ssl.mri_models import JSSLMRIModelEngine, SSLMRIModelEngine
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from direct_hifimamba.nn.layers.sense import Measurement, check_fully_sampled, check_values
from direct_hifimamba.training.distributed import average_gradients, broadcast_weights
from direct_hifimamba.training.learning_rate import SCHEDULES
from direct_hifimamba.training.weight_decay import exclude_from_weight_decay


class SenseEngine(MRIModelEngine):
    """Engine of a network that maps a measurement to a coil-combined image.

    A subclass defines :meth:`reconstruct` where the network returns more than the image. Training uses
    `model.learning_rate_schedule` and `model.decayed_parameters`. Unlike in other engines of DIRECT, additional models,
    such as `additional_models.sensitivity_model`, stay equal in all processes
    (:mod:`direct_hifimamba.training.distributed`).
    """

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
            Coil-combined image of shape (batch, height, width, 2), or the root sum of squares (batch, height, width) if
            the network returns images of all coils.
        kspace : torch.Tensor
            K-space of shape (batch, coil, height, width, 2).

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
        output = self.reconstruct(measurement.reduce_mask())
        if output.ndim == measurement.masked_kspace.ndim:  # images of all coils
            coil_images = stop_gradient_at_zero(output, (self._coil_dim, self._complex_dim))
            image = root_sum_of_squares(coil_images, dim=self._coil_dim)
        else:
            image = stop_gradient_at_zero(output, (self._complex_dim,))
            coil_images = expand_operator(image, data["sensitivity_map"], dim=self._coil_dim)
        return image, self.forward_operator(coil_images, dim=self._spatial_dims)

    def reconstruct(self, measurement: Measurement) -> torch.Tensor:
        """Call the network and return its image (batch, height, width, 2), or those of all coils."""
        return self.model(**measurement._asdict())

    def train(self, optimizer: Optimizer, lr_scheduler: LRScheduler, *args: Any, **kwargs: Any) -> None:
        """Train as DIRECT does, with the configured learning-rate schedule and weight decay."""
        super()._Engine__bind_sigint_signal()  # Ctrl-C writes a checkpoint first
        if self.cfg.model.decayed_parameters == "matrices":
            exclude_from_weight_decay(optimizer, lr_scheduler, self.model)
        if self.cfg.model.learning_rate_schedule in SCHEDULES:
            lr_scheduler = SCHEDULES[self.cfg.model.learning_rate_schedule](optimizer, self.cfg.training)
        super().train(optimizer, lr_scheduler, *args, **kwargs)

    def training_loop(self, *args: Any, **kwargs: Any) -> None:
        """Train as DIRECT does; in every process, additional models start from the weights of the first one."""
        broadcast_weights(self.models.values())
        super().training_loop(*args, **kwargs)

    def _do_iteration(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> DoIterationOutput:
        """Run one iteration as DIRECT does, and average the gradients of additional models over the processes.

        Raises
        ------
        ValueError
            If k-space is split for self-supervised learning where the whole of it is needed, or the other way round.
        """
        self._check_split("input_kspace" in data)
        output = super()._do_iteration(data, *args, **kwargs)
        if self.model.training:
            average_gradients(self.models.values())
        return output

    def _check_split(self, is_split: bool) -> None:
        learns_from_splits = self.model.training and isinstance(self, SSLMRIModelEngine)
        if is_split and not learns_from_splits:
            raise ValueError(
                "k-space is split for self-supervised learning (transforms_type: ssl_ssdu). Expected transforms_type: "
                "supervised for validation and inference, and in training unless model.engine_name is that of a "
                f"self-supervised engine; this one is {type(self).__name__}."
            )
        if learns_from_splits and not is_split and not isinstance(self, JSSLMRIModelEngine):
            raise ValueError(
                f"{type(self).__name__} trains without references, and k-space is not split; expected "
                "transforms_type: ssl_ssdu in training.datasets."
            )

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


class SelfSupervision(MRIModelEngine):
    """Mixin that trains the network of a :class:`SenseEngine` on one part of the samples, to predict the others.

    Listed before that engine and DIRECT's `SSLMRIModelEngine` or, to learn from references as well, its
    `JSSLMRIModelEngine`.
    """

    def forward_function(self, data: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct a batch as :class:`SenseEngine`; in training from `input_kspace` and `input_sampling_mask`.

        Batches of joint training that are not split have `masked_kspace` and `sampling_mask`, as without this mixin.
        """
        if self.model.training and "input_kspace" in data:
            data = data | {"masked_kspace": data["input_kspace"], "sampling_mask": data["input_sampling_mask"]}
        return super().forward_function(data)


def stop_gradient_at_zero(image: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Return the image, through which no gradient flows where it is zero at all positions along `dims`.

    The magnitude, over real and imaginary part or coils as well, has a derivative of NaN there.
    """
    return image.where((image != 0).any(dim=dims, keepdim=True), 0.0)
