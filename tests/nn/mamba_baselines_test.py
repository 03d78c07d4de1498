"""What every Mamba baseline must do, whatever is in it: sizes, coils, gradients, processes, configuration, DIRECT."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.multiprocessing
from direct.config.defaults import DefaultConfig, LossConfig, ModelConfig, TrainingConfig
from direct.data.transforms import fft2, ifft2, modulus, root_sum_of_squares
from direct.environment import load_models_into_environment_config, setup_engine
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import parameters_to_vector

from direct_hifimamba.nn.layers.config import NetworkConfig
from direct_hifimamba.nn.layers.engine import SenseEngine
from direct_hifimamba.nn.layers.sense import Measurement
from tests.helpers import assert_close, gradients, measure, perturb
from tests.nn.hifimamba.hifimamba_engine_test import split


class Baseline(NamedTuple):
    """A network, with options that make it take milliseconds."""

    folder: str
    name: str
    tiny: dict[str, Any]

    def of(self, module: str, suffix: str = "") -> Any:
        return getattr(import_module(f"direct_hifimamba.nn.{self.folder}.{module}"), self.name + suffix)

    @property
    def config_class(self) -> type[NetworkConfig]:
        return self.of("config", "Config")

    @property
    def model_name(self) -> str:
        return f"{self.folder}.{self.folder}.{self.name}"


BASELINES = [
    Baseline("mambarecon", "MambaRecon", {"hidden_channels": 8, "blocks_per_stage": (1, 1), "state_size": 4}),
    Baseline("mambaroll", "MambaRoll", {"num_rolls": 2, "channels_per_scale": (3, 2, 2), "state_size": 4}),
]
for_all = pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.name)


def tiny_baseline(baseline: Baseline, seed: int = 0, **options: Any) -> nn.Module:
    """A tiny network in evaluation mode, no branch of it negligible."""
    torch.manual_seed(seed)
    network = baseline.of(baseline.folder)(fft2, ifft2, **(baseline.tiny | {"scan_backend": "torch"} | options))
    return perturb(network).eval()


def outputs(network: nn.Module, measurement: Measurement) -> tuple[torch.Tensor, ...]:
    """Everything that a network returns, the image first."""
    output = network(*measurement)
    return (output,) if isinstance(output, torch.Tensor) else output


def loss_of(network: nn.Module, measurement: Measurement) -> torch.Tensor:
    return sum(tensor.square().mean() for tensor in outputs(network, measurement))


@for_all
@pytest.mark.parametrize(("size", "coils"), [((16, 16), 1), ((17, 30), 3), ((33, 18), 1), ((32, 47), 2)])
def test_any_size_and_number_of_coils(baseline: Baseline, size: tuple[int, int], coils: int) -> None:
    network = tiny_baseline(baseline)
    loss_of(network, measure(2, coils, *size)).backward()
    image, *_ = outputs(network, measure(2, coils + 1, *size))  # the number may change
    assert (image.shape, image.dtype) == ((2, *size, 2), torch.float32)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(network).values())


@for_all
@pytest.mark.parametrize("image_residual", [False, True])
def test_measured_samples_of_a_single_coil_are_kept_and_others_predicted(
    baseline: Baseline, image_residual: bool
) -> None:
    network, measurement = tiny_baseline(baseline, image_residual=image_residual), measure(1, 1, 17, 20)
    image, *_ = outputs(network, measurement)
    coil_image = torch.view_as_real(
        torch.view_as_complex(image) * torch.view_as_complex(measurement.sensitivity_map[:, 0])
    )
    difference = (fft2(coil_image, dim=(1, 2)) - measurement.masked_kspace[:, 0]).abs()
    sampled = measurement.sampling_mask[:, 0].expand_as(difference)
    assert difference[sampled].max() < 1e-5
    assert difference[~sampled].min() > 1e-7 and difference[~sampled].max() > 0.1


@for_all
def test_samples_of_a_batch_are_independent(baseline: Baseline) -> None:
    network, measurement = tiny_baseline(baseline), measure(2, 2, 17, 20)
    together, *_ = outputs(network, measurement)
    for index in range(2):
        alone, *_ = outputs(network, Measurement(*(tensor[index : index + 1] for tensor in measurement)))
        assert_close(together[index : index + 1], alone, 1e-5)


@for_all
@pytest.mark.parametrize("image_normalisation", [False, True])
def test_normalised_images_scale_with_the_measurement(baseline: Baseline, image_normalisation: bool) -> None:
    network = tiny_baseline(baseline, image_normalisation=image_normalisation)
    measurement = measure(1, 2, 16, 20)
    with torch.no_grad():
        expected = outputs(network, measurement)
        actual = outputs(network, measurement._replace(masked_kspace=1e3 * measurement.masked_kspace))
    errors = [(a / 1e3 - e).norm() / e.norm() for a, e in zip(actual, expected, strict=True)]
    assert (max(errors) < 1e-4) == image_normalisation


@for_all
def test_gradients_in_float64(baseline: Baseline) -> None:
    network, measurement = tiny_baseline(baseline).double(), measure(1, 2, 16, 17)
    parameters = dict(network.named_parameters())
    others = [tensor.double() for tensor in (measurement.sampling_mask, measurement.sensitivity_map)]

    def call(kspace: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        values = vector.split([parameter.numel() for parameter in parameters.values()])
        weights = {name: value.view_as(parameters[name]) for name, value in zip(parameters, values, strict=True)}
        output = torch.func.functional_call(network, weights, (kspace, *others))
        return output if isinstance(output, torch.Tensor) else torch.cat([tensor.flatten() for tensor in output])

    inputs = (measurement.masked_kspace.double(), parameters_to_vector(parameters.values()).detach())
    assert torch.autograd.gradcheck(call, tuple(tensor.requires_grad_() for tensor in inputs), fast_mode=True)


@for_all
def test_every_branch_learns_from_the_first_step(baseline: Baseline) -> None:
    network = baseline.of(baseline.folder)(fft2, ifft2, **baseline.tiny)
    loss_of(network, measure(1, 2, 32, 32)).backward()  # several steps of every scan
    for name, gradient in gradients(network).items():
        assert gradient is not None, name
        assert gradient.abs().max() > 1e-7, name


@for_all
def test_checkpointing_changes_no_gradient_and_stores_less(baseline: Baseline) -> None:
    results = []
    for checkpointing in (False, True):
        network, stored = tiny_baseline(baseline, activation_checkpointing=checkpointing), 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal stored
            stored += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = loss_of(network, measure(2, 2))
        loss.backward()
        results.append((gradients(network), stored))
    (expected, all_stored), (actual, stored) = results
    assert stored < all_stored / 2
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


@for_all
def test_autocast_keeps_the_image_in_float32(baseline: Baseline) -> None:
    network, measurement = tiny_baseline(baseline), measure(1, 2)
    expected, *_ = outputs(network, measurement)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, *_ = outputs(network, measurement)
        loss_of(network, measurement).backward()
    assert image.dtype == torch.float32
    assert 0 < (image - expected).norm() / expected.norm() < 0.05


@for_all
def test_copies_and_stored_weights_give_the_same_image(baseline: Baseline, tmp_path: Path) -> None:
    network, measurement = tiny_baseline(baseline), measure()
    loss_of(network, measurement).backward()  # no tensor with a graph may stay on a module
    twin, loaded = copy.deepcopy(network), tiny_baseline(baseline, seed=1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()
    expected, *_ = outputs(network, measurement)
    for other in (twin, loaded):
        assert torch.equal(outputs(other, measurement)[0], expected)


def _train_rank(rank: int, directory: Path) -> None:
    """One of two processes that train on different data, from different weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{directory / 'rendezvous'}", rank=rank, world_size=2)
    weights = []
    for baseline in BASELINES:
        network = tiny_baseline(baseline, seed=rank, activation_checkpointing=True).train()
        model = nn.parallel.DistributedDataParallel(network, find_unused_parameters=False, broadcast_buffers=False)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, measure(1, 1 + rank, 32, 32, seed=10 * step + rank)).backward()
            optimizer.step()
        weights.append(network.state_dict())
    torch.save(weights, directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for baseline, first, second in zip(BASELINES, *ranks, strict=True):
        for name, initial in tiny_baseline(baseline).state_dict().items():
            assert torch.equal(first[name], second[name]), name
            assert not torch.equal(first[name], initial), name


# Configuration


@for_all
def test_direct_finds_the_configuration(baseline: Baseline) -> None:
    model = {"model_name": baseline.model_name, "state_size": 5}
    models, configs = load_models_into_environment_config(OmegaConf.create({"model": model}))
    assert models["model"] is baseline.of(baseline.folder)
    assert configs["model"].state_size == 5


@for_all
def test_every_key_is_explained(baseline: Baseline) -> None:
    own = {field.name for field in fields(baseline.config_class)} - {field.name for field in fields(ModelConfig)}
    explained = "".join(map(str, map(inspect.getdoc, (baseline.config_class, NetworkConfig))))
    assert {key for key in own if f"\n{key} : " not in explained} == set()


@for_all
def test_bad_values_are_one_clear_error(baseline: Baseline) -> None:
    network_class = baseline.of(baseline.folder)
    for key in (field.name for field in fields(baseline.config_class) if field.type == "int"):
        with pytest.raises(ValueError, match=f"{key} is 0; expected an integer from 1 up"):
            network_class(fft2, ifft2, **{key: 0})
        with pytest.raises(TypeError, match=rf"{key} is 1\.5 \(float\); expected int"):
            network_class(fft2, ifft2, **{key: 1.5})
    for key in (field.name for field in fields(baseline.config_class) if field.type == "tuple[int, ...]"):
        with pytest.raises(ValueError, match=rf"{key} is \(2, 0\); expected at least one integer, and all from 1 up"):
            network_class(fft2, ifft2, **{key: (2, 0)})
    with pytest.raises(ValueError, match="scan_backend is 'cuda'; expected one of auto"):
        network_class(fft2, ifft2, scan_backend="cuda")
    with pytest.raises(TypeError, match="unexpected keyword argument 'channels'"):
        network_class(fft2, ifft2, channels=2)


@for_all
def test_bad_input_is_one_clear_error(baseline: Baseline) -> None:
    network, measurement = tiny_baseline(baseline), measure(1, 2)
    with pytest.raises(ValueError, match="masked_kspace is 15 x 16; expected at least 16 x 16"):
        network(*measure(1, 1, 15, 16))
    with pytest.raises(ValueError, match="sensitivity_map has shape"):
        network(*measurement._replace(sensitivity_map=measurement.sensitivity_map[:, :1]))


# In DIRECT


def build_engine(baseline: Baseline, *losses: str, kind: str = "", **options: Any) -> SenseEngine:
    """The engine of a tiny network, made by DIRECT."""
    network = tiny_baseline(baseline, **options)
    names = {"model_name": baseline.model_name, "engine_name": f"{baseline.name}{kind}Engine"}
    config = baseline.config_class(**names, **(baseline.tiny | options))
    entries = [{"function": loss, "multiplier": 1.0} for loss in losses]
    training = TrainingConfig(datasets=[], loss=LossConfig(losses=entries))
    cfg = OmegaConf.structured(DefaultConfig(model=config, training=training))
    engine = setup_engine(cfg, "cpu", network, {}, forward_operator=fft2, backward_operator=ifft2)
    assert type(engine) is baseline.of(f"{baseline.folder}_engine", f"{kind}Engine")
    engine.ndim = 2
    return engine


def batch(coils: int = 2) -> dict[str, Any]:
    """A batch as the transforms of DIRECT make it."""
    kspace = measure(2, coils, 18, 16, sampled=1.0).masked_kspace
    target = root_sum_of_squares(ifft2(kspace, dim=(2, 3)), dim=1)
    return measure(2, coils, 18, 16)._asdict() | {"kspace": kspace, "target": target}


@for_all
@pytest.mark.parametrize("coils", [1, 3])
def test_an_iteration_of_direct_trains_the_network(baseline: Baseline, coils: int) -> None:
    engine, data = build_engine(baseline, "l1_loss", "kspace_l1_loss"), batch(coils)
    engine.models_training_mode()
    output = engine._do_iteration(data, engine.build_loss())
    image, *_ = outputs(engine.model, measure(2, coils, 18, 16))
    assert_close(output.output_image, modulus(image), 1e-5)
    assert output.data_dict["l1_loss"].item() == pytest.approx((modulus(image) - data["target"]).abs().mean().item())
    assert all(parameter.grad is not None for parameter in engine.model.parameters())


@for_all
def test_validation_has_no_losses_of_its_own(baseline: Baseline) -> None:
    output = build_engine(baseline, "l1_loss")._do_iteration(batch())
    assert output.data_dict == {}


@for_all
@pytest.mark.parametrize("kind", ["SSL", "JSSL"])
def test_self_supervision_trains_on_one_part_of_the_samples(baseline: Baseline, kind: str) -> None:
    engine, data = build_engine(baseline, "l1_loss", "kspace_nmse_loss", kind=kind), split(batch())
    engine.models_training_mode()
    output = engine._do_iteration(data.copy(), engine.build_loss())
    assert output.data_dict.keys() == {"l1_loss", "kspace_nmse_loss"}
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in engine.model.parameters())
    image, *_ = outputs(
        engine.model, Measurement(data["input_kspace"], data["input_sampling_mask"], data["sensitivity_map"])
    )
    maps = torch.view_as_complex(data["sensitivity_map"])
    coil_images = torch.view_as_real(torch.view_as_complex(image)[:, None] * maps)
    predicted = fft2(coil_images, dim=(2, 3)) * data["target_sampling_mask"]
    nmse = (predicted - data["kspace"]).square().sum() / data["kspace"].square().sum()
    assert output.data_dict["kspace_nmse_loss"].item() == pytest.approx(nmse.item(), rel=1e-4)
