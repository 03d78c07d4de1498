from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from direct.checkpointer import Checkpointer
from direct.data.datasets import FastMRIDataset
from direct.environment import setup_training_environment
from direct.predict import setup_inference_save_to_h5
from numpy.typing import NDArray
from omegaconf import OmegaConf

from direct_hifimamba.benchmark.score.images import load_reconstruction, load_target, load_zero_filled
from direct_hifimamba.benchmark.score.metrics import METRICS as ALL
from direct_hifimamba.benchmark.score.metrics import score_volume
from direct_hifimamba.data.formats.hdf5 import write_view, write_volume
from direct_hifimamba.data.fourier import root_sum_of_squares
from tests.data.lookalikes import HEADER, NUM_PADDED, centred_fft, magnitude, measure

HEIGHT, WIDTH, SIZE = 128, 72, 64
METRICS = ["ssim", "psnr", "nmse"]
METRICS = [f"fastmri_{name}" for name in METRICS] + [f"calgary_campinas_{name}" for name in ("ssim", "psnr", "vif")]


def line_mask() -> NDArray[np.bool_]:
    return (np.arange(WIDTH) % 3 == 0) | (abs(np.arange(WIDTH) - WIDTH // 2) < 5)


def coil_images(coils: int) -> NDArray[np.complex64]:
    return measure(magnitude(0, 2, HEIGHT, WIDTH), coils, 0)


def write_files(folder: Path, kspace: NDArray[np.complex64], header: bytes | None = None) -> Path:
    """A test file, with its mask, as `prepare` writes it."""
    for name in ("volumes", "test"):
        (folder / name).mkdir()
    write_volume(folder / "volumes" / "a.h5", kspace, {}, header=header)
    write_view(folder / "test" / "a.h5", folder / "volumes" / "a.h5", line_mask(), {})
    return folder / "test" / "a.h5"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep from DIRECT what outlives a run: log files that stay open, and a signal handler."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("direct.environment.setup_logging", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # DIRECT sets it
    yield
    signal.signal(signal.SIGINT, handler)


def predict(folder: Path, physics: str, padding_eps: float, crop: str | None) -> Path:
    """What DIRECT predicts with a U-Net of random weights."""
    transforms = {
        "masking": None,
        "cropping": {"crop": None, "image_center_crop": True},
        "sensitivity_map_estimation": {"sensitivity_maps_type": "rss_estimate", "sensitivity_maps_gaussian": 0.5},
        "normalization": {"scaling_key": "masked_kspace", "scale_percentile": 0.97},
        "padding_eps": padding_eps,
    }
    config: dict[str, Any] = {
        "model": {
            "model_name": "unet.unet_2d.Unet2d",
            "num_filters": 4,
            "num_pool_layers": 2,
            "image_initialization": "sense",
        },
        "physics": {"forward_operator": f"fft2{physics}", "backward_operator": f"ifft2{physics}"},
        "inference": {
            "dataset": {"name": "FastMRI", "pass_mask": True, "transforms": transforms},
            "batch_size": 1,
            "metrics": METRICS,
            "crop": crop,
        },
    }
    path = folder / "config_input.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    environment = setup_training_environment("run", folder, path, "cpu", 0, False)
    Checkpointer(environment.experiment_dir, model=environment.engine.model).save(7)
    checkpoint = environment.experiment_dir / "model_7.pt"
    output = folder / "predicted"
    setup_inference_save_to_h5("", folder / "test", folder / "log", output, None, checkpoint, "cpu", 0, 0, path)
    return output


@pytest.mark.parametrize("case", ["centred", "not centred", "crop"])
def test_scores_are_those_of_metrics_inference(case: str, tmp_path: Path, in_process: None) -> None:
    images, centered, shape = coil_images(3), case != "not centred", (HEIGHT, WIDTH)
    kspace, header, physics, padding_eps, crop = centred_fft(images), None, "", 0.0, None
    if case == "not centred":
        kspace, physics = np.fft.fft2(images, norm="ortho").astype(np.complex64), "(centered=False)"
    elif case == "crop":
        kspace[..., :NUM_PADDED] = kspace[..., -NUM_PADDED:] = 0
        last, center = WIDTH - 2 * NUM_PADDED - 1, WIDTH // 2 - NUM_PADDED
        header = HEADER.format(height=HEIGHT, width=WIDTH, size=SIZE, last=last, center=center).encode()
        padding_eps, crop, shape = 1e-4, "header", (SIZE, SIZE)
    path = write_files(tmp_path, kspace, header)
    torch.manual_seed(0)
    output = predict(tmp_path, physics, padding_eps, crop)

    image = load_reconstruction(output / path.name)
    assert image.shape == (2, *shape)
    theirs = json.loads(next(tmp_path.rglob("metrics_inference.json")).read_text())[path.name]
    ours = score_volume(load_target(path, shape, centered), image, METRICS)
    assert {name: ALL[name].of_volume(ours[name]) for name in METRICS} == {
        name: pytest.approx(theirs[f"{name}_metric"], rel=1e-4) for name in METRICS
    }
    moved = score_volume(load_target(path, shape, not centered), image, ["fastmri_nmse"])
    assert moved["fastmri_nmse"].mean() != pytest.approx(theirs["fastmri_nmse_metric"], rel=0.01)


@pytest.mark.parametrize("coils", [0, 3])
@pytest.mark.parametrize("centered", [False, True])
def test_images_are_those_of_numpy(coils: int, centered: bool, tmp_path: Path) -> None:
    images = coil_images(3) if coils else coil_images(3)[:, 0]
    kspace = centred_fft(images) if centered else np.fft.fft2(images, norm="ortho").astype(np.complex64)
    path = write_files(tmp_path, kspace)
    top, left = (HEIGHT - 40) // 2, (WIDTH - 33) // 2
    masked = np.where(line_mask(), kspace, 0)
    aliased = centred_fft(masked, inverse=True) if centered else np.fft.ifft2(masked, norm="ortho")
    for load, coil_volume in ((load_target, images), (load_zero_filled, aliased)):
        expected = np.linalg.norm(coil_volume, axis=1) if coils else np.abs(coil_volume)
        found = load(path, (40, 33), centered)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:, top : top + 40, left : left + 33], atol=1e-4 * expected.max())


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path, centred_fft(coil_images(3)))
    with pytest.raises(ValueError, match=rf"a.h5 has images of \({HEIGHT}, {WIDTH}\) pixels"):
        load_target(path, (HEIGHT, WIDTH + 1))
    with pytest.raises(ValueError, match=r"a.h5 has no mask"):
        load_zero_filled(tmp_path / "volumes" / "a.h5", (HEIGHT, WIDTH))
    with h5py.File(tmp_path / "prediction.h5", "w") as file:
        file["reconstruction"] = np.ones((2, 3, 4), np.float32)
    assert load_reconstruction(tmp_path / "prediction.h5").shape == (2, 3, 4)


def test_padding_of_the_header_is_cleared_as_direct_clears_it(tmp_path: Path) -> None:
    last = WIDTH - 2 * NUM_PADDED - 1
    header = HEADER.format(height=HEIGHT, width=WIDTH, size=SIZE, last=last, center=WIDTH // 2 - NUM_PADDED)
    path = write_files(tmp_path, centred_fft(coil_images(2)), header.encode())
    dataset = FastMRIDataset(path.parent, pass_mask=True)
    for load, name in ((load_target, None), (load_zero_filled, "sampling_mask")):
        expected = [
            root_sum_of_squares(sample["kspace"] if name is None else sample["kspace"] * sample[name][..., 0])
            for sample in (dataset[0], dataset[1])
        ]
        np.testing.assert_allclose(load(path, (HEIGHT, WIDTH)), expected, rtol=1e-5, atol=1e-4)
