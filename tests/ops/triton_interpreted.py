"""Values of the Triton kernels in Triton's interpreter; run by triton_test.py, which sets TRITON_INTERPRET=1 for it."""

import pytest
import torch

from direct_hifimamba.ops.selective_scan import triton_kernels
from direct_hifimamba.ops.selective_scan.triton_kernels import selective_scan_triton
from tests.ops.scan_cases import assert_matches_oracle, make_inputs


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small inputs take several chunks, and several blocks of channels in a group."""
    monkeypatch.setattr(triton_kernels, "_CHUNK", 4)
    monkeypatch.setattr(triton_kernels, "_TILE_ELEMENTS", 32)


def test_full_chunks() -> None:
    assert_matches_oracle(selective_scan_triton, make_inputs(1, 4, 70, 3, 2, requires_grad=True), True)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11])
def test_lengths(length: int) -> None:
    assert_matches_oracle(selective_scan_triton, make_inputs(1, 3, length, 4, requires_grad=True), True)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("groups", "optional", "softplus"), [(1, True, False), (2, False, True)])
def test_layouts_groups_and_options(layout: str, groups: int, optional: bool, softplus: bool) -> None:
    inputs = make_inputs(2, 6, 6, 3, groups, optional=optional, layout=layout, requires_grad=True)
    assert_matches_oracle(selective_scan_triton, inputs, softplus)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_extreme_decays(scale: float) -> None:
    inputs = make_inputs(1, 4, 19, 2, requires_grad=True)
    with torch.no_grad():
        inputs.A.copy_(-scale * torch.rand_like(inputs.A))
        inputs.delta.copy_(torch.tensor([0.0, 1e-8, 1.0, 50.0])[torch.randint(4, inputs.delta.shape)])
    assert_matches_oracle(selective_scan_triton, inputs._replace(delta_bias=None), False)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("wanted", range(8))
def test_each_gradient_alone(wanted: int) -> None:
    inputs = make_inputs(1, 2, 5, 2)
    inputs[wanted].requires_grad_()
    assert_matches_oracle(selective_scan_triton, inputs, True)
