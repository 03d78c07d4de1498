from collections.abc import Callable

import pytest
import torch

from direct_hifimamba.ops import inverted_bottleneck as module
from direct_hifimamba.ops import library
from direct_hifimamba.ops.inverted_bottleneck import (
    BottleneckWeights,
    inverted_bottleneck,
    inverted_bottleneck_definition,
)

Function = Callable[[torch.Tensor, BottleneckWeights], torch.Tensor]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def draw_weights(channels: int, inner: int) -> BottleneckWeights:
    vectors = [draw(inner, seed=seed) for seed in range(4)]
    return BottleneckWeights(
        draw(inner, channels), *vectors[:2], draw(inner, 1, 3, 3), *vectors[2:], draw(channels, inner) / inner**0.5
    )


def double(weights: BottleneckWeights) -> BottleneckWeights:
    return BottleneckWeights(*(weight.double() for weight in weights))


def with_gradients(function: Function, x: torch.Tensor, weights: BottleneckWeights) -> list[torch.Tensor]:
    """The branch beside the skip connection, and all gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, *weights)]
    branch = function(leaves[0], BottleneckWeights(*leaves[1:])) - leaves[0]
    grad = draw(*x.shape, seed=9).to(x.dtype)
    return [branch.detach(), *torch.autograd.grad(branch, leaves, grad)]


# More than one part of the pixels, a last chunk and a last tile that are not full, and more than one group of channels.
SIZES = [(2, 1, 1, 16, 16), (1, 1, 5, 16, 48), (2, 7, 13, 48, 80), (1, 9, 24, 64, 320), (1, 47, 61, 16, 32)]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("level", [0.0, 20.0])
@pytest.mark.parametrize(("batch", "height", "width", "channels", "inner"), SIZES)
def test_the_kernel_is_as_accurate_as_the_definition(
    batch: int, height: int, width: int, channels: int, inner: int, level: float
) -> None:
    x, weights = draw(batch, height, width, channels) * 2 + level, draw_weights(channels, inner)
    exact = with_gradients(inverted_bottleneck_definition, x.double(), double(weights))
    defined = with_gradients(inverted_bottleneck_definition, x, weights)
    actual = with_gradients(inverted_bottleneck, x, weights)
    for a, d, e in zip(actual, defined, exact, strict=True):
        assert (a - e).abs().max() <= 4 * (d - e).abs().max() + 1e-5 * e.abs().max()
    assert torch.equal(inverted_bottleneck(x, weights) - x, actual[0])  # without gradients


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(
    "odd", [(0, 1), (slice(None), 0), (slice(None), -1), (0, slice(None))], ids=["pixel", "first", "last", "row"]
)
def test_statistics_of_features_of_which_some_are_far_from_the_rest(odd: tuple[int | slice, ...]) -> None:
    """The mean of some pixels is taken off before products are added up; it must not be that of the odd ones."""
    x = draw(256, 256, 16)
    x[odd] += 100
    *_, mean, covariance = module._forward(x.unsqueeze(0), *draw_weights(16, 16), False)
    flat = x.double().flatten(0, 1)
    exact = flat.t().cov(correction=0)
    assert (mean[0] - flat.mean(0)).abs().max() <= 1e-6 * flat.std()
    assert (covariance[0] - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(("scale", "level"), [(0.0, 0.0), (0.0, 3.0), (1e-3, 0.0), (1e-5, 0.0)])
def test_images_with_little_or_no_contrast(scale: float, level: float) -> None:
    x, weights = draw(1, 9, 7, 16) * scale + level, draw_weights(16, 32)
    exact = inverted_bottleneck_definition(x.double(), double(weights))
    assert (inverted_bottleneck(x, weights) - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.usefixtures("instruction_set")
def test_one_expanded_tensor_is_kept() -> None:
    x, weights, kept = draw(1, 32, 32, 16).requires_grad_(), draw_weights(16, 80), dict[int, int]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        inverted_bottleneck(x, weights)
    moments = 2 + 16 + 16 * 16
    assert sum(kept.values()) <= (5 + 2) * x.numel() + sum(weight.numel() for weight in weights) + moments


@pytest.mark.usefixtures("instruction_set")
def test_bitwise_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, results = draw(1, 61, 47, 16), draw_weights(16, 48), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        monkeypatch.setattr(library, "number_of_threads", lambda *_, threads=threads: threads)
        results.append(with_gradients(inverted_bottleneck, x, weights))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.usefixtures("instruction_set")
def test_operators_are_registered_correctly() -> None:
    x, weights = draw(2, 4, 5, 16), draw_weights(16, 32)
    leaves = [tensor.requires_grad_() for tensor in (x, *weights)]
    torch.library.opcheck(module._forward, (*leaves, True), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(module._forward, (*leaves, False), test_utils=("test_schema", "test_faketensor"))
    with torch.no_grad():
        saved = module._forward(*leaves, True)[1:]
    arguments = (draw(2, 4, 5, 16), *(tensor.detach() for tensor in (x, *weights)), *saved)
    torch.library.opcheck(module._backward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.usefixtures("instruction_set")
def test_arguments_need_not_be_contiguous() -> None:
    x, weights = draw(1, 6, 16, 5).mT, draw_weights(16, 32)
    kernel = weights.depthwise.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    strided = weights._replace(expand=weights.expand.t().contiguous().t(), depthwise=kernel)
    assert not any(tensor.is_contiguous() for tensor in (x, strided.expand, strided.depthwise))
    assert torch.equal(inverted_bottleneck(x, strided), inverted_bottleneck(x.contiguous(), weights))


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("index", range(8))
def test_sizes_that_do_not_fit_are_refused(index: int) -> None:
    tensors = [draw(2, 4, 5, 16), *draw_weights(16, 32)]
    for wrong in (tensors[index][:1], tensors[index].flatten()[:8], tensors[index].double()):
        given = tensors.copy()
        given[index] = wrong
        if index == 0 and wrong.shape == (1, 4, 5, 16):
            continue  # another batch
        with pytest.raises((ValueError, TypeError), match=r"expected|multiples of 16"):
            module._forward(*given, False)
    saved = module._forward(*tensors, True)[1:]
    for place in range(5):
        wrong = [*saved[:place], saved[place].flatten()[:1], *saved[place + 1 :]]
        with pytest.raises(ValueError, match="expected"):
            module._backward(tensors[0], *tensors, *wrong)
    for tensor in (tensors[index], saved[0]):
        mixed = [each.to("meta") if each is tensor else each for each in (torch.ones(1, 4, 5, 16), *tensors, *saved)]
        with pytest.raises(ValueError, match="on cpu and meta; expected one device"):
            module._backward(*mixed)
    with pytest.raises(ValueError, match="grad is"):
        module._backward(tensors[0][:1], *tensors, *saved)


@pytest.mark.parametrize("channels", [8, 24])
def test_channels_that_the_kernel_does_not_take(channels: int) -> None:
    x, weights = draw(2, 4, 5, channels), draw_weights(channels, 2 * channels)
    assert torch.equal(inverted_bottleneck(x, weights), inverted_bottleneck_definition(x, weights))
    with pytest.raises(ValueError, match=r"the compiled kernels take multiples of 16 only"):
        module._forward(x, *weights, False)


def test_autocast_takes_the_definition() -> None:
    weights, x = draw_weights(16, 32), draw(1, 8, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = inverted_bottleneck(x, weights)
        assert torch.equal(mixed, inverted_bottleneck_definition(x, weights))
    full = inverted_bottleneck(x, weights)
    torch.testing.assert_close(mixed.float(), full, rtol=0.1, atol=0.1 * full.abs().max().item())


@pytest.mark.skipif(not library.INSTRUCTION_SETS, reason="plain PyTorch follows autocast in the backward pass")
def test_a_backward_pass_under_autocast_is_that_without() -> None:
    leaves = [tensor.requires_grad_() for tensor in (draw(1, 8, 8, 16), *draw_weights(16, 32))]
    output = inverted_bottleneck(leaves[0], BottleneckWeights(*leaves[1:]))
    expected = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(output.sum(), leaves)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_no_images() -> None:
    x = torch.empty(0, 3, 4, 16, requires_grad=True)
    assert inverted_bottleneck(x, draw_weights(16, 32)).shape == x.shape
