"""Writers of images, one for each format, which take the slices of a volume one at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.raw_data import RawData

SUFFIXES = {"hdf5": ".h5", "nifti": ".nii.gz", "png": ".png", "cfl": ".cfl", "dicom": "_dicom"}
"""What files of a format end in. DICOM images are a folder of files, one for each slice."""

_OTHERS = (".nii", ".hdr", ".hdf5", ".dcm", ".mat", ".npy", ".npz", ".jpg", ".jpeg", ".tif", ".tiff", ".mha", ".nrrd")
"""What files of other formats end in."""

_WRITERS = {"hdf5": "hdf5", "nifti": "nifti", "png": "png", "cfl": "bart", "dicom": "dicom"}
"""Modules with a function `write_images`."""


@dataclass(frozen=True)
class Volume:
    """What is known of the images of a volume before the first one. Nothing in it names a person.

    Attributes
    ----------
    num_slices : int
        Of all volumes.
    affine : float64 array of shape (4, 4), optional
        From the indices (slice, row, column, 1) of an image of the size `matrix` to the patient's right, anterior and
        superior (RAS+) coordinates in mm; the slices of each volume are counted from 0. None: unknown.
    matrix : tuple of ints, optional
        Height and width to which `affine` belongs; images may be cropped from it about the middle. None: the affine
        gives distances, and the position in the patient is unknown.
    provenance : mapping of str to JSON values
        Where the images come from.
    volumes : int
        Number of volumes with the same positions, one after the other.
    """

    num_slices: int
    affine: NDArray[np.float64] | None = None
    matrix: tuple[int, int] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    volumes: int = 1

    @classmethod
    def of(cls, raw: RawData, affine: NDArray[np.float64] | None = None, **provenance: Any) -> Self:
        """Return what is known of images of raw data.

        Parameters
        ----------
        raw : RawData
        affine : float64 array of shape (4, 4), optional
            Used where the raw data have none; it gives distances alone, see :func:`upright_affine`.
        **provenance
            Stored with `source`, what is known of the scanner.
        """
        matrix = None if raw.affine is None else raw.shape[-2:]
        known = affine if raw.affine is None else raw.affine
        return cls(raw.shape[0], known, matrix, {**provenance, "source": dict(raw.source)}, raw.volumes)

    def affine_of(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the affine of images of the shape (height, width). If it is unknown, pixels are 1 apart."""
        if self.affine is None:
            return upright_affine((1, 1, 1))
        margins = [there - here for there, here in zip(self.matrix or shape, shape, strict=True)]
        cropped = self.affine.copy()
        cropped[:3, 3] += self.affine[:3, 1:3] @ [margin // 2 for margin in margins]
        return cropped


def upright_affine(voxel_size: Sequence[float]) -> NDArray[np.float64]:
    """Return an affine for images whose position in the patient is unknown, with which viewers show them upright.

    Slices are axial ones from below, rows run from anterior to posterior, columns from left to right.

    Parameters
    ----------
    voxel_size : sequence of 3 floats
        Distances of slices, rows and columns in mm.
    """
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], range(4)] = [voxel_size[0], -voxel_size[1], voxel_size[2], 1]
    return affine


def import_writer(name: str) -> ModuleType:
    """Return the module that writes a format, one of `SUFFIXES`.

    Raises
    ------
    ImportError
        If the package that it needs is missing.
    """
    return import_module(f"{__package__}.{_WRITERS[name]}")


def check_volume(name: str, volume: Volume) -> None:
    """Raise a ValueError if a format, one of `SUFFIXES`, needs to know more of the images."""
    if name == "dicom" and volume.affine is None:
        raise ValueError(
            "DICOM images say how far apart their pixels are, which is not known of the input; give the distances in "
            "mm (--voxel-size), or choose another format."
        )


def find_format(path: Path) -> str | None:
    """Return the format, one of `SUFFIXES`, of which a file or folder has the name; None if the name has no suffix.

    Raises
    ------
    ValueError
        If it has the suffix of another format and is no existing folder, whose name may end in anything.
    """
    found = next((name for name, suffix in SUFFIXES.items() if path.name.endswith(suffix)), None)
    if found is None and not path.is_dir() and path.name.lower().endswith((*SUFFIXES.values(), *_OTHERS)):
        known = ", ".join(SUFFIXES.values())
        raise ValueError(f"{path} has the suffix of another format; expected a name that ends in {known}.")
    return found


def write_images(path: Path, images: Iterable[NDArray[Any]], volume: Volume) -> None:
    """Write images; the file, or folder, appears when it is complete, and not at all after an exception.

    Parameters
    ----------
    path : Path
        Its end, one of `SUFFIXES`, decides about the format.
    images : iterable of float32 or complex64 arrays of shape (height, width)
        The slices, of which one is held at a time. Only the formats HDF5 and `.cfl` keep complex values, and the others
        have their magnitude.
    volume : Volume

    Raises
    ------
    ImportError
        If a package is missing.
    ValueError
        If the path ends in none of `SUFFIXES`, the format needs to know more of the images, slices differ in their
        shape, or there are not as many as announced.
    """
    name = find_format(path)
    if name is None:
        raise ValueError(f"{path} has no format; expected a name that ends in {', '.join(SUFFIXES.values())}.")
    check_volume(name, volume)
    import_writer(name).write_images(path, _check_images(images, volume.num_slices), volume)


def _check_images(images: Iterable[NDArray[Any]], expected: int) -> Iterator[NDArray[Any]]:
    """Yield images after making sure that they have the same shape, and are as many as expected."""
    shapes = []
    for image in images:
        shapes.append(image.shape)
        if image.ndim != 2 or image.shape != shapes[0] or len(shapes) > expected:
            raise ValueError(
                f"Slice {len(shapes) - 1} has the shape {image.shape}; expected {expected} slices of the shape "
                f"{shapes[0]}."
            )
        yield image
    if len(shapes) != expected:
        raise ValueError(f"There are {len(shapes)} slices; expected {expected}.")
