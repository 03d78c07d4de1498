"""From a scanner's readouts, each one line of k-space in all coils, to slices of k-space."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.raw_data import RawData

VOLUMES = ("contrast", "phase", "set", "repetition")

READOUT = np.dtype(
    [
        ("image", bool),  # part of k-space
        ("calibration", bool),  # a calibration line for parallel imaging
        ("noise", bool),  # measured without excitation
        ("volume", int, len(VOLUMES)),
        ("slice", int),
        ("line", int),  # signed; 0 is that of the zero frequency
        ("coils", int),
        ("samples", int),
        ("center", int),  # index of the sample at the zero frequency
        ("discard", int, 2),  # samples to be left out at the beginning and at the end
        ("dwell", float),  # time between two samples; 0 if unknown
        ("position", float, 3),  # centre of the slice: left, posterior and superior (LPS) coordinates in mm
        ("directions", float, (3, 3)),  # unit vectors, LPS: readout, lines and slices; 0 if unknown
    ]
)
"""What is known of each readout."""

_COMPLETE = 0.9
"""Part of the lines of the other volumes that a volume must have: interleaved ones have almost as many."""

Load = Callable[[Sequence[int]], Iterator[NDArray[np.complex64]]]
"""Reads the readouts with the given ascending indices one after the other, each of shape (coils, samples)."""


@dataclass(frozen=True)
class Encoding:
    """What holds for all readouts of a scan. Pairs are for the readout and for the lines.

    Attributes
    ----------
    matrix : tuple of 2 ints
        Number of samples, including oversampling, and of lines of complete k-space.
    field_of_view : tuple of 2 floats
        Of this matrix, in mm.
    image_view : tuple of 2 floats
        Field of view that was asked for, in mm.
    image_matrix : tuple of 2 ints
        Size of the scanner's own image.
    thickness : float
        Of a slice, in mm.
    calibration_apart : bool
        Whether calibration lines were measured apart from k-space, for example before it.
    source : mapping of str to str
        As in :class:`RawData`.
    """

    matrix: tuple[int, int]
    field_of_view: tuple[float, float]
    image_view: tuple[float, float]
    image_matrix: tuple[int, int]
    thickness: float
    calibration_apart: bool = False
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of k-space without readout oversampling."""
        return min(self.matrix[0], round(self.matrix[0] * self.image_view[0] / self.field_of_view[0])), self.matrix[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the field of view that was asked for, in pixels of k-space's matrix."""
        return self.size[0], min(self.size[1], round(self.size[1] * self.image_view[1] / self.field_of_view[1]))


def assemble(readouts: NDArray[Any], load: Load, encoding: Encoding) -> RawData:
    """Return the raw data of 2-D slices on a Cartesian grid. Their height is the readout, their width the lines.

    Readouts of the same line are averaged. Readout oversampling is removed; samples keep their magnitude. Where noise
    was measured, k-space is prewhitened. Contrasts, cardiac phases, sets and repetitions become slices.

    Parameters
    ----------
    readouts : array of READOUT
    load : Load
    encoding : Encoding

    Returns
    -------
    RawData

    Raises
    ------
    ValueError
        If readouts are missing, or do not fit the encoding.
    """
    apart = readouts["calibration"] & ~readouts["image"] & encoding.calibration_apart
    image = (readouts["image"] | readouts["calibration"]) & ~apart
    if not image.any():
        raise ValueError(f"none of its {len(readouts)} readouts belongs to an image; is it cut short?")
    places, rows, messages = _find_places(readouts, image)
    volumes = len({place[:-1] for place in places})
    grid = _Grid.of(readouts, load, encoding, image)
    masks = np.stack([grid.mask(each) for each in rows])
    _check_completeness(masks, volumes, places)
    messages += grid.describe(rows[0])

    calibration_rows = []
    if apart.any():
        calibration_rows = [np.flatnonzero(apart & (readouts["slice"] == place[-1])) for place in places]
        missing = [place[-1] for place, each in zip(places, calibration_rows, strict=True) if not len(each)]
        if missing:
            raise ValueError(f"it has calibration lines of some slices, but none of slice {missing[0]}")
        messages.append(f"{len(calibration_rows[0])} calibration lines of each slice were measured apart from k-space.")
    calibration_grid = _Grid.of(readouts, load, encoding, apart) if apart.any() else grid

    noise = _measure_noise(readouts, load, encoding, image)
    covariance: NDArray[np.complex128] | None = None
    if noise is not None:
        whitening = np.linalg.inv(np.linalg.cholesky(noise))
        grid, calibration_grid = (replace(each, whitening=whitening) for each in (grid, calibration_grid))
        repeats = np.unique(readouts["line"][rows[0]], return_counts=True)[1].min()
        covariance = (np.eye(len(noise)) / repeats).astype(np.complex128)
        messages.append("K-space was prewhitened with the measured noise.")

    affine, geometry = _find_affine(readouts, rows, encoding, volumes)
    mask = masks[0] if (masks == masks[0]).all() else masks
    is_line_mask = mask.ndim == 2 and (mask == mask.any(axis=0)).all()
    return RawData(
        shape=(len(rows), grid.coils, *encoding.size),
        read_slice=lambda index: grid.read(rows[index]),
        mask=mask.any(axis=0) if is_line_mask else mask,
        read_calibration=(lambda index: calibration_grid.read(calibration_rows[index])) if calibration_rows else None,
        noise_covariance=covariance,
        volumes=volumes,
        affine=affine,
        image_size=encoding.image_size,
        source=encoding.source,
        messages=(*messages, *geometry),
    )


def _find_places(
    readouts: NDArray[Any], image: NDArray[np.bool_]
) -> tuple[list[tuple[int, ...]], list[NDArray[np.int64]], list[str]]:
    """Return volume and slice number of each slice of the result, in order, its readouts, and messages about them."""
    used = readouts[image]
    indices, first = np.unique(used["slice"], return_index=True)
    normal = used["directions"][0, 2]
    heights = (used["position"][first] - used["position"][first[0]]) @ normal
    if len(np.unique(heights)) == len(heights):  # otherwise positions are unknown
        indices = indices[np.argsort(heights)]
    volumes = np.unique(used["volume"], axis=0)
    places = [(*map(int, volume), int(index)) for volume in volumes for index in indices]
    rows = []
    for *volume, index in places:
        rows.append(np.flatnonzero(image & (readouts["volume"] == volume).all(axis=1) & (readouts["slice"] == index)))
        if not len(rows[-1]):
            numbers = ", ".join(f"{name} {number}" for name, number in zip(VOLUMES, volume, strict=True))
            raise ValueError(f"it has no slice {index} of {numbers}; was the scan aborted, or the file cut short?")
    if len(volumes) == 1:
        return places, rows, []
    varying = [name for name, numbers in zip(VOLUMES, volumes.T, strict=True) if np.ptp(numbers)]
    return (
        places,
        rows,
        [f"{len(volumes)} volumes (by {', '.join(varying)}) of {len(indices)} slices became {len(places)} slices."],
    )


def _check_completeness(masks: NDArray[np.bool_], volumes: int, places: list[tuple[int, ...]]) -> None:
    """Check that the slices of a volume have the same lines, and all volumes about as many."""
    counts = masks.any(axis=1).sum(axis=1)
    by_volume = masks.reshape(volumes, -1, *masks.shape[1:])
    if (by_volume != by_volume[:, :1]).any() or counts.min() < _COMPLETE * counts.max():
        fewest = places[counts.argmin()]
        raise ValueError(
            f"slice {fewest[-1]} has {counts.min()} lines and another one {counts.max()}, or other ones; was the scan "
            "aborted, or the file cut short?"
        )


@dataclass(frozen=True)
class _Grid:
    """Where readouts that cover the same samples lie in k-space."""

    load: Load
    encoding: Encoding
    coils: int
    columns: NDArray[np.int64]  #: of all readouts
    start: int  #: position of the first sample that is kept
    count: int  #: number of samples that are kept
    discard: int  #: number of samples before them
    whitening: NDArray[np.complex128] | None = None

    @classmethod
    def of(cls, readouts: NDArray[Any], load: Load, encoding: Encoding, chosen: NDArray[np.bool_]) -> Self:
        used = readouts[chosen]
        kinds = np.unique(used[["coils", "samples", "center", "discard"]])
        if len(kinds) > 1:
            names = ", ".join(
                f"{kind['coils']} coils x {kind['samples']} samples with the centre at {kind['center']}"
                for kind in kinds[:2]
            )
            raise ValueError(f"its readouts differ: {names}; expected the same samples in all")
        coils, samples, center, (before, after) = kinds[0].item()
        length, lines = encoding.matrix
        start, count = length // 2 - center + before, samples - before - after
        if start < 0 or start + count > length or count < 1:
            raise ValueError(
                f"its readouts have {samples} samples with the centre at {center}, of which {before} + {after} are to "
                f"be discarded; expected some that fit into the {length} samples of the header"
            )
        columns = lines // 2 + readouts["line"]
        outside = used["line"][(columns[chosen] < 0) | (columns[chosen] >= lines)]
        if len(outside):
            raise ValueError(
                f"it has a line {outside[0]:+d} from the centre; expected lines that fit into the {lines} of the header"
            )
        return cls(load, encoding, coils, columns, start, count, before)

    def mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return where readouts lie, of the shape of k-space."""
        height, width = self.encoding.size
        length = self.encoding.matrix[0]
        samples = length // 2 + (np.arange(height) - height // 2) * length / height
        lines = np.zeros(width, bool)
        lines[self.columns[rows]] = True
        return np.outer((samples >= self.start) & (samples < self.start + self.count), lines)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.complex64]:
        """Return k-space of these readouts, of shape (coils, height, width)."""
        measured = np.zeros((self.coils, *self.encoding.matrix), np.complex64)
        repeats = np.zeros(self.encoding.matrix[1], int)
        for row, values in zip(rows, self.load(rows.tolist()), strict=True):
            column = self.columns[row]
            measured[:, self.start : self.start + self.count, column] += values[:, self.discard :][:, : self.count]
            repeats[column] += 1
        measured /= np.maximum(repeats, 1).astype(np.float32)
        kspace = np.stack([_remove_oversampling(coil, self.encoding.size[0]) for coil in measured]) * self.mask(rows)
        return kspace if self.whitening is None else np.tensordot(self.whitening, kspace, 1).astype(np.complex64)

    def describe(self, rows: NDArray[np.int64]) -> list[str]:
        """Return messages about what was found and what is done with it."""
        (length, _), (height, width) = self.encoding.matrix, self.encoding.size
        repeats = np.bincount(self.columns[rows]).max()
        size, scanned = self.encoding.image_size, self.encoding.image_matrix
        said = {
            f"Readout oversampling was removed: {length} samples became {height}.": height < length,
            f"Up to {repeats} readouts of the same line were averaged.": repeats > 1,
            f"Columns are oversampled: images can be cropped to {size[0]} x {size[1]}.": size[1] < width,
            f"The scanner's own image has {scanned[0]} x {scanned[1]} pixels; this one is not interpolated.": (
                scanned != size
            ),
        }
        return [message for message, is_true in said.items() if is_true]


def _remove_oversampling(kspace: NDArray[np.complex64], height: int) -> NDArray[np.complex64]:
    """Return k-space of the middle of the field of view along the first axis; samples keep their magnitude."""
    if height == len(kspace):
        return kspace
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace.astype(complex), 0), axis=0), 0)
    top = len(kspace) // 2 - height // 2
    kept = np.fft.fft(np.fft.ifftshift(image[top : top + height], 0), axis=0)
    return np.fft.fftshift(kept, 0).astype(np.complex64)


def _measure_noise(
    readouts: NDArray[Any], load: Load, encoding: Encoding, image: NDArray[np.bool_]
) -> NDArray[np.complex128] | None:
    """Return the covariance of the noise in samples without oversampling; None if it was not measured sufficiently."""
    rows = np.flatnonzero(readouts["noise"])
    if not len(rows):
        return None
    coils, dwell = (readouts[name][image][0] for name in ("coils", "dwell"))
    if (readouts["coils"][rows] != coils).any():
        raise ValueError(f"noise was measured with {readouts['coils'][rows][0]} coils, and the image with {coils}")
    covariance = np.zeros((coils, coils), complex)
    for row, values in zip(rows, load(rows.tolist()), strict=True):
        # What is cut off is the edge of the receiver's band, in the noise as in the image.
        height = round(values.shape[1] * encoding.size[0] / encoding.matrix[0])
        kept = _remove_oversampling(values.T, height).astype(complex)
        scale = readouts["dwell"][row] / dwell if dwell and readouts["dwell"][row] else 1
        covariance += scale / height / len(rows) * kept.T @ kept.conj()
    return covariance if np.linalg.matrix_rank(covariance, hermitian=True) == coils else None


def _find_affine(
    readouts: NDArray[Any], rows: list[NDArray[np.int64]], encoding: Encoding, volumes: int
) -> tuple[NDArray[np.float64] | None, list[str]]:
    """Return the affine of :class:`RawData`, or None and why there is none."""
    every = readouts[[each[0] for each in rows]].reshape(volumes, -1)
    first = every[0]
    directions, position = first["directions"][0], first["position"]
    steps = np.diff(position, axis=0)
    if not np.allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-2) or (len(steps) and not steps.any()):
        return None, ["The header says nothing about the position of the slices."]
    if not np.allclose(first["directions"], directions, atol=1e-3) or not np.allclose(steps, steps[:1], atol=1e-2):
        return None, ["Slices are not parallel or not equally spaced, so that they have no common position."]
    if not all(np.allclose(every[name], first[name], atol=1e-2) for name in ("position", "directions")):
        return None, ["Volumes differ in their position, so that they have no common one."]
    (height, width), (length, lines) = encoding.size, encoding.matrix
    affine = np.eye(4)
    affine[:3, 0] = steps[0] if len(steps) else directions[2] * encoding.thickness
    affine[:3, 1] = directions[0] * encoding.field_of_view[0] / length
    affine[:3, 2] = directions[1] * encoding.field_of_view[1] / lines
    affine[:3, 3] = position[0] - affine[:3, 1] * (height // 2) - affine[:3, 2] * (width // 2)
    return np.diag([-1, -1, 1, 1]) @ affine, []  # from LPS to RAS+
