"""K-space and sampling mask of one acquisition: how they are opened, summarised and described."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.center import grow_block
from direct_hifimamba.data.formats.hdf5 import SENSITIVITY_MAP
from direct_hifimamba.data.formats.raw_data import MissingArrayError, RawData, describe_mask
from direct_hifimamba.data.formats.registry import read, read_array

_EMPTY = 0.01
"""Largest fraction of the energy in one half of an image that counts as empty."""


def open_acquisition(
    path: Path, mask_path: Path | None = None, axes: Sequence[str] | None = None, variable: str | None = None
) -> tuple[RawData, NDArray[Any] | None]:
    """Open a file of k-space, and read the mask.

    Parameters
    ----------
    path : Path
        A file of any format in :mod:`direct_hifimamba.data.formats.registry`.
    mask_path : Path, optional
        File that has the mask, under the name `mask` where arrays have names. Default: `path`.
    axes : sequence of str, optional
        As in :func:`registry.read`, and so is `variable`.
    variable : str, optional

    Returns
    -------
    tuple
        K-space, which is not read yet, and the mask; None if `path` has none.

    Raises
    ------
    ValueError
        If a file cannot be read, or `mask_path` has no mask.
    """
    raw = read(path, axes, variable)
    mask = raw.mask if mask_path is None else read_array(mask_path, "mask")
    if mask_path is not None and mask is None:
        raise ValueError(f"{mask_path} has no mask; expected an array with the name 'mask'.")
    return raw, mask


@dataclass(frozen=True)
class KSpaceSummary:
    """Summary of k-space for the checks, which is computed slice by slice.

    Attributes
    ----------
    shape : tuple of ints
        (slices[, coils], height, width).
    acquired : bool array of shape (slices, height, width)
        Where a coil is not zero.
    energy : float64 array of shape (height, width)
        Squared magnitude, added up over slices and coils.
    num_not_finite : int
        Number of values that are NaN or infinite.
    maximum : float
        Largest magnitude.
    sha256 : str
        Of all values.
    """

    shape: tuple[int, ...]
    acquired: NDArray[np.bool_]
    energy: NDArray[np.float64]
    num_not_finite: int
    maximum: float
    sha256: str


def summarise(slices: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> KSpaceSummary:
    """Summarise k-space slice by slice.

    Parameters
    ----------
    slices : iterable of complex arrays of shape ([coils, ]height, width)
    shape : tuple of ints
        Of k-space: (slices[, coils], height, width).

    Raises
    ------
    ValueError
        If axes or types are wrong.
    """
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(
            f"k-space has the shape {shape}; expected (slices[, coils], height, width). A single slice has the "
            "axis as well: kspace[None]."
        )
    acquired = np.zeros((shape[0], *shape[-2:]), bool)
    energy = np.zeros(shape[-2:])
    num_not_finite, maximum, digest = 0, 0.0, hashlib.sha256(repr(shape).encode())
    for index, kspace_slice in enumerate(slices):
        if not np.iscomplexobj(kspace_slice):
            raise ValueError(
                f"k-space has values of type {kspace_slice.dtype}; expected complex numbers. Real and imaginary part "
                "in a last axis become complex with kspace[..., 0] + 1j * kspace[..., 1]."
            )
        acquired[index] = (kspace_slice != 0).reshape(-1, *energy.shape).any(axis=0)
        magnitude = np.abs(kspace_slice).astype(np.float64)  # in whose squares nothing overflows
        with np.errstate(over="ignore"):  # only where `maximum` is refused
            energy += np.square(magnitude).reshape(-1, *energy.shape).sum(axis=0)
        maximum = max(maximum, float(magnitude.max()))
        num_not_finite += int(np.count_nonzero(~np.isfinite(kspace_slice)))
        digest.update(np.ascontiguousarray(kspace_slice))
    return KSpaceSummary(shape, acquired, energy, num_not_finite, maximum, digest.hexdigest())


def find_mask(acquired: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask of k-space in which everything is zero that was not sampled.

    Parameters
    ----------
    acquired : bool array of shape (slices, height, width)
        Where a coil is not zero.

    Returns
    -------
    bool array of shape (width,), (height, width) or (slices, height, width)
        The first if whole columns were sampled, the last if slices were sampled differently. Slices of zeros have the
        mask of the others.

    Raises
    ------
    ValueError
        If k-space is zero.
    """
    sampled = acquired.any(axis=0)
    if not sampled.any():
        raise ValueError("k-space is zero everywhere; expected samples.")
    is_blank = ~acquired.any(axis=(1, 2), keepdims=True)
    if not (is_blank | (acquired == sampled)).all():
        return np.where(is_blank, sampled, acquired)
    columns = sampled.any(axis=0)
    return columns if (sampled == columns).all() else sampled


def describe_acquisition(
    acquired: NDArray[np.bool_], sampled: NDArray[np.bool_], was_found: bool, middle: NDArray[Any], centered: bool
) -> list[str]:
    """Describe what was sampled, and what looks like zero-padding and oversampling, in a list of sentences.

    Parameters
    ----------
    acquired : bool array of shape (slices, height, width)
        Where a coil is not zero.
    sampled : bool array of shape (height, width) or (slices, height, width)
        The mask.
    was_found : bool
        Whether the mask was found in k-space.
    middle : complex array of shape (coils, height, width)
        The slice in the middle.
    centered : bool
        As in :func:`check_image_origin`.
    """
    messages = ["The mask was found in k-space: what is 0 in all coils was not sampled."] if was_found else []
    if sampled.ndim == 3:
        messages.append("Slices were sampled differently; the one in the middle is described.")
        sampled = sampled[len(sampled) // 2]
    messages += describe_mask(sampled)
    for axis, name in ((1, "rows"), (0, "columns")):
        empty = (sampled.any(axis) & ~acquired.any(axis=0).any(axis)).sum()
        if empty:
            messages.append(
                f"The mask counts {empty} {name} on the edges as sampled that are zero: zero-padding, which is taken "
                "for measurements of 0. Leave them out of the mask unless the model was trained so."
            )
    energy = image_energy(middle, sampled, centered)
    for axis, name in enumerate(("height", "width")):
        profile = energy.sum(axis=1 - axis)
        quarter = len(profile) // 4
        if profile[:quarter].sum() + profile[len(profile) - quarter :].sum() < _EMPTY * profile.sum():
            messages.append(
                f"The object fills only the middle half of the image along its {name}: k-space may be oversampled, "
                "which is left as it is."
            )
    return messages


def open_sensitivity_map(path: Path, axes: Sequence[str] | None = None, is_separate: bool = False) -> RawData:
    """Open the coil sensitivities of a file, which have the axes of k-space.

    Parameters
    ----------
    path : Path
    axes : sequence of str, optional
        As in :func:`registry.read`.
    is_separate : bool
        Whether the file is one of sensitivities alone, whose only array may have any name, or none. Otherwise they are
        called `sensitivity_map`.

    Raises
    ------
    ValueError
        If the file has none, or if they cannot be read.
    """
    try:
        return read(path, axes, SENSITIVITY_MAP)
    except MissingArrayError as error:
        if is_separate and not _has_kspace(path, axes):
            return read(path, axes)
        raise ValueError(
            f"{path} holds no coil sensitivities (array {SENSITIVITY_MAP!r}), which the configuration takes as given "
            "(sensitivity_maps: stored). Add them to the file, with the axes of k-space, name a file of theirs "
            "(--sensitivity-map), or a configuration that estimates them (--cfg)."
        ) from error


def _has_kspace(path: Path, axes: Sequence[str] | None) -> bool:
    """Return whether a file has an array that is called `kspace`."""
    try:
        read(path, axes, "kspace")
    except MissingArrayError:
        return False
    return True


def image_energy(kspace: NDArray[Any], sampled: NDArray[np.bool_], centered: bool) -> NDArray[np.float64]:
    """Return the squared magnitude of the image of a slice, (height, width), in low resolution."""
    block = kspace * grow_block(sampled)  # what lies around it would fold the image over
    energy = np.square(np.abs(np.fft.ifft2(block))).reshape(-1, *sampled.shape).sum(axis=0)
    return np.fft.fftshift(energy) if centered else energy
