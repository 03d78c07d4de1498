"""What a file of raw data holds, in the same form for every format."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

AXES = ("slice", "coil", "height", "width")


@dataclass(frozen=True)
class RawData:
    """K-space of one scan, read slice by slice, and what its file says about it. Nothing in it names a person.

    Attributes
    ----------
    shape : tuple of 4 ints
        Slices, coils, height and width of k-space.
    read_slice : callable
        Reads the slice of an index: complex64 array of shape (coils, height, width), zero where nothing was sampled,
        the zero frequency at index length // 2, for an orthonormal Fourier transform.
    mask : bool array of shape (width,), (height, width) or (slices, height, width), optional
        Sampling mask, of all slices or of each; None: the file has none.
    read_calibration : callable, optional
        Reads the calibration lines of a slice that were measured apart from k-space, in the form of `read_slice` and
        zero elsewhere.
    noise_covariance : complex128 array of shape (coils, coils), optional
        E[n n^H] of the noise n in one sample of all coils, in the units of `read_slice`.
    volumes : int
        Number of volumes with the same positions, such as repetitions. The slices of one follow those of the other.
    affine : float64 array of shape (4, 4), optional
        From the indices (slice, row, column, 1) of an image of the size of k-space, with the slices of each volume
        counted from 0, to the patient's right, anterior and superior (RAS+) coordinates in mm.
    image_size : tuple of ints, optional
        Height and width to which images can be cropped about the middle: the field of view that was asked for.
    source : mapping of str to str
        Format, and vendor, model and field strength of the scanner where they are known.
    messages : tuple of str
        What was found in the file and what was done with it, a sentence each.
    """

    shape: tuple[int, int, int, int]
    read_slice: Callable[[int], NDArray[np.complex64]]
    mask: NDArray[np.bool_] | None = None
    read_calibration: Callable[[int], NDArray[np.complex64]] | None = None
    noise_covariance: NDArray[np.complex128] | None = None
    volumes: int = 1
    affine: NDArray[np.float64] | None = None
    image_size: tuple[int, int] | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    def slices(self) -> Iterator[NDArray[np.complex64]]:
        """Yield the slices of k-space one after the other."""
        return map(self.read_slice, range(self.shape[0]))


class MissingArrayError(ValueError):
    """A file has no array of the name that was asked for."""


class Format(NamedTuple):
    """A file format and its reader, which raises a ValueError that says what is wrong and does not name the file."""

    name: str
    matches: Callable[[Path], bool]  #: By the content of a file, whatever its name is.
    read: Callable[..., RawData]  #: (path), or (path, axes, variable) where there is `read_array`
    read_array: Callable[[Path, str], NDArray[Any] | None] | None = None  #: Of formats that store arrays by name.


def from_array(array: Any, axes: Sequence[str] | None = None, has_times: bool = False, **fields: Any) -> RawData:
    """Return the raw data of an array.

    Parameters
    ----------
    array : NumPy array, memory map or lazy data set
        Complex; or with the fields `real` and `imag`; or real, with real and imaginary part in a last axis of length 2.
    axes : sequence of str, optional
        Names out of `AXES` of the axes of complex values, in the order in which they are stored. Default: `AXES`, or
        (height, width).
    has_times : bool
        Whether another axis follows, that of times; each is a volume.
    **fields
        Other attributes of :class:`RawData`.

    Raises
    ------
    ValueError
        If the values are not complex, or if it is not clear what the axes are.
    """
    kind = array.dtype
    is_pairs = kind.kind == "f" and array.ndim > 2 and array.shape[-1] == 2
    if kind.names != ("real", "imag") and kind.kind != "c" and not is_pairs:
        raise ValueError(
            f"k-space has values of type {kind}; expected complex numbers, or real and imaginary part in a last axis "
            "of length 2"
        )
    stored = array.shape[:-1] if is_pairs else array.shape
    stored, times = (stored[:-1], stored[-1]) if has_times else (stored, 1)
    axes = _clear_axes(stored) if axes is None else tuple(axes)
    if len(axes) != len(stored) or len(set(axes)) < len(axes) or not {"height", "width"} <= set(axes) <= set(AXES):
        raise ValueError(_ask_for_axes(stored, f"{','.join(axes)} does not fit"))
    lengths = dict(zip(axes, stored, strict=True))
    slices, *plane = (lengths.get(axis, 1) for axis in AXES)
    shape = (slices * times, *plane)
    if 0 in shape:
        raise ValueError(f"k-space has the shape {stored} and so no samples")
    rest = [axis for axis in axes if axis != "slice"]
    order = [rest.index(axis) for axis in AXES if axis in rest]

    def read_slice(index: int) -> NDArray[np.complex64]:
        time, position = divmod(index, slices)
        place = tuple(position if axis == "slice" else slice(None) for axis in axes)
        values = as_complex(array[(*place, time) if has_times else place])
        return np.array(values.transpose(order).reshape(plane), np.complex64, order="C")

    return RawData(shape, read_slice, volumes=times, **fields)


def as_complex(values: NDArray[Any]) -> NDArray[Any]:
    """Return values with the fields `real` and `imag`, or with both in a last axis, as complex ones."""
    if values.dtype.names is not None:
        return values["real"] + 1j * values["imag"]
    return values[..., 0] + 1j * values[..., 1] if values.dtype.kind == "f" else values


def _clear_axes(shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 2:
        return AXES[2:]
    if len(shape) == 4 and shape[1] <= min(shape[2:]):
        return AXES
    raise ValueError(_ask_for_axes(shape, "it is not clear which of them are slices and coils"))


def _ask_for_axes(shape: tuple[int, ...], problem: str) -> str:
    example = {3: "coil,height,width", 4: "height,width,coil,slice"}.get(len(shape), "slice,coil,height,width")
    return (
        f"k-space has axes of the lengths {shape}, and {problem}; name the axes in this order, as in --axes {example}"
    )


def describe_mask(sampled: NDArray[np.bool_]) -> list[str]:
    """Say which rows and columns of a mask of shape (height, width) have samples: a list of sentences."""
    messages = []
    for axis, name in ((1, "rows"), (0, "columns")):
        used = sampled.any(axis=axis)
        count, found = len(used), np.flatnonzero(used)
        before, after, gap = found[0], count - 1 - found[-1], np.diff(found).max(initial=1)
        centre = np.cumsum(~used) == np.cumsum(~used)[count // 2]
        said = {
            f"{len(found)} of {count} {name} have samples, {used[count // 2] * (used & centre).sum()} of them around "
            "the centre without a gap.": gap > 1,
            f"{abs(before - after)} {name} are missing on one side: partial Fourier, or an asymmetric echo.": (
                abs(before - after) > gap
            ),
            f"{before + after} {name} on the edges are zero-padding.": min(before, after) >= gap >= abs(before - after),
        }
        messages += [message for message, is_true in said.items() if is_true]
    within = np.outer(sampled.any(axis=1), sampled.any(axis=0))
    if (sampled != within).any():
        messages.append(f"{sampled.sum() / within.sum():.1%} of the samples of these rows and columns were measured.")
    return messages or ["k-space is fully sampled."]
