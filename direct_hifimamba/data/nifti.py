"""Volumes from and to NIfTI files, as stacks of upright slices."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.files import replace_when_complete

try:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
except ImportError as error:
    raise ImportError("NIfTI files need nibabel; install it: pip install 'direct-hifimamba[data]'") from error

# Axes of a volume in RAS+ order that become slices, rows and columns. Rows run from anterior or superior downwards.
ORIENTATIONS = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


def load_magnitude(path: Path, orientation: str | None = None) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Read a NIfTI magnitude volume as a stack of upright slices.

    Axes are reordered and turned to the closest anatomical ones; oblique volumes are not resampled.

    Parameters
    ----------
    path : Path
    orientation : str, optional
        `axial`, `coronal` or `sagittal`. None: the slices are those of the third stored axis, which is the slice
        direction of 2-D acquisitions.

    Returns
    -------
    tuple
        float32 array of shape (slices, height, width), in the units of the file (its scaling applied), and the
        distances of its rows and of its columns in mm.

    Raises
    ------
    ValueError
        If the file is unreadable or no usable magnitude volume.
    """
    try:
        image = nibabel.squeeze_image(nibabel.load(path))
        voxels = np.asanyarray(image.dataobj)
    except (ImageFileError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error
    _check_magnitude(path, voxels)
    if orientation is None:
        slice_axis = int(nibabel.io_orientation(image.affine)[2, 0])
        orientation = next(name for name, axes in ORIENTATIONS.items() if axes[0] == slice_axis)
    canonical = nibabel.as_closest_canonical(image)
    axes = ORIENTATIONS[orientation]
    zooms = canonical.header.get_zooms()
    return canonical.get_fdata(dtype=np.float32).transpose(axes)[:, ::-1], (zooms[axes[1]], zooms[axes[2]])


def save_slices(path: Path, volume: NDArray[np.float32], voxel_size: Sequence[float] | None = None) -> None:
    """Write a stack of upright slices; :func:`load_magnitude` reads a magnitude back as it was.

    Nothing is known of the patient's position: slices are written as axial ones from below, rows from anterior and
    columns from the side that RAS+ counts from, so that viewers show them upright.

    Parameters
    ----------
    path : Path
        Ends in `.nii.gz`.
    volume : float32 array of shape (slices, height, width)
    voxel_size : sequence of 3 floats, optional
        Distances of slices, rows and columns in mm. None: the affine is the identity.
    """
    affine = np.diag([*reversed(voxel_size or (1, 1, 1)), 1])
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume[:, ::-1].transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("unknown" if voxel_size is None else "mm")
    with replace_when_complete(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def _check_magnitude(path: Path, voxels: NDArray[Any]) -> None:
    if voxels.ndim != 3:
        raise ValueError(f"{path} has the shape {voxels.shape}; expected one 3-D volume. Split a series into volumes.")
    if voxels.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds values of type {voxels.dtype}; expected real magnitudes.")
    if voxels.size == 0:
        raise ValueError(f"{path} has the shape {voxels.shape} and so no voxel.")
    if not np.isfinite(voxels).all():
        raise ValueError(f"{path} has {np.sum(~np.isfinite(voxels))} voxels that are NaN or infinite; replace them.")
    if voxels.min() < 0:
        raise ValueError(f"{path} has values down to {voxels.min():g}; expected magnitudes, from 0 up.")
    if voxels.min() == voxels.max():
        raise ValueError(f"{path} is constant: every voxel is {voxels.max():g}; there is nothing to reconstruct.")
