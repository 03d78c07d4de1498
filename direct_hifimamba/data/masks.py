"""Sampling masks for evaluation, drawn with DIRECT's own mask functions and stored beside the k-space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from direct.common import subsample
from direct.common.subsample import BaseMaskFunc, build_masking_function
from direct.utils.io import check_integrity
from numpy.typing import NDArray

from direct_hifimamba.data.seeding import seed_from_name
from direct_hifimamba.files import first_and_count


@dataclass(frozen=True)
class MaskOptions:
    """Mask function of DIRECT and its options.

    Attributes
    ----------
    name : str
        DIRECT's name of a mask function, as in its `masking` configuration: `FastMRIEquispaced`, `FastMRIRandom`,
        `Gaussian1D`, `Radial`, ...
    acceleration : float
        Requested ratio of all samples of k-space to those that are measured.
    center_fraction : float, optional
        Fraction of the columns (of the samples, for masks that are not made of columns) that is fully sampled around
        the centre. None for mask functions that do not need it.
    """

    name: str
    acceleration: float
    center_fraction: float | None = None

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """Return the options for a name, an acceleration and, where there is one, a center fraction of a command line.

        Raises
        ------
        ValueError
            If there are not two or three words or if acceleration or center fraction is no number.
        """
        try:
            name, acceleration, *center_fraction = words
            return cls(name, float(acceleration), *map(float, center_fraction))
        except (ValueError, TypeError):
            raise ValueError(
                f"The mask is {' '.join(words)!r}; expected a name and two numbers, as in FastMRIEquispaced 4 0.08. "
                "(Masks without a centre have one number, as in Radial 16.)"
            ) from None


@dataclass(frozen=True)
class SamplingMask:
    """Sampling mask and its actual acceleration.

    Attributes
    ----------
    samples : bool array of shape (width,) or (height, width)
        True where k-space is sampled: one value per column if the mask samples whole columns (a line mask).
    acceleration : float
        Ratio of all samples of k-space to those that are measured; zero-padding does not count.
    center : bool array of the shape of `samples`
        Autocalibration region of the mask function. DIRECT's reader of stored line masks uses all contiguous sampled
        columns around the centre instead, which can be more.
    """

    samples: NDArray[np.bool_]
    acceleration: float
    center: NDArray[np.bool_]

    @property
    def is_line_mask(self) -> bool:
        """Whether the mask samples whole columns of k-space."""
        return self.samples.ndim == 1

    @property
    def num_center(self) -> int:
        """Number of columns (of samples if it is no line mask) of the autocalibration region."""
        return int(self.center.sum())

    def provenance(self) -> dict[str, float]:
        """Return the actual acceleration and calibration size, which are stored beside the options of the mask."""
        center = "num_center_lines" if self.is_line_mask else "num_center_samples"
        return {"acceleration": self.acceleration, center: self.num_center}


def draw_mask(
    options: MaskOptions, shape: tuple[int, int], file_name: str, seed: int, acquired: slice = slice(None)
) -> SamplingMask:
    """Draw the mask of one file.

    Parameters
    ----------
    options : MaskOptions
    shape : tuple of ints
        Height and width of k-space.
    file_name : str
        Name without folders; the mask depends on it and on `seed` only.
    seed : int
    acquired : slice
        Columns that were acquired. The mask is drawn over the whole width, as DIRECT does, and cleared elsewhere.

    Returns
    -------
    SamplingMask

    Raises
    ------
    ValueError
        If DIRECT has no such mask function, if it refuses the options, or if DIRECT's reader cannot use the mask.
    """
    mask_func = _build_mask_func(options)
    seed_material = seed_from_name(file_name, seed)
    mask, center = (
        mask_func(shape=(*shape, 1), seed=seed_material, return_acs=return_acs).bool().numpy().reshape(-1, shape[1])
        for return_acs in (False, True)
    )
    inside = np.zeros(shape[1], bool)
    inside[acquired] = True
    mask, center = mask & inside, center & inside
    num_acquired = int(inside.sum())
    if not (mask == mask[0]).all():
        return SamplingMask(mask, shape[0] * num_acquired / int(mask.sum()), center)
    lines = mask[0]
    middle = shape[1] // 2
    if not lines[middle] or lines[:middle].all() or lines[middle:].all():
        raise ValueError(
            f"{options} samples {lines.sum()} of {num_acquired} columns; DIRECT's FastMRI data set needs the centre "
            "column and a gap on either side of it. Choose another acceleration or center fraction."
        )
    return SamplingMask(lines, num_acquired / int(lines.sum()), center[0])


def draw_line_mask(options: MaskOptions, shape: tuple[int, int], file_name: str, seed: int) -> SamplingMask:
    """Draw a mask of whole columns, which DIRECT's `FastMRI` data set reads with `pass_mask: true`.

    Raises
    ------
    ValueError
        For the reasons of :func:`draw_mask`, and if the mask is no line mask.
    """
    mask = draw_mask(options, shape, file_name, seed)
    if not mask.is_line_mask:
        raise ValueError(
            f"Masks of {options.name} are no line masks; DIRECT's FastMRI data set reads one mask of shape (width,) "
            "per file. Choose for example FastMRIEquispaced or FastMRIRandom."
        )
    return mask


def _build_mask_func(options: MaskOptions) -> BaseMaskFunc:
    if not options.acceleration > 1:
        raise ValueError(f"The acceleration is {options.acceleration:g}; expected a number above 1.")
    center_fractions = None if options.center_fraction is None else [options.center_fraction]
    if center_fractions and not 0 < center_fractions[0] < 1:
        raise ValueError(f"The center fraction is {center_fractions[0]:g}; expected a number between 0 and 1.")
    try:
        return build_masking_function(options.name, [options.acceleration], center_fractions)
    except AttributeError as error:
        raise ValueError(
            f"DIRECT has no mask function {options.name!r}; expected for example FastMRIEquispaced or FastMRIRandom."
        ) from error
    except TypeError as error:
        raise ValueError(f"Masks of {options.name} need a center fraction, as in FastMRIEquispaced 4 0.08.") from error
    except (OSError, RuntimeError) as error:  # DIRECT could not download the files of CalgaryCampinas
        folder = subsample.DIRECT_CACHE_DIR / "calgary_campinas_masks"
        files = {
            name: md5
            for name, md5 in subsample.CalgaryCampinasMaskFunc.MASK_MD5S.items()
            if name.startswith(f"R{options.acceleration:g}_")
        }
        missing = [name for name, md5 in files.items() if not check_integrity(str(folder / name), md5)]
        raise FileNotFoundError(
            f"{folder} lacks {first_and_count(missing)} of the {len(files)} mask files that {options} needs, or they "
            f"are damaged, and DIRECT could not download them: {error}. Put the challenge's masks there, or set "
            "DIRECT_CACHE_DIR to the folder above calgary_campinas_masks."
        ) from error
