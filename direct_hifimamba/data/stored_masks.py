"""Data set `FastMRIWithMasks`: DIRECT's `FastMRI` with sampling masks of any shape from the files.

DIRECT reads two-dimensional masks with its `CMRxRecon` data set alone, which estimates coil sensitivities from the 24
central columns of the fully sampled k-space, whatever the mask is. Here the samples for autocalibration are stored
with the mask, as the mask function has set them apart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import direct.environment  # noqa: F401  # before the data sets' configurations, which import it in a circle
import h5py
import numpy as np
from direct.data.datasets import FastMRIDataset
from direct.data.datasets_config import FastMRIConfig

from direct_hifimamba.data.formats.hdf5 import read_mask
from direct_hifimamba.files import first_and_count

NAME = "FastMRIWithMasks"


@dataclass
class FastMRIWithMasksConfig(FastMRIConfig):
    """Configuration of :class:`FastMRIWithMasksDataset`."""


class FastMRIWithMasksDataset(FastMRIDataset):
    """Data set `FastMRI` of DIRECT whose samples have the `mask` and `acs_mask` of their file, (height, width) each.

    They are those that `direct-hifimamba prepare` stores with k-space of several coils. A configuration has
    `transforms.masking: null`; `pass_mask`, with which DIRECT reads masks of whole columns, has no effect.

    Raises
    ------
    ValueError
        If files have no such masks.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options | {"pass_mask": False}))
        lacking = sorted(str(path) for path in self.volume_indices if not _has_masks(path))
        if lacking:
            raise ValueError(
                f"{first_and_count(lacking)} of {len(self.volume_indices)} files have no mask or acs_mask, which "
                f"{NAME} reads; expected files that prepare has written with a mask that is not made of whole columns."
            )

    def get_slice_data(self, filename: Path, slice_no: int, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Return a slice and what else is read from its file."""
        data, extra = super().get_slice_data(filename, slice_no, *args, **options)
        if "key" in options:  # another data set than k-space
            return data, extra
        with h5py.File(filename) as file:
            masks = {"sampling_mask": read_mask(file), "acs_mask": file["acs_mask"][()]}
        return data, extra | {name: np.array(values, bool)[None, ..., None] for name, values in masks.items()}


def _has_masks(path: Path) -> bool:
    with h5py.File(path) as file:
        return {"mask", "acs_mask"} <= file.keys()
