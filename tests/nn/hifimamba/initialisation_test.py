from __future__ import annotations

import pytest
import torch
from direct.data.transforms import fft2, ifft2
from torch import nn

from direct_hifimamba.nn.hifimamba.attention import ChannelAttention
from direct_hifimamba.nn.hifimamba.bottleneck import InvertedBottleneck
from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
from direct_hifimamba.nn.hifimamba.moe import Router
from direct_hifimamba.nn.layers.selective_scan_2d import SelectiveScan2D


@pytest.fixture(scope="module", params=["reference", "balanced"])
def network(request: pytest.FixtureRequest) -> HiFiMambaV2:
    torch.manual_seed(0)
    return HiFiMambaV2(fft2, ifft2, blocks_per_stage=(1,), initialisation=request.param)


def of_kind(network: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]


def std_of(weight: torch.Tensor) -> float:
    return weight.std().item()


def xavier_std(weight: torch.Tensor) -> float:
    return (2 / sum(weight.shape)) ** 0.5


def test_linear_layers(network: HiFiMambaV2) -> None:
    scheme = network.config.initialisation
    for name, linear in of_kind(network, nn.Linear):
        if "router" in name:
            expected = 0.02
        elif scheme == "reference":
            # The channel attention is a convolution there, left at PyTorch's default: uniform in +-fan_in^-1/2.
            expected = (3 * 128) ** -0.5 if "channel_attention" in name else 0.02
        else:
            expected = xavier_std(linear.weight)
        tolerance = 0.1 if linear.weight.numel() > 600 else 0.2
        assert std_of(linear.weight) == pytest.approx(expected, rel=tolerance), name
        if linear.bias is not None and not (scheme == "reference" and "channel_attention" in name):
            assert not linear.bias.any(), name
    for _, attention in of_kind(network, ChannelAttention):
        assert attention.pointwise.bias.any() == (scheme == "reference")


def test_bottlenecks(network: HiFiMambaV2) -> None:
    for name, bottleneck in of_kind(network, InvertedBottleneck):
        expected = 0.02 if network.config.initialisation == "reference" else (2 / 9) ** 0.5
        assert std_of(bottleneck.depthwise.weight) == pytest.approx(expected, rel=0.1), name


def test_norms(network: HiFiMambaV2) -> None:
    for name, norm in [*of_kind(network, nn.LayerNorm), *of_kind(network, nn.GroupNorm)]:
        assert norm.eps == 1e-5, name
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)), name
        assert not norm.bias.any(), name


def test_matrix_projections(network: HiFiMambaV2) -> None:
    for _, scan in of_kind(network, SelectiveScan2D):
        weight = scan.matrix_projection[0]
        uniform = (3 * weight.shape[1]) ** -0.5
        expected = uniform if network.config.initialisation == "reference" else xavier_std(weight)
        assert std_of(weight) == pytest.approx(expected, rel=0.1)
        assert torch.equal(scan.steering_matrix_projection, scan.matrix_projection[:, scan.sizes[0] :])


def test_convolutions_that_stay_at_the_default_of_pytorch(network: HiFiMambaV2) -> None:
    for name, convolution in of_kind(network, nn.Conv2d):
        if "bottleneck" in name:
            continue
        fan_in = convolution.weight[0].numel()
        assert std_of(convolution.weight) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1), name


def state_share(network: HiFiMambaV2) -> float:
    """How large the output of the selective scan is without its skip connection, over what it is with it."""
    block = network.stages[0].blocks[0]
    inputs = torch.randn(2, 1, 16, 16, 64)
    with torch.no_grad():
        full = block.selective_scan.eval()(*inputs)
        skip = block.selective_scan.D.data.clone()
        block.selective_scan.D.data.zero_()
        state = block.selective_scan(*inputs)
        block.selective_scan.D.data.copy_(skip)
    return (state.norm() / full.norm()).item()


def test_the_state_starts_small_in_the_reference_only(network: HiFiMambaV2) -> None:
    share = state_share(network)
    assert share < 5e-3 if network.config.initialisation == "reference" else share > 5e-3


def test_routers_start_undecided(network: HiFiMambaV2) -> None:
    for _, router in of_kind(network, Router):
        probabilities = router(torch.randn(100, 128)).probabilities
        assert probabilities.min() > 0.1
        assert probabilities.max() < 0.5
