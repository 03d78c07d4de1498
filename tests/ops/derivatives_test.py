"""Every derivative of every operator is right, beyond the first gradient that compiled kernels have too."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch

from direct_hifimamba.ops.experts import Assignment, ExpertWeights, sum_of_experts
from direct_hifimamba.ops.inverted_bottleneck import BottleneckWeights, inverted_bottleneck
from direct_hifimamba.ops.selective_scan import selective_scan
from direct_hifimamba.ops.selective_scan.interface import unavailable_because

Case = tuple[Callable[..., torch.Tensor], list[torch.Tensor]]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) / 2


def bottleneck() -> Case:
    vectors = [draw(32, seed=seed) for seed in range(4)]
    weights = [draw(32, 16), *vectors[:2], draw(32, 1, 3, 3), *vectors[2:], draw(16, 32)]
    return lambda x, *w: inverted_bottleneck(x, BottleneckWeights(*w)), [draw(2, 3, 4, 16), *weights]


def experts() -> Case:
    index = torch.tensor([4, 0, 2])

    def run(x: torch.Tensor, weight: torch.Tensor, *w: torch.Tensor) -> torch.Tensor:
        return sum_of_experts(x, [ExpertWeights(*w), ExpertWeights(*w)], [Assignment(), Assignment(index, weight)])

    return run, [draw(6, 16), draw(3), draw(32, 16), draw(32), draw(16, 32), draw(16)]


def scan(backend: str) -> Case:
    def run(u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        *rest, bias = tensors
        name = "torch" if u.dtype == torch.float64 else backend
        return selective_scan(u, u, *rest, delta_bias=bias, delta_softplus=True, backend=name)  # u is given twice

    u, z = (draw(2, 4, 10, seed=seed) for seed in (0, 1))
    B, C = (draw(2, 3, 10, seed=seed) for seed in (2, 3))
    return run, [u, -draw(4, 3).abs(), B, C, draw(4), z, draw(4, seed=1)]


@pytest.fixture(params=["bottleneck", "experts", "native", "torch", "reference"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param in ("bottleneck", "experts"):
        return globals()[request.param]()
    if unavailable_because(request.param, "cpu", torch.float32):
        pytest.skip(f"there is no backend {request.param}")
    return scan(request.param)


def exact(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """In float64, for which all operators but the scan take their definitions."""
    return [tensor.double() for tensor in tensors]


def assert_close(actual: Any, expected: Any) -> None:
    assert actual.isfinite().all()
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def second_derivatives(run: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradient of the squared gradient with respect to everything."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)


def test_second_derivatives(case: Case) -> None:
    run, tensors = case
    for actual, expected in zip(second_derivatives(run, tensors), second_derivatives(run, exact(tensors)), strict=True):
        assert_close(actual, expected)


def test_second_derivatives_are_those_of_finite_differences(case: Case) -> None:
    run, (x, *rest) = case
    x, rest = x.double(), exact(rest)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(run(x, *rest).square().sum(), x)[0]

    direction = draw(*x.shape, seed=5).double()
    _, product = torch.autograd.functional.hvp(lambda x: run(x, *rest).square().sum(), x, direction)
    assert_close((gradient(x + 1e-6 * direction) - gradient(x - 1e-6 * direction)) / 2e-6, product)


@pytest.mark.usefixtures("group_norm_transforms")
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode(case: Case, grad: bool) -> None:
    run, tensors = case
    tangents = [draw(*tensor.shape, seed=7) for tensor in tensors]
    _, expected = torch.autograd.functional.jvp(run, tuple(exact(tensors)), tuple(exact(tangents)))
    with torch.set_grad_enabled(grad):
        _, tangent = torch.func.jvp(run, tuple(tensors), tuple(tangents))
        assert_close(tangent, expected)
        with torch.autograd.forward_ad.dual_level():
            duals = map(torch.autograd.forward_ad.make_dual, tensors, tangents)
            assert_close(torch.autograd.forward_ad.unpack_dual(run(*duals)).tangent, expected)


@pytest.mark.usefixtures("group_norm_transforms")
def test_transforms_of_torch_func(case: Case) -> None:
    run, tensors = case
    (x, *rest), grad = tensors, torch.func.grad(lambda x, *rest: run(x, *rest).square().sum())
    leaf = x.double().requires_grad_()
    assert_close(grad(x, *rest), torch.autograd.grad(run(leaf, *exact(rest)).square().sum(), leaf)[0])
    several = torch.stack([x, 2 * x])
    assert_close(torch.vmap(lambda x: run(x, *rest))(several), torch.stack([run(x, *rest), run(2 * x, *rest)]))


def test_dual_gradients_have_a_tangent_or_are_refused(case: Case) -> None:
    run, tensors = case
    leaves = [tensor.requires_grad_() for tensor in tensors]
    y = run(*leaves)
    grad, tangent = draw(*y.shape, seed=11), draw(*y.shape, seed=12)
    expected = torch.autograd.grad(y, leaves, tangent, retain_graph=True)  # gradients are linear in that of the result
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(grad, tangent)
        for gradient, value in zip(torch.autograd.grad(y, leaves, dual, create_graph=True), expected, strict=True):
            assert_close(torch.autograd.forward_ad.unpack_dual(gradient).tangent, value)
        with suppress(NotImplementedError):
            gradients = torch.autograd.grad(run(*leaves), leaves, dual)
            for gradient, value in zip(gradients, expected, strict=True):
                assert_close(torch.autograd.forward_ad.unpack_dual(gradient).tangent, value)


@pytest.mark.usefixtures("group_norm_transforms")
def test_forward_mode_through_compiled_code_is_right_or_refused(case: Case) -> None:
    run, tensors = case
    tangents = [draw(*tensor.shape, seed=7) for tensor in tensors]
    _, expected = torch.autograd.functional.jvp(run, tuple(exact(tensors)), tuple(exact(tangents)))
    compiled = torch.compile(run, backend="eager")
    compiled(*tensors)
    with torch.autograd.forward_ad.dual_level(), suppress(NotImplementedError):
        duals = map(torch.autograd.forward_ad.make_dual, tensors, tangents)
        assert_close(torch.autograd.forward_ad.unpack_dual(compiled(*duals)).tangent, expected)
    assert_close(torch.func.jvp(compiled, tuple(tensors), tuple(tangents))[1], expected)
    inside = torch.compile(lambda *tensors: torch.func.jvp(run, tensors, tuple(tangents))[1], backend="eager")
    assert_close(inside(*tensors), expected)
