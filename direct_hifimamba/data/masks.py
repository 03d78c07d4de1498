"""Sampling masks for evaluation, drawn with DIRECT's own mask functions and stored beside the k-space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from direct.common.subsample import BaseMaskFunc, build_masking_function
from numpy.typing import NDArray

from direct_hifimamba.data.seeding import seed_from_name


@dataclass(frozen=True)
class MaskOptions:
    """Which mask to draw.

    Attributes
    ----------
    name : str
        DIRECT's name of a mask function that samples whole lines, as in its `masking` configuration:
        `FastMRIEquispaced`, `FastMRIRandom`, `Gaussian1D`, ...
    acceleration : float
        Columns divided by sampled columns, as asked of the mask function.
    center_fraction : float
        Fraction of the columns that is sampled without gaps around the centre.
    """

    name: str
    acceleration: float
    center_fraction: float

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """From name, acceleration and center fraction as they stand on a command line.

        Raises
        ------
        ValueError
            If acceleration or center fraction is no number.
        """
        name, acceleration, center_fraction = words
        try:
            return cls(name, float(acceleration), float(center_fraction))
        except ValueError:
            raise ValueError(
                f"The mask is {' '.join(words)!r}; expected a name and two numbers, as in FastMRIEquispaced 4 0.08."
            ) from None


@dataclass(frozen=True)
class SamplingMask:
    """A line mask and what it really reached.

    Attributes
    ----------
    lines : bool array of shape (width,)
        True where a column of k-space is sampled; DIRECT's `FastMRI` data set reads it as `mask` with
        `pass_mask: true`.
    acceleration : float
        Columns divided by sampled columns.
    num_center_lines : int
        Columns that the mask function sets apart for autocalibration. DIRECT's reader takes the whole sampled run of
        columns around the centre instead, which can be longer.
    """

    lines: NDArray[np.bool_]
    acceleration: float
    num_center_lines: int

    def provenance(self) -> dict[str, float]:
        """What the mask reached, to be stored beside the options that it was drawn with."""
        return {"acceleration": self.acceleration, "num_center_lines": self.num_center_lines}


def draw_mask(options: MaskOptions, shape: tuple[int, int], file_name: str, seed: int) -> SamplingMask:
    """Draw the mask of one file.

    Parameters
    ----------
    options : MaskOptions
    shape : tuple of ints
        Height and width of k-space.
    file_name : str
        The mask depends on it and on `seed`, not on the folder.
    seed : int

    Returns
    -------
    SamplingMask

    Raises
    ------
    ValueError
        If DIRECT has no such mask function, if it refuses the options, or if its masks are no line masks.
    """
    mask_func = _build_mask_func(options)
    seed_material = seed_from_name(file_name, seed)
    mask = mask_func(shape=(*shape, 1), seed=seed_material).numpy().reshape(-1, shape[1])
    lines = mask[0]
    if not (mask == lines).all():
        raise ValueError(
            f"Masks of {options.name} are no line masks; DIRECT's FastMRI data set reads one mask of shape (width,) "
            "per file. Choose for example FastMRIEquispaced or FastMRIRandom."
        )
    center = mask_func(shape=(*shape, 1), seed=seed_material, return_acs=True).numpy().reshape(-1, shape[1])[0]
    middle = shape[1] // 2
    if not lines[middle] or lines[:middle].all() or lines[middle:].all():
        raise ValueError(
            f"{options} samples {lines.sum()} of {shape[1]} columns; DIRECT's FastMRI data set needs the centre column "
            "and a gap on either side of it. Choose another acceleration or center fraction."
        )
    return SamplingMask(lines, shape[1] / int(lines.sum()), int(center.sum()))


def _build_mask_func(options: MaskOptions) -> BaseMaskFunc:
    if not options.acceleration > 1:
        raise ValueError(f"The acceleration is {options.acceleration:g}; expected a number above 1.")
    if not 0 < options.center_fraction < 1:
        raise ValueError(f"The center fraction is {options.center_fraction:g}; expected a number between 0 and 1.")
    try:
        return build_masking_function(options.name, [options.acceleration], [options.center_fraction])
    except AttributeError as error:
        raise ValueError(
            f"DIRECT has no mask function {options.name!r}; expected for example FastMRIEquispaced or FastMRIRandom."
        ) from error
