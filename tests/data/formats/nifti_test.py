"""Tests of direct_hifimamba.data.formats.nifti beyond those of direct_hifimamba.data.simulate, which reads with it."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from direct_hifimamba.data.formats.nifti import ORIENTATIONS, load_magnitude
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


def _stack(path: Path, angle: float, spacing: float = 10.0) -> np.ndarray:
    """An axial stack of 5 slices of 48 x 44, tilted about the first axis."""
    images = np.random.default_rng(0).uniform(1, 2, (5, 48, 44)).astype(np.float32)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    save_nifti(path, images, affine @ np.diag([1.5, 1.5, spacing, 1]), np.float32)
    return images


@pytest.mark.parametrize("orientation", [None, "axial"])
@pytest.mark.parametrize("degrees", [0, 44, 46, 50, 60])
def test_a_stack_that_is_oblique_keeps_its_slices(tmp_path, degrees, orientation):
    images = _stack(tmp_path / "a.nii.gz", np.deg2rad(degrees))
    volume, distances = load_magnitude(tmp_path / "a.nii.gz", orientation)
    # Beyond 45 degrees they are coronal slices, counted from posterior: here, the last one stored comes first.
    np.testing.assert_array_equal(volume, images if degrees < 45 else images[::-1])
    np.testing.assert_allclose(distances, 1.5, rtol=1e-6)


def test_a_stack_is_not_cut_across(tmp_path):
    _stack(tmp_path / "a.nii.gz", np.deg2rad(90))
    with pytest.raises(ValueError, match=r"stack of 5 coronal slices .* 10 mm apart; .*Choose the orientation coronal"):
        load_magnitude(tmp_path / "a.nii.gz", "axial")
    volume, _ = load_magnitude(tmp_path / "a.nii.gz", "coronal")
    assert volume.shape == (5, 48, 44)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.filterwarnings("ignore:invalid value encountered in det")
def test_an_affine_without_a_direction_is_one_error(tmp_path, column, value):
    save_nifti(tmp_path / "a.nii.gz", np.ones((3, 4, 5)) + np.arange(5), np.eye(4))
    raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    for row in range(3):
        start = 280 + 16 * row + 4 * column  # srow_x, srow_y and srow_z in the header of NIfTI-1
        raw[start : start + 4] = np.float32(value).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.nii (has an affine without three directions|cannot be read as NIfTI)"):
        load_magnitude(tmp_path / "a.nii")


def test_values_below_0_by_rounding_alone_are_0(tmp_path):
    images = np.random.default_rng(0).uniform(0, 100, (3, 8, 9)).astype(np.float32)
    images[0, :3] = [[0.0], [-1e-6], [-1e-3]]
    save_nifti(tmp_path / "a.nii.gz", images, np.eye(4), np.float32)
    volume, _ = load_magnitude(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume, np.maximum(images, 0))
    images[0, 0] = -0.2
    save_nifti(tmp_path / "a.nii.gz", images, np.eye(4), np.float32)
    with pytest.raises(ValueError, match=r"has values down to -0\.2; expected magnitudes"):
        load_magnitude(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("scale", [1e16, 1e-16])
def test_values_whose_squares_single_precision_does_not_hold_are_refused(tmp_path, scale):
    images = scale * np.random.default_rng(0).uniform(0, 1, (3, 5, 4))
    save_nifti(tmp_path / "a.nii.gz", images, np.eye(4), np.float32)
    with pytest.raises(ValueError, match=r"The largest magnitude of .*a.nii.gz is .*; expected 1e-12 to 1e\+15"):
        load_magnitude(tmp_path / "a.nii.gz")


def test_zero_may_be_stored_half_a_step_below(tmp_path):
    stored = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.4, -0.2)
    nibabel.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.float32([0.4, -0.2]).tobytes()  # scl_slope and scl_inter
    raw[352:] = stored.tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(raw)
    volume, _ = load_magnitude(tmp_path / "a.nii")
    assert volume.min() == 0
    raw[112:120] = np.float32([0.4, -0.3]).tobytes()
    raw[352] = 0
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(ValueError, match="has values down to -0"):
        load_magnitude(tmp_path / "a.nii")
