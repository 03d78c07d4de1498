import shutil
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from direct.common.subsample import build_masking_function
from direct.data.datasets import CalgaryCampinasDataset
from direct.data.mri_transforms import build_mri_transforms
from direct.data.transforms import fft2, ifft2

from direct_hifimamba.data.data_sets import DATA_SETS
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings, read_protocol
from direct_hifimamba.data.seeding import seed_from_name
from direct_hifimamba.data.stored_masks import FastMRIWithMasksDataset
from direct_hifimamba.data.verify import verify
from tests.data import lookalikes


def test_samples_are_those_of_direct_with_its_mask_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the challenge's masks and without the outer slices, as DIRECT's model zoo evaluates."""
    lookalikes.calgary_campinas(tmp_path / "raw", coils=2, num_slices=2, size=(218, 170), num_empty=50)
    lookalikes.calgary_campinas_masks(tmp_path, monkeypatch)
    settings = Settings.of("calgary-campinas", slices="inner:50", masks=(MaskOptions("CalgaryCampinas", 5),))
    prepare(tmp_path / "raw", tmp_path / "data", settings, ["val"])
    folder = tmp_path / "data" / "val_calgarycampinas_5x"
    protocol = read_protocol(tmp_path / "data")
    assert protocol is not None
    assert protocol["configurations"][folder.name]["dataset"] == {"name": "FastMRIWithMasks"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6  # k-space is linked

    (file,) = folder.iterdir()
    function = build_masking_function("CalgaryCampinas", [5])
    mask_func = partial(_draw, function, seed_from_name(file.name, settings.seed))
    transforms = partial(
        build_mri_transforms,
        partial(fft2, centered=False),
        partial(ifft2, centered=False),
        sensitivity_maps_gaussian=0.7,
        padding_eps=0.0,
    )
    ours = FastMRIWithMasksDataset(folder, transforms(None), pass_mask=True)
    theirs = CalgaryCampinasDataset(tmp_path / "raw" / "Val", transforms(mask_func), crop_outer_slices=True)
    assert len(ours) == len(theirs) == 2
    for sample, expected in zip(ours, theirs, strict=True):
        for name in ("masked_kspace", "sampling_mask", "sensitivity_map", "target", "scaling_factor"):
            torch.testing.assert_close(sample[name], expected[name], rtol=0, atol=0, check_dtype=False)

    assert verify(tmp_path / "data") == []
    with h5py.File(file, "r+") as opened:
        opened["acs_mask"][0, 0] = True
    (problem,) = verify(tmp_path / "data")
    assert "has another mask" in problem
    with h5py.File(file, "r+") as opened:
        del opened["acs_mask"]
    shutil.copy(file, folder / "another.h5")
    with pytest.raises(ValueError, match=r"another\.h5 and 1 more of 2 files have no mask or acs_mask"):
        FastMRIWithMasksDataset(folder)


def _draw(function: Any, fixed_seed: Any, shape: Any, return_acs: bool = False, seed: Any = None) -> torch.Tensor:
    """A mask function of DIRECT, with another seed than that of the path."""
    return function(shape=shape, seed=fixed_seed, return_acs=return_acs)


def test_masks_of_columns_and_of_a_single_coil_are_read_by_direct() -> None:
    for name in DATA_SETS:
        for folder, mask in Settings.of(name).mask_folders("val").items():
            assert mask.name.startswith("FastMRI") or not Settings.of(name).has_coils, folder
    assert np.all([Settings.of("calgary-campinas").has_coils, Settings.of("m4raw").has_coils])
    assert not Settings.of("fastmri").has_coils and Settings.of("fastmri", coils="multi").has_coils
