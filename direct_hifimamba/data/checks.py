"""Checks that k-space and sampling mask are valid and do not contradict each other."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.acquisition import KSpaceSummary, image_energy, summarise
from direct_hifimamba.data.fourier import check_scale

_PROMINENCE = 4
"""Data are refused if this many times more energy lies elsewhere than where it is expected."""

_ROUNDING = 1e-11
"""Energy of a line relative to the mean, below which it is rounding: of single precision 1e-13, of noise above 1e-8."""

_NO_CHECK = " Leave out this check (--no-check, check=False) if it is wrong."


def check_acquisition(
    kspace: NDArray[Any] | KSpaceSummary, mask: NDArray[Any], compare: bool = True
) -> NDArray[np.bool_]:
    """Check that k-space and mask are valid and do not contradict each other.

    Parameters
    ----------
    kspace : complex array of shape (slices[, coils], height, width), or what :func:`summarise` returns of it
        Its zero frequency in the middle, at index length // 2. It may have samples that the mask leaves out only if
        it is fully sampled.
    mask : array of shape (width,), (height, width) or (slices, height, width)
        1 where k-space is sampled, 0 elsewhere; one for all slices, or one for each. With one axis, it takes whole
        columns, also where height and width are equal. The shape (1, width) stands for columns, too, and (height, 1)
        for rows; a mask of the latter shape also stands for columns if k-space has these columns and not these rows.
    compare : bool
        Look for contradictions between k-space and mask, for zeros that were rounded, and for the zero frequency, as
        well.

    Returns
    -------
    bool array of shape (height, width) or (slices, height, width)
        The mask.

    Raises
    ------
    ValueError
        If axes, types or values are wrong, if mask and k-space contradict each other, or if the zero frequency is
        elsewhere.
    """
    summary = kspace if isinstance(kspace, KSpaceSummary) else summarise(kspace, kspace.shape)
    shape = summary.shape[-2:]
    if mask.dtype.kind not in "biufc":
        raise ValueError(f"The mask has values of type {mask.dtype}; expected 0 and 1 alone.")
    if mask.shape == summary.acquired.shape:
        kinds, kind_of = np.unique(mask.reshape(len(mask), -1), axis=0, return_inverse=True)
        for kind, values in enumerate(kinds):
            acquired = summary.acquired[kind_of == kind]
            if acquired.any() or len(kinds) == 1:
                check_acquisition(replace(summary, acquired=acquired), values.reshape(shape), compare)
        return mask.astype(bool)
    if mask.ndim == 2 and 1 in mask.shape and mask.shape != shape:
        mask = _spread_lines(mask, summary.acquired.any(axis=0))
    if mask.shape not in (shape[1:], shape):
        raise ValueError(_wrong_mask_shape(summary.shape, mask.shape))
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"The mask has values such as {mask[~np.isin(mask, (0, 1))][0]}; expected 0 and 1 alone.")
    sampled = np.broadcast_to(mask.astype(bool), shape)
    if not sampled.any():
        raise ValueError("The mask samples nothing: it is 0 everywhere; expected 1 where k-space is sampled.")
    if summary.num_not_finite:
        raise ValueError(f"k-space has {summary.num_not_finite} values that are NaN or infinite; expected finite ones.")
    acquired = summary.acquired.any(axis=0)
    if not (acquired & sampled).any():
        raise ValueError("k-space is zero wherever the mask samples; is the mask inverted, or of other data?")
    check_scale(summary.maximum)
    if compare:
        _check_agreement(acquired, sampled, mask)
        _check_rounding(summary.energy, sampled)
        check_zero_frequency(summary.energy)
    return sampled


def _spread_lines(mask: NDArray[Any], acquired: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a mask of the shape (1, columns) as (columns,), and one of (rows, 1) as (rows, columns)."""
    if len(mask) == 1:
        return mask[0]
    height, width = acquired.shape
    lines = mask[:, 0] != 0
    are_columns = len(mask) == width and np.array_equal(acquired.any(axis=0), lines)
    if len(mask) != height or (are_columns and not np.array_equal(acquired.any(axis=1), lines)):
        return mask[:, 0]
    return np.repeat(mask, width, axis=1)


def _wrong_mask_shape(kspace: tuple[int, ...], mask: tuple[int, ...]) -> str:
    message = f"The mask has the shape {mask} and k-space {kspace}; expected a mask ({kspace[-1]},) or {kspace[-2:]}. "
    if len(kspace) == 4 and kspace[-1] < kspace[1] and mask in (kspace[2:3], kspace[1:3]):
        return f"{message}Are coils the last axis? np.moveaxis(kspace, -1, 1) makes them the second."
    if mask == kspace[-2:-1]:
        return f"{message}If it takes whole rows, give it as np.repeat(mask[:, None], {kspace[-1]}, axis=1)."
    return f"{message}The axes of k-space are (slices[, coils], height, width)."


def _check_agreement(acquired: NDArray[np.bool_], sampled: NDArray[np.bool_], mask: NDArray[Any]) -> None:
    is_line_mask = mask.ndim == 1
    if is_line_mask:
        columns, rows = acquired.any(axis=0), acquired.any(axis=1)
        fits = len(mask) == len(rows) and bool(mask.astype(bool)[rows].all())
        outermost = np.flatnonzero(rows)[[0, -1]]
        has_gaps = not rows[outermost[0] : outermost[1]].all()
        if has_gaps or (fits and not rows.all() and np.array_equal(rows, mask) and not np.array_equal(columns, mask)):
            raise ValueError(
                f"k-space has {np.sum(~rows)} rows of zeros, and a mask of one axis takes whole columns. "
                f"{'It fits the rows: give' if fits else 'Give'} a mask of the shape {acquired.shape}, for rows "
                f"np.repeat(mask[:, None], {acquired.shape[1]}, axis=1)."
            )
        acquired = np.broadcast_to(columns, sampled.shape)
    # Scanners pad k-space with zeros on its edges, which masks often count as sampled: only gaps within tell.
    lines = (np.flatnonzero(acquired.any(axis=axis)) for axis in (1, 0))
    inside = tuple(slice(found[0], found[-1] + 1) for found in lines)
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


def _check_rounding(energy: NDArray[np.float64], sampled: NDArray[np.bool_]) -> None:
    for axis, name in ((1, "rows"), (0, "columns")):
        lines = (energy * sampled).sum(axis=axis)
        count = np.count_nonzero((lines > 0) & (lines < _ROUNDING * lines.mean()))
        if count:
            raise ValueError(
                f"k-space has {count} {name} that are almost 0, but not exactly: a transform has probably rounded what "
                f"is missing or zero-padding. Set them to 0, or give a mask without them (--mask).{_NO_CHECK}"
            )


def check_zero_frequency(energy: NDArray[np.float64], hint: str = _NO_CHECK) -> None:
    """Make sure that the zero frequency is in the middle, at index length // 2, to within a sixteenth of the length.

    Parameters
    ----------
    energy : float64 array of shape (height, width)
        Squared magnitude of k-space.
    hint : str
        End of the message.

    Raises
    ------
    ValueError
        If there is much more energy elsewhere.
    """
    middle = [length // 2 for length in energy.shape]
    found = [_find_peak(energy.sum(axis=1 - axis)) for axis in (0, 1)]
    if found != middle:
        shift = tuple(there - here for here, there in zip(found, middle, strict=True))
        raise ValueError(
            f"The zero frequency of k-space appears to be at index {tuple(found)} (height, width); expected "
            f"{tuple(middle)}, the middle. Shift k-space, np.roll(kspace, {shift}, axis=(-2, -1)), and the mask.{hint}"
        )


def _find_peak(profile: NDArray[np.float64]) -> int:
    """Return the index of the largest value, or the middle unless much less energy lies around it.

    A line in sixteen is an ordinary deviation of measured data from the middle.
    """
    middle, reach = len(profile) // 2, max(2, len(profile) // 16)
    offsets = range(-reach, reach + 1)
    around = np.sum([np.roll(profile, offset) for offset in offsets], axis=0)
    if around.max() <= _PROMINENCE * around[middle]:
        return middle
    near = [(int(around.argmax()) + offset) % len(profile) for offset in offsets]
    return max(near, key=lambda index: profile[index])


def check_image_origin(kspace: NDArray[Any], sampled: NDArray[np.bool_], centered: bool, hint: str = _NO_CHECK) -> None:
    """Make sure that the Fourier transform of a configuration puts the object into the middle of the image.

    Parameters
    ----------
    kspace : complex array of shape (slices[, coils], height, width)
        As :func:`check_acquisition` takes it.
    sampled : bool array of shape (height, width)
    centered : bool
        Whether the transform has its origin in the middle (`fft2`), or at index 0 (`fft2(centered=False)`).
    hint : str
        End of the message.

    Raises
    ------
    ValueError
        If the object lies across edges of the image.
    """
    energy = image_energy(kspace[len(kspace) // 2], sampled, centered)
    wrapped = [name for axis, name in enumerate(("height", "width")) if _lies_across_the_edge(energy.sum(1 - axis))]
    if wrapped:
        here, there = ("middle (centered=True)", "corner") if centered else ("corner (centered=False)", "middle")
        signs = {"height": "(-1) ** np.arange(height)[:, None]", "width": "(-1) ** np.arange(width)"}
        remedy = " and by ".join(signs[name] for name in wrapped)
        raise ValueError(
            f"The object lies across the edges of the image, along its {' and '.join(wrapped)}: there, the Fourier "
            f"transform of k-space has its origin in the {there} of the image, and that of the configuration in the "
            f"{here}. Multiply k-space by {remedy}, or take the configuration of such data.{hint}"
        )


def _lies_across_the_edge(profile: NDArray[np.float64]) -> bool:
    """Return whether both ends of a profile through an image have much more energy per line than its middle."""
    eighth = max(1, len(profile) // 8)
    middle = profile[len(profile) // 2 - eighth : len(profile) // 2 + eighth].mean()
    return bool(min(profile[:eighth].mean(), profile[-eighth:].mean()) > _PROMINENCE * middle)
