import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from direct_hifimamba.data.simulation import anatomy
from direct_hifimamba.data.simulation.heads import download_heads, load_head


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A box of 20 x 60 x 40 mm in air of 5, brighter to the right and upwards, stored right to left."""
    x, y, z = np.meshgrid(np.arange(20), np.arange(30), np.arange(25), indexing="ij")
    inside = (x >= 5) & (x < 15) & (y >= 5) & (y < 25) & (z >= 5) & (z < 15)
    voxels = np.where(inside, 500 + 20 * (19 - x) + 10 * z, 5).astype(np.float32)
    path = tmp_path / "box.nii"
    nibabel.Nifti1Image(voxels, np.diag([-2.0, 3, 4, 1])).to_filename(path)
    return path


def test_head_has_its_size_and_no_air(box: Path) -> None:
    head = load_head(box)
    assert head.name == "box" and head.has_skull
    np.testing.assert_allclose(head.spacing, [2, 3, 4])
    np.testing.assert_allclose(head.centre, [9.5, 14.5, 9.5])
    np.testing.assert_allclose(head.semi_axes, [9, 28.5, 18])
    assert head.voxels[0, 0, 0] == 0
    profile = head.voxels[5:15, 15, 10].astype(float)
    assert (np.diff(profile) > 0).all()  # left to right


@pytest.mark.parametrize("orientation", list(anatomy.ORIENTATIONS))
def test_slices_lie_as_their_orientation_says(box: Path, orientation: str) -> None:
    head = load_head(box)
    axes = np.array(anatomy.ORIENTATIONS[orientation], float)
    plane = anatomy.Plane((80, 80), 1.0, axes, np.zeros(3))
    image = anatomy.cut_head(head, plane, np.ones(3), 1.0, np.random.default_rng(0))
    extent = {"axial": (60, 20), "coronal": (40, 20), "sagittal": (40, 60)}[orientation]
    for axis, length in enumerate(extent):  # deformed by a few mm
        assert abs(int((image.max(1 - axis) > 0.1).sum()) - length) < 10
    if orientation != "sagittal":  # columns run to the right
        assert image[35:45, 42:47].mean() > image[35:45, 33:38].mean()
    if orientation != "axial":  # rows run downwards
        assert image[28:33, 38:42].mean() > image[47:52, 38:42].mean()


def test_files_that_are_no_head_are_named(tmp_path: Path) -> None:
    path = tmp_path / "series.nii"
    nibabel.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.eye(4)).to_filename(path)
    with pytest.raises(ValueError, match=r"series\.nii has the shape"):
        load_head(path)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="no connection")
    monkeypatch.setattr("direct_hifimamba.data.simulation.heads.subprocess.run", lambda *args, **options: failed)
    with pytest.raises(OSError, match=r"no connection\n.*put NIfTI files of heads into"):
        download_heads(tmp_path / "heads")
    assert not list((tmp_path / "heads").iterdir())
