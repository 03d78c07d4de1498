import pytest
import torch
from torch.nn import functional as F

from direct_hifimamba.ops import library, pixels

pytestmark = pytest.mark.usefixtures("instruction_set")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_close(actual: torch.Tensor, exact: torch.Tensor) -> None:
    """Within float32's rounding of sums of some hundred products."""
    assert (actual.double() - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "channels", "wide"), [(1, 1, 16, 16), (2, 5, 16, 48), (7, 13, 48, 80), (9, 24, 64, 320)]
)
def test_expand_convolve(height: int, width: int, channels: int, wide: int) -> None:
    x, weight, bias, kernel = draw(height, width, channels), draw(wide, channels), draw(wide), draw(wide, 1, 3, 3)
    convolved, moments = pixels.expand_convolve(x, weight, bias, kernel)
    activated = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    exact = F.conv2d(activated.permute(2, 0, 1).unsqueeze(0), kernel.double(), padding=1, groups=wide)[0]
    assert_close(convolved, exact.permute(1, 2, 0))
    rows = convolved.double().flatten(1)
    torch.testing.assert_close(moments[:, 0], rows.mean(1), rtol=0, atol=1e-6 * rows.abs().max().item())
    torch.testing.assert_close(moments[:, 1], (rows - rows.mean(1, keepdim=True)).square().sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("height", "width", "channels", "wide"), [(1, 1, 16, 16), (3, 13, 48, 80), (9, 24, 64, 320)])
def test_activate_project(height: int, width: int, channels: int, wide: int, keep: bool) -> None:
    x, convolved = draw(height, width, channels), draw(height, width, wide, seed=1)
    gain, offset, weight = draw(wide), draw(wide, seed=1), draw(channels, wide)
    result, projected = pixels.activate_project(x, convolved, gain, offset, weight, keep)
    exact = F.linear(F.gelu(convolved.double() * gain + offset), weight.double())
    assert_close(result, x + F.gelu(exact))
    if keep:
        assert_close(projected, exact)
    else:
        assert projected.numel() == 0


@pytest.mark.parametrize(("count", "channels", "hidden"), [(0, 16, 16), (1, 16, 32), (11, 48, 80), (40, 128, 256)])
def test_add_expert(count: int, channels: int, hidden: int) -> None:
    x, out = draw(50, channels), draw(50, channels, seed=1)
    expert = (draw(hidden, channels), draw(hidden), draw(channels, hidden), draw(channels))
    index, weight = torch.randperm(50)[:count], draw(count)
    exact = out.double()
    outputs = F.linear(
        F.gelu(F.linear(x.double(), *(w.double() for w in expert[:2]))), *(w.double() for w in expert[2:])
    )
    exact[index] += outputs[index] * weight.unsqueeze(1)
    pixels.add_expert(out, x, index, weight, *expert)
    assert_close(out, exact)
    pixels.add_expert(out, x, None, None, *expert)
    assert_close(out, exact + outputs)


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
    expert = (draw(hidden, channels), draw(hidden), draw(channels, hidden), draw(channels))
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
def test_gated_mlp(count: int, channels: int, hidden: int) -> None:
    x, project = draw(count, channels), draw(channels, hidden)
    expand, gate = draw(hidden, channels), draw(hidden, channels, seed=1)
    wide = F.gelu(F.linear(x.double(), expand.double())) * F.linear(x.double(), gate.double())
    assert_close(pixels.gated_mlp(x, expand, gate, project), F.linear(wide, project.double()))


def test_gelu_everywhere() -> None:
    """The activation by itself: products with the identity leave the argument as it is."""
    x = torch.cat(
        [torch.linspace(-12, 12, 16 * 997), torch.logspace(-40, 30, 16 * 50), -torch.logspace(-40, 4, 16 * 50)]
    )
    x = x.view(1, -1, 16)
    identity, zeros = torch.eye(16), torch.zeros(16)
    result, _ = pixels.activate_project(torch.zeros_like(x), x, torch.ones(16), zeros, identity, False)
    once = torch.zeros_like(x[0])
    pixels.add_expert(once, x[0], None, None, identity, zeros, identity, zeros)
    exact = F.gelu(x[0].double())
    assert ((once - exact).abs() <= 3e-7 * x[0].abs() + 1e-37).all()
    exact = F.gelu(once.double())
    assert ((result[0] - exact).abs() <= 3.5e-7 * x[0].abs() + 1e-37).all()


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
    out, grad_x = torch.zeros(20, 16), torch.zeros(20, 16)
    expert = (draw(32, 16), draw(32), draw(16, 32), draw(16))
    pixels.add_expert(out, x, None, None, *expert)
    assert torch.equal(out.isnan().any(1), torch.arange(20) == 3)
    grads = pixels.add_expert_gradients(grad_x, draw(20, 16), x, None, None, *expert)
    assert torch.equal(grad_x.isnan().any(1), torch.arange(20) == 3)
    assert grads[0].isnan().all()


def test_bitwise_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(61, 19, 16), draw(48, 16)
    expert = (weight, draw(48), draw(16, 48), draw(16))
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        monkeypatch.setattr(library, "number_of_threads", lambda *_, threads=threads: threads)
        convolved, moments = pixels.expand_convolve(x, weight, draw(48), draw(48, 1, 3, 3))
        result, _ = pixels.activate_project(x, convolved, draw(48), draw(48), draw(16, 48), False)
        out = x.flatten(0, 1).clone()
        pixels.add_expert(out, out.clone(), None, None, *expert)
        grad_x = x.flatten(0, 1).clone()
        grads = [
            *pixels.activate_project_gradients(x, result, convolved, draw(48), draw(48), draw(16, 48)),
            *pixels.expand_convolve_gradients(
                x, x, weight, draw(48), draw(48, 1, 3, 3), convolved, convolved, draw(48), *draw(2)
            ),
            *pixels.add_expert_gradients(grad_x, out, grad_x.clone(), None, None, *expert),
        ]
        results.append((convolved, moments, result, out, grad_x, *grads))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_operators_are_registered_correctly() -> None:
    x, weight, bias = draw(4, 5, 16), draw(32, 16), draw(32)
    calls = [
        (pixels.gated_mlp, (draw(20, 16), weight, weight, draw(16, 32))),
        (pixels.expand_convolve, (x, weight, bias, draw(32, 1, 3, 3))),
        (pixels.activate_project, (x, draw(4, 5, 32), bias, bias, draw(16, 32), False)),
        (pixels.activate_project, (x, draw(4, 5, 32), bias, bias, draw(16, 32), True)),
        (
            pixels.add_expert,
            (draw(20, 16), draw(20, 16), torch.randperm(20)[:7], draw(7), weight, bias, draw(16, 32), draw(16)),
        ),
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
    x, weight, kernel = draw(6, 16, 5).mT, draw(16, 32).t(), draw(3, 3, 32, 1).permute(2, 3, 0, 1)
    plain = [t.contiguous() for t in (x, weight, kernel)]
    for actual, expected in zip(
        pixels.expand_convolve(x, weight, draw(32), kernel),
        pixels.expand_convolve(plain[0], plain[1], draw(32), plain[2]),
        strict=True,
    ):
        assert torch.equal(actual, expected)
    convolved = draw(6, 32, 5).mT
    arguments = (draw(32), draw(32), draw(16, 32))
    for actual, expected in zip(
        pixels.activate_project_gradients(draw(6, 16, 5).mT, x, convolved, *arguments),
        pixels.activate_project_gradients(draw(6, 16, 5).mT.contiguous(), plain[0], convolved.contiguous(), *arguments),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_what_would_be_read_or_written_elsewhere_is_refused() -> None:
    x, index, expert = draw(9, 16), torch.arange(4), (draw(32, 16), draw(32), draw(16, 32), draw(16))
    out = torch.zeros(9, 16)
    with pytest.raises(ValueError, match=r"x has shape \(9, 32\); expected \(pixels, 16\)"):
        pixels.add_expert(torch.zeros(9, 32), draw(9, 32), None, None, *expert)
    with pytest.raises(ValueError, match=r"out has shape .* expected a contiguous"):
        pixels.add_expert(torch.zeros(16, 9).t(), x, None, None, *expert)
    with pytest.raises(IndexError, match="index goes from 0 to 9; expected rows of 9"):
        pixels.add_expert(out, x, torch.tensor([0, 9]), None, *expert)
    with pytest.raises(TypeError, match=r"index is torch\.int32; expected torch\.int64"):
        pixels.add_expert(out, x, index.int(), None, *expert)
    with pytest.raises(ValueError, match="weight has 3 elements; expected 4"):
        pixels.add_expert(out, x, index, draw(3), *expert)
    with pytest.raises(TypeError, match=r"U is torch\.float64; expected torch\.float32"):
        pixels.add_expert(out, x, index, None, expert[0].double(), *expert[1:])
    with pytest.raises(ValueError, match="x has shape"):
        pixels.gated_mlp(draw(9, 48), *(draw(32, 16),) * 2, draw(16, 32))
    assert not out.any()


def test_infinite_arguments() -> None:
    identity, zeros = torch.eye(16), torch.zeros(16)
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 1] = float("inf"), -1e30
    out = torch.zeros(1, 2, 16)
    ones = torch.ones(16)
    result, _ = pixels.activate_project(out, x.unsqueeze(0), ones, zeros, identity.clone(), False)
    # inf times 0 in the product spoils the pixel, as it does anywhere.
    assert not result[0, 0].isfinite().any()
    assert result[0, 1].abs().max() < 3e-8


def test_a_library_of_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = pixels._struct("Expert", "pixels channels hidden", "x index weight U a G V b out more")
    monkeypatch.setattr(pixels, "_Expert", longer)
    with pytest.raises(RuntimeError, match="compiled kernels are of another version"):
        pixels.add_expert(torch.zeros(9, 16), draw(9, 16), None, None, draw(32, 16), draw(32), draw(16, 32), draw(16))
