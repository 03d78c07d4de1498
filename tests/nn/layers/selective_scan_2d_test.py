from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from direct_hifimamba.nn.layers.selective_scan_2d import SelectiveScan2D, StateGate
from tests.helpers import assert_close, perturb

CHANNELS, STATE, RANK = 3, 4, 1


def layer(**options: Any) -> SelectiveScan2D:
    """A small layer in float64, none of its parts negligible."""
    scan = SelectiveScan2D(CHANNELS, **({"state_size": STATE, "backend": "torch"} | options))
    for name, parameter in scan.named_parameters():
        if "matrix_projection" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return perturb(scan).double()


def features(height: int = 5, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, height, width, CHANNELS, dtype=torch.float64) for _ in range(2))


def explicit(scan: SelectiveScan2D, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """One direction, written out: rows one after the other, convolutions of sequences, the recurrence step by step."""
    batch, height, width, _ = low.shape
    length, inner = height * width, 2 * CHANNELS
    projected = low @ scan.input_projection.weight.t()
    u, gate = projected[..., :inner], projected[..., inner:]
    u = F.conv2d(u.permute(0, 3, 1, 2), scan.depthwise.weight, scan.depthwise.bias, padding=1, groups=inner)
    u = F.silu(u).reshape(batch, inner, length)

    sizes = [RANK, STATE, STATE]
    step_size, B, C = (scan.matrix_projection[0] @ u).split(sizes, dim=1)
    if scan.steering:
        steering = (high @ scan.steering_input_projection.weight.t()).permute(0, 3, 1, 2).reshape(batch, inner, length)
        steering_b, steering_c = (scan.steering_matrix_projection[0] @ steering).split([STATE, STATE], dim=1)
        B = B + scan.steering_gate_b(steering_b.transpose(1, 2)).transpose(1, 2)
        C = C + scan.steering_gate_c(steering_c.transpose(1, 2)).transpose(1, 2)
    step_size, B, C = (
        F.conv1d(matrix, kernel, padding=10, dilation=2, groups=matrix.shape[1])
        for matrix, kernel in zip(
            (step_size, B, C), scan.sequence_convolution.weight.squeeze(2).split(sizes), strict=True
        )
    )
    delta = F.softplus(scan.step_size_projection[0] @ step_size + scan.step_size_bias[0][:, None])

    A = -scan.A_log.exp()
    state = torch.zeros(batch, inner, STATE, dtype=torch.float64)
    y = torch.empty_like(u)
    for t in range(length):
        state = (delta[:, :, t, None] * A).exp() * state
        state = state + delta[:, :, t, None] * B[:, None, :, t] * u[:, :, t, None]
        y[:, :, t] = (state * C[:, None, :, t]).sum(-1) + scan.D * u[:, :, t]
    y = y.reshape(batch, inner, height, width).permute(0, 2, 3, 1)
    return (y * F.silu(gate)) @ scan.output_projection.weight.t()


@pytest.mark.parametrize("steering", [True, False])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_one_direction_is_the_scan_row_by_row(steering: bool, backend: str) -> None:
    scan, (low, high) = layer(steering=steering, backend=backend), features()
    expected = explicit(scan, low, high)
    assert_close(scan(low, high), expected, 1e-10)
    # The test would not see the state otherwise.
    scan.D.data.zero_()
    assert scan(low, high).abs().max() > 1e-3 * expected.abs().max()


def test_the_state_gate_is_a_gated_mlp() -> None:
    gate, matrix = StateGate(STATE), torch.randn(7, STATE)
    hidden = matrix @ gate.expand.weight.t()
    a, b = hidden[:, : 6 * STATE], hidden[:, 6 * STATE :]
    torch.testing.assert_close(gate(matrix), (F.gelu(a) * b) @ gate.project.weight.t())


@torch.no_grad()
def make_directions_equal(scan: SelectiveScan2D) -> None:
    """Give every direction the weights of the first, and make the depthwise convolution symmetric."""
    directions = scan.directions
    for parameter in (
        scan.matrix_projection,
        scan.steering_matrix_projection,
        scan.step_size_projection,
        scan.step_size_bias,
    ):
        parameter.copy_(parameter[:1].expand_as(parameter))
    for parameter in (scan.A_log, scan.D, scan.sequence_convolution.weight):
        parameter.copy_(parameter[: len(parameter) // directions].repeat(directions, *[1] * (parameter.ndim - 1)))
    kernel = scan.depthwise.weight
    kernel.copy_((kernel + kernel.flip(2)) / 2)
    kernel.copy_((kernel + kernel.flip(3)) / 2)
    kernel.copy_((kernel + kernel.transpose(2, 3)) / 2)


def rotate(image: torch.Tensor) -> torch.Tensor:
    return image.flip(1, 2)


def transpose(image: torch.Tensor) -> torch.Tensor:
    return image.transpose(1, 2)


@pytest.mark.parametrize(
    ("directions", "motion", "equivariant"),
    [
        (1, rotate, False),
        (2, rotate, True),
        (4, rotate, True),
        (2, transpose, False),
        (4, transpose, True),
        (4, lambda image: image.flip(1), False),  # rows from the right are none of the four
    ],
)
def test_equal_directions_have_the_symmetries_of_their_orders(directions: int, motion: Any, equivariant: bool) -> None:
    scan, (low, high) = layer(directions=directions), features(5, 7)
    make_directions_equal(scan)
    moved_output, output_of_moved = motion(scan(low, high)), scan(motion(low), motion(high))
    assert torch.allclose(moved_output, output_of_moved, atol=1e-10) == equivariant


@torch.no_grad()
def test_directions_are_rows_and_columns_forwards_and_backwards() -> None:
    # Of four equal directions one is left in turn: it is the single one, on an image turned accordingly.
    single, scan, (low, high) = layer(), layer(directions=4), features(4, 6)
    make_directions_equal(scan)
    scan.D.zero_()
    weights = scan.state_dict()
    single.load_state_dict({name: weights[name][: len(value)] for name, value in single.state_dict().items()})
    matrices = scan.matrix_projection.clone()
    turns = [lambda image: image, rotate, transpose, lambda image: rotate(transpose(image))]
    for direction, turn in enumerate(turns):
        scan.matrix_projection.zero_()  # without B and C of the low features, and with gates of zero, no state acts
        scan.matrix_projection[direction] = matrices[direction]
        scan.steering_matrix_projection.zero_()
        scan.steering_matrix_projection[direction] = single.steering_matrix_projection[0]
        assert_close(turn(scan(low, high)), single(turn(low), turn(high)), 1e-10)


@torch.no_grad()
def test_one_direction_looks_back_along_rows() -> None:
    height, width, row, column = 6, 7, 3, 4
    scan, (low, high) = layer(), features(height, width)
    scan.sequence_convolution.weight[..., :5] = scan.sequence_convolution.weight[..., 6:] = 0
    changed = high.clone()
    changed[:, row, column] += 1  # of these features nothing else is mixed between pixels
    moved = (scan(low, changed) - scan(low, high)).abs().amax(dim=(0, 3)) > 1e-12
    place = torch.arange(height * width).view(height, width)
    assert torch.equal(moved, place >= place[row, column])


def test_deltas_start_between_their_limits() -> None:
    scan = SelectiveScan2D(64, 16, directions=4)
    delta = F.softplus(scan.step_size_bias.double())
    assert 0.99e-3 < delta.min() < 1.2e-3
    assert 0.08 < delta.max() < 0.101
    logs = (delta / 1e-3).log10()  # uniform from 0 to 2
    assert logs.mean().item() == pytest.approx(1, abs=0.1)
    assert logs.std().item() == pytest.approx(2 / 12**0.5, rel=0.05)
    assert scan.step_size_projection.abs().max().item() == pytest.approx(0.5, rel=0.01)
    assert scan.step_size_projection.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)


def test_states_decay_at_the_rates_1_to_n_and_skip_connections_start_at_1() -> None:
    scan = SelectiveScan2D(CHANNELS, 5, directions=2)
    torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 6.0).expand(2 * 2 * CHANNELS, 5))
    assert torch.equal(scan.D, torch.ones(2 * 2 * CHANNELS))


def test_dropout_acts_in_training_only() -> None:
    scan, (low, high) = layer(dropout=0.5), features()
    expected = scan.eval()(low, high)
    output = scan.train()(low, high)
    dropped = output == 0
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(output[~dropped], 2 * expected[~dropped])


@pytest.mark.parametrize("directions", [1, 4])
def test_gradients(directions: int) -> None:
    scan, (low, high) = layer(directions=directions, state_size=2), features(2, 3)
    inputs = (low[:1].requires_grad_(), high[:1].requires_grad_())
    assert torch.autograd.gradcheck(scan, inputs)
