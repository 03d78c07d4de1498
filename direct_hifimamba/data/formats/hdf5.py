"""K-space in HDF5: the form of the fastMRI data set, which DIRECT's `FastMRI` data set reads, and those of others."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import h5py
import numpy as np
from direct.data.datasets import _parse_fastmri_header
from numpy.typing import NDArray

from direct_hifimamba.data.formats.images import Volume
from direct_hifimamba.data.formats.raw_data import AXES, Format, MissingArrayError, RawData, from_array
from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.data.provenance import store_provenance
from direct_hifimamba.files import replace_when_complete

HEADER = "ismrmrd_header"

SENSITIVITY_MAP = "sensitivity_map"
"""Name of the array of coil sensitivities: images, complex of shape (slices[, coil], height, width)."""

IMAGES = "reconstruction"
"""Name of the array of images, as `direct predict` calls it."""

CMRXRECON_SUFFIX = ".mat"
"""DIRECT's `CMRxRecon` data set finds files of this suffix alone. They are HDF5 all the same."""


def write_volume(
    path: Path,
    kspace: Iterable[NDArray[np.complex64]] | h5py.VirtualLayout,
    provenance: dict[str, Any],
    mask: NDArray[np.bool_] | None = None,
    header: bytes | None = None,
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write one volume; the file appears when it is complete.

    The attributes `max` and `norm` are those of the root-sum-of-squares volume, as in fastMRI. (Without `max`, DIRECT
    would hand all attributes to its collate function.) The attribute `sha256` is that of :func:`hash_content`.

    Parameters
    ----------
    path : Path
    kspace : iterable of complex64 arrays of shape ([coil, ]height, width), or h5py.VirtualLayout
        The slices, at least one. Only one is held at a time. A layout links to slices in other files instead; they
        are complex64, or float32 pairs in a last axis of length 2.
    provenance : dict
        Where the data come from; stored as JSON in the attribute `provenance`.
    mask : bool array of shape (width,), optional
        Sampling mask, for use with `pass_mask: true`.
    header : bytes, optional
        ISMRMRD header. DIRECT takes from it which columns are padding, and the size of the reconstruction.
    arrays : mapping of str to arrays, optional
        What else to store, by name.
    """
    with replace_when_complete(path) as partial:
        with h5py.File(partial, "w") as file:
            if isinstance(kspace, h5py.VirtualLayout):
                file.create_virtual_dataset("kspace", kspace)
            else:
                _write_slices(file, "kspace", kspace)
            if mask is not None:
                file["mask"] = mask
            if header is not None:
                file[HEADER] = header
            for name, array in (arrays or {}).items():
                file[name] = array
        # Through a file that is open for writing, HDF5 would open those that it links to for writing, too.
        with h5py.File(partial) as file:
            attributes = {**_statistics(file), "sha256": hash_content(file)}
        with h5py.File(partial, "r+") as file:
            file.attrs.update(attributes)
            store_provenance(file, provenance)


def _write_slices(file: h5py.File, name: str, slices: Iterable[NDArray[Any]]) -> None:
    for index, values in enumerate(slices):
        if index == 0:
            shape = values.shape
            file.create_dataset(name, (0, *shape), values.dtype, chunks=(1, *shape), maxshape=(None, *shape))
        file[name].resize(index + 1, axis=0)
        file[name][index] = values


def write_images(path: Path, images: Iterable[NDArray[Any]], volume: Volume) -> None:
    """Write images, real or complex, as `images.write_images` does, to the data set `IMAGES`."""
    with replace_when_complete(path) as partial, h5py.File(partial, "w") as file:
        _write_slices(file, IMAGES, images)
        if volume.affine is not None:
            file.attrs["affine"] = volume.affine_of(file[IMAGES].shape[1:])
        if volume.volumes > 1:
            file.attrs["volumes"] = volume.volumes
        store_provenance(file, volume.provenance)


def _statistics(file: h5py.File) -> dict[str, float]:
    maximum = squared_norm = 0.0
    for kspace_slice in read_slices(file):
        image = root_sum_of_squares(kspace_slice)
        maximum = max(maximum, float(image.max()))
        squared_norm += float(np.sum(np.square(image, dtype=np.float64)))
    return {"max": maximum, "norm": squared_norm**0.5}


def kspace_shape(file: h5py.File) -> tuple[int, ...]:
    """Shape of the k-space of a volume: (slices[, coil], height, width)."""
    kspace = file["kspace"]
    if _is_cmrxrecon(kspace):
        return (*kspace.shape[1:-2], kspace.shape[-1], kspace.shape[-2])
    return kspace.shape[:-1] if kspace.dtype == np.float32 else kspace.shape


def _is_cmrxrecon(kspace: h5py.Dataset) -> bool:
    return kspace.dtype.names is not None


def read_mask(file: h5py.File) -> NDArray[np.bool_] | None:
    """Return the sampling mask of a volume, of shape (width,) or (height, width), or None if there is none.

    It is False in the padding of the header, as in DIRECT's `FastMRI` data set, even where the file says otherwise:
    fastMRI's own masks were drawn over the whole width.
    """
    if "mask" not in file:
        return None
    mask = file["mask"][()] != 0
    if _is_cmrxrecon(file["kspace"]):
        return mask.T
    acquired = np.zeros_like(mask)
    acquired[..., acquired_columns(file)] = True
    return mask & acquired


def acquired_columns(file: h5py.File) -> slice:
    """Return the columns of k-space that were acquired; the others are zero-padding.

    DIRECT's `FastMRI` data set clears k-space and mask outside of them. Files without a header, or with one that is no
    ISMRMRD document, have no padding.
    """
    header = read_header(file)
    return slice(header.get("padding_left"), header.get("padding_right"))


def read_header(file: h5py.File) -> dict[str, Any]:
    """Return what DIRECT takes from the ISMRMRD header; nothing if there is none, or one that is no such document.

    `padding_left` and `padding_right` enclose the acquired columns, `reconstruction_size` is (height, width, 1).
    """
    document = header_document(file)
    try:
        return {} if document is None else _parse_fastmri_header(document)
    except (ParseError, RuntimeError, ValueError):
        return {}


def check_encoded_width(header: Mapping[str, Any], width: int) -> None:
    """Make sure that the padding of a header, which :func:`read_header` has read, is that of k-space of this width.

    Raises
    ------
    ValueError
        If the header has padding, and is of k-space with more or fewer columns.
    """
    encoded = header.get("encoding_size", (0, width))[1]
    if encoded != width and (header["padding_left"] > 0 or header["padding_right"] < width):
        raise ValueError(
            f"its header says which of {encoded} columns were acquired, and k-space has {width}; expected the same "
            f"number. If k-space was cropped, change the header, or leave out {HEADER}"
        )


def header_document(file: h5py.File) -> bytes | None:
    """Return the ISMRMRD header, stored as text, as bytes or as an array of one of them; None if there is none."""
    if HEADER not in file:
        return None
    stored = file[HEADER][()]
    stored = stored.item() if np.size(stored) == 1 and isinstance(stored, np.ndarray) else stored
    return stored.encode() if isinstance(stored, str) else bytes(stored)


def read_slices(file: h5py.File) -> Iterator[NDArray[np.complex64]]:
    """Yield the slices of a volume as :func:`write_volume` took them, shape ([coil, ]height, width).

    The volume may be stored in any form, also that of :func:`write_cmrxrecon`.

    Raises
    ------
    FileNotFoundError
        If the volume links to a file that is not there. (HDF5 would read zeros.)
    """
    kspace = file["kspace"]
    _check_links(kspace)
    if _is_cmrxrecon(kspace):
        for index in range(kspace.shape[1]):
            yield np.swapaxes(kspace[0, index].view(np.complex64), -1, -2)
        return
    for kspace_slice in kspace:
        if kspace_slice.dtype == np.float32:
            kspace_slice = np.ascontiguousarray(kspace_slice).view(np.complex64)[..., 0]
        yield kspace_slice


def escape_link(path: str) -> str:
    """Return the name of a file as virtual data sets of HDF5 take it: a percent sign stands twice."""
    return path.replace("%", "%%")


def missing_links(dataset: h5py.Dataset) -> list[Path]:
    """Return the files that a data set links to and that are not there."""
    if not dataset.is_virtual:
        return []
    folder = Path(dataset.file.filename).parent
    links = {folder / source.file_name.replace("%%", "%") for source in dataset.virtual_sources()}
    return sorted(link for link in links if not link.exists())


def _check_links(dataset: h5py.Dataset, subject: str = "") -> None:
    for link in missing_links(dataset):
        raise FileNotFoundError(
            f"{subject}links to {link}, which is not there; put it back, or prepare the data with --copy"
        )


def as_text(value: Any) -> str:
    """Return an attribute as text, whether it is stored as text, as bytes, as an array with one of them, or empty."""
    if isinstance(value, h5py.Empty):
        return ""
    value = np.asarray(value).ravel()[0] if np.size(value) == 1 else value
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ")


def hash_content(file: h5py.File) -> str:
    """SHA-256 of the k-space, slice by slice, and of the header: the same whether they are stored here or linked."""
    digest = hashlib.sha256()
    for kspace_slice in read_slices(file):
        digest.update(repr(kspace_slice.shape).encode())
        digest.update(np.ascontiguousarray(kspace_slice))
    digest.update(header_document(file) or b"")
    return digest.hexdigest()


def write_view(
    path: Path,
    volume: Path,
    mask: NDArray[np.bool_],
    provenance: dict[str, Any],
    acs_mask: NDArray[np.bool_] | None = None,
) -> None:
    """Write a file that adds a sampling mask to a volume of :func:`write_volume` without storing its k-space again.

    Parameters
    ----------
    path : Path
    volume : Path
        Linked relative to the folder of `path`: both can be moved together.
    mask : bool array of shape (width,) or (height, width)
        For use with `pass_mask: true`; with both axes, for the data set `FastMRIWithMasks`.
    provenance : dict
        Stored as JSON in the attribute `provenance`.
    acs_mask : bool array of shape (height, width), optional
        The samples for autocalibration, which `FastMRIWithMasks` needs.
    """
    target = volume.relative_to(path.parent, walk_up=True).as_posix()
    with replace_when_complete(path) as partial, h5py.File(partial, "w") as file, h5py.File(volume) as original:
        for name in original:
            file[name] = h5py.ExternalLink(target, name)
        file["mask"] = mask
        if acs_mask is not None:
            file["acs_mask"] = acs_mask
        for name in ("max", "norm", "sha256"):
            file.attrs[name] = original.attrs[name]
        store_provenance(file, provenance)


def write_cmrxrecon(path: Path, volume: Path, mask: NDArray[np.bool_], provenance: dict[str, Any]) -> None:
    """Write a copy of a volume of :func:`write_volume` in the form that DIRECT's `CMRxRecon` data set reads.

    No other data set of DIRECT reads masks that are not made of whole columns. It expects the axes (time, slice[,
    coil], width, height) and real and imaginary part as fields, so k-space cannot be linked.

    Parameters
    ----------
    path : Path
    volume : Path
    mask : bool array of shape (height, width)
        Sampling mask, for use with `extra_keys: [mask]` and `kspace_key: kspace`.
    provenance : dict
        Stored as JSON in the attribute `provenance`.
    """
    fields = np.dtype([("real", np.float32), ("imag", np.float32)])
    with replace_when_complete(path) as partial, h5py.File(partial, "w") as file, h5py.File(volume) as original:
        *leading, height, width = kspace_shape(original)
        dataset = file.create_dataset("kspace", (1, *leading, width, height), fields)
        for index, kspace_slice in enumerate(read_slices(original)):
            dataset[0, index] = np.ascontiguousarray(np.swapaxes(kspace_slice, -1, -2)).view(fields)
        file["mask"] = mask.T
        file.attrs["sha256"] = original.attrs["sha256"]
        store_provenance(file, provenance)


class StoredArray:
    """A data set of an HDF5 file, which is opened for each part that is read.

    Parameters
    ----------
    path : Path
    name : str

    Raises
    ------
    FileNotFoundError
        If it links to a file that is not there. (HDF5 would read zeros.)
    ValueError
        If it is empty.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with h5py.File(path) as file:
            stored = file[name]
            if stored.shape is None:
                raise ValueError(f"its array {name!r} is empty")
            _check_links(stored, f"{path} ")
            self.shape: tuple[int, ...] = stored.shape
            self.ndim: int = stored.ndim
            self.dtype: np.dtype[Any] = stored.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        with h5py.File(self._path) as file:
            return file[self._name][index]


def _read(path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> RawData:
    name = variable or "kspace"
    with h5py.File(path) as file:
        if not isinstance(file.get(name), h5py.Dataset):
            raise MissingArrayError(
                f"it has no array {name!r}, but {', '.join(file) or 'nothing'}; name k-space (--variable)"
            )
        mask = file["mask"][()] if isinstance(file.get("mask"), h5py.Dataset) else None
        columns, header = acquired_columns(file), read_header(file)
        has_header = header_document(file) is not None
    image_size = header.get("reconstruction_size")
    array = StoredArray(path, name)
    messages: tuple[str, ...] = ()
    if axes is None and array.ndim - (array.dtype.kind == "f") == 3:
        axes = [axis for axis in AXES if axis != "coil"]  # fastMRI's single-coil data
        if not has_header:
            messages = (
                f"The three axes {array.shape[:3]} are taken for slices, height and width of a single coil; for one "
                "slice of several coils, give --axes coil,height,width.",
            )
    elif axes is None and has_header:
        axes = AXES
    raw = from_array(array, axes, mask=mask, messages=messages)
    width = raw.shape[-1]
    if name != SENSITIVITY_MAP:
        check_encoded_width(header, width)
    if image_size is not None:
        raw = replace(raw, image_size=image_size[:2] if image_size[1] <= width else (width, width))
    padding = np.ones(width, bool)
    padding[columns] = False
    if not padding.any() or name == SENSITIVITY_MAP:
        return raw
    return replace(
        raw,
        mask=np.where(padding, 0, mask) if mask is not None and mask.shape[-1:] in ((1,), (width,)) else mask,
        read_slice=lambda index: np.where(padding, np.complex64(0), raw.read_slice(index)),
        messages=(f"{padding.sum()} columns are zero-padding, according to the header.",),
    )


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """Return a data set of an HDF5 file as it is stored, or None if there is none."""
    with h5py.File(path) as file:
        return file[name][()] if isinstance(file.get(name), h5py.Dataset) else None


FORMAT = Format("HDF5 of the fastMRI form", h5py.is_hdf5, _read, read_array)
