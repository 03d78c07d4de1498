from __future__ import annotations

import pytest
import torch
from torch import nn

from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.moe import (
    Expert,
    RoutedExperts,
    Router,
    Routing,
    SharedRoutedMoE,
    build_mixtures,
    load_balancing_loss,
    watch_routing,
)
from tests.helpers import perturb

CHANNELS, EXPERTS = 6, 5


def routed_experts() -> RoutedExperts:
    """Five experts of six channels in float64, none of them negligible."""
    router = Router(CHANNELS, EXPERTS)
    experts = nn.ModuleList(Expert(CHANNELS, 4) for _ in range(EXPERTS))
    return perturb(RoutedExperts(router, experts), scale=0.5).double()


def dense(module: RoutedExperts, pixels: torch.Tensor) -> torch.Tensor:
    """What each pixel gets, one by one, every expert being run on it."""
    outputs = []
    for pixel in pixels:
        logits = module.router.projection.weight @ pixel + module.router.projection.bias
        probabilities = logits.exp() / logits.exp().sum()
        chosen = max(range(EXPERTS), key=probabilities.__getitem__)
        outputs.append(probabilities[chosen] * module.experts[chosen](pixel))
    return torch.stack(outputs)


def test_sorted_dispatch_is_the_dense_computation() -> None:
    module, pixels = routed_experts(), torch.randn(40, CHANNELS, dtype=torch.float64, requires_grad=True)
    output, _ = module(pixels)
    expected = dense(module, pixels)
    torch.testing.assert_close(output, expected)
    parameters = [pixels, *module.parameters()]
    weights = torch.randn_like(output)
    actual_gradients = torch.autograd.grad((output * weights).sum(), parameters)
    # Experts that no pixel chose have a gradient of zero here and none there.
    expected_gradients = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    for actual, wanted in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, torch.zeros_like(actual) if wanted is None else wanted)


def test_pixels_are_routed_each_by_itself() -> None:
    module, pixels = routed_experts(), torch.randn(40, CHANNELS, dtype=torch.float64)
    order = torch.randperm(40)
    output, loss = module(pixels)
    permuted_output, permuted_loss = module(pixels[order])
    torch.testing.assert_close(permuted_output, output[order])
    torch.testing.assert_close(permuted_loss, loss)


def test_no_pixel_is_dropped_when_all_choose_the_same() -> None:
    module, pixels = routed_experts(), torch.randn(40, CHANNELS, dtype=torch.float64)
    nn.init.zeros_(module.router.projection.weight)
    module.router.projection.bias.data = -50.0 * torch.arange(EXPERTS).double()
    output, loss = module(pixels)
    torch.testing.assert_close(output, dense(module, pixels))
    torch.testing.assert_close(output, module.experts[0](pixels))
    torch.testing.assert_close(loss, torch.tensor(float(EXPERTS), dtype=torch.float64))


def routing_of(probabilities: torch.Tensor) -> Routing:
    weights, experts = probabilities.max(dim=-1)
    return Routing(experts, weights, probabilities)


def test_load_balancing_loss_is_1_at_uniform_load_and_the_number_of_experts_at_collapse() -> None:
    uniform = routing_of(torch.eye(4).repeat(3, 1))
    assert load_balancing_loss(uniform).item() == pytest.approx(1)
    collapsed = routing_of(torch.eye(4)[:1].repeat(12, 1))
    assert load_balancing_loss(collapsed).item() == pytest.approx(4)


def test_load_balancing_loss_is_the_formula() -> None:
    probabilities = torch.randn(50, EXPERTS, dtype=torch.float64).softmax(dim=-1)
    choices = probabilities.argmax(dim=-1)
    expected = sum(EXPERTS * probabilities[:, e].mean() * (choices == e).double().mean() for e in range(EXPERTS))
    torch.testing.assert_close(load_balancing_loss(routing_of(probabilities)), expected, check_dtype=False)


def test_the_gradient_of_the_load_balancing_loss_runs_through_mean_probabilities() -> None:
    probabilities = torch.randn(50, EXPERTS, dtype=torch.float64).softmax(dim=-1).requires_grad_()
    routing = routing_of(probabilities)
    (gradient,) = torch.autograd.grad(load_balancing_loss(routing), probabilities)
    shares = torch.bincount(routing.experts, minlength=EXPERTS) / 50
    torch.testing.assert_close(gradient, (EXPERTS * shares / 50).expand(50, EXPERTS), check_dtype=False)


def test_experts_without_a_pixel_have_zero_gradients() -> None:
    module = routed_experts()
    output, loss = module(torch.randn(1, CHANNELS, dtype=torch.float64))
    (output.sum() + loss).backward()
    used = [all(parameter.grad.any() for parameter in expert.parameters()) for expert in module.experts]
    assert used.count(True) == 1
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_router_stays_in_float32_under_autocast() -> None:

    router, pixels = Router(CHANNELS, EXPERTS), torch.randn(64, CHANNELS)
    expected = router(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = router(pixels)
    assert all(torch.equal(value, wanted) for value, wanted in zip(actual, expected, strict=True))


@pytest.mark.parametrize(("num_shared", "routes"), [(0, True), (1, False), (2, True)])
def test_shared_and_routed_experts_are_added(num_shared: int, routes: bool) -> None:
    shared = nn.ModuleList(Expert(CHANNELS, 4) for _ in range(num_shared)).double()
    routed = routed_experts() if routes else None
    features = torch.randn(2, 3, 4, CHANNELS, dtype=torch.float64)
    output, loss = SharedRoutedMoE(shared, routed)(features)
    expected = torch.zeros_like(features)
    for expert in shared:
        expected += expert(features)
    if routed is not None:
        routed_output, routed_loss = routed(features.view(24, CHANNELS))
        expected += routed_output.view_as(features)
        assert loss == routed_loss
    else:
        assert loss == 0
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("sharing", "sets"), [("block", [0, 1, 2, 3]), ("stage", [0, 0, 0, 1]), ("network", [0, 0, 0, 0])]
)
def test_mixtures_share_experts_but_no_router(sharing: str, sets: list[int]) -> None:
    config = HiFiMambaV2Config(hidden_channels=4, global_context=False, blocks_per_stage=(3, 1), expert_sharing=sharing)
    mixtures = build_mixtures(config)
    for pool in ([mixture.shared for mixture in mixtures], [mixture.routed.experts for mixture in mixtures]):
        assert [[id(experts) for experts in pool].index(id(pool[i])) for i in range(4)] == [sets.index(s) for s in sets]
    assert len({id(mixture.routed.router) for mixture in mixtures}) == 4


@pytest.mark.parametrize(
    ("options", "shared", "routed"),
    [
        ({}, [8], [8, 8, 8, 8]),
        ({"num_routed_experts": 3}, [8], [8, 8, 8]),
        ({"moe": "shared"}, [8], None),
        ({"moe": "routed"}, [], [8, 8, 8, 8]),
        ({"moe": "none"}, [16], None),
    ],
)
def test_numbers_and_widths_of_experts(options: dict[str, object], shared: list[int], routed: list[int] | None) -> None:
    mixture = build_mixtures(HiFiMambaV2Config(hidden_channels=4, global_context=False, **options))[0]
    assert [expert.expand.out_features for expert in mixture.shared] == shared
    widths = None if mixture.routed is None else [expert.expand.out_features for expert in mixture.routed.experts]
    assert widths == routed


def test_the_load_balancing_loss_compiles_as_one_graph() -> None:
    routing = routed_experts().router(torch.randn(7, CHANNELS, dtype=torch.float64))
    compiled = torch.compile(load_balancing_loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(routing), load_balancing_loss(routing))


def test_watching_ends_with_its_context_also_after_an_error() -> None:
    module, pixels, seen = (
        SharedRoutedMoE(nn.ModuleList(), routed_experts()),
        torch.randn(2, CHANNELS, dtype=torch.float64),
        [],
    )
    with pytest.raises(RuntimeError), watch_routing(module, lambda *_: seen.append(1)):
        module(pixels[:, 1:])  # seen by no router
    module(pixels)
    assert seen == []
    with watch_routing(module, lambda *_: seen.append(1)):
        module(pixels)
    module(pixels)
    assert seen == [1]
