from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from direct.data.transforms import fft2
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import direct_hifimamba.benchmark.run.cost as cost_module
from direct_hifimamba.benchmark.executors.cores import count_workers
from direct_hifimamba.benchmark.run.cost import (
    count_active_parameters,
    count_macs,
    count_parameters,
    measure_costs,
)
from direct_hifimamba.benchmark.run.memory import extra_resident_bytes
from direct_hifimamba.benchmark.run.processes import THREADS
from direct_hifimamba.benchmark.score.results import Cost, Spread
from direct_hifimamba.data.formats.hdf5 import write_cmrxrecon, write_volume
from direct_hifimamba.nn.hifimamba.bottleneck import InvertedBottleneck
from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.moe import build_mixtures
from direct_hifimamba.nn.layers import selective_scan_2d
from direct_hifimamba.ops.selective_scan import selective_scan
from direct_hifimamba.ops.selective_scan.interface import unavailable_because
from direct_hifimamba.training.compose import compose
from tests.helpers import KERNEL_SIZES, TINY, loss_of, measure, tiny_network

PROJECT = Path(__file__).parents[3] / "projects" / "hifimamba"
SLICES, COILS, SIZE = 2, 2, 32
EXPERT = 8 * 16 + 16 + 16 * 8 + 8  # numbers in one expert of `TINY`
#: Small settings: file of projects/hifimamba/models -> overrides.
SMALL: dict[str, list[str]] = {
    "hifimamba": [f"model.{key}={json.dumps(value)}" for key, value in TINY.items()],
    "hifimamba_v1": ["model.hidden_channels=8", "model.blocks_per_stage=[1]", "model.state_size=4"],
    "unet": ["model.num_filters=4", "model.num_pool_layers=2"],
    "varnet": ["model.num_layers=2", "model.regularizer_num_filters=4", "model.regularizer_num_pull_layers=2"],
    "mambarecon": ["model.hidden_channels=8", "model.blocks_per_stage=[1]", "model.state_size=4"],
    "mambaroll": ["model.num_rolls=1", "model.channels_per_scale=[3,2,2]", "model.state_size=4"],
    "recurrentvarnet": [
        "model.num_steps=2",
        "model.recurrent_hidden_channels=8",
        "model.initializer_channels=[4,4,8,8]",
    ],
    "rim": ["model.hidden_channels=8", "model.length=2"],
    "lpdnet": [
        "model.num_iter=2",
        "model.primal_unet_num_filters=4",
        "model.primal_unet_num_pool_layers=2",
        "model.dual_unet_num_filters=4",
        "model.dual_unet_num_pool_layers=2",
    ],
    "vsharp": [
        "model.num_steps=2",
        "model.num_steps_dc_gd=2",
        "model.image_unet_num_filters=4",
        "model.image_unet_num_pool_layers=2",
        "model.initializer_channels=[8,8,8,8]",
    ],
    "kikinet": ["model.num_iter=1", "model.image_unet_num_filters=4", "model.kspace_unet_num_filters=4"],
    "uformer": [
        "model.embedding_dim=4",
        "model.encoder_depths=[1,1,1,1]",
        "model.encoder_num_heads=[1,1,2,2]",
        "model.bottleneck_depth=1",
        "model.bottleneck_num_heads=2",
    ],
}


def small_config(name: str, mask: str = "equispaced_4x") -> DictConfig:
    paths = [PROJECT / "common.yaml", PROJECT / f"masks/{mask}.yaml", PROJECT / f"models/{name}.yaml"]
    return compose(paths, ["training.lr=0.001", "training.batch_size=3", *SMALL[name]])


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "volume.h5"
    rng = np.random.default_rng(0)
    kspace = rng.normal(size=(SLICES, COILS, SIZE, SIZE, 2)).astype(np.float32).view(np.complex64)[..., 0]
    mask = np.arange(SIZE) % 4 == 0
    mask[SIZE // 2 - 2 : SIZE // 2 + 2] = True
    write_volume(path, kspace, {}, mask)
    return path


@pytest.mark.slow
def test_models_are_measured_and_a_failing_one_stands_alone(data_file: Path) -> None:
    # Of 32 pixels, six poolings leave none: the first forward pass fails.
    too_deep = OmegaConf.merge(small_config("unet"), {"model": {"num_pool_layers": 6}})
    configs = {"too deep": too_deep, "ours": small_config("hifimamba"), "unet": small_config("unet")}
    costs = measure_costs(configs, data_file, rounds=2)
    assert list(costs) == list(configs)

    failed = costs.pop("too deep")
    assert failed.error is not None and "Error: " in failed.error
    assert failed.parameters is not None and failed.parameters > costs["unet"].parameters
    assert failed.macs is failed.seconds_per_iteration is failed.seconds_per_slice is None
    for cost in costs.values():
        assert cost.error is None
        assert cost.threads == THREADS
        assert min(cost.parameters, cost.active_parameters, cost.macs) > 0
        assert cost.peak_memory_bytes is None or cost.peak_memory_bytes > 0
        for spread in (cost.seconds_per_iteration, cost.seconds_per_slice):
            assert 0 < spread.low <= spread.median <= spread.high
    assert costs["unet"].active_parameters == costs["unet"].parameters
    network = tiny_network()
    assert costs["ours"].parameters == count_parameters(network)
    assert costs["ours"].active_parameters == count_active_parameters(network) < count_parameters(network)
    for cost in (failed, *costs.values()):
        adapter = TypeAdapter(Cost)
        assert adapter.validate_json(adapter.dump_json(cost)) == cost


@pytest.mark.slow
def test_training_and_test_files_of_different_forms(data_file: Path, tmp_path: Path) -> None:
    radial = tmp_path / "volume.mat"
    write_cmrxrecon(radial, data_file, np.random.default_rng(0).random((SIZE, SIZE)) < 0.5, {})
    config = small_config("unet", "radial_16x")
    cost = measure_costs({"unet": config}, radial, 1, training_file=data_file)["unet"]
    assert cost.error is None and cost.seconds_per_slice is not None


@pytest.mark.slow
def test_every_model_of_the_project_can_be_measured(data_file: Path) -> None:
    assert set(SMALL) == {path.stem for path in (PROJECT / "models").iterdir()}
    costs = measure_costs({name: small_config(name) for name in SMALL}, data_file, rounds=1)
    assert {name: cost.error for name, cost in costs.items() if cost.error} == {}
    for name, cost in costs.items():
        assert min(cost.parameters, cost.macs) > 0 and cost.seconds_per_iteration is not None, name


def test_process_that_ends_is_an_error_of_its_model(data_file: Path) -> None:
    with cost_module._Model(small_config("unet"), (data_file, data_file), "cpu") as model:
        model._process.kill()
        model.set_up()
        model.take_turn()
        cost = model.cost()
    assert cost == Cost(THREADS, workers=count_workers(), error=cost.error)
    assert cost.error is not None and "-9, as happens when memory runs out" in cost.error


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", ["set up a", "set up b", "a", "b", "a", "b", "end b", "end a"]),
        ("cuda", ["set up a", "a", "a", "end a", "set up b", "b", "b", "end b"]),
    ],
)
def test_models_take_turns_on_a_cpu(
    data_file: Path, monkeypatch: pytest.MonkeyPatch, device: str, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    turns: list[str] = []

    class Model:
        def __init__(self, config: Any, *_: object) -> None:
            self.label = config

        def __enter__(self) -> Model:
            return self

        def __exit__(self, *_: object) -> None:
            turns.append(f"end {self.label}")

        def set_up(self) -> None:
            turns.append(f"set up {self.label}")

        def take_turn(self) -> None:
            turns.append(self.label)

        def cost(self) -> Cost:
            return Cost(THREADS)

    monkeypatch.setattr(cost_module, "_Model", Model)
    measure_costs({"a": "a", "b": "b"}, data_file, rounds=2, device=device)
    assert turns == expected


def test_a_device_that_is_not_there(data_file: Path) -> None:
    with pytest.raises(ValueError, match="device is tpu"):
        measure_costs({}, data_file, device="tpu")


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)


def test_parameters_that_are_not_trained_do_not_count() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    network[1].requires_grad_(False)
    assert count_parameters(network) == count_active_parameters(network) == 3 * 5 + 5


@pytest.mark.parametrize(
    ("options", "idle_experts"),
    [
        ({}, 2 * 3),
        ({"num_routed_experts": 5}, 2 * 4),
        ({"moe": "routed"}, 2 * 3),
        ({"moe": "shared"}, 0),
        ({"moe": "none"}, 0),
        # Two blocks choose from the same experts: two of four may act on a pixel.
        ({"expert_sharing": "network"}, 2),
        ({"expert_sharing": "network", "num_routed_experts": 1}, 0),
    ],
)
def test_active_parameters(options: dict[str, Any], idle_experts: int) -> None:
    network = tiny_network(**options)
    assert count_active_parameters(network) == count_parameters(network) - idle_experts * EXPERT


def test_active_parameters_are_those_with_a_gradient_from_one_choice_of_experts() -> None:
    """All pixels choose the first expert: everything else but the other experts has a gradient."""
    network = tiny_network(hidden_channels=32)
    for block in (network.stages[0].blocks[0], network.stages[1].blocks[0]):
        with torch.no_grad():
            block.moe.routed.router.projection.bias[0] = 1e3
    loss_of(network, measure()).backward()
    acting = sum(parameter.numel() for parameter in network.parameters() if parameter.grad.any())
    routers = sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if "router" in name and not parameter.grad.any()
    )
    assert acting + routers == count_active_parameters(network)


def test_macs_by_hand() -> None:
    """A convolution, a linear map, a product of matrices; elementwise operations do not count."""
    image, grouped = torch.randn(2, 4, 10, 12), nn.Conv2d(4, 6, 3, padding=1, groups=2)
    linear, a, b = nn.Linear(12, 5), torch.randn(3, 7, 8), torch.randn(3, 8, 9)

    def call() -> None:
        linear(grouped(image).relu() * 2)
        torch.einsum("bij,bjk->bik", a, b)

    expected = 2 * 6 * 10 * 12 * 2 * 9 + 2 * 6 * 10 * 12 * 5 + 3 * 7 * 8 * 9
    assert count_macs(call) == expected


def test_macs_of_the_network_do_not_depend_on_gradients() -> None:
    """Of sizes that the compiled kernels take; without gradients they take the place of more operators."""
    network, measurement = tiny_network(**KERNEL_SIZES), measure()
    expected = count_macs(lambda: network(*measurement))
    with torch.no_grad():
        assert count_macs(lambda: network(*measurement)) == expected


def test_macs_of_the_fourier_transform() -> None:
    kspace = torch.randn(2, 3, 16, 32, 2)
    expected = 2 * 3 * 16 * 32 * 2.5 * math.log2(16 * 32)
    assert count_macs(lambda: fft2(kspace, dim=(2, 3))) == expected


@pytest.mark.parametrize("grad", [False, True])
def test_macs_of_the_bottleneck_are_those_of_its_definition(grad: bool) -> None:
    bottleneck = InvertedBottleneck(16)
    features = torch.randn(2, 9, 7, 16)
    expected = 2 * 9 * 7 * (16 * 80 + 80 * 9 + 80 * 16)
    with torch.set_grad_enabled(grad):
        assert count_macs(lambda: bottleneck(features)) == expected


@pytest.mark.parametrize("grad", [False, True])
def test_macs_of_experts_are_those_of_the_chosen_ones(grad: bool) -> None:
    config = HiFiMambaV2Config(hidden_channels=16, blocks_per_stage=(1,), num_routed_experts=5)
    mixture = build_mixtures(config)[0]
    features = torch.randn(2, 9, 7, 16)
    expected = 2 * 9 * 7 * (16 * 5 + 2 * 2 * 16 * 32)  # the shared expert and the chosen one
    with torch.set_grad_enabled(grad):
        assert count_macs(lambda: mixture(features)) == expected


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("backend", ["torch", "native", "reference"])
def test_macs_of_the_scan_do_not_depend_on_its_backend(backend: str, directions: int) -> None:
    """They come on top of what PyTorch counts, which sees no products in elementwise steps or in a kernel."""
    if unavailable_because(backend, "cpu", torch.float32):
        pytest.skip(f"there is no backend {backend}")
    layer = tiny_network(scan_directions=directions, scan_backend=backend).stages[0].blocks[0].selective_scan
    low, high = torch.randn(2, 2, 5, 7, TINY["hidden_channels"] // 2)
    with FlopCounterMode(display=False) as counter:  # with gradients: no other kernel hides what it does
        layer(low, high)
    with torch.no_grad():
        scan = count_macs(lambda: layer(low, high)) - counter.get_total_flops() // 2
    channels = layer.D.numel()
    assert scan == 2 * 5 * 7 * channels * (4 * TINY["state_size"] + 3)


def test_counting_leaves_the_network_as_it_was() -> None:
    network, measurement = tiny_network(), measure()
    with torch.no_grad():
        before = network(*measurement).image
        count_macs(lambda: network(*measurement))
        assert network(*measurement).image.equal(before)
        assert count_macs(lambda: None) == 0
    assert selective_scan_2d.selective_scan is selective_scan


def test_memory_of_a_call() -> None:
    """An earlier call that took more does not hide it."""
    megabytes = [extra_resident_bytes(lambda size=size: np.ones(size * 10**6, np.uint8)) for size in (200, 50)]
    if megabytes[0] is None:
        pytest.skip("only Linux tells")
    assert megabytes == pytest.approx([200e6, 50e6], abs=5e6)
