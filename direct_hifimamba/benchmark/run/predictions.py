"""What predictions have to be before they are scored."""

from pathlib import Path

import h5py
import numpy as np

from direct_hifimamba.benchmark.plan.hashes import list_files
from direct_hifimamba.data.formats.hdf5 import read_mask
from direct_hifimamba.files import replace_when_complete


class DivergedError(ValueError):
    """A reconstruction is not finite."""


def check_predictions(predictions: Path, data: Path) -> None:
    """Make sure that the reconstructions of a folder are those of all files of `data`, finite, and with their masks.

    Some engines of DIRECT, such as that of RIM, do not say which mask they used; then nothing is checked of it. Masks
    that were checked are removed, as they take more room than the images.

    Raises
    ------
    DivergedError
        If a reconstruction is not finite.
    ValueError
        If the masks are others.
    """
    for path in list_files(data):
        with h5py.File(path) as measured, h5py.File(predictions / path.name) as predicted:
            images = predicted["reconstruction"][()]
            used = predicted["sampling_mask"][()] != 0 if "sampling_mask" in predicted else None
            mask = read_mask(measured)
        if mask is None:
            raise ValueError(f"{path} has no sampling mask; prepare the data again.")
        if not np.isfinite(images).all():
            bad = np.count_nonzero(~np.isfinite(images))
            raise DivergedError(
                f"The reconstruction of {path.name} is not finite: {bad} of {images.size} of its pixels."
            )
        if used is None:
            continue
        # DIRECT stores (slices, height or 1, width, 1).
        used = used.reshape(len(images), -1, mask.shape[-1])
        if not (used == mask.reshape(-1, mask.shape[-1])).all():
            raise ValueError(f"{path.name} was reconstructed from another mask than the stored one.")
        with replace_when_complete(predictions / path.name) as partial, h5py.File(partial, "w") as file:
            file["reconstruction"] = images
