"""Tests of direct_hifimamba.data.acquisition. Others are in tests/reconstruction/reconstructor_test.py."""

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_hifimamba.data.acquisition import describe_acquisition, find_mask
from direct_hifimamba.data.checks import check_acquisition
from direct_hifimamba.data.fourier import image_to_kspace
from tests.data.formats.scans import complex_noise

SHAPE = 3, 2, 32, 40
LINES = (np.arange(40) % 4 == 0) | (abs(np.arange(40) - 20) < 4)


def scan(fill: float = 0.8, noise: float = 1e-3) -> NDArray[np.complex64]:
    """K-space of a disk over part of the height, and of the width."""
    rows, columns = np.ogrid[-1:1:32j, -1:1:40j]
    image = ((rows / fill) ** 2 + (columns / 0.8) ** 2 < 1).astype(np.complex64)
    return image_to_kspace(np.tile(image, (*SHAPE[:2], 1, 1))) + np.float32(noise) * complex_noise(*SHAPE)


def describe(kspace: NDArray[np.complex64], mask: NDArray[np.bool_] | None = None) -> list[str]:
    acquired = (kspace != 0).any(axis=1)
    found = find_mask(acquired) if mask is None else mask
    sampled = check_acquisition(kspace, found)
    return describe_acquisition(acquired, sampled, mask is None, kspace[1], centered=True)


@pytest.mark.parametrize("mask", [LINES, LINES | (np.arange(32)[:, None] < 5), np.ones(40, bool)])
def test_masks_are_found_and_said(mask: NDArray[np.bool_]) -> None:
    kspace = scan() * mask
    np.testing.assert_array_equal(find_mask((kspace != 0).any(axis=1)), mask)
    assert describe(kspace)[0] == "The mask was found in k-space: what is 0 in all coils was not sampled."


def test_calibration_lines_and_padding_are_said() -> None:
    kspace = scan() * LINES
    assert "16 of 40 columns have samples, 9 of them around the centre without a gap." in describe(kspace)
    padded = np.pad(kspace, ((0, 0), (0, 0), (0, 0), (8, 8)))
    assert "19 columns on the edges are zero-padding." in describe(padded)
    everything = np.pad(scan(), ((0, 0), (0, 0), (0, 0), (8, 8)))
    assert any(
        "counts 16 columns on the edges as sampled that are zero" in m for m in describe(everything, np.ones(56))
    )


def test_each_slice_may_have_a_mask_of_its_own() -> None:
    masks = np.stack([np.tile(np.roll(LINES, shift) | LINES, (32, 1)) for shift in range(3)])
    kspace = scan() * masks[:, None]
    found = find_mask((kspace != 0).any(axis=1))
    np.testing.assert_array_equal(found, masks)
    np.testing.assert_array_equal(check_acquisition(kspace, found), masks)
    assert "Slices were sampled differently; the one in the middle is described." in describe(kspace)
    with pytest.raises(ValueError, match="of other data"):
        check_acquisition(kspace, masks[[1, 0, 2]])
    kspace[1] = 0  # a blank slice has the mask of the others
    np.testing.assert_array_equal(find_mask((kspace != 0).any(axis=1))[1], masks[0] | masks[2])


@pytest.mark.parametrize(("fill", "is_said"), [(0.8, False), (0.4, True)])
def test_oversampling_is_said(fill: float, is_said: bool) -> None:
    said = [message for message in describe(scan(fill)) if "may be oversampled" in message]
    assert len(said) == is_said
    assert not said or "along its height" in said[0]


def test_zeros_that_a_transform_has_rounded_are_refused() -> None:
    kspace = scan(noise=1e-2)
    kspace[..., :6] = 0
    kspace[..., -6:] = 0
    rounded = np.fft.fftn(np.fft.ifftn(kspace.astype(np.complex64), axes=(2, 3)), axes=(2, 3)).astype(np.complex64)
    assert (rounded[..., 0] != 0).any()
    with pytest.raises(ValueError, match="12 columns that are almost 0, but not exactly"):
        check_acquisition(rounded, find_mask((rounded != 0).any(axis=1)))
    check_acquisition(rounded, (kspace != 0).any(axis=(0, 1)))
    check_acquisition(kspace, find_mask((kspace != 0).any(axis=1)))
