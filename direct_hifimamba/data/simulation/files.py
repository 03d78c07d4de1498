"""Files of random slices for DIRECT's `FastMRI` data set, for validation and tests on a fixed set."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.masks import MaskOptions, draw_line_mask
from direct_hifimamba.data.provenance import claim_folder, package_versions
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample

ORIGIN = "simulated"

LINE_MASKS = ("equispaced", "random")
"""Masks of whole columns, which the `FastMRI` data set can read."""


def write_samples(
    output: Path, number: int, options: SampleOptions, seed: int = 0, mask: MaskOptions | None = None
) -> list[Path]:
    """Write random slices, one per file. The same call completes an interrupted run.

    Beside `kspace` (1, coil, height, width) and `mask` (width,) a file holds `sensitivity_map`, of the same shape as
    `kspace`, `target` (1, height, width) without noise, and `noise_covariance` (coil, coil); see
    :class:`direct_hifimamba.data.simulation.sample.Sample`.

    Parameters
    ----------
    output : Path
        New or empty folder, or that of the same slices.
    number : int
        Number of slices.
    options : SampleOptions
        Its masks have to consist of whole columns.
    seed : int
        File `simulated_SEED_NUMBER.h5` is the slice (seed, 0, number) of :func:`draw_sample`.
    mask : MaskOptions, optional
        Used instead of the masks of `options`.

    Returns
    -------
    list of Path
        All files, also those that existed.

    Raises
    ------
    ValueError
        If `number` is below 1 or a mask does not consist of whole columns.
    FileExistsError
        If the folder holds anything else.
    """
    if number < 1:
        raise ValueError(f"The number of slices is {number}; expected at least 1.")
    if not set(options.masks) <= set(LINE_MASKS):
        raise ValueError(f"masks are {tuple(options.masks)}; files can only hold {' and '.join(LINE_MASKS)} ones.")
    settings = {"options": asdict(options), "mask": mask and asdict(mask)}
    settings = json.loads(json.dumps(settings, default=lambda head: head.name))  # as they are read: lists for tuples
    record: dict[str, Any] = {"origin": ORIGIN, "seed": seed, **settings}
    versions = package_versions("direct-recon", "numpy", "scipy", "torch")
    paths = [output / f"simulated_{seed}_{index:05d}.h5" for index in range(number)]
    with claim_folder(output, [record]):
        for index, path in enumerate(tqdm(paths, desc=ORIGIN, unit="slice")):
            if path.exists():
                continue
            sample = draw_sample((seed, 0, index), options)
            lines: NDArray[np.bool_] = sample.mask[0]
            drawn = dict(sample.record)
            if mask is not None:
                line_mask = draw_line_mask(mask, sample.mask.shape, path.name, seed)
                lines = line_mask.samples
                drawn |= {"mask": mask.name, "acceleration": line_mask.acceleration}
            arrays: dict[str, NDArray[Any]] = {
                "sensitivity_map": sample.sensitivity_map[None],
                "target": sample.target[None],
                "noise_covariance": sample.noise_covariance,
            }
            anatomy = drawn.pop("anatomy")
            # Tissues and phantoms are drawn for one slice, which has no subject in common with others.
            subject = f"{anatomy} {path.stem}" if anatomy in ("tissues", "phantom") else anatomy
            provenance = {**record, "versions": versions, "subject": subject, "drawn": drawn}
            write_volume(path, [sample.kspace], provenance, lines, arrays=arrays)
    return paths
