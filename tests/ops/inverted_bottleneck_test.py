import pytest
import torch

from direct_hifimamba.ops import inverted_bottleneck as module
from direct_hifimamba.ops.inverted_bottleneck import (
    BottleneckWeights,
    inverted_bottleneck,
    inverted_bottleneck_plain,
)


def make_weights(channels: int, expansion: int, dtype: torch.dtype, generator: torch.Generator) -> BottleneckWeights:
    wide = channels * expansion

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return BottleneckWeights(
        draw(wide, channels), draw(wide), draw(wide), draw(wide, 1, 3, 3), draw(wide), draw(wide), draw(channels, wide)
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("band_elements", [1, 200, 2**19])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (3, 1), (7, 4), (8, 5)])
def test_bands_equal_the_definition(size, band_elements, generator, monkeypatch):
    monkeypatch.setattr(module, "_BAND_ELEMENTS", band_elements)
    weights = make_weights(4, 3, torch.float64, generator)
    # A mean far from zero and a scale far from one: statistics must not cancel.
    features = torch.randn(2, *size, 4, generator=generator, dtype=torch.float64) * 3 + 20
    features.requires_grad_()
    grad = torch.randn(features.shape, generator=generator, dtype=torch.float64)

    banded, plain = inverted_bottleneck(features, weights), inverted_bottleneck_plain(features, weights)
    torch.testing.assert_close(banded, plain, rtol=1e-9, atol=1e-9)
    actual = torch.autograd.grad(banded, [features, *weights], grad)
    expected = torch.autograd.grad(plain, [features, *weights], grad)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-9 * max(1.0, e.abs().max().item()))
    with torch.no_grad():
        torch.testing.assert_close(inverted_bottleneck(features, weights), banded, rtol=0, atol=0)


def test_gradcheck(generator, monkeypatch):
    monkeypatch.setattr(module, "_BAND_ELEMENTS", 50)
    weights = make_weights(2, 2, torch.float64, generator)
    features = torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *w: inverted_bottleneck(x, BottleneckWeights(*w)), [features, *weights])


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_is_as_accurate_as_the_definition(offset, generator):
    weights = make_weights(8, 5, torch.float32, generator)
    exact_weights = BottleneckWeights(*(weight.double() for weight in weights))
    features = torch.randn(1, 40, 24, 8, generator=generator) + offset
    with torch.no_grad():
        exact = inverted_bottleneck_plain(features.double(), exact_weights) - features
        error = (inverted_bottleneck(features, weights) - features - exact).abs().max()
        plain_error = (inverted_bottleneck_plain(features, weights) - features - exact).abs().max()
    # Adding to the large features rounds; beyond that the two may differ by their order of summation.
    assert error < 4 * plain_error + 1e-6 * exact.abs().max()


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_float32_gradients_are_as_accurate_as_those_of_the_definition(offset, generator):
    """Channels that the compiled kernels take."""
    weights = make_weights(32, 5, torch.float32, generator)
    features = torch.randn(2, 24, 37, 32, generator=generator) + offset
    grad = torch.randn(features.shape, generator=generator)

    def gradients(function, dtype):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (features, *weights)]
        return torch.autograd.grad(function(leaves[0], BottleneckWeights(*leaves[1:])), leaves, grad.to(dtype))

    exact = gradients(inverted_bottleneck_plain, torch.float64)
    for a, p, e in zip(
        gradients(inverted_bottleneck, torch.float32),
        gradients(inverted_bottleneck_plain, torch.float32),
        exact,
        strict=True,
    ):
        assert (a - e).abs().max() < 4 * (p - e).abs().max() + 1e-6 * e.abs().max()


def test_keeps_one_wide_tensor(generator):
    weights = make_weights(4, 5, torch.float32, generator)
    features = torch.randn(1, 32, 32, 4, generator=generator).requires_grad_()
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        inverted_bottleneck(features, weights)
    weight_elements = sum(weight.numel() for weight in weights)
    moments = 2 + 4 + 4 * 4
    assert sum(kept.values()) <= (5 + 2) * features.numel() + weight_elements + moments


def test_autocast_takes_the_definition(generator):
    weights = make_weights(4, 3, torch.float32, generator)
    features = torch.randn(1, 8, 8, 4, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = inverted_bottleneck(features, weights)
        assert torch.equal(mixed, inverted_bottleneck_plain(features, weights))
    full = inverted_bottleneck(features, weights)
    torch.testing.assert_close(mixed.float(), full, rtol=0.1, atol=0.1 * full.abs().max().item())
