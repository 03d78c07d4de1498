"""Readers of the volumes of the data sets, slice by slice."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats import calgary_campinas
from direct_hifimamba.data.formats.hdf5 import (
    acquired_columns,
    as_text,
    check_encoded_width,
    escape_link,
    header_document,
    read_header,
)
from direct_hifimamba.data.formats.registry import read
from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.data.references import SourceError, check_fully_sampled

_ACCELERATION = ".//{*}parallelImaging/{*}accelerationFactor/*"
"""Elements of an ISMRMRD header: acceleration along each direction of phase encoding."""

_PERSONAL = re.compile(
    rb"<((?:\w+:)?(?:subjectInformation|studyInformation|measurementID|seriesDate|seriesTime|seriesInstanceUIDRoot"
    rb"|frameOfReferenceUID|referencedImageSequence|measurementDependency|institutionName|stationName|deviceID"
    rb"|deviceSerialNumber|userParameterString|userParameterBase64))\b[^>]*>.*?</\1>",
    re.DOTALL,
)
"""Elements of an ISMRMRD header that may identify a person, and are not copied."""

ERASED = ("anonymous", "anonymized", "anonymised", "none", "null", "unknown", "n/a")
"""Placeholders for the identity of a patient."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert exceptions of libraries about the file `path` to a SourceError that does not name its folder."""
    try:
        yield
    except SourceError:
        raise
    except (OSError, KeyError, ValueError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        raise SourceError(message.removeprefix(f"{path} ")) from error


class KSpaceFile:
    """Volume of the fastMRI data set: centred k-space of shape (slices[, coil], height, width), complex64.

    Parameters
    ----------
    path : Path

    Raises
    ------
    SourceError
        If the file is damaged or of another kind; the methods raise it, too.
    """

    reconstructions: Sequence[str] = ("reconstruction_esc", "reconstruction_rss")
    """Names of the arrays of magnitudes, in order of preference; the first is that of single-coil data."""

    is_linkable = True
    """Whether :meth:`layout` can link to its k-space."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path):
            self._file = h5py.File(path)
            try:
                if not isinstance(self._file.get("kspace"), h5py.Dataset):
                    raise SourceError(f"it has no array 'kspace', but {', '.join(self._file) or 'nothing'}")
                self._kspace: h5py.Dataset = self._file["kspace"]
                self._check()
                self.num_slices = len(self._kspace)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _check(self) -> None:
        if self._kspace.dtype != np.complex64 or self._kspace.ndim not in (3, 4):
            self._refuse("(slices[, coil], height, width), complex64")

    def _refuse(self, expected: str) -> None:
        raise SourceError(
            f"kspace has the shape {self._kspace.shape} and the type {self._kspace.dtype}; expected {expected}"
        )

    @property
    def acquisition(self) -> str:
        """Kind of measurement."""
        return as_text(self._file.attrs.get("acquisition", "unknown"))

    @property
    def subject(self) -> str | None:
        """Attribute `patient_id`; None if it is missing or was erased."""
        identity = as_text(self._file.attrs.get("patient_id", ""))
        return None if not identity.strip("0-") or identity.lower() in ERASED else identity

    def header(self) -> bytes | None:
        """Return the ISMRMRD header, or None where DIRECT cannot read it, as that of M4Raw.

        Raises
        ------
        SourceError
            If the header says that k-space was accelerated, that its centre was not acquired, or that it has another
            number of columns.
        """
        with _reading(self._path):
            check_encoded_width(read_header(self._file), self._kspace.shape[-1])
            acquired, middle = acquired_columns(self._file), self._kspace.shape[-1] // 2
            if acquired != slice(None) and not 0 <= acquired.start <= middle < acquired.stop:
                raise SourceError(
                    f"its header says that the columns {acquired.start} to {acquired.stop - 1} were acquired; expected "
                    f"the middle one, {middle}, among them"
                )
            document = header_document(self._file)
            if document is None or not read_header(self._file):
                return None
            factors = [float(factor.text or 1) for factor in ElementTree.fromstring(document).iterfind(_ACCELERATION)]
            if max(factors, default=1) > 1:
                raise SourceError(
                    f"its header says that k-space was measured with an acceleration of {max(factors):g}, and it has "
                    "no gaps: the rest was filled in by parallel imaging; expected references that were measured"
                )
            return _PERSONAL.sub(b"", document)

    def kspace(self, index: int) -> NDArray[np.complex64]:
        """Return the k-space of a slice, shape ([coil, ]height, width)."""
        with _reading(self._path):
            return self._kspace[index]

    def combined(self, index: int, centered: bool = True) -> NDArray[np.float32]:
        """Return the root sum of squares of the coil images of a slice that is fully sampled, shape (height, width)."""
        kspace = self.kspace(index)
        check_fully_sampled(kspace)
        return root_sum_of_squares(kspace, centered)

    def magnitude(self, index: int) -> NDArray[np.float32]:
        """Return the magnitude image of a slice in the file, shape (height, width)."""
        for name in self.reconstructions:
            if name in self._file:
                with _reading(self._path):
                    return self._file[name][index].astype(np.float32)
        raise SourceError(f"there is no {' or '.join(self.reconstructions)} to take magnitudes from")

    def layout(self, slices: Sequence[int], path: str) -> h5py.VirtualLayout:
        """Return links to some slices for :func:`hdf5.write_volume`; `path` leads to this file from the new one."""
        layout = h5py.VirtualLayout((len(slices), *self._kspace.shape[1:]), self._kspace.dtype)
        source = h5py.VirtualSource(escape_link(path), "kspace", self._kspace.shape, self._kspace.dtype)
        for here, there in _runs(slices):
            layout[here] = source[there]
        return layout


class CalgaryCampinas(KSpaceFile):
    """Volume of Calgary-Campinas: k-space of shape (slices, height, width, 2 * coil), float32.

    Real and imaginary parts alternate along the last axis. The zero frequency is in the middle, but the origin of the
    image is in the corner, so that k-space has to be transformed with `centered=False`.
    """

    def _check(self) -> None:
        if self._kspace.dtype != np.float32 or self._kspace.ndim != 4 or self._kspace.shape[-1] % 2:
            self._refuse("(slices, height, width, 2 * coil), float32")
        self._num_sampled = math.ceil(calgary_campinas.SAMPLED * self._kspace.shape[2])

    def kspace(self, index: int) -> NDArray[np.complex64]:
        """Return the k-space of a slice, shape (coil, height, width), zero where it was not acquired."""
        with _reading(self._path):
            return calgary_campinas.read_slice(self._kspace, index)

    def magnitude(self, index: int) -> NDArray[np.float32]:
        """Return the root sum of squares of the coil images of a slice, shape (height, width)."""
        return self.combined(index, centered=False)

    def layout(self, slices: Sequence[int], path: str) -> h5py.VirtualLayout:
        """Return links as :meth:`KSpaceFile.layout` does, in the order (slices, coil, height, width, complex=2)."""
        _, height, width, channels = self._kspace.shape
        layout = h5py.VirtualLayout((len(slices), channels // 2, height, width, 2), np.float32)
        source = h5py.VirtualSource(escape_link(path), "kspace", self._kspace.shape, np.float32)
        sampled = slice(self._num_sampled)
        for here, there in _runs(slices):
            for coil in range(channels // 2):
                layout[here, coil, :, sampled] = source[there, :, sampled, 2 * coil : 2 * coil + 2]
        return layout


class RawFile(KSpaceFile):
    """File in any format of `data/formats`; its k-space is copied.

    Parameters
    ----------
    path : Path
    axes : sequence of str, optional
    variable : str, optional
        As in :func:`direct_hifimamba.data.formats.registry.read`.
    """

    is_linkable = False

    def __init__(self, path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> None:
        self._path = path
        with _reading(path):
            self._raw = read(path, axes, variable)
        self.num_slices = self._raw.shape[0]

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def subject(self) -> None:
        """None: the name of the patient is not read."""

    def header(self) -> None:
        """Return None: there is no header that DIRECT could read."""

    def kspace(self, index: int) -> NDArray[np.complex64]:
        """Return the k-space of a slice, shape (height, width) for one coil, otherwise (coil, height, width)."""
        with _reading(self._path):
            kspace = self._raw.read_slice(index)
        return kspace[0] if len(kspace) == 1 else kspace

    def magnitude(self, index: int) -> NDArray[np.float32]:
        """Return the root sum of squares of the coil images of a slice, shape (height, width)."""
        return self.combined(index)


def _runs(slices: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield runs of consecutive numbers in ascending ones: the slice of their positions, and that of the numbers."""
    start = 0
    for stop in range(1, len(slices) + 1):
        if stop == len(slices) or slices[stop] != slices[stop - 1] + 1:
            yield slice(start, stop), slice(slices[start], slices[stop - 1] + 1)
            start = stop


class NiftiFile:
    """NIfTI magnitude volume whose slices lie along the third stored axis; they are returned upright.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ImportError
        If nibabel is not installed.
    SourceError
        If the file is damaged or contains no magnitude volume.
    """

    def __init__(self, path: Path) -> None:
        from direct_hifimamba.data.formats.nifti import load_magnitude

        with _reading(path):
            self._volume, _ = load_magnitude(path)
        self.num_slices = len(self._volume)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._volume

    def magnitude(self, index: int) -> NDArray[np.float32]:
        """Return the magnitude of a slice, shape (height, width)."""
        return self._volume[index]
