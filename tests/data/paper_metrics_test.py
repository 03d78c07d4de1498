"""Tests of the paper's metrics: against their definitions, and in DIRECT."""

import numpy as np
import pytest
import torch
from direct import functionals
from skimage.metrics import structural_similarity

from direct_hifimamba.data.paper_metrics import METRICS, paper_nmse, paper_psnr, paper_ssim
from direct_hifimamba.data.registration import register_data_sets


def _volume(num_slices: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """References in [0, 1], of different maxima, and images with values outside."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(num_slices, 1, 16, 12, generator=generator)
    target *= torch.linspace(0.5, 1, num_slices).reshape(-1, 1, 1, 1)
    return target, target + 0.3 * torch.randn(target.shape, generator=generator)


def test_scores_are_means_over_slices_or_groups_of_four() -> None:
    target, image = (part.numpy().astype(np.float64)[:, 0] for part in _volume())
    clamped = image.clip(0, 1)
    assert (image != clamped).any()
    ssim = [structural_similarity(t, i, data_range=t.max()) for t, i in zip(target, clamped, strict=True)]
    psnr, nmse = [], []
    for group in (slice(0, 4), slice(4, 6)):
        error = np.square(clamped[group] - target[group])
        psnr.append(10 * np.log10(target[group].max() ** 2 / error.mean()))
        nmse.append(error.sum() / np.square(target[group]).sum())
    assert paper_ssim(*_volume()).item() == pytest.approx(np.mean(ssim), rel=1e-6)
    assert paper_psnr(*_volume()).item() == pytest.approx(np.mean(psnr), rel=1e-6)
    assert paper_nmse(*_volume()).item() == pytest.approx(np.mean(nmse), rel=1e-6)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_direct_finds_them_and_references_beyond_1_are_refused(metric) -> None:
    register_data_sets()
    assert getattr(functionals, metric.__name__) is metric
    target, image = _volume(1)
    assert torch.isfinite(metric(target, image))
    with pytest.raises(ValueError, match=r"reaches .*; the paper's metrics expect references in \[0, 1\]"):
        metric(3 * target, image)
