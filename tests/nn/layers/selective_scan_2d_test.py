from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from direct_hifimamba.nn.layers.selective_scan_2d import SelectiveScan2D, StateGate, fold_columns
from tests.helpers import assert_close, perturb

CHANNELS, STATE, RANK = 3, 4, 2


def layer(**options: Any) -> SelectiveScan2D:
    """A small layer in float64, none of its parts negligible."""
    defaults: dict[str, Any] = {
        "state_size": STATE,
        "expansion": 2,
        "step_size_rank": RANK,
        "convolution_kernel": 5,
        "convolution_dilation": 2,
        "directions": 1,
        "order": "rows",
        "folds": 1.0,
        "step_sizes": (1e-3, 1e-1),
        "steering": True,
        "steering_expansion": 2,
        "output_norm": False,
        "dropout": 0.0,
        "backend": "torch",
    }
    scan = SelectiveScan2D(CHANNELS, **(defaults | options))
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
        F.conv1d(matrix, kernel, padding=4, dilation=2, groups=matrix.shape[1])
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
    return scan.output_norm(y * F.silu(gate)) @ scan.output_projection.weight.t()


@pytest.mark.parametrize("steering", [True, False])
@pytest.mark.parametrize("output_norm", [True, False])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_one_direction_is_the_scan_row_by_row(steering: bool, output_norm: bool, backend: str) -> None:
    scan, (low, high) = layer(steering=steering, output_norm=output_norm, backend=backend), features()
    expected = explicit(scan, low, high)
    # The norm divides by deviations that are small at some pixels.
    assert_close(scan(low, high), expected, 1e-9 if output_norm else 1e-10)
    # The test would not see the state otherwise.
    scan.D.data.zero_()
    assert scan(low, high).abs().max() > 1e-3 * expected.abs().max()


def test_folds_bring_columns_together_that_lie_a_period_apart() -> None:
    assert fold_columns(10, 4).tolist() == [0, 3, 5, 8, 1, 4, 6, 9, 2, 7]
    assert fold_columns(12, 4).tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert fold_columns(50, 6)[:7].tolist() == [0, 9, 17, 25, 34, 42, 1]
    assert fold_columns(7, 1).tolist() == list(range(7))
    for width, folds in [(7, 9), (64, 11.3), (61, 5.4)]:
        order = fold_columns(width, folds)
        assert order.sort().values.tolist() == list(range(width))
        steps, period = order.diff(), width / folds
        # From one alias to another, but where it goes back to the left.
        to_the_right = steps[steps > 0]
        assert (to_the_right - period * (to_the_right / period).round()).abs().max() < 1
        assert (steps < 0).sum() < period


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_a_folded_scan_is_that_of_images_whose_columns_are_in_that_order(order: str, directions: int) -> None:
    folded, (low, high) = layer(order=order, directions=directions, folds=2.5), features(9, 7)
    plain = layer(order=order, directions=directions)
    plain.load_state_dict(folded.state_dict())
    columns = fold_columns(7 if order == "rows" else 9, 2.5)
    axis = 2 if order == "rows" else 1
    # Without neighbours, the depthwise convolution does not care for the order.
    for scan in (folded, plain):
        kernel = scan.depthwise.weight.data
        kernel[:] = F.pad(kernel[:, :, 1:2, 1:2], (1, 1, 1, 1))
    expected = plain(low.index_select(axis, columns), high.index_select(axis, columns))
    assert_close(folded(low, high).index_select(axis, columns), expected, 1e-9)
    assert not torch.allclose(plain(low, high), folded(low, high))


def test_a_folded_scan_convolves_the_image_as_it_is() -> None:
    """With a state space that is a skip connection alone, the order of the scan is not to be seen."""
    folded, (low, high) = layer(folds=2.5, directions=2), features(9, 7)
    plain = layer(directions=2)
    plain.load_state_dict(folded.state_dict())
    for scan in (folded, plain):
        torch.nn.init.zeros_(scan.matrix_projection)
        torch.nn.init.zeros_(scan.steering_matrix_projection)
    assert_close(folded(low, high), plain(low, high), 1e-9)


def test_the_state_gate_is_a_gated_mlp() -> None:
    gate, matrix = StateGate(STATE, 3), torch.randn(7, STATE)
    hidden = matrix @ gate.expand.weight.t()
    a, b = hidden[:, : 3 * STATE], hidden[:, 3 * STATE :]
    torch.testing.assert_close(gate(matrix), (F.gelu(a) * b) @ gate.project.weight.t())


def test_the_state_gate_adds_what_it_maps_to() -> None:
    """Of sizes that the compiled kernel takes, in the middle of other channels."""
    gate, steering, matrices = perturb(StateGate(16, 6), scale=0.5), torch.randn(2, 3, 5, 32), torch.randn(2, 3, 5, 36)
    expected = matrices.clone()
    expected[..., 4:20] += gate(steering[..., 16:]).detach()
    with torch.inference_mode():
        gate.add_to(matrices[..., 4:20], steering[..., 16:])
    assert_close(matrices, expected, 1e-6)


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


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_one_direction_looks_back_along_its_order(order: str) -> None:
    height, width, row, column = 6, 7, 3, 4
    scan, (low, high) = layer(order=order, convolution_kernel=1), features(height, width)
    changed = high.clone()
    changed[:, row, column] += 1  # of these features nothing else is mixed between pixels
    moved = (scan(low, changed) - scan(low, high)).abs().amax(dim=(0, 3)) > 1e-12
    places = torch.arange(height * width)
    follow = places.view(height, width) if order == "rows" else places.view(width, height).t()
    assert torch.equal(moved, follow >= follow[row, column])


@torch.no_grad()
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_columns_are_rows_of_the_transposed_image(directions: int) -> None:
    scan, (low, high) = layer(directions=directions, order="columns"), features(4, 6)
    rows = layer(directions=directions)
    rows.load_state_dict(scan.state_dict())
    assert_close(scan(low, high), transpose(rows(transpose(low), transpose(high))), 1e-10)


@pytest.mark.parametrize(("smallest", "largest"), [(1e-3, 1e-1), (1e-2, 1.0)])
def test_step_sizes_start_between_their_limits(smallest: float, largest: float) -> None:
    scan = SelectiveScan2D(64, 16, 4, 4, 11, 2, 4, "rows", 1.0, (smallest, largest), True, 6, False, 0.0, "torch")
    step_size = F.softplus(scan.step_size_bias.double())
    assert 0.99 * smallest < step_size.min() < 1.2 * smallest
    assert 0.8 * largest < step_size.max() < 1.01 * largest
    logs = (step_size / smallest).log10()  # uniform from 0 to 2
    assert logs.mean().item() == pytest.approx(1, abs=0.1)
    assert logs.std().item() == pytest.approx(2 / 12**0.5, rel=0.05)
    assert scan.step_size_projection.abs().max().item() == pytest.approx(0.5, rel=0.01)
    assert scan.step_size_projection.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)


def test_states_decay_at_the_rates_1_to_n_and_skip_connections_start_at_1() -> None:
    scan = SelectiveScan2D(CHANNELS, 5, 2, RANK, 11, 2, 2, "rows", 1.0, (1e-3, 1e-1), True, 6, False, 0.0, "torch")
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
