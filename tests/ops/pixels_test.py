import pytest
import torch
from torch.nn import functional as F

from direct_hifimamba.ops import library, pixels
from direct_hifimamba.ops.inverted_bottleneck import BottleneckWeights, inverted_bottleneck_plain

pytestmark = pytest.mark.usefixtures("instruction_set")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_close(actual: torch.Tensor, exact: torch.Tensor, relative: float = 1e-6) -> None:
    """Within float32's rounding of sums of some hundred products."""
    assert actual.shape == exact.shape
    assert (actual.double() - exact).abs().max() <= relative * exact.abs().max()


def draw_bottleneck(channels: int, wide: int) -> BottleneckWeights:
    vectors = [draw(wide, seed=seed) for seed in range(4)]
    return BottleneckWeights(
        draw(wide, channels), *vectors[:2], draw(wide, 1, 3, 3), *vectors[2:], draw(channels, wide) / wide**0.5
    )


# More than one part of the pixels, a last chunk and a last tile that are not full, and more than one group of channels.
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "channels", "wide"),
    [(2, 1, 16, 16), (1, 5, 16, 48), (7, 13, 48, 80), (9, 24, 64, 320), (47, 61, 16, 32)],
)
def test_inverted_bottleneck(height: int, width: int, channels: int, wide: int, keep: bool) -> None:
    x, weights = draw(height, width, channels) * 2 - 7, draw_bottleneck(channels, wide)
    exact_x, exact = x.double(), BottleneckWeights(*(weight.double() for weight in weights))

    def normalised(features: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return F.group_norm(features.permute(2, 0, 1).unsqueeze(0), 1, scale, offset)

    activated = F.gelu(
        normalised(F.linear(exact_x, exact.expand), scale=exact.expand_scale, offset=exact.expand_offset)
    )
    exact_convolved = F.conv2d(activated, exact.depthwise, padding=1, groups=wide)[0].permute(1, 2, 0)
    activated = F.gelu(normalised(exact_convolved, exact.depthwise_scale, exact.depthwise_offset))
    exact_projected = F.linear(activated[0].permute(1, 2, 0), exact.project)

    result, convolved, projected, statistics, mean, covariance = pixels.inverted_bottleneck(x, *weights, keep)
    # Normalisation magnifies what the products of features far from zero were rounded by.
    assert_close(result - x, F.gelu(exact_projected), relative=1e-5)
    std = (exact_convolved.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(statistics, torch.stack([exact_convolved.mean(), std]), rtol=1e-5, atol=1e-6)
    flat = exact_x.flatten(0, 1)
    torch.testing.assert_close(mean, flat.mean(0), rtol=1e-6, atol=0)
    assert_close(covariance, flat.t().cov(correction=0).view(channels, channels), relative=1e-6)
    if keep:
        assert_close(convolved, exact_convolved, relative=1e-5)
        assert_close(projected, exact_projected, relative=1e-5)
    else:
        assert convolved.numel() == projected.numel() == 0


@pytest.mark.parametrize(
    "odd", [(0, 1), (slice(None), 0), (slice(None), -1), (0, slice(None))], ids=["pixel", "first", "last", "row"]
)
def test_statistics_of_features_of_which_some_are_far_from_the_rest(odd: tuple[int | slice, ...]) -> None:
    """The mean of some pixels is taken off before products are added up; it must not be that of the odd ones."""
    x = draw(256, 256, 16)
    x[odd] += 100
    *_, mean, covariance = pixels.inverted_bottleneck(x, *draw_bottleneck(16, 16), False)
    flat = x.double().flatten(0, 1)
    assert (mean - flat.mean(0)).abs().max() <= 1e-6 * flat.std()
    assert_close(covariance, flat.t().cov(correction=0))


@pytest.mark.parametrize(("scale", "level"), [(0.0, 0.0), (0.0, 3.0), (1e-3, 0.0), (1e-5, 0.0)])
def test_images_with_little_or_no_contrast(scale: float, level: float) -> None:
    x, weights = draw(9, 7, 16) * scale + level, draw_bottleneck(16, 32)
    exact = inverted_bottleneck_plain(x.double().unsqueeze(0), BottleneckWeights(*(w.double() for w in weights)))[0]
    result, *_ = pixels.inverted_bottleneck(x, *weights, False)
    assert_close(result, exact, relative=1e-5)


def draw_experts(channels: int, hidden: int, count: int = 1) -> list[torch.Tensor]:
    shapes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    return [draw(*shape, seed=100 * i) for i in range(count) for shape in shapes]


@pytest.mark.parametrize("first_has_all", [False, True])
@pytest.mark.parametrize(("count", "channels", "hidden"), [(0, 16, 16), (1, 16, 32), (11, 48, 80), (40, 128, 256)])
def test_sum_of_experts(count: int, channels: int, hidden: int, first_has_all: bool) -> None:
    x, experts = draw(50, channels), draw_experts(channels, hidden, 3)
    indices = [None if first_has_all else torch.arange(0), torch.randperm(50)[:count], None]
    weights = [None, draw(count), draw(50)]
    exact = torch.zeros(50, channels, dtype=torch.float64)
    for i, (index, weight) in enumerate(zip(indices, weights, strict=True)):
        rows = slice(None) if index is None else index
        U, a, V, b = (tensor.double() for tensor in experts[4 * i : 4 * i + 4])
        output = F.linear(F.gelu(F.linear(x[rows].double(), U, a)), V, b)
        exact[rows] += output if weight is None else output * weight[:, None]
    assert_close(pixels.sum_of_experts(x, experts, indices, weights), exact)


@pytest.mark.parametrize("beyond", [0, 3])
@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 16), (1, 7, 48), (5, 1, 16), (9, 13, 32)])
def test_depthwise_silu(height: int, width: int, channels: int, beyond: int) -> None:
    """Of channels beside others, in rows that may go on, one of them in an axis of its own."""
    x = draw(height, width + beyond, 2 * channels)[:, :width, channels:]
    if height == 1:
        x = x[0].unsqueeze(1).transpose(0, 1)
    weight, bias = draw(channels, 1, 3, 3), draw(channels)
    image = x.double().permute(2, 0, 1).unsqueeze(0)
    exact = F.silu(F.conv2d(image, weight.double(), bias.double(), padding=1, groups=channels))[0].permute(1, 2, 0)
    assert_close(pixels.depthwise_silu(x, weight, bias), exact)


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (3, 1), (11, 2), (5, 7)])
@pytest.mark.parametrize(("length", "channels"), [(1, 1), (1, 36), (3, 5), (40, 16), (700, 3), (1030, 36)])
def test_convolve_sequence(length: int, channels: int, taps: int, dilation: int) -> None:
    x, weight = draw(length, channels), draw(channels, taps)
    padding = dilation * (taps - 1) // 2
    exact = F.conv1d(
        x.double().t(), weight.double().unsqueeze(1), padding=padding, dilation=dilation, groups=channels
    ).t()
    assert_close(pixels.convolve_sequence(x, weight, dilation), exact)


@pytest.mark.parametrize(("count", "channels"), [(1, 16), (15, 48), (17, 64), (100, 32)])
def test_route_detail(count: int, channels: int) -> None:
    high, detail, gamma = draw(count, 2 * channels)[:, channels:], draw(count, channels), torch.tensor(3.0)
    high[0], detail[0] = 0, 0
    similarity = F.cosine_similarity((high + detail).double(), detail.double(), dim=1)
    exact = detail + torch.sigmoid(-gamma.double() * similarity)[:, None] * high.double()
    assert_close(pixels.route_detail(high, detail, gamma), exact)


@pytest.mark.parametrize("channels", [(16,), (48, 16), (128, 64, 64)])
@pytest.mark.parametrize(("count", "outputs"), [(1, 16), (29, 128), (100, 48)])
def test_joined_linear(count: int, outputs: int, channels: tuple[int, ...]) -> None:
    parts = [draw(count, c, seed=i) for i, c in enumerate(channels)]
    weight, bias = draw(outputs, sum(channels)), draw(outputs)
    exact = F.linear(torch.cat(parts, dim=1).double(), weight.double(), bias.double())
    assert_close(pixels.joined_linear(parts, weight, bias), exact)


def double(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


# The last ones have several parts of the pixels, whose ends leave tiles and chunks incomplete.
@pytest.mark.parametrize(
    ("height", "width", "channels", "wide"), [(1, 1, 16, 16), (3, 13, 48, 80), (31, 27, 32, 48), (3, 700, 16, 32)]
)
def test_activate_project_gradients(height: int, width: int, channels: int, wide: int) -> None:
    convolved, grad = draw(height, width, wide), draw(height, width, channels)
    gain, offset, weight = draw(wide), draw(wide, seed=1), draw(channels, wide)
    exact_convolved, exact_offset, exact_weight = double(convolved, offset, weight)
    normalised = exact_convolved * gain + exact_offset
    projected = F.linear(F.gelu(normalised), exact_weight)
    exact = torch.autograd.grad(F.gelu(projected), (normalised, exact_weight, exact_offset), grad.double())
    actual = pixels.activate_project_gradients(grad, projected.detach().float(), convolved, gain, offset, weight)
    for a, e in zip(actual, (*exact, (exact[0] * convolved).sum((0, 1))), strict=True):
        assert a.is_contiguous()
        assert_close(a, e)


@pytest.mark.parametrize(
    ("height", "width", "channels", "wide"),
    [(1, 1, 16, 16), (2, 5, 16, 48), (7, 13, 48, 80), (31, 27, 32, 48), (3, 700, 16, 32)],
)
def test_expand_convolve_gradients(height: int, width: int, channels: int, wide: int) -> None:
    x, weight, bias, kernel = draw(height, width, channels), draw(wide, channels), draw(wide), draw(wide, 1, 3, 3)
    grad, normalised_grad = draw(height, width, channels, seed=1), draw(height, width, wide)
    convolved, gain = draw(height, width, wide, seed=1), draw(wide, seed=1)
    slope, level = torch.tensor(0.3), torch.tensor(-0.7)
    actual = pixels.expand_convolve_gradients(
        grad, x, weight, bias, kernel, normalised_grad, convolved, gain, slope, level
    )

    exact = double(x, weight, bias, kernel)
    output = F.conv2d(
        F.gelu(F.linear(*exact[:3])).permute(2, 0, 1).unsqueeze(0), exact[3], padding=1, groups=wide
    ).permute(0, 2, 3, 1)[0]
    output_grad = gain.double() * normalised_grad - slope.double() * convolved - level.double()
    exact_grads = torch.autograd.grad(output, exact, output_grad)
    for a, e in zip(actual, (grad + exact_grads[0], *exact_grads[1:]), strict=True):
        assert a.is_contiguous()
        assert_close(a, e)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize(
    ("count", "channels", "hidden"), [(0, 16, 16), (1, 16, 32), (11, 48, 80), (40, 128, 256), (900, 32, 48)]
)
def test_add_expert_gradients(count: int, channels: int, hidden: int, chosen: bool) -> None:
    x, grad, grad_x = draw(1000, channels), draw(1000, channels, seed=1), draw(1000, channels, seed=2)
    expert = draw_experts(channels, hidden)
    index, weight = (torch.randperm(1000)[:count], draw(count)) if chosen else (None, None)
    rows = slice(None) if index is None else index
    exact_x, exact_weight, *exact_expert = double(x, torch.ones(1000) if weight is None else weight, *expert)
    output = F.linear(F.gelu(F.linear(exact_x[rows], *exact_expert[:2])), *exact_expert[2:]) * exact_weight[:, None]
    exact = torch.autograd.grad(output, (exact_x, *exact_expert, exact_weight), grad[rows].double())

    expected = grad_x + exact[0]
    *actual, weight_grad = pixels.add_expert_gradients(grad_x, grad, x, index, weight, *expert)
    assert_close(grad_x, expected)
    for a, e in zip(actual, exact[1:-1], strict=True):
        assert a.is_contiguous()
        assert_close(a, e)
    if count and chosen:
        assert_close(weight_grad, exact[-1])
    else:
        assert weight_grad.numel() == 0


@pytest.mark.parametrize(("count", "channels", "hidden"), [(1, 16, 16), (29, 16, 96), (40, 48, 80)])
def test_add_gated_mlp(count: int, channels: int, hidden: int) -> None:
    """Of channels beside others, to channels beside others."""
    x, out, project = (
        draw(count, 3 * channels)[:, channels : 2 * channels],
        draw(count, channels + 4),
        draw(channels, hidden),
    )
    expand, gate = draw(hidden, channels), draw(hidden, channels, seed=1)
    wide = F.gelu(F.linear(x.double(), expand.double())) * F.linear(x.double(), gate.double())
    exact = out.double()
    exact[:, 4:] += F.linear(wide, project.double())
    pixels.add_gated_mlp(out[:, 4:], x, expand, gate, project)
    assert_close(out, exact)


def test_gelu_everywhere() -> None:
    """The activation by itself: products with the identity leave the argument as it is."""
    x = torch.cat(
        [torch.linspace(-12, 12, 16 * 997), torch.logspace(-40, 30, 16 * 50), -torch.logspace(-40, 4, 16 * 50)]
    )
    x = x.view(-1, 16)
    identity, zeros = torch.eye(16), torch.zeros(16)
    activated = pixels.sum_of_experts(x, [identity, zeros, identity, zeros], [None], [None])
    exact = F.gelu(x.double())
    assert ((activated - exact).abs() <= 3e-7 * x.abs() + 1e-37).all()


def test_slope_of_gelu_everywhere() -> None:
    magnitudes = torch.logspace(-40, 30, 16 * 50)
    x = torch.cat([torch.linspace(-12, 12, 16 * 997), magnitudes, -magnitudes]).view(-1, 16)
    identity, zeros, slope = torch.eye(16), torch.zeros(16), torch.zeros_like(x)
    pixels.add_expert_gradients(slope, torch.ones_like(x), x, None, None, identity, zeros, identity, zeros)
    exact_x = x.double().requires_grad_()
    exact = torch.autograd.grad(F.gelu(exact_x).sum(), exact_x)[0]
    assert (slope - exact).abs().max() <= 2.5e-7


def test_nan_stays_nan_and_in_its_pixel() -> None:
    x = draw(20, 16)
    x[3, 5] = float("nan")
    grad_x, expert = torch.zeros(20, 16), draw_experts(16, 32)
    out = pixels.sum_of_experts(x, expert, [None], [None])
    assert torch.equal(out.isnan().any(1), torch.arange(20) == 3)
    grads = pixels.add_expert_gradients(grad_x, draw(20, 16), x, None, None, *expert)
    assert torch.equal(grad_x.isnan().any(1), torch.arange(20) == 3)
    assert grads[0].isnan().all()


def test_bitwise_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, detail = draw(61, 47, 16), draw(48, 16), draw(61 * 47, 16, seed=1)
    flat, expert, several = x.flatten(0, 1), draw_experts(16, 48), draw_experts(16, 48, 3)
    order = torch.randperm(len(flat))
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        monkeypatch.setattr(library, "number_of_threads", lambda *_, threads=threads: threads)
        result, convolved, projected, *moments = pixels.inverted_bottleneck(x, *draw_bottleneck(16, 48), True)
        grad_x = flat.clone()
        results.append(
            [
                *(result, convolved, projected, *moments),
                pixels.sum_of_experts(flat, several, [None, order[:1000], order], [None, draw(1000), draw(len(flat))]),
                pixels.depthwise_silu(x, draw(16, 1, 3, 3), draw(16)),
                pixels.convolve_sequence(flat, draw(16, 11), 2),
                pixels.route_detail(flat, detail, torch.tensor(2.0)),
                pixels.joined_linear([flat, detail], draw(32, 32), draw(32)),
                *pixels.activate_project_gradients(x, projected, convolved, draw(48), draw(48), draw(16, 48)),
                *pixels.expand_convolve_gradients(
                    x, x, weight, draw(48), draw(48, 1, 3, 3), convolved, convolved, draw(48), *draw(2)
                ),
                *pixels.add_expert_gradients(grad_x, detail, flat, None, None, *expert),
                grad_x,
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_operators_are_registered_correctly() -> None:
    x, weight, bias = draw(4, 5, 16), draw(32, 16), draw(32)
    calls = [
        (pixels.add_gated_mlp, (draw(20, 20)[:, 4:], draw(20, 32)[:, 16:], weight, weight, draw(16, 32))),
        (pixels.inverted_bottleneck, (x, *draw_bottleneck(16, 32), False)),
        (pixels.inverted_bottleneck, (x, *draw_bottleneck(16, 32), True)),
        (
            pixels.sum_of_experts,
            (draw(20, 16), draw_experts(16, 32, 2), [None, torch.randperm(20)[:7]], [None, draw(7)]),
        ),
        (pixels.depthwise_silu, (draw(4, 5, 32)[..., :16], draw(16, 1, 3, 3), draw(16))),
        (pixels.convolve_sequence, (draw(20, 5), draw(5, 3), 2)),
        (pixels.route_detail, (draw(20, 32)[:, 16:], draw(20, 16), torch.tensor(2.0))),
        (pixels.joined_linear, ([draw(20, 16), draw(20, 32)], draw(16, 48), draw(16))),
        (
            pixels.activate_project_gradients,
            (x, draw(4, 5, 16), draw(4, 5, 32), bias, bias, draw(16, 32)),
        ),
        (
            pixels.expand_convolve_gradients,
            (x, x, weight, bias, draw(32, 1, 3, 3), draw(4, 5, 32), draw(4, 5, 32), bias, *draw(2)),
        ),
        (
            pixels.add_expert_gradients,
            (
                *(draw(20, 16), draw(20, 16), draw(20, 16), torch.randperm(20)[:7], draw(7)),
                *(weight, bias, draw(16, 32), draw(16)),
            ),
        ),
    ]
    for operator, arguments in calls:
        # Not through autograd: they are called from within functions that bring their own gradients.
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_arguments_need_not_be_contiguous() -> None:
    x, weights = draw(6, 16, 5).mT, draw_bottleneck(16, 32)
    kernel = weights.depthwise.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    strided = weights._replace(expand=weights.expand.t().contiguous().t(), depthwise=kernel)
    assert not any(tensor.is_contiguous() for tensor in (x, strided.expand, strided.depthwise))
    for actual, expected in zip(
        pixels.inverted_bottleneck(x, *strided, True),
        pixels.inverted_bottleneck(x.contiguous(), *weights, True),
        strict=True,
    ):
        assert torch.equal(actual, expected)
    assert torch.equal(
        pixels.depthwise_silu(x, strided.depthwise[:16], draw(16)),
        pixels.depthwise_silu(x.contiguous(), weights.depthwise[:16], draw(16)),
    )
    convolved = draw(6, 32, 5).mT
    arguments = (draw(32), draw(32), draw(16, 32))
    for actual, expected in zip(
        pixels.activate_project_gradients(draw(6, 16, 5).mT, x, convolved, *arguments),
        pixels.activate_project_gradients(
            draw(6, 16, 5).mT.contiguous(), x.contiguous(), convolved.contiguous(), *arguments
        ),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_what_would_be_read_or_written_elsewhere_is_refused() -> None:
    x, index, expert = draw(9, 16), torch.arange(4), draw_experts(16, 32)
    grad_x = torch.zeros(9, 16)
    with pytest.raises(ValueError, match=r"x has shape \(9, 32\); expected \(pixels, 16\)"):
        pixels.sum_of_experts(draw(9, 32), expert, [None], [None])
    with pytest.raises(ValueError, match=r"grad_x has shape .* expected a contiguous"):
        pixels.add_expert_gradients(torch.zeros(16, 9).t(), x, x, None, None, *expert)
    for wrong in ([0, 9], [-1]):
        with pytest.raises(IndexError, match=r"index has rows that do not exist; expected 0 to 8"):
            pixels.sum_of_experts(x, [*expert, *expert], [index, torch.tensor(wrong)], [None, None])
        with pytest.raises(IndexError, match=r"index has rows that do not exist; expected 0 to 8"):
            pixels.add_expert_gradients(grad_x, x, x, torch.tensor(wrong), None, *expert)
    with pytest.raises(TypeError, match=r"index is torch\.int32; expected torch\.int64"):
        pixels.sum_of_experts(x, expert, [index.int()], [None])
    with pytest.raises(ValueError, match="weight has 3 elements; expected 4"):
        pixels.sum_of_experts(x, expert, [index], [draw(3)])
    with pytest.raises(TypeError, match=r"U is torch\.float64; expected torch\.float32"):
        pixels.sum_of_experts(x, [expert[0].double(), *expert[1:]], [index], [None])
    for out, wrong in ((grad_x, draw(9, 48)), (grad_x, draw(8, 16)), (torch.zeros(9, 48), draw(9, 48))):
        with pytest.raises(ValueError, match=r"x has shape .* and out .* with 16 channels"):
            pixels.add_gated_mlp(out, wrong, *(draw(32, 16),) * 2, draw(16, 32))
    with pytest.raises(ValueError, match=r"out has strides \(1, 9\); expected pixels at the same distance"):
        pixels.add_gated_mlp(torch.zeros(16, 9).t(), x, *(draw(32, 16),) * 2, draw(16, 32))
    with pytest.raises(ValueError, match=r"detail has shape \(8, 16\); expected that of high, \(9, 16\)"):
        pixels.route_detail(x, x[1:], torch.tensor(2.0))
    for wrong in (draw(15, 3), draw(16, 4)):
        with pytest.raises(ValueError, match=r"weight has shape .*; expected 16 channels, as x, and an odd number"):
            pixels.convolve_sequence(x, wrong, 1)
    for channels in (24, 48):
        with pytest.raises(ValueError, match=f"expand, depthwise and project have the shapes .* {channels} channels"):
            pixels.inverted_bottleneck(draw(3, 4, channels), *draw_bottleneck(32, 64), False)
        with pytest.raises(ValueError, match=f"weight has shape .* {channels} channels, as x, and 3 x 3 taps"):
            pixels.depthwise_silu(draw(3, 4, channels), draw(32, 1, 3, 3), draw(32))
    for parts in ([x], [x, x[1:]], [x] * 4):
        with pytest.raises(ValueError, match=r"parts have the shapes \(9, 16\).*; expected .* 32 channels in all"):
            pixels.joined_linear(parts, draw(16, 32), draw(16))
    assert not grad_x.any()


@pytest.mark.parametrize(("height", "width"), [(0, 4), (3, 0)])
def test_images_without_pixels(height: int, width: int) -> None:
    x = torch.empty(height, width, 16)
    assert pixels.inverted_bottleneck(x, *draw_bottleneck(16, 32), False)[0].shape == x.shape
    assert pixels.depthwise_silu(x, draw(16, 1, 3, 3), draw(16)).shape == x.shape


def test_an_axis_of_one_may_have_any_stride() -> None:
    x = draw(1, 20, 16).transpose(0, 1)
    assert x.stride(1) != 16
    weight, bias = draw(16, 1, 3, 3), draw(16)
    assert torch.equal(pixels.depthwise_silu(x, weight, bias), pixels.depthwise_silu(x.clone(), weight, bias))
    out, gates = draw(20, 24), [draw(32, 16), draw(32, 16, seed=1), draw(16, 32)]
    expected = out.clone()
    pixels.add_gated_mlp(expected[:, 4:20], x[:, 0], *gates)
    pixels.add_gated_mlp(out[:, 4:20].unsqueeze(1), x, *gates)
    assert torch.equal(out, expected)


def test_infinite_arguments() -> None:
    identity, zeros = torch.eye(16), torch.zeros(16)
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 1] = float("inf"), -1e30
    result = pixels.sum_of_experts(x, [identity, zeros, identity, zeros], [None], [None])
    # inf times 0 in the product spoils the pixel, as it does anywhere.
    assert not result[0].isfinite().any()
    assert result[1].abs().max() < 3e-8


def test_a_library_of_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = pixels._struct(
        "Expert", "all_pixels pixels channels hidden x_row out_row add", "x index weight U a G V b out next more"
    )
    monkeypatch.setattr(pixels, "_Expert", longer)
    with pytest.raises(RuntimeError, match="compiled kernels are of another version"):
        pixels.sum_of_experts(draw(9, 16), draw_experts(16, 32), [None], [None])
