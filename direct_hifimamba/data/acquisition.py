"""K-space and sampling mask of one acquisition: read from a file, and checked before anything is made of them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.hdf5 import read_slices

MIN_CENTER = 2
"""Fewer adjacent lines around the centre of k-space calibrate nothing: a single one has no resolution."""


def read_acquisition(path: Path, mask_path: Path | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read k-space and mask.

    Parameters
    ----------
    path : Path
        HDF5 or NumPy (`.npz`) file with `kspace` and, if there is no `mask_path`, `mask`; or the k-space alone
        (`.npy`). Real and imaginary part may be the last axis of an HDF5 file, as float32.
    mask_path : Path, optional
        File of the same kinds that has the mask instead.

    Returns
    -------
    tuple
        K-space and mask as they are stored; :func:`check_acquisition` says what they should be.

    Raises
    ------
    ValueError
        If the file is of another kind, or has no k-space or no mask.
    """
    kspace = _read_array(path, "kspace")
    if kspace is None:
        raise ValueError(f"{path} has no k-space; expected a data set named 'kspace'.")
    mask = None
    if mask_path is not None or path.suffix != ".npy":
        mask = _read_array(mask_path or path, "mask")
    if mask is None:
        raise ValueError(f"{mask_path or path} has no mask; store one as 'mask', or give a file with --mask.")
    return kspace, mask


def read_sensitivity_map(path: Path) -> NDArray[Any]:
    """Read the coil sensitivities `sensitivity_map` of an HDF5 or NumPy (`.npz`) file, as they are stored.

    Raises
    ------
    ValueError
        If the file has none.
    """
    sensitivity_map = None if path.suffix == ".npy" else _read_array(path, "sensitivity_map")
    if sensitivity_map is None:
        raise ValueError(
            f"{path} has no coil sensitivities, which the configuration takes as given (sensitivity_maps: stored); "
            "expected a data set named 'sensitivity_map' of the shape of k-space."
        )
    return sensitivity_map


def _read_array(path: Path, name: str) -> NDArray[Any] | None:
    try:
        if path.suffix in (".npy", ".npz"):
            stored = np.load(path)
            if isinstance(stored, np.ndarray):
                return stored
            with stored:
                return stored.get(name)
        with h5py.File(path) as file:
            if name not in file:
                return None
            if name == "kspace" and file[name].dtype == np.float32 and file[name].shape[-1] == 2:
                return np.stack(list(read_slices(file)))
            return file[name][()]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as HDF5 or NumPy file: {error}") from error


def check_acquisition(kspace: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Make sure that k-space and mask can be what they are said to be.

    Parameters
    ----------
    kspace : complex array of shape (slices[, coils], height, width)
        Its zero frequency in the middle, at index length // 2. It may have samples that the mask leaves out only if
        it is fully sampled.
    mask : array of shape (width,) or (height, width)
        1 where k-space is sampled, 0 elsewhere; one for all slices.

    Returns
    -------
    bool array of shape (height, width)
        The mask.

    Raises
    ------
    ValueError
        If axes, types or values are wrong, or if mask and k-space contradict each other.
    """
    if not np.iscomplexobj(kspace):
        raise ValueError(
            f"k-space has values of type {kspace.dtype}; expected complex numbers. Real and imaginary part in a last "
            "axis become complex with kspace[..., 0] + 1j * kspace[..., 1]."
        )
    if kspace.ndim not in (3, 4) or 0 in kspace.shape:
        raise ValueError(
            f"k-space has the shape {kspace.shape}; expected (slices[, coils], height, width). A single slice has the "
            "axis as well: kspace[None]."
        )
    shape = kspace.shape[-2:]
    if mask.shape not in (shape[1:], shape):
        raise ValueError(_wrong_mask_shape(kspace.shape, mask.shape))
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"The mask has values such as {mask[~np.isin(mask, (0, 1))][0]}; expected 0 and 1 alone.")
    sampled = np.broadcast_to(mask.astype(bool), shape)
    if not sampled.any():
        raise ValueError("The mask samples nothing: it is 0 everywhere; expected 1 where k-space is sampled.")
    if not np.isfinite(kspace).all():
        raise ValueError(f"k-space has {np.sum(~np.isfinite(kspace))} values that are NaN or infinite; mend them.")
    _check_agreement(np.any(kspace != 0, axis=tuple(range(kspace.ndim - 2))), sampled, mask.ndim == 1)
    return sampled


def _wrong_mask_shape(kspace: tuple[int, ...], mask: tuple[int, ...]) -> str:
    message = f"The mask has the shape {mask} and k-space {kspace}; expected a mask ({kspace[-1]},) or {kspace[-2:]}. "
    if len(kspace) == 4 and kspace[-1] < kspace[1] and mask in (kspace[2:3], kspace[1:3]):
        return f"{message}Are coils the last axis? np.moveaxis(kspace, -1, 1) makes them the second."
    if mask == kspace[-2:-1]:
        return f"{message}If it takes whole rows, give it as np.repeat(mask[:, None], {kspace[-1]}, axis=1)."
    return f"{message}The axes of k-space are (slices[, coils], height, width)."


def _check_agreement(acquired: NDArray[np.bool_], sampled: NDArray[np.bool_], is_line_mask: bool) -> None:
    if is_line_mask:
        acquired = np.broadcast_to(acquired.any(axis=0), sampled.shape)
    if not (acquired & sampled).any():
        raise ValueError("k-space is zero wherever the mask samples; is the mask inverted, or of other data?")
    # Scanners pad k-space with zeros on its edges, which masks often count as sampled: only gaps within tell.
    rows, columns = (np.flatnonzero(acquired.any(axis=axis)) for axis in (1, 0))
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    gaps, sampled_inside = ~acquired[inside], sampled[inside]
    kind = "columns" if is_line_mask else "samples"

    def count(where: NDArray[np.bool_]) -> int:
        return int(where[0].sum() if is_line_mask else where.sum())

    if (gaps & sampled_inside).any():
        raise ValueError(
            f"The mask counts {count(gaps & sampled_inside)} {kind} as sampled that are zero in all of k-space; "
            "is the mask inverted, or of other data?"
        )
    if gaps.any() and (acquired & ~sampled).any():
        raise ValueError(
            f"k-space is undersampled, yet {count(acquired & ~sampled)} of the {kind} that it has are not in the "
            "mask; is the mask of other data?"
        )


def center_block(sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The block around the centre of k-space that is sampled without gaps, for autocalibration (ACS).

    For masks of whole columns it is the one of DIRECT's `FastMRI` data set. Others get a block that is grown from the
    centre on all sides as long as it has no gap.

    Parameters
    ----------
    sampled : bool array of shape (height, width)

    Returns
    -------
    bool array of shape (height, width)

    Raises
    ------
    ValueError
        If the block is narrower than `MIN_CENTER`.
    """
    height, width = sampled.shape
    top, left = height // 2, width // 2
    bottom, right = top + 1, left + 1
    grown = bool(sampled[top, left])
    while grown:
        grown = False
        if top > 0 and sampled[top - 1, left:right].all():
            top, grown = top - 1, True
        if bottom < height and sampled[bottom, left:right].all():
            bottom, grown = bottom + 1, True
        if left > 0 and sampled[top:bottom, left - 1].all():
            left, grown = left - 1, True
        if right < width and sampled[top:bottom, right].all():
            right, grown = right + 1, True
    block = np.zeros_like(sampled)
    block[top:bottom, left:right] = sampled[height // 2, width // 2]
    if min(bottom - top, right - left) < min(MIN_CENTER, height, width):
        raise ValueError(
            f"The mask samples no centre: {int(block.any(axis=1).sum())} x {int(block.any(axis=0).sum())} adjacent "
            f"samples (height x width) around index ({height // 2}, {width // 2}), where the zero frequency is "
            f"expected; coil sensitivities are estimated from at least {MIN_CENTER} each way. If the zero frequency "
            "is at index 0, apply np.fft.fftshift to both axes of k-space and to the mask."
        )
    return block
