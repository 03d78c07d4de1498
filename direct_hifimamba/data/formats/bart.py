"""BART's pairs of files `<name>.hdr` (dimensions) and `<name>.cfl` (complex64, the first dimension varies fastest).

BART numbers 16 dimensions [1]_: 0 to 2 are those of the image, 3 the coils, 4 sets of sensitivities, 5 to 15 echoes,
times, slices (13), averages and others.

References
----------
.. [1] Uecker et al. Berkeley Advanced Reconstruction Toolbox. Proc. ISMRM 23:2486, 2015.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.images import Volume
from direct_hifimamba.data.formats.raw_data import AXES, Format, MissingArrayError, RawData, from_array
from direct_hifimamba.files import replace_when_complete

DIMENSIONS = 16
_SLICE = 13


def read_cfl(path: Path) -> NDArray[np.complex64]:
    """Map an array of BART into memory.

    Parameters
    ----------
    path : Path
        With or without one of the suffixes `.cfl` and `.hdr`.

    Returns
    -------
    complex64 array with 16 axes, those of BART
        Read-only; values are read from the file when they are used.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    ValueError
        If the header has no valid dimensions, or the other file has another size.
    """
    header, data = _pair(path)
    lines = header.read_text(errors="replace").splitlines()
    following = lines[lines.index("# Dimensions") + 1 :] if "# Dimensions" in lines else []
    words = following[0].split() if following else []
    if not 0 < len(words) <= DIMENSIONS or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(
            f"{header} has the dimensions {' '.join(words)!r}; expected 1 to {DIMENSIONS} numbers above 0 in the line "
            "after '# Dimensions'."
        )
    shape = (*map(int, words), *(1,) * (DIMENSIONS - len(words)))
    expected = 8 * int(np.prod(shape, dtype=object))
    if data.stat().st_size != expected:
        raise ValueError(
            f"{data} has {data.stat().st_size} bytes; expected {expected} for the dimensions {' '.join(words)} of "
            f"{header.name}. Was it cut short, or does it belong to another header?"
        )
    return np.memmap(data, "<c8", "r", shape=shape, order="F")


def write_cfl(path: Path, array: NDArray[Any]) -> None:
    """Write an array with at most 16 axes, those of BART, as `<path>.hdr` and `<path>.cfl` (complex64)."""
    header, data = _pair(path)
    with replace_when_complete(header) as partial_header, replace_when_complete(data) as partial_data:
        partial_data.write_bytes(_bytes(array))
        _write_header(partial_header, array.shape)


def _bytes(array: NDArray[Any]) -> bytes:
    # Not by `tofile`, which may not notice that a disk is full.
    return array.T.astype("<c8", order="C").tobytes()


def _write_header(path: Path, shape: tuple[int, ...]) -> None:
    path.write_text(f"# Dimensions\n{' '.join(map(str, shape))}\n")


def _pair(path: Path) -> tuple[Path, Path]:
    stem = path.name.removesuffix(".cfl").removesuffix(".hdr")
    return path.with_name(f"{stem}.hdr"), path.with_name(f"{stem}.cfl")


def to_slices(array: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return an array of :func:`read_cfl` with the axes (slices, coil, height, width), without copying it.

    Height and width are those of the first three dimensions that are not 1, in this order. Dimensions 5 to 15, such as
    times and slices, become slices together; the first one varies fastest.

    Raises
    ------
    ValueError
        If all three spatial dimensions are above 1, or if there is more than one set of sensitivities.
    """
    if min(array.shape[:3]) > 1:
        raise ValueError(
            f"it has BART's dimensions {array.shape}, and none of the first three is 1: k-space is three-dimensional. "
            "Transform it along the third one and make it slices: bart fft -iu 4 IN OUT; bart transpose 2 13 OUT IN"
        )
    coils, sets = array.shape[3:5]
    if sets > 1:
        raise ValueError(
            f"it has BART's dimensions {array.shape}, so {sets} sets of sensitivities; expected one, as of bart "
            "ecalib -m1 or bart slice 4 0 IN OUT"
        )
    plane = np.moveaxis(array, 2 if array.shape[2] == 1 else array.shape.index(1), 2)
    return plane.reshape(*plane.shape[:2], coils, -1, order="F").transpose(3, 2, 0, 1)


def from_slices(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array (slices[, coil], height, width) with BART's axes, the inverse of :func:`to_slices`."""
    slices, *coils, height, width = array.shape
    shape = (slices, *(1,) * (_SLICE - 4), *(coils or (1,)), 1, height, width)
    return array.reshape(shape).transpose(12, 13, *range(11, -1, -1))


def write_images(path: Path, images: Iterable[NDArray[Any]], volume: Volume) -> None:
    """Write a pair of files as `images.write_images` does; slices are BART's dimension 13."""
    header, data = _pair(path)
    with replace_when_complete(header) as partial_header, replace_when_complete(data) as partial_data:
        with partial_data.open("wb") as file:
            for image in images:
                file.write(_bytes(image))
        _write_header(partial_header, (*image.shape, *(1,) * (_SLICE - 2), volume.num_slices))


def _matches(path: Path) -> bool:
    header, data = _pair(path)
    if not header.is_file():
        return path == data and path.is_file()  # whose content says nothing; `read_cfl` reports the missing header
    with header.open("rb") as file:
        return b"# Dimensions" in file.read(4096)


def _read(path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> RawData:
    if axes or variable:
        raise MissingArrayError(
            "BART numbers its dimensions and has one array in a file; leave out --axes and --variable"
        )
    array = read_cfl(path)
    slices = to_slices(array)
    counts = [f"{count} of dimension {index}" for index, count in enumerate(array.shape) if index > 4 and count > 1]
    return from_array(
        slices, AXES, messages=(f"{' and '.join(counts)} became {len(slices)} slices.",) if counts else ()
    )


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """Return the real part of an image or mask, whatever its name; None for k-space.

    Axes of length 1 are left out, but for the second one of lines along the first dimension, which are rows.
    """
    array = read_cfl(path)
    if max(array.shape[3:]) > 1:
        return None
    values = np.squeeze(array.real)
    return values[:, None] if values.shape == array.shape[:1] else values


FORMAT = Format("BART", _matches, _read, read_array)
