from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.multiprocessing
from direct.config.defaults import DefaultConfig, LossConfig, TrainingConfig, ValidationConfig
from direct.data.transforms import fft2, ifft2, modulus, root_sum_of_squares
from direct.environment import setup_engine
from direct.exceptions import ProcessKilledException
from direct.nn.mri_models import MRIModelEngine
from direct.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import Dataset

from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2, HiFiMambaV2Output
from direct_hifimamba.nn.hifimamba.hifimamba_engine import (
    HiFiMambaV2Engine,
    HiFiMambaV2JSSLEngine,
    HiFiMambaV2SSLEngine,
)
from direct_hifimamba.nn.sensitivity.sensitivity import SensitivityRefinement
from tests.helpers import TINY, assert_close, measure, tiny_network

ROOT = Path(__file__).parents[3]


def build_engine(
    *losses: str,
    additional_models: dict[str, nn.Module] | None = None,
    engine: type[HiFiMambaV2Engine] = HiFiMambaV2Engine,
    **options: Any,
) -> HiFiMambaV2Engine:
    """The engine of a tiny network, made by DIRECT, with `losses` of DIRECT."""
    network = tiny_network(**options)
    model_config = HiFiMambaV2Config(
        model_name="hifimamba.hifimamba.HiFiMambaV2", engine_name=engine.__name__, **(TINY | options)
    )
    cfg = OmegaConf.structured(
        DefaultConfig(
            model=model_config,
            training=TrainingConfig(
                datasets=[], loss=LossConfig(losses=[{"function": loss, "multiplier": 1.0} for loss in losses])
            ),
            validation=ValidationConfig(datasets=[], metrics=["fastmri_psnr"], crop=None),
        )
    )
    built = setup_engine(cfg, "cpu", network, additional_models or {}, forward_operator=fft2, backward_operator=ifft2)
    assert type(built) is engine
    built.ndim = 2
    return built


def batch(size: int = 2, coils: int = 2, seed: int = 0) -> dict[str, Any]:
    """A batch as the transforms of DIRECT make it."""
    masked_kspace, sampling_mask, sensitivity_map = measure(size, coils, 18, 16, seed=seed)
    kspace = measure(size, coils, 18, 16, sampled=1.0, seed=seed).masked_kspace
    return {
        "masked_kspace": masked_kspace,
        "sampling_mask": sampling_mask,
        "sensitivity_map": sensitivity_map,
        "kspace": kspace,
        "target": root_sum_of_squares(ifft2(kspace, dim=(2, 3)), dim=1),
        "scaling_factor": torch.full((size,), 3.0),
    }


class Volumes(Dataset):  # type: ignore[type-arg]
    """Two volumes of three and two slices, in memory."""

    ndim = 2

    def __init__(self, text_description: str | None) -> None:
        self.text_description = text_description
        self.volume_indices = OrderedDict({Path("first.h5"): range(3), Path("second.h5"): range(3, 5)})

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {key: value[0] for key, value in batch(1, seed=index).items()}
        return sample | {"filename": "first.h5" if index < 3 else "second.h5", "slice_no": index}


def evaluate(engine: HiFiMambaV2Engine, text_description: str | None = "equispaced") -> tuple[Any, dict[str, float]]:
    """What the engine returns for `Volumes`, and what it logs."""
    dataset = Volumes(text_description)
    sampler = engine.build_batch_sampler(dataset, batch_size=2, sampler_type="sequential", limit_number_of_volumes=None)
    loader = engine.build_loader(dataset, batch_sampler=sampler, num_workers=0)
    with EventStorage(0) as storage:
        return engine.evaluate(loader, None), dict(storage.latest())


def parameter_gradients(engine: HiFiMambaV2Engine, part: str) -> list[torch.Tensor | None]:
    return [parameter.grad for name, parameter in engine.model.named_parameters() if part in name]


@pytest.mark.parametrize("coils", [1, 3])
def test_image_and_its_kspace(coils: int) -> None:
    engine, data = build_engine("l1_loss"), batch(coils=coils)
    image, kspace = engine.forward_function(data)
    expected = engine.model(data["masked_kspace"], data["sampling_mask"], data["sensitivity_map"]).image
    assert_close(image, expected.detach(), 1e-5)
    assert kspace.shape == data["masked_kspace"].shape
    for coil in range(coils):
        coil_image = torch.view_as_complex(image) * torch.view_as_complex(data["sensitivity_map"][:, coil].contiguous())
        torch.testing.assert_close(kspace[:, coil], fft2(torch.view_as_real(coil_image), dim=(1, 2)))


def test_coils_as_channels_give_their_root_sum_of_squares() -> None:
    engine, data = build_engine("l1_loss", coil_mode="channels", num_coils=3), batch(coils=3)
    image, kspace = engine.forward_function(data | {"sensitivity_map": torch.ones_like(data["sensitivity_map"])})
    coil_images = engine.model(*(data[key] for key in ("masked_kspace", "sampling_mask", "sensitivity_map"))).image
    assert_close(image, coil_images.square().sum(dim=(1, -1)).sqrt().detach(), 1e-5)
    sampled = data["sampling_mask"] != 0  # every coil has its measured samples
    assert_close(kspace * sampled, data["masked_kspace"], 1e-5)

    engine.models_training_mode()
    assert engine._do_iteration(data, engine.build_loss()).output_image.shape == data["target"].shape
    assert all(gradient is not None for gradient in parameter_gradients(engine, ""))


def test_pixels_that_are_zero_in_all_coils_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, data = build_engine("l1_loss", coil_mode="channels", num_coils=2), batch()
    coil_images = torch.randn(2, 2, 18, 16, 2).index_fill(2, torch.arange(3), 0.0).requires_grad_()
    monkeypatch.setattr(engine, "reconstruct", lambda _: coil_images)
    engine.forward_function(data)[0].sum().backward()
    assert coil_images.grad is not None
    assert coil_images.grad.isfinite().all()
    assert torch.equal((coil_images.grad == 0), (coil_images == 0))


def test_coils_as_channels_refuse_a_sensitivity_model() -> None:
    sensitivity_model = SensitivityRefinement(fft2, ifft2, num_filters=4, num_pool_layers=1)
    additional = {"sensitivity_model": sensitivity_model}
    engine = build_engine("l1_loss", additional_models=additional, coil_mode="channels")
    with pytest.raises(ValueError, match="without sensitivity maps, which sensitivity_model needs"):
        engine.build_loss()
    with pytest.raises(ValueError, match="without sensitivity maps, which HiFiMambaV2SSLEngine needs"):
        build_engine("l1_loss", engine=HiFiMambaV2SSLEngine, coil_mode="channels").build_loss()


def test_the_constructor_changes_nothing_about_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("malloc is tuned"))
    before = signal.getsignal(signal.SIGINT)
    engine = build_engine()
    assert signal.getsignal(signal.SIGINT) is before
    with ThreadPoolExecutor() as pool:  # where no handler can be set
        pool.submit(build_engine).result()
    try:
        monkeypatch.setattr(MRIModelEngine, "train", lambda *_: None)
        engine.train(None, None)
        with pytest.raises(ProcessKilledException):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_measurement_is_all_that_forward_function_needs() -> None:
    engine, data = build_engine("l1_loss"), batch()
    expected = engine.forward_function(data)
    keys = ("masked_kspace", "sampling_mask", "sensitivity_map")
    for kspace in ("masked_kspace", "kspace"):  # of which samples outside the mask do not count
        results = engine.forward_function(dict(zip(keys, (data[kspace], *map(data.get, keys[1:])), strict=True)))
        for result, other in zip(results, expected, strict=True):
            torch.testing.assert_close(result, other, rtol=0, atol=0)


@pytest.mark.parametrize("radial", [False, True])
def test_kspace_that_was_undersampled_before_is_refused(radial: bool) -> None:
    engine, data = build_engine("l1_loss"), batch()
    sampled = torch.rand(1, 1, 18 if radial else 1, 16, 1, generator=torch.Generator().manual_seed(2)) < 0.5
    data["masked_kspace"] = data["kspace"] * data["sampling_mask"]
    data["masked_kspace"][..., :3, :] = 0  # padding
    engine.forward_function(data)
    data["masked_kspace"] = data["kspace"] * sampled
    engine.forward_function(data | {"sampling_mask": sampled.expand(2, 1, 18, 16, 1)})
    with pytest.raises(ValueError, match="undersampled already"):
        engine.forward_function(data | {"sampling_mask": torch.ones(2, 1, 18, 16, 1)})
    padding = torch.zeros(2, 1, 18, 16, 1, dtype=torch.bool)
    padding[..., :3, :] = True
    drawn = batch() | {"acceleration": torch.ones(2, 1)}
    engine.forward_function(drawn | {"padding": padding})
    with pytest.raises(ValueError, match="undersampled already"):
        engine.forward_function(drawn | {"padding": ~sampled.expand(2, 1, 18, 16, 1)})


def test_predicted_images_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine("l1_loss")
    image = torch.ones(1, 1, 4, 4)
    volumes = [(image, None, "first.h5"), (image.clone(), None, "second.h5")]
    monkeypatch.setattr(MRIModelEngine, "predict", lambda *_: (volumes, {}))
    assert engine.predict() == (volumes, {})
    volumes[1][0][..., 2] = torch.nan
    with pytest.raises(ValueError, match=r"images of second\.h5"):
        engine.predict()


def test_an_iteration_trains_and_logs_every_loss_by_name() -> None:
    engine, data = build_engine("l1_loss", "kspace_nmse_loss", load_balancing_weight=0.25), batch()
    engine.models_training_mode()
    torch.manual_seed(0)
    output = engine._do_iteration(data, engine.build_loss())
    assert output.data_dict.keys() == {"l1_loss", "kspace_nmse_loss", "load_balancing_loss"}
    assert not any(value.requires_grad for value in output.data_dict.values())

    torch.manual_seed(0)
    image, load_balancing_loss = engine.model(data["masked_kspace"], data["sampling_mask"], data["sensitivity_map"])
    assert output.data_dict["load_balancing_loss"].item() == pytest.approx(0.25 * load_balancing_loss.item())
    assert output.data_dict["l1_loss"].item() == pytest.approx((modulus(image) - data["target"]).abs().mean().item())
    assert output.data_dict["kspace_nmse_loss"] > 0
    assert output.output_image.shape == data["target"].shape
    assert all(gradient is not None for gradient in parameter_gradients(engine, ""))


def test_pixels_that_no_coil_sees_do_not_spoil_the_gradient() -> None:
    engine, data = build_engine("l1_loss"), batch()
    data["sensitivity_map"][..., :4, :5, :] = 0
    engine.model.train()
    output = engine._do_iteration(data, loss_fns=engine.build_loss())
    assert (output.output_image[..., :4, :5] == 0).all()
    gradients = [parameter.grad for parameter in engine.model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_every_loss_reaches_the_network() -> None:
    gradients = {}
    for losses in (("l1_loss",), ("kspace_l1_loss",)):
        engine = build_engine(*losses, load_balancing_weight=0.0)
        engine.models_training_mode()
        engine._do_iteration(batch(), engine.build_loss())
        gradients[losses] = parameter_gradients(engine, "embedding.projection.weight")
    for gradient, other in zip(*gradients.values(), strict=True):
        assert gradient is not None
        assert other is not None
        assert gradient.any()
        assert not torch.allclose(gradient, other)


class DetachedImage(HiFiMambaV2):
    """Gives an image that no gradient passes."""

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> HiFiMambaV2Output:
        output = super().forward(*args, **kwargs)
        return output._replace(image=output.image.detach())


def test_the_load_balancing_loss_alone_trains_the_routers() -> None:
    engine = build_engine("l1_loss", load_balancing_weight=0.5)
    engine.model.__class__ = DetachedImage
    engine.models_training_mode()
    engine._do_iteration(batch(), engine.build_loss())
    routers = parameter_gradients(engine, "router.projection.weight")
    assert len(routers) == 2
    assert all(gradient is not None and gradient.any() for gradient in routers)


@pytest.mark.parametrize("options", [{"moe": "none"}, {"moe": "shared"}, {"load_balancing_weight": 0.0}], ids=str)
def test_without_routing_there_is_no_load_balancing_loss(options: dict[str, Any]) -> None:
    engine = build_engine("l1_loss", **options)
    assert engine.build_loss().keys() == {"l1_loss"}
    engine.models_training_mode()
    assert engine._do_iteration(batch(), engine.build_loss()).data_dict.keys() == {"l1_loss"}


def test_a_wrapped_network_has_the_load_balancing_loss_too() -> None:
    engine = build_engine("l1_loss")
    engine.model = nn.Sequential(OrderedDict(module=engine.model))  # as DistributedDataParallel names it
    assert engine.build_loss().keys() == {"l1_loss", "load_balancing_loss"}


def split(data: dict[str, Any]) -> dict[str, Any]:
    """The batch as DIRECT's transforms split it for self-supervised learning: no whole k-space, target of a part."""
    whole, mask = data["masked_kspace"], data["sampling_mask"]
    target_mask = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.4)
    kspace = whole * target_mask
    return {
        "input_kspace": whole * (mask & ~target_mask),
        "input_sampling_mask": mask & ~target_mask,
        "target_sampling_mask": target_mask,
        "kspace": kspace,
        "target": root_sum_of_squares(ifft2(kspace, dim=(2, 3)), dim=1),
        "sensitivity_map": data["sensitivity_map"],
        "is_ssl": torch.ones(len(whole), dtype=torch.bool),
    }


SELF_SUPERVISED = [HiFiMambaV2SSLEngine, HiFiMambaV2JSSLEngine]


@pytest.mark.parametrize("engine_class", SELF_SUPERVISED)
@pytest.mark.parametrize("losses", [("l1_loss",), ("kspace_nmse_loss",), ("l1_loss", "kspace_l1_loss")])
def test_self_supervision_predicts_one_part_of_the_samples_from_the_other(engine_class: Any, losses: Any) -> None:
    """With the load-balancing loss once, whichever losses there are."""
    engine, data = build_engine(*losses, engine=engine_class, load_balancing_weight=0.25), split(batch())
    engine.models_training_mode()
    torch.manual_seed(0)
    output = engine._do_iteration(data.copy(), engine.build_loss())
    assert output.data_dict.keys() == {*losses, "load_balancing_loss"}
    gradients = [gradient for gradient in parameter_gradients(engine, "") if gradient is not None]
    assert len(gradients) == len(list(engine.model.parameters()))

    torch.manual_seed(0)
    image, load_balancing_loss = engine.model(
        data["input_kspace"], data["input_sampling_mask"], data["sensitivity_map"]
    )
    assert output.data_dict["load_balancing_loss"].item() == pytest.approx(0.25 * load_balancing_loss.item())
    maps = torch.view_as_complex(data["sensitivity_map"].contiguous())
    coil_images = torch.view_as_real(torch.view_as_complex(image)[:, None] * maps)
    predicted = fft2(coil_images, dim=(2, 3)) * data["target_sampling_mask"]
    if "kspace_nmse_loss" in losses:
        nmse = (predicted - data["kspace"]).square().sum() / data["kspace"].square().sum()
        assert output.data_dict["kspace_nmse_loss"].item() == pytest.approx(nmse.item(), rel=1e-4)
    combined = torch.view_as_complex(ifft2(predicted, dim=(2, 3)).contiguous()) * maps.conj()
    assert_close(output.output_image.detach(), combined.sum(dim=1).abs().detach(), 1e-4)


@pytest.mark.parametrize("engine_class", SELF_SUPERVISED)
def test_all_samples_are_used_where_they_are_not_split(engine_class: Any) -> None:
    """In prediction, and in the batches of joint training that have references."""
    engine, data = build_engine("l1_loss", engine=engine_class, scan_dropout=0.0, stochastic_depth=0.0), batch()
    data["is_ssl"] = torch.zeros(2, dtype=torch.bool)
    expected = engine.forward_function(data)
    predicted = engine._do_iteration(data.copy()).output_image
    maps = torch.view_as_complex(data["sensitivity_map"].contiguous())
    kspace = torch.where(data["sampling_mask"], data["masked_kspace"], expected[1])
    coil_images = torch.view_as_complex(ifft2(kspace, dim=(2, 3)).contiguous())
    assert_close(predicted, (coil_images * maps.conj()).sum(dim=1).abs().detach(), 1e-4)
    if engine_class is HiFiMambaV2JSSLEngine:
        engine.models_training_mode()
        loss = engine._do_iteration(data.copy(), engine.build_loss()).data_dict["l1_loss"]
        assert loss.item() == pytest.approx((predicted - data["target"]).abs().mean().item(), rel=1e-4)


def test_split_and_whole_samples_are_not_confused() -> None:
    plain, self_supervised = build_engine("l1_loss"), build_engine("l1_loss", engine=HiFiMambaV2SSLEngine)
    with pytest.raises(ValueError, match="Expected transforms_type: supervised for validation"):
        self_supervised._do_iteration(split(batch()))
    for engine in (plain, self_supervised):
        engine.models_training_mode()
    with pytest.raises(ValueError, match="this one is HiFiMambaV2Engine"):
        plain._do_iteration(split(batch()), plain.build_loss())
    with pytest.raises(ValueError, match="HiFiMambaV2SSLEngine trains without references, and k-space is not split"):
        self_supervised._do_iteration(batch(), self_supervised.build_loss())


class TwoDevices(nn.Module):
    """Gives what DataParallel does, which DIRECT takes for several GPUs in one process: scalars become a vector."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **batch: torch.Tensor) -> HiFiMambaV2Output:
        parts = [self.module(**{name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(2)]
        images, self.losses = zip(*parts, strict=True)
        return HiFiMambaV2Output(torch.cat(images), torch.stack(self.losses))


def test_several_devices_in_one_process_train_with_the_mean_of_their_losses() -> None:
    engine = build_engine("l1_loss", load_balancing_weight=0.25)
    engine.model = TwoDevices(engine.model)
    engine.models_training_mode()
    losses = engine._do_iteration(batch(), engine.build_loss()).data_dict
    expected = 0.25 * torch.stack(engine.model.losses).mean().item()
    assert losses["load_balancing_loss"].item() == pytest.approx(expected)
    assert all(gradient is not None for gradient in parameter_gradients(engine, ""))


@pytest.mark.parametrize(("text_description", "prefix"), [("equispaced", "val/equispaced"), (None, "val")])
def test_expert_shares_are_logged_at_validation(text_description: str | None, prefix: str) -> None:
    engine = build_engine("l1_loss", blocks_per_stage=(2, 1))
    counts: dict[str, torch.Tensor] = {}

    def count(block: str, probabilities: torch.Tensor) -> None:
        counts[block] = counts.get(block, torch.zeros(4)) + torch.bincount(probabilities.argmax(dim=-1), minlength=4)

    for name, module in engine.model.named_modules():
        if name.endswith(".router"):
            block = name.removesuffix(".moe.routed.router")
            module.register_forward_hook(lambda _, __, routing, block=block: count(block, routing.probabilities))
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    buffers = dict(engine.model.named_buffers()).keys()
    _, logged = evaluate(engine, text_description)

    assert logged.keys() == {
        f"{prefix}/expert_share/stages.{stage}.blocks.{block}/expert_{expert}"
        for stage, block in ((0, 0), (0, 1), (1, 0))
        for expert in range(4)
    }
    for block, pixels in counts.items():
        assert pixels.sum() == 5 * 9 * 8
        shares = [logged[f"{prefix}/expert_share/{block}/expert_{expert}"] for expert in range(4)]
        assert shares == pytest.approx((pixels / pixels.sum()).tolist())
    assert before.keys() == engine.model.state_dict().keys()
    assert all(torch.equal(value, engine.model.state_dict()[name]) for name, value in before.items())
    assert dict(engine.model.named_buffers()).keys() == buffers


@pytest.mark.parametrize("moe", ["shared_routed", "none"])
def test_evaluation_returns_what_direct_returns(moe: str) -> None:
    engine = build_engine("l1_loss", moe=moe)
    (losses, metrics, slices, *_), logged = evaluate(engine)
    assert losses == {}
    assert metrics.keys() == {"first.h5", "second.h5"}
    assert all(np.isfinite(float(values["fastmri_psnr_metric"])) for values in metrics.values())
    assert len(slices) == 2
    assert bool(logged) == (moe == "shared_routed")


def test_evaluation_stops_counting_when_it_fails() -> None:
    engine = build_engine("l1_loss")

    class Broken(Volumes):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | {"sampling_mask": torch.zeros(1, 18, 16, 1)}

    dataset = Broken(None)
    sampler = engine.build_batch_sampler(dataset, batch_size=1, sampler_type="sequential", limit_number_of_volumes=None)
    with EventStorage(0), pytest.raises(ValueError, match="samples nothing"):
        engine.evaluate(engine.build_loader(dataset, batch_sampler=sampler, num_workers=0), None)
    assert not any(module._forward_hooks for module in engine.model.modules())


CONFIGURATION = """
model:
  model_name: hifimamba.hifimamba.HiFiMambaV2
  hidden_channels: 8
  blocks_per_stage: [1, 1]
  state_size: 4
training:
  datasets:
    - &dataset
      name: FastMRI
      text_description: lines
      transforms:
        masking: {name: FastMRIEquispaced, accelerations: [4], center_fractions: [0.16]}
        cropping: {crop: null, image_center_crop: false}
        sensitivity_map_estimation: {estimate_sensitivity_maps: true, sensitivity_maps_gaussian: 0.7}
        normalization: {scaling_key: masked_kspace}
        padding_eps: 0.0
        use_seed: true
  batch_size: 2
  num_iterations: 6
  validation_steps: 6
  checkpointer: {checkpoint_steps: 6}
  loss: {losses: [{function: l1_loss, multiplier: 1.0}, {function: ssim_loss, multiplier: 1.0}]}
validation:
  datasets: [*dataset]
  batch_size: 2
  metrics: [fastmri_psnr]
  crop: null
inference:
  dataset: *dataset
  metrics: [fastmri_psnr]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a configuration and, in `data`, two volumes of two noisy slices with three coils."""
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name in ("first", "second"):
        kspace = generator.standard_normal((2, 3, 33, 32, 2), dtype=np.float32).view(np.complex64)[..., 0]
        write_volume(tmp_path / "data" / f"{name}.h5", kspace, {})
    (tmp_path / "tiny.yaml").write_text(CONFIGURATION)
    return tmp_path


def run_direct(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "direct_hifimamba.cli", *arguments, "--device", "cpu", "--num-workers", "0"]
    environment = {"PYTHONPATH": str(ROOT), "DIRECT_CACHE_DIR": str(folder), "PATH": ""}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_direct_trains_validates_and_predicts(folder: Path) -> None:
    roots = ("--training-root", "data", "--validation-root", "data")
    run_direct(folder, "train", "run", *roots, "--cfg", "tiny.yaml", "--name", "tiny")
    run = folder / "run" / "tiny"
    logged = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert {"l1_loss", "ssim_loss", "load_balancing_loss"} <= logged[-1].keys()
    assert 0 < logged[-1]["load_balancing_loss"] < 2e-3
    for block in ("stages.0.blocks.0", "stages.1.blocks.0"):
        assert sum(logged[-1][f"val/lines/expert_share/{block}/expert_{e}"] for e in range(4)) == pytest.approx(1)
    metrics = json.loads((run / "metrics_val_lines_5.json").read_text())
    assert metrics.keys() == {"first.h5", "second.h5"}

    checkpoint = str(run / "model_5.pt")
    run_direct(folder, "predict", "out", "--data-root", "data", "--cfg", "tiny.yaml", "--checkpoint", checkpoint)
    with h5py.File(folder / "out" / "first.h5") as file:
        assert file["reconstruction"].shape[-2:] == (33, 32)
        assert np.isfinite(file["reconstruction"]).all()


def _train_rank(rank: int, directory: Path) -> None:
    """Train in one of two processes, on other data and from other weights; the second has a single coil at times.

    Then without a sensitivity model, on batches that are split for self-supervised learning, and on others.
    """
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    torch.distributed.init_process_group("gloo", f"file://{directory / 'rendezvous'}", rank=rank, world_size=2)
    sensitivity_model = SensitivityRefinement(fft2, ifft2, num_filters=4, num_pool_layers=1)
    engine = build_engine("l1_loss", additional_models={"sensitivity_model": sensitivity_model})
    parameters = [*engine.model.parameters(), *sensitivity_model.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)

    def loop(engine: Any, datasets: Any, start_iter: int) -> None:
        engine.model = nn.parallel.DistributedDataParallel(engine.model, broadcast_buffers=False)
        engine.models_training_mode()
        for step in range(3):
            coils = 1 if (rank, step) == (1, 1) else 2
            engine._do_iteration(batch(1, coils, seed=10 * step + rank), engine.build_loss())
            optimizer.step()
            optimizer.zero_grad()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("direct.engine.Engine.training_loop", loop)
        engine.training_loop([], 0)
    torch.save(sensitivity_model.state_dict(), directory / f"{rank}.pt")

    engine = build_engine("kspace_l1_loss", engine=HiFiMambaV2JSSLEngine)
    optimizer = torch.optim.Adam(engine.model.parameters(), lr=1e-2)
    engine.model = nn.parallel.DistributedDataParallel(engine.model, broadcast_buffers=False)
    engine.models_training_mode()
    for step in range(3):  # with and without references at the same time
        data = batch(1, seed=10 * step + rank)
        data = split(data) if rank == step % 2 else data | {"is_ssl": torch.zeros(1, dtype=torch.bool)}
        engine._do_iteration(data, engine.build_loss())
        optimizer.step()
        optimizer.zero_grad()
    torch.save(engine.model.module.state_dict(), directory / f"self_supervised_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_models_stay_equal_in_two_processes(tmp_path: Path) -> None:
    """A sensitivity model, and a network that learns jointly, from batches with and without references."""
    torch.multiprocessing.spawn(_train_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["scale"] != 0  # it has been trained
    first, second = (torch.load(tmp_path / f"self_supervised_{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["norm.weight"], tiny_network().norm.weight)
