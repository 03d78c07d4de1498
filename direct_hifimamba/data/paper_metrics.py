"""The metrics of the paper's authors, for `metrics` in a configuration of DIRECT.

Unlike DIRECT's own, they are computed slice by slice, or for groups of slices, of magnitudes clamped to [0, 1]. They
expect references in [0, 1], such as those of `direct-hifimamba prepare --normalise-slices`.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

type Images = torch.Tensor | NDArray[np.float32]

GROUP = 4
"""Slices over which the authors compute a PSNR or NMSE: their batches."""

_TOLERANCE = 1e-3
"""By which a reference may exceed 1, as k-space is stored in single precision."""


def paper_ssim(target: Images, image: Images) -> torch.Tensor:
    """Return the mean of the slices' SSIM, with the maximum of the slice's reference as range of values.

    Parameters
    ----------
    target, image : torch.Tensor or array
        Magnitudes of shape (slices, 1, height, width), references in [0, 1].

    Returns
    -------
    torch.Tensor
        Scalar.

    Raises
    ------
    ValueError
        If a reference is not in [0, 1].
    """
    return _mean(lambda *pair: structural_similarity(*pair, data_range=pair[0].max()), target, image, group=1)


def paper_psnr(target: Images, image: Images) -> torch.Tensor:
    """Return the mean PSNR of groups of up to four slices, in dB; as :func:`paper_ssim`."""
    return _mean(lambda *pair: peak_signal_noise_ratio(*pair, data_range=pair[0].max()), target, image, GROUP)


def paper_nmse(target: Images, image: Images) -> torch.Tensor:
    """Return the mean NMSE of groups of up to four slices; as :func:`paper_ssim`."""
    return _mean(lambda here, there: np.square(there - here).sum() / np.square(here).sum(), target, image, GROUP)


def _mean(metric: Callable[..., float], target: Images, image: Images, group: int) -> torch.Tensor:
    reference, reconstruction = (torch.as_tensor(part)[:, 0].double().cpu().numpy() for part in (target, image))
    if reference.max() > 1 + _TOLERANCE:
        raise ValueError(
            f"The reference reaches {reference.max():g}; the paper's metrics expect references in [0, 1]. Prepare the "
            "data with --normalise-slices, or choose other metrics."
        )
    reference, reconstruction = (np.clip(part, 0, 1) for part in (reference, reconstruction))
    groups = (slice(start, start + group) for start in range(0, len(reference), group))
    pairs = ((reference[part], reconstruction[part]) for part in groups)
    scores = [metric(*(part.squeeze(0) if len(part) == 1 else part for part in pair)) for pair in pairs]
    return torch.tensor(scores).mean()


METRICS = (paper_ssim, paper_psnr, paper_nmse)
