"""Tests of direct_hifimamba.data.nifti beyond those of direct_hifimamba.data.simulate, which reads with it."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from direct_hifimamba.data.nifti import ORIENTATIONS, load_magnitude
from tests.data.lookalikes import save_nifti


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("slope", [None, 0.25])
def test_scaling_is_applied(tmp_path, dtype, slope):
    images = np.arange(3 * 4 * 5).reshape(3, 4, 5) * (slope or 1)
    save_nifti(tmp_path / "a.nii.gz", images, np.eye(4), dtype, slope)
    volume, _ = load_magnitude(tmp_path / "a.nii.gz")
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume, images, rtol=1e-6)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("acquired", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_slices_of_the_third_stored_axis_are_upright(tmp_path: Path, acquired, flips, tilt):
    ras = np.random.default_rng(0).uniform(1, 2, (5, 6, 7)).astype(np.float32)
    spacing = np.diag([2.0, 3.0, 4.0, 1.0])
    spacing[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]] @ spacing[:2, :2]
    slice_axis, row_axis, column_axis = ORIENTATIONS[acquired]
    order = [column_axis, row_axis, slice_axis]
    stored = nibabel.Nifti1Image(ras, spacing).as_reoriented(
        np.array([[order.index(axis), flips[order.index(axis)]] for axis in range(3)])
    )
    assert stored.shape[2] == ras.shape[slice_axis]
    nibabel.save(stored, tmp_path / "a.nii")
    volume, distances = load_magnitude(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume, ras.transpose(slice_axis, row_axis, column_axis)[:, ::-1])
    np.testing.assert_allclose(distances, np.array([2.0, 3.0, 4.0])[[row_axis, column_axis]], rtol=1e-6)
