from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from direct.data.transforms import fft2, ifft2
from torch import nn
from torchvision.ops import StochasticDepth

from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
from direct_hifimamba.nn.hifimamba.moe import Router, Routing, load_balancing_loss, watch_routing
from direct_hifimamba.nn.hifimamba.sf_lap import Bands, CrossFrequencyRouting, LaplacianPyramid
from direct_hifimamba.nn.layers import patch
from direct_hifimamba.nn.layers.data_consistency import ProximalDataConsistency
from direct_hifimamba.nn.layers.image_update import ImageUpdate
from direct_hifimamba.nn.layers.sense import Acquisition, FourierConvention, Measurement, find_fourier_convention
from direct_hifimamba.ops.selective_scan import interface
from tests.helpers import KERNEL_SIZES, TINY, UNNORMALISED, assert_close, gradients, loss_of, measure, tiny_network

# Every option that changes what is computed, alone or with what it needs.
VARIANTS: list[dict[str, Any]] = [
    {},
    {"pyramid": "haar"},
    {"pyramid": "none"},
    {"pyramid_expand": "binomial"},
    {"global_context": False},
    {"cross_frequency_routing": False},
    {"steering": False},
    {"state_space": False},
    {"scan_directions": 2},
    {"scan_directions": 4},
    {"scan_directions": 4, "steering": False},
    {"moe": "none"},
    {"moe": "shared"},
    {"moe": "routed"},
    {"expert_sharing": "stage", "blocks_per_stage": (2, 1)},
    {"expert_sharing": "network"},
    {"data_consistency": "proximal", "data_consistency_steps": 3},
    {"data_consistency_activation": "none"},
    {"image_residual": True},
    {"image_normalisation": True},
    {"data_consistency_steps": 3},
    {"activation_checkpointing": True},
    {"patch_size": 1},
    {"initialisation": "reference"},
]


def name_of(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "default"


for_all_variants = pytest.mark.parametrize("options", VARIANTS, ids=name_of)


def force_first_experts(network: nn.Module) -> None:
    """Make every pixel choose the first experts."""
    for module in network.modules():
        if isinstance(module, Router):
            nn.init.zeros_(module.projection.weight)
            module.projection.bias.data.copy_(-30.0 * torch.arange(module.num_experts))


# Sizes


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 31), (33, 18)])
@pytest.mark.parametrize(("patch_size", "coils"), [(1, 2), (2, 1), (3, 5), (4, 2), (7, 1)])
def test_any_size_and_number_of_coils(size: tuple[int, int], patch_size: int, coils: int) -> None:
    network = tiny_network(patch_size=patch_size, data_consistency="proximal")
    measurement = measure(2, coils, *size)
    image, _ = network(*measurement)
    assert (image.shape, image.dtype) == ((2, *size, 2), torch.float32)
    assert image.isfinite().all()
    loss_of(network, measurement).backward()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(network).values())


@pytest.mark.parametrize("options", [{"pyramid": "haar"}, {"pyramid_expand": "binomial"}, {"scan_directions": 4}])
def test_odd_feature_maps_of_other_layers(options: dict[str, Any]) -> None:
    assert tiny_network(**options)(*measure(1, 2, 18, 33)).image.isfinite().all()


def test_one_network_takes_changing_numbers_of_coils() -> None:
    network = tiny_network()
    assert [network(*measure(1, coils)).image.shape[1] for coils in (1, 4, 2)] == [16, 16, 16]


def test_whole_patches_are_not_touched_by_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    network, measurement = tiny_network(patch_size=3), measure(1, 2, 18, 21)
    padded = network(*measurement).image
    monkeypatch.setattr(patch, "pad_to_patches", lambda image, _: image)
    assert torch.equal(padded, network(*measurement).image)
    network, measurement = tiny_network(patch_size=3), measure(1, 2, 18, 20)
    with pytest.raises(RuntimeError):  # so the code that was taken out is the one that pads
        network(*measurement)


@pytest.mark.parametrize(("patch_size", "size"), [(8, 17), (20, 41)])
def test_the_smallest_image_has_more_than_two_patches(patch_size: int, size: int) -> None:
    network = tiny_network(patch_size=patch_size)
    assert network(*measure(1, 1, size, size)).image.isfinite().all()
    with pytest.raises(ValueError, match=f"{size - 1} x {size}; expected at least {size} x {size}"):
        network(*measure(1, 1, size - 1, size))


# Gradients and training


@for_all_variants
def test_every_parameter_has_a_gradient_though_experts_see_no_pixel(options: dict[str, Any]) -> None:
    network = tiny_network(**options).train()
    force_first_experts(network)
    pixels: dict[str, torch.Tensor] = {}

    def count(block: str, routing: Routing) -> None:
        pixels[block] = torch.bincount(routing.experts, minlength=network.config.num_routed_experts)

    optimizer = torch.optim.Adam(network.parameters(), lr=0)
    for step in range(2):
        optimizer.zero_grad()
        with watch_routing(network, count) as routers:
            loss_of(network, measure(2, 2, seed=step)).backward()
        for name, gradient in gradients(network).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
        assert pixels.keys() == routers.keys()
        assert all(not block[1:].any() for block in pixels.values())


def test_every_branch_learns_from_the_first_step() -> None:
    torch.manual_seed(0)
    network = HiFiMambaV2(fft2, ifft2, **(TINY | {"hidden_channels": 32, "stochastic_depth": 0.0}))
    loss_of(network, measure(2, 2)).backward()
    for name, gradient in gradients(network).items():
        assert gradient is not None
        assert gradient.any() or "experts" in name, name


DISTRIBUTED_VARIANTS: list[dict[str, Any]] = [
    {"hidden_channels": 32},
    {"hidden_channels": 32, "activation_checkpointing": True, "expert_sharing": "network"},
]


def train_rank(rank: int, directory: Path) -> None:
    """One of two processes that train on different data; stores the weights of every variant."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{directory / 'rendezvous'}", rank=rank, world_size=2)
    weights = []
    for options in DISTRIBUTED_VARIANTS:
        network = tiny_network(seed=rank, **options).train()
        force_first_experts(network)
        model = nn.parallel.DistributedDataParallel(network, find_unused_parameters=False, broadcast_buffers=False)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, measure(1, 1 + rank, seed=10 * step + rank)).backward()
            optimizer.step()
        weights.append(network.state_dict())
    torch.save(weights, directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for options, first, second in zip(DISTRIBUTED_VARIANTS, *ranks, strict=True):
        start = tiny_network(seed=0, **options)
        force_first_experts(start)
        for name, initial in start.state_dict().items():
            assert torch.equal(first[name], second[name]), name
            idle_expert = re.search(r"experts\.[1-3]\.", name)
            if "router" not in name:  # it is sure of its choice
                assert torch.equal(first[name], initial) == bool(idle_expert), name


RATES = {"stochastic_depth": 0.5, "scan_dropout": 0.5}


@pytest.mark.parametrize("options", [{}, RATES], ids=name_of)
def test_checkpointing_changes_no_gradient(options: dict[str, Any]) -> None:
    results = []
    for checkpointing in (False, True):
        network = tiny_network(activation_checkpointing=checkpointing, blocks_per_stage=(2, 1), **options).train()
        torch.manual_seed(1)
        loss = loss_of(network, measure(2, 2))
        loss.backward()
        results.append((loss, gradients(network)))
    (loss, expected), (checkpointed_loss, actual) = results
    assert torch.equal(loss, checkpointed_loss)
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


def test_checkpointing_stores_less() -> None:
    stored = []
    for checkpointing in (False, True):
        network = tiny_network(activation_checkpointing=checkpointing)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            loss_of(network, measure())
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_several_forward_passes_before_one_backward(checkpointing: bool) -> None:
    network = tiny_network(activation_checkpointing=checkpointing)
    first, second = measure(seed=1), measure(seed=2)
    loss_of(network, first).backward()
    loss_of(network, second).backward()
    separate = gradients(network)
    network.zero_grad(set_to_none=True)
    (loss_of(network, first) + loss_of(network, second)).backward()
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-4, atol=1e-6, msg=name)


def test_training_is_reproducible() -> None:
    outputs = []
    for _ in range(2):
        network = tiny_network(stochastic_depth=0.5, scan_dropout=0.5).train()
        outputs.append(network(*measure(2)).image)
    assert torch.equal(*outputs)
    assert not torch.equal(network(*measure(2)).image, outputs[0])  # dropout acts


def test_stochastic_depth_rises_linearly() -> None:
    network = HiFiMambaV2(fft2, ifft2, **(TINY | {"blocks_per_stage": (1, 3)}))
    rates = [module.p for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    dropout = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert dropout == [0.1] * 4


def test_stochastic_depth_skips_whole_blocks_of_single_samples() -> None:
    network = tiny_network(stochastic_depth=0.5, scan_dropout=0.0, blocks_per_stage=(1, 1)).train()
    block = network.stages[1].blocks[0]
    features = torch.randn(64, 4, 4, 8)
    trained, _ = block(features)
    evaluated, _ = block.eval()(features)
    skipped = (trained == features).flatten(1).all(dim=1)
    assert 16 < skipped.sum() < 48
    assert_close((trained - features)[~skipped], 2 * (evaluated - features)[~skipped], 1e-5)


# Evaluation


def test_samples_of_a_batch_are_independent() -> None:
    network, measurement = tiny_network(), measure(3, 2, 16, 20)
    together = network(*measurement).image
    for index in range(3):
        alone = network(*(tensor[index : index + 1] for tensor in measurement)).image
        assert_close(together[index : index + 1], alone, 1e-5)


@for_all_variants
def test_evaluation_changes_nothing(options: dict[str, Any]) -> None:
    network = tiny_network(stochastic_depth=0.5, scan_dropout=0.5, **options)
    before = {name: value.clone() for name, value in (network.state_dict() | dict(network.named_buffers())).items()}
    outputs = [network(*measure()) for _ in range(2)]
    assert torch.equal(outputs[0].image, outputs[1].image)
    after = network.state_dict() | dict(network.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_separate(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    network, measurement = tiny_network(expert_sharing="network"), measure()
    loss_of(network, measurement).backward()  # no tensor with a graph may stay on a module
    twin = duplicate(network)
    expected = network(*measurement).image
    assert torch.equal(twin(*measurement).image, expected)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(network(*measurement).image, expected)
    assert len(list(twin.parameters())) == len(list(network.parameters()))  # still shared


@for_all_variants
def test_state_dict_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    network, measurement = tiny_network(**options), measure()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = tiny_network(seed=1, **options)
    assert not torch.equal(other(*measurement).image, network(*measurement).image)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(*measurement).image, network(*measurement).image)


def test_state_dict_holds_parameters_only() -> None:
    network = tiny_network()
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()


def test_the_scan_backend_is_the_one_asked_for() -> None:
    outputs = [tiny_network(scan_backend=backend)(*measure()).image for backend in ("reference", "torch")]
    assert_close(outputs[0], outputs[1], 1e-5)
    with pytest.raises(RuntimeError, match="mamba_ssm"):
        tiny_network(scan_backend="mamba_ssm")(*measure())


@pytest.mark.parametrize("training", [False, True])
def test_autocast_keeps_scan_and_data_consistency_in_float32(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    scan_types: set[torch.dtype] = set()
    operator_types: set[torch.dtype] = set()
    linear_types: set[torch.dtype] = set()

    def adjoint(
        acquisition: Acquisition,
        kspace: torch.Tensor,
        original: Callable[[Acquisition, torch.Tensor], torch.Tensor] = Acquisition.adjoint,
    ) -> torch.Tensor:
        operator_types.add(kspace.dtype)
        return original(acquisition, kspace)

    def load(backend: str, original: Callable[[str], Any] = interface._load) -> Callable[..., torch.Tensor]:
        def scan(*arguments: Any) -> torch.Tensor:
            scan_types.update(value.dtype for value in arguments if isinstance(value, torch.Tensor))
            return original(backend)(*arguments)

        return scan

    monkeypatch.setattr(interface, "_load", load)
    options = {"stochastic_depth": 0.0, "scan_dropout": 0.0, "activation_checkpointing": training}
    network, measurement = tiny_network(**options).train(training), measure(2, 2)
    expected = network(*measurement)
    monkeypatch.setattr(Acquisition, "adjoint", adjoint)
    network.stages[0].blocks[0].mix.register_forward_hook(lambda _, __, output: linear_types.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = network(*measurement)
        loss = actual.image.square().mean() + actual.load_balancing_loss
    assert linear_types == {torch.bfloat16}
    assert (scan_types, operator_types) == ({torch.float32}, {torch.complex64})
    assert (actual.image.dtype, actual.load_balancing_loss.dtype) == (torch.float32, torch.float32)
    # bfloat16 has 8 bits, and a pixel in a hundred may choose another expert.
    error = (actual.image - expected.image).norm() / expected.image.norm()
    assert 0 < error < 0.02
    loss.backward()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(network).values())


@for_all_variants
def test_the_image_is_the_same_without_gradients(options: dict[str, Any]) -> None:
    """Of sizes that the compiled kernels take."""
    network = tiny_network(**KERNEL_SIZES | options)
    expected = network(*measure(2, 2, 17, 20))
    with torch.no_grad():
        actual = network(*measure(2, 2, 17, 20))
    assert_close(actual.image, expected.image.detach(), 1e-5)
    torch.testing.assert_close(actual.load_balancing_loss, expected.load_balancing_loss, rtol=1e-5, atol=0)


# Data consistency

CONVENTION = FourierConvention(centered=True, normalized=True)


def zero_filled_image(measurement: Measurement) -> torch.Tensor:
    acquisition = Acquisition.from_measurement(measurement, CONVENTION)
    return acquisition.leave(acquisition.adjoint(acquisition.kspace))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_half_precision_are_one_clear_error(dtype: torch.dtype) -> None:
    network = tiny_network()
    network.stages[0].to(dtype)
    with pytest.raises(TypeError, match=r"parameters are torch\..* and torch\.float32; expected the same type"):
        network(*measure())
    with pytest.raises(TypeError, match=r"parameters are torch\..*; expected torch.float32"):
        network.to(dtype)(*measure())


@pytest.mark.parametrize("image_normalisation", [False, True])
def test_normalised_images_scale_with_the_measurement(image_normalisation: bool) -> None:
    network, measurement = tiny_network(image_normalisation=image_normalisation), measure(2, 2, 17, 20)
    factors = torch.tensor([1e-3, 1e3]).view(2, 1, 1, 1)
    scaled = measurement._replace(masked_kspace=measurement.masked_kspace * factors.unsqueeze(1))
    with torch.no_grad():
        expected, image = network(*measurement).image * factors, network(*scaled).image
    difference = ((image - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).amax()
    assert (difference < 1e-4) == image_normalisation


def test_a_normalised_image_may_be_zero() -> None:
    network, measurement = tiny_network(image_normalisation=True), measure(1, 1, 16, 16)
    measurement = measurement._replace(masked_kspace=torch.zeros_like(measurement.masked_kspace))
    assert network(*measurement).image.isfinite().all()


@pytest.mark.parametrize("image_residual", [False, True])
def test_measured_samples_are_kept(image_residual: bool) -> None:
    network, measurement = tiny_network(image_residual=image_residual), measure(2, 1, 17, 20)
    acquisition = Acquisition.from_measurement(measurement, CONVENTION)
    difference = acquisition.forward(acquisition.enter(network(*measurement).image)) - acquisition.kspace
    assert difference.masked_select(acquisition.sampled).abs().max() < 1e-5
    assert difference.abs().max() > 0.1  # and others are predicted


@pytest.mark.parametrize("options", [{}, {"image_residual": True}, {"image_normalisation": True}], ids=name_of)
def test_coils_as_channels_are_each_consistent_and_need_no_sensitivities(options: dict[str, Any]) -> None:
    network, measurement = tiny_network(coil_mode="channels", num_coils=3, **options), measure(2, 3, 17, 20)
    images, _ = network(*measurement)
    assert images.shape == measurement.masked_kspace.shape
    sampled = measurement.sampling_mask.expand_as(images)
    difference = fft2(images, dim=(2, 3)) - measurement.masked_kspace
    assert difference[sampled].abs().max() < 1e-5
    assert difference[~sampled].abs().max() > 0.1
    other_maps = measurement._replace(sensitivity_map=torch.zeros_like(measurement.sensitivity_map))
    assert torch.equal(network(*other_maps).image, images)
    assert_close(network(*measurement.reduce_mask()).image, images, 1e-5)
    # Every coil sees the others: their channels are mixed.
    kspace = measurement.masked_kspace.clone()
    kspace[:, 2] *= -1
    assert (network(*measurement._replace(masked_kspace=kspace)).image[:, 0] - images[:, 0]).abs().max() > 1e-3
    # Slices of a batch do not.
    for index in range(2):
        assert_close(network(*(value[index : index + 1] for value in measurement)).image[0], images[index], 1e-4)


def test_a_single_coil_as_channel_is_the_network_for_a_coil_of_sensitivity_1() -> None:
    measurement = measure(2)
    maps = torch.tensor([1.0, 0.0]).expand_as(measurement.sensitivity_map)
    expected = tiny_network()(*measurement._replace(sensitivity_map=maps)).image
    assert torch.equal(tiny_network(coil_mode="channels", num_coils=1)(*measurement).image[:, 0], expected)


def test_another_number_of_coils_than_that_of_the_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="masked_kspace has 2 coils; expected 4, the value of num_coils"):
        tiny_network(coil_mode="channels")(*measure(1, 2))


@pytest.mark.parametrize("coils", [1, 3])
def test_a_fully_sampled_measurement_is_returned(coils: int) -> None:
    network, measurement = tiny_network(), measure(2, coils, sampled=1.0)
    expected = zero_filled_image(measurement)
    assert_close(network(*measurement).image, expected, 1e-6)


def test_proximal_data_consistency_without_regularisation_is_hard_for_one_coil() -> None:
    hard = tiny_network(image_residual=True)
    proximal = tiny_network(image_residual=True, data_consistency="proximal", data_consistency_steps=2)
    proximal.load_state_dict(hard.state_dict(), strict=False)
    layers = [module for module in proximal.modules() if isinstance(module, ProximalDataConsistency)]
    assert len(layers) == 4  # first image, two stages, last image
    for layer in layers:
        nn.init.constant_(layer.log_weight, -40.0)
        nn.init.zeros_(layer.noise_exponent)
    assert_close(proximal(*measure(2)).image, hard(*measure(2)).image, 1e-5)
    nn.init.constant_(layers[-1].log_weight, 20.0)  # as predicted
    assert (proximal(*measure(2)).image - hard(*measure(2)).image).abs().max() > 0.1


@pytest.mark.parametrize("image_normalisation", [False, True])
def test_no_factor_on_a_proximal_image_fits_the_samples_better(image_normalisation: bool) -> None:
    network = tiny_network(data_consistency="proximal", image_normalisation=image_normalisation).double()
    measurement = measure(2, 3)
    acquisition = Acquisition.from_measurement(measurement, network.fourier_convention, torch.float64)
    predicted = acquisition.forward(acquisition.enter(network(*measurement).image)) * acquisition.sampled
    projection = (predicted.conj() * acquisition.kspace).real.sum(dim=(1, 2, 3))
    torch.testing.assert_close(projection, predicted.abs().square().sum(dim=(1, 2, 3)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("data_consistency", ["hard", "proximal"])
def test_masks_of_whole_lines_may_be_given_as_one_line(data_consistency: str) -> None:
    network = tiny_network(data_consistency=data_consistency, data_consistency_steps=4)
    measurement = measure(2, 3, 17, 20)
    assert_close(network(*measurement.reduce_mask()).image, network(*measurement).image, 1e-5)


def test_the_image_does_not_depend_on_the_scale_of_the_fourier_transform() -> None:
    network, measurement = tiny_network(), measure(2, 2, 16, 20)
    expected = network(*measurement).image
    network.fourier_convention = find_fourier_convention(*UNNORMALISED)
    scaled = measurement._replace(masked_kspace=measurement.masked_kspace * (16 * 20) ** 0.5)
    assert_close(network(*scaled).image, expected, 1e-5)


def test_the_mask_may_be_of_any_dtype_and_broadcast() -> None:
    network, measurement = tiny_network(), measure(1, 2)
    expected = network(*measurement).image
    for mask in (
        measurement.sampling_mask.float(),
        measurement.sampling_mask.int(),
        2.5 * measurement.sampling_mask,
    ):
        assert torch.equal(network(*measurement._replace(sampling_mask=mask)).image, expected)


def test_double_and_half_precision_measurements_are_taken() -> None:
    network, measurement = tiny_network(), measure(1, 2)
    doubles = Measurement(*(value.double() for value in measurement))
    assert torch.equal(network(*doubles).image, network(*measurement).image)
    halves = Measurement(*(value.half() for value in measurement))
    assert network(*halves).image.dtype == torch.float32


def test_the_updates_start_from_the_zero_filled_image() -> None:
    # Predictions of zero leave what was measured; a carried image also keeps what an earlier stage predicted.
    measurement = measure(1, 1)
    for image_residual in (False, True):
        network = tiny_network(image_residual=image_residual)
        zero_filled = zero_filled_image(measurement)
        nn.init.zeros_(network.update.prediction.projection.weight)
        difference = (network(*measurement).image - zero_filled).abs().max()
        assert (difference > 0.01) == image_residual
        nn.init.zeros_(network.stages[0].update.prediction.projection.weight)
        nn.init.zeros_(network.stages[1].update.prediction.projection.weight)
        assert_close(network(*measurement).image, zero_filled, 1e-6)


@pytest.mark.parametrize("image_residual", [False, True])
def test_predicted_corrections_start_ten_times_smaller(image_residual: bool) -> None:
    torch.manual_seed(0)
    options = TINY | {"hidden_channels": 64, "initialisation": "reference", "image_residual": image_residual}
    network = HiFiMambaV2(fft2, ifft2, **options)
    for module in network.modules():
        if isinstance(module, ImageUpdate):
            expected = 0.002 if image_residual else 0.02
            assert module.prediction.projection.weight.std().item() == pytest.approx(expected, rel=0.1)


# Load balancing


@pytest.mark.parametrize("blocks_per_stage", [(1, 1), (2, 2, 2), (1, 3)])
def test_load_balancing_loss_is_half_the_mean_over_stages(blocks_per_stage: tuple[int, ...]) -> None:
    losses: dict[str, torch.Tensor] = {}
    network = tiny_network(blocks_per_stage=blocks_per_stage)
    with watch_routing(network, lambda block, routing: losses.update({block: load_balancing_loss(routing)})):
        actual = network(*measure(2)).load_balancing_loss
    assert list(losses) == [
        f"stages.{s}.blocks.{b}" for s, blocks in enumerate(blocks_per_stage) for b in range(blocks)
    ]
    means = [
        torch.stack([loss for block, loss in losses.items() if block.startswith(f"stages.{stage}.")]).mean()
        for stage in range(len(blocks_per_stage))
    ]
    torch.testing.assert_close(actual, torch.stack(means).mean() / 2)


@pytest.mark.parametrize("moe", ["none", "shared"])
def test_without_a_router_the_load_balancing_loss_is_zero(moe: str) -> None:
    network = tiny_network(moe=moe)
    assert network(*measure()).load_balancing_loss == 0
    with watch_routing(network, lambda *_: pytest.fail("nothing routes")) as routers:
        network(*measure())
    assert routers == {}


def test_routing_is_watched_within_the_context_and_under_a_wrapper_alike() -> None:
    network = tiny_network()
    wrapper = nn.Module()
    wrapper.module = network
    seen: list[str] = []
    with watch_routing(wrapper, lambda block, _: seen.append(block)) as routers:
        network(*measure())
    network(*measure())
    assert seen == list(routers) == ["stages.0.blocks.0", "stages.1.blocks.0"]


# Bad input

_K = (2, 3, 16, 18, 2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"masked_kspace": torch.zeros(2, 16, 18, 2)}, ValueError, r"masked_kspace has shape \(2, 16, 18, 2\)"),
        ({"masked_kspace": torch.zeros(2, 3, 16, 18, 1)}, ValueError, "masked_kspace has shape"),
        ({"masked_kspace": torch.zeros(2, 3, 16, 18, dtype=torch.complex64)}, TypeError, "masked_kspace is .*complex"),
        ({"masked_kspace": torch.zeros(_K, dtype=torch.int64)}, TypeError, "masked_kspace is torch.int64"),
        ({"masked_kspace": torch.zeros(2, 4, 16, 18, 2)}, ValueError, "sensitivity_map has shape .* and masked_kspace"),
        (
            {"sensitivity_map": torch.zeros(2, 1, 16, 18, 2)},
            ValueError,
            "sensitivity_map has shape .*expected the same",
        ),
        ({"sensitivity_map": torch.zeros(2, 3, 16, 2)}, ValueError, "sensitivity_map has shape"),
        ({"sensitivity_map": torch.zeros(_K, dtype=torch.bool)}, TypeError, "sensitivity_map is torch.bool"),
        ({"sampling_mask": torch.ones(2, 16, 18, 1)}, ValueError, r"sampling_mask has shape \(2, 16, 18, 1\)"),
        ({"sampling_mask": torch.ones(2, 16, 18)}, ValueError, "sampling_mask has shape"),
        ({"sampling_mask": torch.ones(2, 3, 16, 18, 1)}, ValueError, "sampling_mask has shape"),
        ({"sampling_mask": torch.ones(2, 1, 18, 16, 1)}, ValueError, "sampling_mask has shape"),
        ({"sampling_mask": torch.ones(3, 1, 16, 18, 1)}, ValueError, "sampling_mask has shape"),
        (measure(1, 1, 15, 16)._asdict(), ValueError, "15 x 16; expected at least 16 x 16"),
        (measure(1, 1, 16, 8)._asdict(), ValueError, "16 x 8; expected at least 16 x 16"),
    ],
)
def test_bad_input_is_one_clear_error(changes: dict[str, torch.Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_network()(**(measure(2, 3, 16, 18)._asdict() | changes))


def test_unknown_options_are_errors() -> None:
    with pytest.raises(TypeError, match="hiden_channels"):
        HiFiMambaV2(fft2, ifft2, hiden_channels=8)
    with pytest.raises(ValueError, match="patch_size is 0"):
        HiFiMambaV2(fft2, ifft2, patch_size=0)


# Ablations: what each switch takes away, brings and reshapes among the parameters, as regular expressions of names
# within a block, or of whole names outside of blocks.

SCAN = r"selective_scan\."
NO_STEERING = rf"steering_norm\..*|{SCAN}steering_.*"
ROUTED = r"moe\.routed\..*"
SHARED = r"moe\.shared\..*"
PER_DIRECTION = rf"{SCAN}((steering_)?matrix_projection|step_size_.*|sequence_convolution\.weight|A_log|D)"


@pytest.mark.parametrize(
    ("options", "removed", "added", "reshaped"),
    [
        ({"pyramid": "haar"}, "", set(), ""),
        ({"pyramid": "none"}, r"cross_frequency_routing\..*", set(), ""),
        ({"pyramid_expand": "binomial"}, "", set(), ""),
        ({"global_context": False}, r"context\..*", set(), ""),
        ({"cross_frequency_routing": False}, r"cross_frequency_routing\..*", set(), ""),
        ({"steering": False}, NO_STEERING, set(), ""),
        ({"state_space": False}, rf"{SCAN}.*|low_norm\..*|steering_norm\..*", set(), r"mix\.weight"),
        ({"scan_directions": 2}, "", set(), PER_DIRECTION),
        ({"scan_directions": 4}, "", set(), PER_DIRECTION),
        ({"moe": "none"}, ROUTED, set(), rf"{SHARED}(expand\..*|project\.weight)"),
        ({"moe": "shared"}, ROUTED, set(), ""),
        ({"moe": "routed"}, SHARED, set(), ""),
        (
            {"data_consistency": "proximal"},
            "",
            {
                f"{owner}.{name}"
                for owner in (
                    "first_update",
                    *(f"{stage}update.data_consistency" for stage in ("stages.0.", "stages.1.", "")),
                )
                for name in ("log_weight", "noise_exponent")
            },
            "",
        ),
        ({"data_consistency_activation": "none"}, "", set(), ""),
        ({"image_residual": True}, "", set(), ""),
        ({"image_normalisation": True}, "", set(), ""),
        ({"data_consistency_steps": 3}, "", set(), ""),
        ({"activation_checkpointing": True}, "", set(), ""),
        ({"initialisation": "reference"}, "", set(), ""),
    ],
    ids=lambda value: name_of(value) if isinstance(value, dict) else "",
)
def test_a_switch_changes_its_own_parameters_alone(
    options: dict[str, Any], removed: str, added: set[str], reshaped: str
) -> None:
    base = {name: parameter.shape for name, parameter in tiny_network().named_parameters()}
    variant = {name: parameter.shape for name, parameter in tiny_network(**options).named_parameters()}

    def matching(pattern: str) -> set[str]:
        return {name for name in base if pattern and re.fullmatch(rf"stages\.\d\.blocks\.\d\.({pattern})", name)}

    assert bool(matching(removed)) == bool(removed)
    assert base.keys() - variant.keys() == matching(removed)
    assert variant.keys() - base.keys() == added
    assert {name for name in base.keys() & variant.keys() if base[name] != variant[name]} == matching(reshaped)


@pytest.mark.parametrize(
    ("sharing", "owners"),
    [
        ("block", {"stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"}),
        ("stage", {"stages.0.blocks.0", "stages.1.blocks.0"}),
        ("network", {"stages.0.blocks.0"}),
    ],
)
def test_experts_are_shared_and_routers_are_not(sharing: str, owners: set[str]) -> None:
    network = tiny_network(expert_sharing=sharing, blocks_per_stage=(2, 1))
    names = dict(network.named_parameters())  # a shared parameter once, where it is met first
    for part in (".moe.shared.", ".moe.routed.experts."):
        assert {name.partition(part)[0] for name in names if part in name} == owners
    assert sum("router.projection.weight" in name for name in names) == 3

    # The same weights in a network that shares nothing give the same image.
    separate = tiny_network(seed=1, blocks_per_stage=(2, 1))
    separate.load_state_dict(network.state_dict())
    assert torch.equal(separate(*measure()).image, network(*measure()).image)


def base_and_variant(base: dict[str, Any], variant: dict[str, Any]) -> tuple[HiFiMambaV2, HiFiMambaV2]:
    """Two networks with the same weights where they have the same parameters, checked to give different images."""
    networks = tiny_network(**base), tiny_network(seed=1, **variant)
    networks[1].load_state_dict(networks[0].state_dict(), strict=False)
    first, second = (network(*measure(2, 2)).image for network in networks)
    assert (first - second).abs().max() > 1e-2
    return networks


def assert_equal_images(first: HiFiMambaV2, second: HiFiMambaV2) -> None:
    assert_close(first(*measure(2, 2)).image, second(*measure(2, 2)).image, 1e-5)


@torch.no_grad()
def zero(network: nn.Module, pattern: str) -> None:
    """Set the parameters to zero whose names contain the regular expression."""
    matched = [parameter.zero_() for name, parameter in network.named_parameters() if re.search(pattern, name)]
    assert matched


def replace_output(network: nn.Module, kind: type[nn.Module], replacement: Callable[..., Any]) -> None:
    """Let modules of `kind` return `replacement(*inputs)`."""
    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, inputs, output: replacement(*inputs))


def test_without_steering_the_steering_gates_give_zero() -> None:
    base, variant = base_and_variant({}, {"steering": False})
    zero(base, r"steering_gate_[bc]\.project")
    assert_equal_images(base, variant)


def test_without_the_state_space_its_part_of_the_mixture_is_absent() -> None:
    base, variant = tiny_network(), tiny_network(seed=1, state_space=False)
    weights = {name: weight for name, weight in base.state_dict().items() if not name.endswith("mix.weight")}
    variant.load_state_dict(weights, strict=False)
    zero(base, r"selective_scan\.output_projection")
    for name, parameter in variant.named_parameters():
        if name.endswith("mix.weight"):
            parameter.data.copy_(base.state_dict()[name][:, : parameter.shape[1]])
    assert_equal_images(base, variant)


def test_without_cross_frequency_routing_bands_are_added() -> None:
    base, variant = base_and_variant({}, {"cross_frequency_routing": False})
    replace_output(base, CrossFrequencyRouting, torch.add)
    assert_equal_images(base, variant)


def test_without_global_context_the_gate_is_one() -> None:
    base, variant = base_and_variant({}, {"global_context": False})
    zero(base, r"context\.excite")  # a gate of sigmoid(0) = 1/2, which the other network gets from its norm
    for name, parameter in variant.named_parameters():
        if "context_norm" in name:
            parameter.data.div_(2)
    assert_equal_images(base, variant)


@pytest.mark.parametrize(
    ("moe", "absent"), [("shared", r"routed\.experts\.\d\.project"), ("routed", r"shared\.\d\.project")]
)
def test_shared_and_routed_experts_are_added(moe: str, absent: str) -> None:
    base, variant = base_and_variant({}, {"moe": moe})
    zero(base, absent)
    assert_equal_images(base, variant)


def test_without_experts_an_mlp_takes_the_place_of_those_that_act() -> None:
    # A single routed expert has the probability 1; with the shared one it is as wide as the MLP.
    base, variant = tiny_network(num_routed_experts=1), tiny_network(moe="none")
    common = {name: value for name, value in base.state_dict().items() if ".moe." not in name}
    variant.load_state_dict(common, strict=False)
    for stage, other in zip(base.stages, variant.stages, strict=True):
        shared, routed = stage.blocks[0].moe.shared[0], stage.blocks[0].moe.routed.experts[0]
        mlp = other.blocks[0].moe.shared[0]
        mlp.expand.weight.data = torch.cat([shared.expand.weight, routed.expand.weight]).data
        mlp.expand.bias.data = torch.cat([shared.expand.bias, routed.expand.bias]).data
        mlp.project.weight.data = torch.cat([shared.project.weight, routed.project.weight], dim=1).data
        mlp.project.bias.data = (shared.project.bias + routed.project.bias).data
    assert_equal_images(base, variant)


def test_without_a_pyramid_everything_is_low() -> None:
    base, variant = base_and_variant({"cross_frequency_routing": False}, {"pyramid": "none"})
    replace_output(base, LaplacianPyramid, lambda features: Bands(features, torch.zeros_like(features)))
    assert_equal_images(base, variant)


@pytest.mark.parametrize("options", [{"pyramid": "haar"}, {"pyramid_expand": "binomial"}], ids=name_of)
def test_another_pyramid_changes_the_split_alone(options: dict[str, Any]) -> None:
    base, variant = base_and_variant({}, options)
    pyramid = variant.stages[0].blocks[0].sf_lap.split
    replace_output(base, LaplacianPyramid, pyramid)
    assert_equal_images(base, variant)


def test_without_activation_the_image_itself_is_embedded() -> None:
    base, variant = base_and_variant({}, {"data_consistency_activation": "none"})
    replace_output(base, nn.SiLU, lambda image: image)
    assert_equal_images(base, variant)


@pytest.mark.parametrize("directions", [2, 4])
def test_further_directions_are_added(directions: int) -> None:
    base, variant = tiny_network(), tiny_network(seed=1, scan_directions=directions)
    weights = variant.state_dict()
    for name, value in base.state_dict().items():
        if weights[name].shape == value.shape:
            weights[name].copy_(value)
        else:  # of the first direction; zero matrices and skips silence the others
            weights[name].zero_()
            weights[name][: value.shape[0]] = value
    assert_equal_images(base, variant)
    nn.init.ones_(variant.stages[0].blocks[0].selective_scan.D)
    assert (variant(*measure(2, 2)).image - base(*measure(2, 2)).image).abs().max() > 1e-2


def test_the_network_takes_positional_arguments_as_the_host_gives_them() -> None:
    assert list(inspect.signature(HiFiMambaV2).parameters)[:2] == ["forward_operator", "backward_operator"]
    assert list(inspect.signature(HiFiMambaV2.forward).parameters)[1:] == list(Measurement._fields)


# Derivatives and precision


def network_of_kspace(dtype: torch.dtype, **options: Any) -> tuple[Callable[..., torch.Tensor], torch.Tensor]:
    """What a small network makes of k-space (and of a change of its maps), and k-space of that precision."""
    network = tiny_network(**options).to(dtype)
    kspace, mask, maps = (value.to(dtype) for value in measure(1, 2))
    maps[:, :, :3] = 0  # where there is no object
    return lambda kspace, change=0: network(kspace, mask, maps + change).image, kspace


DERIVATIVES = [
    {},
    {"activation_checkpointing": True},
    KERNEL_SIZES,
    {"image_normalisation": True, "image_residual": True},
    {"image_normalisation": True, "data_consistency": "proximal"},
]


@pytest.mark.parametrize("options", DERIVATIVES, ids=name_of)
def test_gradients_in_float64_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    network, kspace = network_of_kspace(torch.float64, **options)
    assert network(kspace).dtype == torch.float64
    inputs = kspace.requires_grad_(), torch.zeros_like(kspace).requires_grad_()
    assert torch.autograd.gradcheck(network, inputs, fast_mode=True)


@pytest.mark.usefixtures("group_norm_transforms")
@pytest.mark.parametrize("options", DERIVATIVES, ids=name_of)
def test_derivatives_of_the_network_in_float32_are_those_in_float64(options: dict[str, Any]) -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        network, kspace = network_of_kspace(dtype, **options)
        direction = measure(1, 2, seed=1).masked_kspace.to(dtype)
        _, tangent = torch.func.jvp(network, (kspace,), (direction,))
        leaf = kspace.requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((gradient * direction).sum(), leaf)
        functional = torch.func.grad(lambda kspace, network=network: network(kspace).square().sum())(kspace.detach())
        assert_close(functional, gradient.detach(), 1e-3)
        results.append((tangent, gradient, second))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual.detach().double(), expected.detach(), 1e-3)


@pytest.mark.parametrize("options", [{"scan_backend": "reference"}, *DERIVATIVES], ids=name_of)
def test_second_derivatives_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    network, kspace = network_of_kspace(torch.float64, **options)
    direction = measure(1, 2, seed=1).masked_kspace.double()

    def gradient(kspace: torch.Tensor) -> torch.Tensor:
        leaf = kspace.detach().requires_grad_()
        return torch.autograd.grad(network(leaf).square().sum(), leaf)[0]

    _, product = torch.autograd.functional.hvp(lambda kspace: network(kspace).square().sum(), kspace, direction)
    step = 1e-7
    difference = (gradient(kspace + step * direction) - gradient(kspace - step * direction)) / (2 * step)
    assert_close(difference, product, 1e-4)


def test_a_network_without_memory_can_be_filled() -> None:
    with torch.device("meta"):
        network = HiFiMambaV2(fft2, ifft2, **TINY)
    with pytest.raises(ValueError, match="parameters are on the meta device, without values"):
        network(*measure())
    expected = tiny_network()
    network.to_empty(device="cpu").eval().load_state_dict(expected.state_dict())
    assert torch.equal(network(*measure()).image, expected(*measure()).image)


def test_a_default_dtype_of_float64() -> None:
    """It makes new networks precise, and leaves a network of float32 as it is."""
    network, measurement = tiny_network(**KERNEL_SIZES), measure()
    loss_of(network, measurement).backward()
    expected = gradients(network)
    network.zero_grad()
    torch.set_default_dtype(torch.float64)
    try:
        loss_of(network, measurement).backward()
        assert {parameter.dtype for parameter in HiFiMambaV2(fft2, ifft2, **TINY).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(network).items())
