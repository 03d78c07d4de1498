import math
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from direct_hifimamba.ops.selective_scan import chunked
from direct_hifimamba.ops.selective_scan.chunked import CHUNK, selective_scan_torch
from tests.ops.scan_cases import assert_matches_oracle, make_inputs

SetLanes = Callable[[int, int], None]


@pytest.fixture
def set_lanes(monkeypatch: pytest.MonkeyPatch) -> SetLanes:
    """Limit a block to so many lanes of so many elements per step, so that small inputs take several blocks."""

    def patch(lanes: int, elements_per_lane: int) -> None:
        monkeypatch.setattr(chunked, "_elements_per_step", lambda device: lanes * elements_per_lane)

    return patch


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 5])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("groups", "optional", "softplus"), [(1, True, True), (2, False, False), (3, True, False)])
def test_matches_the_oracle(length: int, layout: str, groups: int, optional: bool, softplus: bool) -> None:
    inputs = make_inputs(length=length, groups=groups, optional=optional, layout=layout, requires_grad=True)
    assert_matches_oracle(selective_scan_torch, inputs, softplus)


@pytest.mark.parametrize("lanes", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_oracle_over_several_blocks(set_lanes: SetLanes, lanes: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(length=5 * CHUNK + 1, groups=2, dtype=dtype, requires_grad=True)
    set_lanes(lanes, math.prod(inputs.u.shape[:2]) * inputs.A.shape[1])
    tolerances = (1e-6, 5e-6) if dtype == torch.float32 else (1e-14, 1e-13)
    assert_matches_oracle(selective_scan_torch, inputs, True, *tolerances)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
@pytest.mark.parametrize("step", [0.0, 1e-8, 50.0, None])
def test_extreme_decays(scale: float, step: float | None) -> None:
    """Decays from exactly 1 to underflow; the last step sizes mix all of the others."""
    inputs = make_inputs(length=3 * CHUNK + 7, requires_grad=True)
    mixture = torch.tensor([0.0, 1e-8, 1.0, 50.0])[torch.randint(4, inputs.delta.shape)]
    with torch.no_grad():
        inputs.A.copy_(-scale * torch.rand_like(inputs.A))
        inputs.delta.copy_(mixture if step is None else torch.full_like(mixture, step))
    assert_matches_oracle(selective_scan_torch, inputs._replace(delta_bias=None), False)


def test_extreme_decays_through_softplus() -> None:
    inputs = make_inputs(length=2 * CHUNK, requires_grad=True)
    with torch.no_grad():
        inputs.delta.copy_(torch.tensor([-100.0, -20.0, 0.0, 50.0])[torch.randint(4, inputs.delta.shape)])
    assert_matches_oracle(selective_scan_torch, inputs, True)


@pytest.mark.parametrize("optional", [True, False])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, set_lanes: SetLanes, optional: bool) -> None:
    monkeypatch.setattr(chunked, "CHUNK", 2)
    set_lanes(2, 2)
    inputs = make_inputs(1, 2, 7, 1, 2, optional=optional, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(selective_scan_torch, (*inputs, optional))


@pytest.mark.parametrize("wanted", range(8))
def test_each_gradient_alone(wanted: int) -> None:
    inputs = make_inputs(length=CHUNK + 3)
    inputs[wanted].requires_grad_()
    assert_matches_oracle(selective_scan_torch, inputs, True)


def test_no_graph_without_gradients() -> None:
    assert not selective_scan_torch(*make_inputs(), True).requires_grad
    with torch.no_grad():
        assert not selective_scan_torch(*make_inputs(requires_grad=True), True).requires_grad


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_output_and_gradients_have_the_strides_of_the_inputs(layout: str) -> None:
    inputs = make_inputs(layout=layout, requires_grad=True)
    y = selective_scan_torch(*inputs, True)
    y.sum().backward()
    assert y.stride() == inputs.u.stride()
    for tensor in inputs.tensors():
        assert tensor.grad is not None
        assert tensor.grad.stride() == tensor.stride()


def test_saves_arguments_and_a_fraction_of_the_states_only() -> None:
    batch, channels, length, state = 1, 8, 32 * CHUNK, 16
    inputs = make_inputs(batch, channels, length, state, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan_torch(*inputs, True)
    arguments = sum(t.untyped_storage().nbytes() for t in inputs.tensors())
    states = 4 * batch * channels * length * state
    assert arguments < sum(saved.values()) <= arguments + states / CHUNK


def test_is_reproducible_bit_by_bit_also_under_checkpointing() -> None:
    results = []
    for run in (selective_scan_torch, selective_scan_torch, None):
        inputs = make_inputs(channels=32, length=200, requires_grad=True)
        y = run(*inputs, True) if run else checkpoint(selective_scan_torch, *inputs, True, use_reentrant=False)
        y.square().sum().backward()
        results.append([y.detach(), *(t.grad for t in inputs.tensors())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
