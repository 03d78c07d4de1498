"""Data set `SimulatedMultiCoil` of DIRECT: random slices that are simulated when they are loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import direct.environment  # noqa: F401  # before the data sets' configurations, which import it in a circle
import numpy as np
import torch
from direct.data.datasets_config import DatasetConfig
from direct.data.mri_transforms import (
    CompressCoilModule,
    CreateSamplingMask,
    CropKspace,
    PadCoilDimensionModule,
    PadKspace,
    RandomFlip,
    RandomReverse,
    RandomRotation,
    RescaleKspace,
)
from torch.utils.data import Dataset

from direct_hifimamba.data.espirit import espirit
from direct_hifimamba.data.nlinv import nlinv
from direct_hifimamba.data.sensitivity import Transform, is_centered, transform_steps
from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample

SENSITIVITIES = ("estimated", "espirit", "nlinv", "exact")

_NEW_GEOMETRY = (CropKspace, RescaleKspace, PadKspace, RandomRotation, RandomFlip, RandomReverse)
_NEW_COILS = (CompressCoilModule, PadCoilDimensionModule)

_logger = logging.getLogger(__name__)


class SimulatedMultiCoilDataset(Dataset[dict[str, Any]]):
    """Data set of different random multi-coil slices, each determined by seed, epoch and number.

    `direct train` draws numbers below `length` at random and without repetition, so that no slice is repeated in the
    first `length` iterations. When resumed, it begins with the same numbers again and needs another seed;
    `direct-hifimamba train` does not. Validation treats every slice as a separate volume, in ascending order.

    Attributes
    ----------
    epoch : int
        Initially 0. A training loop with epochs has to set it before the workers of a `DataLoader` start.

    Parameters
    ----------
    transform : callable, optional
        DIRECT's transforms. `masking` has to be null, as every slice has a mask of its own. Transforms that change the
        geometry (crop, rescale, pad, flip, rotation) need `clean_target` to be False and `sensitivities` to be
        `estimated` alone; so do, for `sensitivities`, those that change the number of coils.
    length : int
        Number of slices.
    seed : int
        From 0 up.
    heads : str, optional
        Folder of NIfTI files, see :class:`SampleOptions`; `direct-hifimamba heads FOLDER` downloads six. None: only
        random tissues and phantoms.
    head_fraction, num_coils, size, shape, pixel_size, snr, noiseless_fraction, accelerations, masks, whitened_fraction
        As in :class:`SampleOptions`. Batches of several slices need one `shape` and one number of coils.
    clean_target : bool
        True: the target has no noise. False: DIRECT's target, the root sum of squares of the noisy k-space.
    sensitivities : sequence of str
        Some of `estimated` (by DIRECT's transforms, as configured), `espirit` (from the calibration region of the noisy
        k-space), `nlinv` (from all samples) and `exact`; one of them is drawn for every slice.
    text_description : str, optional
        Name of the data set in logs.
    data_root, filenames_filter
        Ignored, as in DIRECT's simulated data sets: what `--training-root` means to the other data sets of a training.

    Raises
    ------
    ValueError
        If an option is invalid, or if the transforms do not fit what is drawn.
    FileNotFoundError
        If the folder `heads` has no NIfTI file.
    """

    ndim = 2
    epoch = 0

    def __init__(
        self,
        transform: Transform | None = None,
        length: int = 1_000_000,
        seed: int = 0,
        heads: str | None = None,
        clean_target: bool = True,
        sensitivities: Sequence[str] = ("estimated",),
        text_description: str | None = None,
        data_root: Path | None = None,
        filenames_filter: Sequence[Path] | None = None,
        **options: Any,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; expected at least 1.")
        if not sensitivities or not set(sensitivities) <= set(SENSITIVITIES):
            raise ValueError(f"sensitivities are {list(sensitivities)}; expected some of {', '.join(SENSITIVITIES)}.")
        if transform is not None:
            _check_steps(transform_steps(transform), clean_target, set(sensitivities) != {"estimated"})
        self.transform = transform
        self.seed = seed
        self.clean_target = clean_target
        self.sensitivities = tuple(sensitivities)
        self.text_description = text_description
        options = {name: tuple(value) if isinstance(value, Sequence) else value for name, value in options.items()}
        options["heads"] = tuple(find_heads(Path(heads))) if heads else ()
        self.options = SampleOptions(**options)
        self._length = length
        _logger.info("%s slices, simulated with seed %s and %s.", length, seed, self.options)

    @property
    def volume_indices(self) -> dict[Path, range]:
        """Numbers of the slices of each volume; a volume has one slice."""
        return {Path(self._filename(index)): range(index, index + 1) for index in range(len(self))}

    def _filename(self, index: int) -> str:
        return f"simulated_{self.seed}_{self.epoch}_{index}"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | torch.Tensor) -> dict[str, Any]:
        """Simulate a slice and transform it.

        Returns
        -------
        dict
            As from DIRECT's `FastMRI` data set; without a transform `kspace` (coil, height, width), `sampling_mask` and
            `acs_mask` (1, height, width, 1), `target` (height, width) and `sensitivity_map` (coil, height, width).
        """
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"There is no slice {index} in {len(self)}.")
        seed = (self.seed, self.epoch, index)
        drawn = draw_sample(seed, self.options)
        sample: dict[str, Any] = {
            "kspace": drawn.kspace,
            "sampling_mask": drawn.mask[None, :, :, None],
            "acs_mask": drawn.calibration_mask[None, :, :, None],
            "filename": self._filename(index),
            "slice_no": index,
            "reconstruction_size": (*drawn.mask.shape, 1),
        }
        if self.transform is None:
            return sample | {"target": drawn.target, "sensitivity_map": drawn.sensitivity_map}
        sample = self.transform(sample)
        if self.clean_target:
            # DIRECT divides k-space by this factor before it computes its own target.
            scaling_factor = sample.get("scaling_factor", torch.ones(1)).reshape(-1)
            sample["target"] = torch.from_numpy(drawn.target) / scaling_factor
        kind = self.sensitivities[int(np.random.default_rng((*seed, 1)).integers(len(self.sensitivities)))]
        if kind != "estimated":
            if kind == "espirit":
                maps = espirit(drawn.kspace, drawn.calibration_mask)
            else:
                maps = nlinv(drawn.kspace, drawn.mask) if kind == "nlinv" else drawn.sensitivity_map
            sample["sensitivity_map"] = torch.view_as_real(torch.from_numpy(maps))
        return sample


def _check_steps(steps: list[Any], clean_target: bool, other_maps: bool) -> None:
    """Raise a ValueError if transforms make k-space disagree with the simulated mask, target or sensitivities."""
    if not is_centered(steps):
        raise ValueError(
            "Simulated k-space has the zero frequency in the centre; the configuration's Fourier transform has "
            "centered=False."
        )
    if any(isinstance(step, CreateSamplingMask) for step in steps):
        raise ValueError("Every simulated slice has a mask of its own; set transforms.masking: null.")
    refused = (_NEW_GEOMETRY if clean_target or other_maps else ()) + (_NEW_COILS if other_maps else ())
    if names := [type(step).__name__ for step in steps if isinstance(step, refused)]:
        raise ValueError(
            f"The transforms have {', '.join(names)}, which would change k-space but not the target or the "
            "sensitivities that were drawn with it; leave them out, or set clean_target: false and sensitivities: "
            "[estimated]."
        )


@dataclass
class SimulatedMultiCoilConfig(DatasetConfig, SampleOptions):
    """Configuration of :class:`SimulatedMultiCoilDataset`: that of its slices, and of what is done with them."""

    heads: str | None = None  # type: ignore[assignment]  # a folder of the files
    length: int = 1_000_000
    seed: int = 0
    clean_target: bool = True
    sensitivities: tuple[str, ...] = ("estimated",)
