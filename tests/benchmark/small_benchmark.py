"""A benchmark that takes seconds: data, configurations and specification."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from direct_hifimamba.data.formats.hdf5 import write_view, write_volume
from direct_hifimamba.data.fourier import image_to_kspace
from direct_hifimamba.data.masks import MaskOptions, draw_line_mask
from direct_hifimamba.data.seeding import seed_from_name
from direct_hifimamba.data.simulate import simulate_sensitivity_map

SHAPE = (64, 64)
COILS = 2
SLICES = 3
PROVENANCE = {"origin": "simulated from discs"}
VOLUMES = {"train": ("a", "b"), "val": ("c",), "test": ("d", "e")}
MASKS = {
    "equispaced_4x": MaskOptions("FastMRIEquispaced", 4, 0.08),
    "equispaced_8x": MaskOptions("FastMRIEquispaced", 8, 0.04),
}

_TRANSFORMS = {
    "cropping": {"crop": None, "image_center_crop": True},
    "sensitivity_map_estimation": {"sensitivity_maps_type": "rss_estimate", "sensitivity_maps_gaussian": 0.7},
    "normalization": {"scaling_key": "masked_kspace", "scale_percentile": 0.99},
    "padding_eps": 0.0,
}
_EVALUATION = {"name": "FastMRI", "pass_mask": True, "transforms": _TRANSFORMS | {"masking": None}}


def _mask_config(options: MaskOptions) -> dict[str, Any]:
    masking = {
        "name": options.name,
        "accelerations": [options.acceleration],
        "center_fractions": [options.center_fraction],
    }
    return {"parameters": {"mask": masking}}


CONFIGS: dict[str, Any] = {
    "common": {
        "physics": {"forward_operator": "fft2", "backward_operator": "ifft2"},
        "training": {
            "datasets": [{"name": "FastMRI", "transforms": _TRANSFORMS | {"masking": "${parameters.mask}"}}],
            "lr": 0.001,
            "batch_size": 1,
            "loss": {"losses": [{"function": "l1_loss", "multiplier": 1.0}]},
        },
        "validation": {"datasets": [_EVALUATION], "batch_size": 1, "crop": None, "metrics": ["fastmri_psnr"]},
        "inference": {"dataset": _EVALUATION, "batch_size": 1, "metrics": ["fastmri_psnr"]},
    },
    **{name: _mask_config(options) for name, options in MASKS.items()},
    "unet": {
        "model": {
            "model_name": "unet.unet_2d.Unet2d",
            "num_filters": 4,
            "num_pool_layers": 2,
            "image_initialization": "sense",
        }
    },
    "hifimamba": yaml.safe_load((Path(__file__).parents[2] / "configs" / "tiny.yaml").read_text()),
    # Passes every check of configurations, and fails when it is built.
    "failing": {"model": {"model_name": "recurrentvarnet.recurrentvarnet.RecurrentVarNet"}},
}
SPECIFICATION: dict[str, Any] = {
    "name": "small",
    "description": "Discs.",
    "data": "data",
    "configs": ["common.yaml"],
    "accelerations": {name: [f"{name}.yaml"] for name in MASKS},
    "models": {"HiFi-MambaV2": {"configs": ["hifimamba.yaml"]}, "U-Net": {"configs": ["unet.yaml"]}},
    "baseline": "U-Net",
    "budget": {"iterations": 8},
    "seeds": [0, 1],
}


def write_data(folder: Path) -> None:
    """Volumes of discs; for validation and test, with every mask."""
    for split, names in VOLUMES.items():
        for name in names:
            rng = np.random.default_rng(seed_from_name(name, 0))
            path = folder / split / f"{name}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, [_kspace(rng, index) for index in range(SLICES)], PROVENANCE)
            for suffix, options in MASKS.items() if split != "train" else ():
                view = folder / f"{split}_{suffix}" / path.name
                view.parent.mkdir(exist_ok=True)
                write_view(view, path, draw_line_mask(options, SHAPE, path.name, 0).samples, PROVENANCE)


def _kspace(rng: np.random.Generator, index: int) -> NDArray[np.complex64]:
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    image = np.zeros(SHAPE)
    for _ in range(6):
        y, x = rng.uniform(-0.6, 0.6, 2)
        image += rng.uniform(30, 100) * (np.hypot(rows - y, columns - x) < rng.uniform(0.05, 0.4))
    maps = simulate_sensitivity_map(0.1 * index, SHAPE, COILS, np.random.SeedSequence(0))
    kspace = image_to_kspace((image * maps).astype(np.complex64))
    noise = rng.standard_normal((2, *kspace.shape), np.float32)
    return kspace + noise[0] + np.complex64(1j) * noise[1]


def write_specification(folder: Path, **changes: Any) -> Path:
    """Configurations and specification, with other values of its keys; None leaves one out."""
    for name, config in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    path = folder / "specification.yaml"
    values = {key: value for key, value in (SPECIFICATION | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
