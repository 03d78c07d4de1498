from __future__ import annotations

import pytest
import torch
from direct.data.transforms import modulus

from tests.nn.mamba_baselines_test import BASELINES, batch, build_engine

(MAMBAROLL,) = [baseline for baseline in BASELINES if baseline.name == "MambaRoll"]


def test_the_scales_count_a_third_of_the_image() -> None:
    """The loss is 3 times that of the image plus those of the scales, up to a factor."""
    engine, data = build_engine(MAMBAROLL, "l1_loss", "kspace_l1_loss"), batch()
    engine.models_training_mode()
    losses = engine._do_iteration(data, engine.build_loss()).data_dict
    assert losses.keys() == {"l1_loss", "kspace_l1_loss", "scale_loss"}
    keys = ("masked_kspace", "sampling_mask", "sensitivity_map")
    scales = modulus(engine.model(**{key: data[key] for key in keys}).scale_images)
    assert scales.shape == (2, 3, 18, 16)
    expected = (scales - data["target"][:, None]).abs().mean(dim=(0, 2, 3)).sum() / 3
    assert losses["scale_loss"].item() == pytest.approx(expected.item())


def test_losses_of_the_scales_alone_train_every_scale_and_no_refinement_of_the_last_roll() -> None:
    engine = build_engine(MAMBAROLL, "l1_loss", num_rolls=1)
    engine.models_training_mode()
    losses = engine.build_loss()
    del losses["l1_loss"]
    engine._do_iteration(batch(), losses)
    for name, parameter in engine.model.named_parameters():
        trained = parameter.grad is not None and bool(parameter.grad.any())
        assert trained == ("refinement" not in name), name


def test_pixels_that_no_coil_sees_do_not_spoil_the_gradient() -> None:
    engine, data = build_engine(MAMBAROLL, "l1_loss"), batch()
    data["sensitivity_map"][..., :4, :5, :] = 0
    for scale in engine.model.roll.scales:
        torch.nn.init.zeros_(scale.decoder.weight)
        torch.nn.init.zeros_(scale.decoder.bias)
    engine.models_training_mode()
    engine._do_iteration(data, engine.build_loss())
    assert all(parameter.grad.isfinite().all() for parameter in engine.model.parameters())


@pytest.mark.parametrize(("losses", "weight"), [(["l1_loss"], 0.0), (["kspace_l1_loss"], 1.0)])
def test_without_weight_or_loss_of_the_image_there_is_no_loss_of_the_scales(losses: list[str], weight: float) -> None:
    engine = build_engine(MAMBAROLL, *losses, scale_loss_weight=weight)
    assert list(engine.build_loss()) == losses
