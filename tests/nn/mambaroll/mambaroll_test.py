"""Tests of what the description of MambaRoll says, sentence by sentence (docs/mamba_baselines.md)."""

from __future__ import annotations

import pytest
import torch
from direct.data.transforms import fft2, ifft2
from torch.nn import functional as F

from direct_hifimamba.nn.mambaroll.config import MambaRollConfig
from direct_hifimamba.nn.mambaroll.mambaroll import MambaRoll, ScaleModule
from direct_hifimamba.nn.mambaroll.shuffled_scan import ShuffledScan
from tests.helpers import assert_close, measure, perturb

TINY = {"channels_per_scale": (4, 3, 2), "state_size": 3, "scan_backend": "torch"}


def channels_first(features: torch.Tensor) -> torch.Tensor:
    return features.permute(0, 3, 1, 2)


@torch.no_grad()
def scan_step_by_step(scan: ShuffledScan, features: torch.Tensor) -> torch.Tensor:
    """Pixel-unshuffle 4, LayerNorm, selective scan in one direction without gate, shuffle, sum; one step at a time."""
    blocks = F.pixel_unshuffle(channels_first(features), 4).permute(0, 2, 3, 1)
    u = F.layer_norm(blocks, blocks.shape[-1:], scan.norm.weight, scan.norm.bias).flatten(1, 2)
    state_size, y = scan.A_log.shape[1], torch.empty_like(u)
    rank = scan.matrix_projection.shape[1] - 2 * state_size
    for image in range(len(u)):
        state = torch.zeros_like(scan.A_log)
        for step, pixel in enumerate(u[image]):
            low_rank, B, C = (scan.matrix_projection[0] @ pixel).split([rank, state_size, state_size])
            delta = F.softplus(scan.step_size_projection[0] @ low_rank + scan.step_size_bias[0])
            state = (-delta[:, None] * scan.A_log.exp()).exp() * state + (delta * pixel)[:, None] * B
            y[image, step] = state @ C + scan.D * pixel
    y = y.unflatten(1, blocks.shape[1:3]).permute(0, 3, 1, 2)
    return features + F.pixel_shuffle(y, 4).permute(0, 2, 3, 1)


def test_the_scan_of_unshuffled_pixels() -> None:
    scan = perturb(ShuffledScan(2, 3, "torch")).double()
    features = torch.randn(2, 8, 12, 2, dtype=torch.float64)
    assert_close(scan(features), scan_step_by_step(scan, features), 1e-10)
    scan.D.data.zero_()  # the states alone
    assert_close(scan(features), scan_step_by_step(scan, features), 1e-10)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_scale_is_convolution_strided_convolution_scan_and_transposed_convolution(stride: int) -> None:
    module = perturb(ScaleModule(2, 4, stride, MambaRollConfig(**TINY)))
    images = torch.randn(1, 16, 32, 4)
    features = F.silu(F.conv2d(channels_first(images), module.convolution.weight, module.convolution.bias, padding=1))
    features = F.conv2d(features, module.encoder.weight, module.encoder.bias, stride=stride, padding=1)
    assert features.shape == (1, 4, 16 // stride, 32 // stride)
    features = channels_first(scan_step_by_step(module.scan, F.silu(features).permute(0, 2, 3, 1)))
    decoder = module.decoder
    image = F.conv_transpose2d(features, decoder.weight, decoder.bias, stride=stride, padding=1)
    assert image.shape == (1, 2, 16, 32)
    assert_close(module(images), image.permute(0, 2, 3, 1), 1e-5)


def test_the_published_sizes() -> None:
    """5 rolls; scales 1/4, 1/2, 1 with 96, 48, 24 channels; 4 x 4 pixels at a time; N = 16."""
    network = MambaRoll(fft2, ifft2)
    assert network.num_rolls == 5
    encoders = [scale.encoder for scale in network.roll.scales]
    assert [encoder.stride for encoder in encoders] == [(4, 4), (2, 2), (1, 1)]
    assert [encoder.out_channels for encoder in encoders] == [96, 48, 24]
    assert [scale.scan.A_log.shape for scale in network.roll.scales] == [(16 * 96, 16), (16 * 48, 16), (16 * 24, 16)]
    assert [scale.convolution.in_channels for scale in network.roll.scales] == [2, 4, 4]
    assert sum(parameter.numel() for parameter in network.parameters()) == 915_536


@torch.no_grad()
def test_rolls_share_weights_and_scales_pass_on_their_output_and_its_consistent_form() -> None:
    network, measurement = perturb(MambaRoll(fft2, ifft2, num_rolls=2, **TINY)), measure(1, 3, 16, 32)
    kspace, mask, maps = measurement
    complex_maps = torch.view_as_complex(maps)

    def combine(coil_kspace: torch.Tensor) -> torch.Tensor:
        coil_images = torch.view_as_complex(ifft2(coil_kspace, dim=(2, 3)))
        return torch.view_as_real((complex_maps.conj() * coil_images).sum(1))

    def make_consistent(image: torch.Tensor) -> torch.Tensor:
        coil_images = complex_maps * torch.view_as_complex(image.contiguous())[:, None]
        return combine(torch.where(mask, kspace, fft2(torch.view_as_real(coil_images), dim=(2, 3))))

    roll, image = network.roll, combine(kspace)
    for _ in range(2):
        coarse = roll.scales[0](image)
        middle = roll.scales[1](torch.cat([coarse, make_consistent(coarse)], dim=-1))
        fine = roll.scales[2](torch.cat([middle, make_consistent(middle)], dim=-1))
        refined = channels_first(torch.cat([fine, make_consistent(fine)], dim=-1))
        for convolution, activation in ((roll.refinement.first, F.silu), (roll.refinement.second, torch.clone)):
            refined = activation(F.conv2d(refined, convolution.weight, convolution.bias, padding=1))
        image = make_consistent(refined.permute(0, 2, 3, 1))
    output = network(*measurement)
    assert_close(output.image, image, 1e-5)
    for actual, expected in zip(output.scale_images.unbind(1), (coarse, middle, fine), strict=True):
        assert_close(actual, expected, 1e-5)


@torch.no_grad()
def test_a_residual_network_that_predicts_nothing_returns_the_consistent_zero_filled_image() -> None:
    network, measurement = MambaRoll(fft2, ifft2, num_rolls=2, image_residual=True, **TINY), measure(1, 1, 16, 18)
    for module in (*(scale.decoder for scale in network.roll.scales), network.roll.refinement.second):
        module.weight.zero_()
        module.bias.zero_()
    zero_filled = torch.view_as_complex(ifft2(measurement.masked_kspace, dim=(2, 3)))
    zero_filled = (torch.view_as_complex(measurement.sensitivity_map).conj() * zero_filled)[:, 0]
    assert_close(network(*measurement).image, torch.view_as_real(zero_filled), 1e-5)


def test_images_need_whole_blocks_at_the_coarsest_scale() -> None:
    network = MambaRoll(fft2, ifft2, channels_per_scale=(2, 2, 2, 2), state_size=3)
    with pytest.raises(ValueError, match="masked_kspace is 31 x 32; expected at least 32 x 32"):
        network(*measure(1, 1, 31, 32))
    assert network(*measure(1, 1, 33, 47)).image.isfinite().all()


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_one_clear_error(value: float) -> None:
    with pytest.raises(ValueError, match=f"scale_loss_weight is {value}; expected a finite number from 0 up"):
        MambaRollConfig(scale_loss_weight=value)
