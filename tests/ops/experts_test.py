import pytest
import torch

from direct_hifimamba.ops import experts as module
from direct_hifimamba.ops.experts import Assignment, ExpertWeights, sum_of_experts, sum_of_experts_plain


def make_experts(count: int, channels: int, hidden: int, dtype: torch.dtype) -> list[ExpertWeights]:
    shapes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    return [
        ExpertWeights(*(torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes))
        for _ in range(count)
    ]


def make_assignments(pixels: int, dtype: torch.dtype) -> list[Assignment]:
    """One expert has all pixels, one some, one a single one, one none."""
    order = torch.randperm(pixels)
    weights = [torch.rand(count, dtype=dtype).requires_grad_() for count in (pixels - 1, 1, 0)]
    return [Assignment(), *map(Assignment, (order[1:], order[:1], order[:0]), weights)]


def gradients(output: torch.Tensor, *sources: object) -> list[torch.Tensor]:
    tensors = [t for source in sources for t in (source if isinstance(source, tuple) else [source])]
    wanted = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(output, wanted, grad.to(output.dtype)))


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("pixels", [1, 20])
def test_pieces_equal_the_definition(pixels: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIXELS", pieces)
    experts, assignments = make_experts(4, 5, 6, torch.float64), make_assignments(pixels, torch.float64)
    features = torch.randn(pixels, 5, dtype=torch.float64).requires_grad_()
    actual = sum_of_experts(features, experts, assignments)
    expected = sum_of_experts_plain(features, experts, assignments)
    torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        assert torch.equal(sum_of_experts(features, experts, assignments), actual)
    for a, e in zip(
        gradients(actual, features, *experts, *assignments),
        gradients(expected, features, *experts, *assignments),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


def test_float32_is_as_accurate_as_the_definition() -> None:
    """Sizes that the compiled kernels take."""
    experts, assignments = make_experts(4, 32, 48, torch.float32), make_assignments(300, torch.float32)
    features = torch.randn(300, 32).requires_grad_()
    actual = sum_of_experts(features, experts, assignments)
    with torch.no_grad():
        assert torch.equal(sum_of_experts(features, experts, assignments), actual)

    def double(tensors):
        return [t if t is None or t.dtype == torch.int64 else t.detach().double().requires_grad_() for t in tensors]

    exact_experts = [ExpertWeights(*double(expert)) for expert in experts]
    exact_assignments = [Assignment(*double(assignment)) for assignment in assignments]
    exact_features = features.detach().double().requires_grad_()
    exact = sum_of_experts_plain(exact_features, exact_experts, exact_assignments)
    assert (actual - exact).abs().max() < 1e-6 * exact.abs().max()
    for a, e in zip(
        gradients(actual, features, *experts, *assignments),
        gradients(exact, exact_features, *exact_experts, *exact_assignments),
        strict=True,
    ):
        assert e.numel() == 0 or (a - e).abs().max() <= 3e-6 * e.abs().max()


def test_gradcheck() -> None:
    experts, assignments = make_experts(4, 3, 4, torch.float64), make_assignments(5, torch.float64)
    features = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    parameters = [t for expert in experts for t in expert]
    weights = [a.weight for a in assignments if a.weight is not None and a.weight.numel()]

    def run(features: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        given = iter(tensors)
        rebuilt = [ExpertWeights(*(next(given) for _ in range(4))) for _ in experts]
        reweighted = [
            a if a.weight is None or not a.weight.numel() else Assignment(a.pixels, next(given)) for a in assignments
        ]
        return sum_of_experts(features, rebuilt, reweighted)

    assert torch.autograd.gradcheck(run, [features, *parameters, *weights])


def test_keeps_nothing_but_its_arguments() -> None:
    experts, assignments = make_experts(4, 4, 32, torch.float32), make_assignments(500, torch.float32)
    features = torch.randn(500, 4).requires_grad_()
    given = {t.data_ptr() for t in (features, *(t for part in (*experts, *assignments) for t in part)) if t is not None}
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):
        sum_of_experts(features, experts, assignments)
    assert kept <= given | {0}


def test_under_autocast_it_is_the_definition() -> None:
    experts, assignments = (
        make_experts(2, 4, 8, torch.float32),
        [Assignment(), Assignment(torch.arange(3), torch.rand(3))],
    )
    features = torch.randn(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sum_of_experts(features, experts, assignments)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), sum_of_experts(features, experts, assignments), rtol=0.05, atol=0.2)


@pytest.mark.parametrize("channels", [4, 16])
def test_backward_under_autocast_is_that_without(channels: int) -> None:
    experts, assignments = make_experts(4, channels, 16, torch.float32), make_assignments(40, torch.float32)
    features = torch.randn(40, channels).requires_grad_()
    output = sum_of_experts(features, experts, assignments)
    expected = torch.autograd.grad(output.sum(), features, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.autograd.grad(output.sum(), features)[0], expected[0])


@pytest.mark.parametrize("channels", [4, 16])
def test_no_pixels_have_gradients_of_zero(channels: int) -> None:
    (expert,) = make_experts(1, channels, 16, torch.float32)
    features = torch.randn(0, channels).requires_grad_()
    output = sum_of_experts(features, [expert], [Assignment()])
    assert output.shape == (0, channels)
    assert all(not grad.any() for grad in torch.autograd.grad(output.sum(), [features, *expert]))


def test_no_experts_make_zeros() -> None:
    assert torch.equal(sum_of_experts(torch.randn(3, 2), [], []), torch.zeros(3, 2))
    assert torch.equal(sum_of_experts_plain(torch.randn(3, 2), [], []), torch.zeros(3, 2))
