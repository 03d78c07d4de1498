"""Tests of what the description of MambaRecon says, sentence by sentence (docs/mamba_baselines.md)."""

from __future__ import annotations

import torch
from direct.data.transforms import fft2, ifft2
from torch.nn import functional as F

from direct_hifimamba.nn.layers.sense import Acquisition, FourierConvention
from direct_hifimamba.nn.mambarecon.mambarecon import Block, MambaRecon
from direct_hifimamba.nn.mambarecon.ss2d import SS2D
from tests.helpers import assert_close, measure, perturb

CHANNELS, STATE = 3, 4


def small_scan() -> SS2D:
    """A scan in float64, no branch of it negligible."""
    scan = SS2D(CHANNELS, STATE, "torch")
    torch.nn.init.normal_(scan.matrix_projection, std=0.5)
    return perturb(scan).double()


def scan_step_by_step(scan: SS2D, features: torch.Tensor) -> torch.Tensor:
    """SS2D written out for an image (height, width, channels): pixel by pixel, direction by direction."""
    height, width, _ = features.shape
    inner = 2 * CHANNELS
    u, gate = (features @ scan.input_projection.weight.t()).split(inner, dim=-1)
    u = F.conv2d(u.permute(2, 0, 1)[None], scan.depthwise.weight, scan.depthwise.bias, padding=1, groups=inner)
    u = F.silu(u)[0].permute(1, 2, 0)
    rows = [(row, column) for row in range(height) for column in range(width)]
    columns = [(row, column) for column in range(width) for row in range(height)]
    total = torch.zeros_like(u)
    for direction, order in enumerate((rows, rows[::-1], columns, columns[::-1])):
        A = -scan.A_log[direction * inner : (direction + 1) * inner].exp()
        D = scan.D[direction * inner : (direction + 1) * inner]
        state = torch.zeros(inner, STATE, dtype=torch.float64)
        for row, column in order:
            pixel = u[row, column]
            low_rank, B, C = (scan.matrix_projection[direction] @ pixel).split([1, STATE, STATE])
            delta = F.softplus(scan.step_size_projection[direction] @ low_rank + scan.step_size_bias[direction])
            state = (delta[:, None] * A).exp() * state + (delta * pixel)[:, None] * B
            total[row, column] += state @ C + D * pixel
    normalised = F.layer_norm(total, (inner,), scan.norm.weight, scan.norm.bias)
    return (normalised * F.silu(gate)) @ scan.output_projection.weight.t()


def test_the_scan_is_that_of_vmamba() -> None:
    """Expansion 2, 3 x 3 depthwise convolution and SiLU, four directions, sum, LayerNorm, SiLU gate, linear."""
    scan, features = small_scan(), torch.randn(2, 3, 5, CHANNELS, dtype=torch.float64)
    expected = torch.stack([scan_step_by_step(scan, image) for image in features])
    assert_close(scan(features), expected, 1e-10)
    scan.D.data.zero_()  # the states alone
    assert_close(scan(features), torch.stack([scan_step_by_step(scan, image) for image in features]), 1e-10)


def test_a_block_is_layer_norm_scan_and_residual_without_an_mlp() -> None:
    network = MambaRecon(fft2, ifft2, hidden_channels=8, state_size=4)
    block, features = perturb(network.stages[0].blocks[0]), torch.randn(1, 4, 5, 8)
    assert isinstance(block, Block)
    normalised = F.layer_norm(features, (8,), block.norm.weight, block.norm.bias)
    assert torch.equal(block(features), features + block.scan(normalised))
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"norm", "scan"}


def test_the_published_sizes() -> None:
    """6 stages of 2 blocks with 128 channels, patches of 2 x 2, expansion 2, N = 16."""
    network = MambaRecon(fft2, ifft2)
    assert [len(stage.blocks) for stage in network.stages] == [2] * 6
    projection = network.embedding.projection
    assert (projection.in_channels, projection.out_channels, projection.kernel_size, projection.stride) == (
        *(2, 128),
        *[(2, 2)] * 2,
    )
    scan = network.stages[0].blocks[0].scan
    assert scan.A_log.shape == (4 * 256, 16)
    assert scan.depthwise.weight.shape == (256, 1, 3, 3)
    assert scan.step_size_projection.shape == (4, 256, 8)
    assert network.update.prediction.projection.weight.shape == (2 * 2**2, 128)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_047_872


@torch.no_grad()
def test_the_network_is_embedding_stages_and_a_last_data_consistency() -> None:
    """Each stage: blocks, linear map to the image, hard data consistency, SiLU, embedding, sum."""
    network = perturb(MambaRecon(fft2, ifft2, hidden_channels=8, blocks_per_stage=(2, 1), state_size=4))
    measurement = measure(1, 3, 16, 18)
    kspace, mask, maps = measurement
    complex_maps = torch.view_as_complex(maps)

    def combine(coil_kspace: torch.Tensor) -> torch.Tensor:
        coil_images = torch.view_as_complex(ifft2(coil_kspace, dim=(2, 3)))
        return torch.view_as_real((complex_maps.conj() * coil_images).sum(1))

    def embed(image: torch.Tensor, embedding: torch.nn.Module) -> torch.Tensor:
        patches = F.conv2d(image.permute(0, 3, 1, 2), embedding.projection.weight, embedding.projection.bias, stride=2)
        return F.layer_norm(patches.permute(0, 2, 3, 1), (8,), embedding.norm.weight, embedding.norm.bias)

    def make_consistent(features: torch.Tensor, update: torch.nn.Module) -> torch.Tensor:
        pixels = (features @ update.prediction.projection.weight.t()).unflatten(-1, (2, 2, 2))
        image = pixels.permute(0, 1, 3, 2, 4, 5).reshape(1, 16, 18, 2)
        coil_images = complex_maps * torch.view_as_complex(image)[:, None]
        predicted = fft2(torch.view_as_real(coil_images), dim=(2, 3))
        return combine(torch.where(mask, kspace, predicted))

    features = embed(combine(kspace), network.embedding)
    for stage in network.stages:
        for block in stage.blocks:
            features = block(features)
        features = features + embed(F.silu(make_consistent(features, stage.update)), stage.embedding)
    features = F.layer_norm(features, (8,), network.norm.weight, network.norm.bias)
    assert_close(network(*measurement), make_consistent(features, network.update), 1e-5)


@torch.no_grad()
def test_a_residual_network_that_predicts_nothing_returns_the_consistent_zero_filled_image() -> None:
    network = MambaRecon(fft2, ifft2, hidden_channels=8, blocks_per_stage=(1,), state_size=4, image_residual=True)
    for module in (network.stages[0], network):
        module.update.prediction.projection.weight.zero_()
    measurement = measure(1, 1, 16, 18)
    acquisition = Acquisition.from_measurement(measurement, FourierConvention(centered=True, normalized=True))
    assert_close(network(*measurement), acquisition.zero_filled(), 1e-5)
