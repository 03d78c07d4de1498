"""Volumes from and to NIfTI files, as stacks of upright slices."""

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.images import Volume
from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.data.fourier import check_scale
from direct_hifimamba.files import replace_when_complete

with optional_package("nibabel", "NIfTI files", extra="data"):
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

# Axes of a volume in RAS+ order that become slices, rows and columns. Rows run from anterior or superior downwards.
ORIENTATIONS = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}

_DATA = 352
"""Where the values begin in a file, after the header."""

THICK = 2.0
"""A volume is a stack of thick slices if they are so many times as far apart as their pixels, or four times as few."""

MAX_OBLIQUE = 70.0
"""Angle, in degrees, between the slice directions asked for and acquired up to which a stack keeps its slices."""

ROUNDING = 1e-4
"""Values below 0 down to this fraction of the maximum come from rounding, as resampling causes it."""


def load_magnitude(path: Path, orientation: str | None = None) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Read a NIfTI magnitude volume as a stack of upright slices.

    Axes are reordered and turned to the closest anatomical ones; oblique volumes are not resampled. A stack of thick
    slices is not cut across: if it is oblique by up to `MAX_OBLIQUE`, its slices stay those of the third stored axis.

    Parameters
    ----------
    path : Path
    orientation : str, optional
        `axial`, `coronal` or `sagittal`. None: the slices are those of the third stored axis, which is the slice
        direction of 2-D acquisitions.

    Returns
    -------
    tuple
        float32 array of shape (slices, height, width), in the units of the file (its scaling applied), from 0 up, and
        the distances of its rows and of its columns in mm.

    Raises
    ------
    ValueError
        If the file is unreadable or no usable magnitude volume, or if the orientation would cut a stack across.
    """
    try:
        image = nibabel.squeeze_image(nibabel.load(path))
        voxels = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error
    _check_magnitude(path, voxels, _rounding(image))
    orientation = _choose_orientation(path, image, orientation)
    canonical = nibabel.as_closest_canonical(image)
    axes = ORIENTATIONS[orientation]
    zooms = canonical.header.get_zooms()
    volume = np.maximum(canonical.get_fdata(dtype=np.float32), 0)
    return volume.transpose(axes)[:, ::-1], (zooms[axes[1]], zooms[axes[2]])


def _choose_orientation(path: Path, image: Any, wanted: str | None) -> str:
    """Return the requested orientation, or else that in which the slices were acquired."""
    directions = image.affine[:3, :3]
    lengths = np.linalg.norm(directions, axis=0)
    # A slice direction is that of a column of the affine; without three of them, nothing is known of what is upright.
    if not np.isfinite(directions).all() or np.linalg.matrix_rank(directions / np.where(lengths > 0, lengths, 1)) < 3:
        raise ValueError(
            f"{path} has an affine without three directions: {directions.tolist()}; expected one that says how the "
            "axes lie in the patient. Correct the header's sform or qform."
        )
    slice_axis = int(nibabel.io_orientation(image.affine)[2, 0])
    acquired = next(name for name, axes in ORIENTATIONS.items() if axes[0] == slice_axis)
    is_thick = lengths[2] >= THICK * lengths[:2].max() or 4 * image.shape[2] <= min(image.shape[:2])
    if wanted is None or not is_thick:
        return wanted or acquired
    cosine = abs(directions[ORIENTATIONS[wanted][0], 2]) / lengths[2]
    if acquired != wanted and cosine < np.cos(np.deg2rad(MAX_OBLIQUE)):
        raise ValueError(
            f"{path} is a stack of {image.shape[2]} {acquired} slices of {image.shape[0]} x {image.shape[1]} pixels, "
            f"{lengths[2]:.3g} mm apart; {wanted} slices would cut across them. Choose the orientation {acquired}."
        )
    return acquired


def _rounding(image: Any) -> float:
    """Return half the step between stored integers that have a scale: how far below 0 rounding can move a 0."""
    is_scaled_integer = np.issubdtype(image.get_data_dtype(), np.integer)
    slope = image.dataobj.slope if is_scaled_integer and nibabel.is_proxy(image.dataobj) else 1
    return 0.0 if slope == 1 else 0.5 * abs(float(slope))


def write_images(path: Path, images: Iterable[NDArray[Any]], volume: Volume) -> None:
    """Write magnitudes, or real images, as `images.write_images` does; several volumes have a fourth axis.

    :func:`load_magnitude` reads a single volume back.
    """
    with (
        replace_when_complete(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
    ):
        for number, image in enumerate(images):
            if number == 0:
                _write_header(file, image.shape, volume)
            file.write((np.abs(image) if np.iscomplexobj(image) else image).astype("<f4", order="C").tobytes())


def _write_header(file: Any, shape: tuple[int, ...], volume: Volume) -> None:
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    volumes = (volume.volumes,) if volume.volumes > 1 else ()
    header.set_data_shape((*reversed(shape), volume.num_slices // volume.volumes, *volumes))
    affine = volume.affine_of(shape)[:, [2, 1, 0, 3]]  # columns vary fastest
    code = "aligned" if volume.matrix is None else "scanner"  # with "unknown", readers would make up an affine
    header.set_qform(affine, code)
    header.set_sform(affine, code)
    header.set_xyzt_units("unknown" if volume.affine is None else "mm")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = _DATA
    header.write_to(file)
    file.write(bytes(_DATA - file.tell()))  # no extension


def _check_magnitude(path: Path, voxels: NDArray[Any], rounding: float) -> None:
    if voxels.ndim != 3:
        raise ValueError(f"{path} has the shape {voxels.shape}; expected one 3-D volume. Split a series into volumes.")
    if voxels.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds values of type {voxels.dtype}; expected real magnitudes.")
    if voxels.size == 0:
        raise ValueError(f"{path} has the shape {voxels.shape} and so no voxel.")
    if not np.isfinite(voxels).all():
        raise ValueError(f"{path} has {np.sum(~np.isfinite(voxels))} voxels that are NaN or infinite; replace them.")
    if voxels.min() < -max(ROUNDING * voxels.max(), rounding):
        raise ValueError(f"{path} has values down to {voxels.min():g}; expected magnitudes, from 0 up.")
    if voxels.min() == voxels.max():
        raise ValueError(f"{path} is constant: every voxel is {voxels.max():g}; there is nothing to reconstruct.")
    check_scale(float(voxels.max()), str(path))
