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

NAME = "FastMRIWithMasks"


@dataclass
class FastMRIWithMasksConfig(FastMRIConfig):
    """Configuration of :class:`FastMRIWithMasksDataset`."""


class FastMRIWithMasksDataset(FastMRIDataset):
    """Data set `FastMRI` of DIRECT whose samples have the `mask` and `acs_mask` of their file, (height, width) each.

    They are those that `direct-hifimamba prepare` stores with k-space of several coils. A configuration has
    `transforms.masking: null`; `pass_mask`, with which DIRECT reads masks of whole columns, has no effect.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options | {"pass_mask": False}))

    def get_slice_data(self, filename: Path, slice_no: int, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Return a slice and what else is read from its file.

        Raises
        ------
        ValueError
            If the file has no such masks.
        """
        data, extra = super().get_slice_data(filename, slice_no, *args, **options)
        if "key" in options:  # another data set than k-space
            return data, extra
        with h5py.File(filename) as file:
            mask = read_mask(file)
            if mask is None or "acs_mask" not in file:
                raise ValueError(
                    f"{filename} has no mask or acs_mask, which {NAME} reads; expected a file that prepare has written "
                    "with a mask that is not made of whole columns."
                )
            masks = {"sampling_mask": mask, "acs_mask": file["acs_mask"][()]}
        return data, extra | {name: np.array(values, bool)[None, ..., None] for name, values in masks.items()}
