"""Tests of direct_hifimamba.data.formats.twix. Those of the readouts are in readouts_test.py."""

import os
from pathlib import Path

import numpy as np
import pytest

from direct_hifimamba.data.formats.registry import read
from direct_hifimamba.data.fourier import root_sum_of_squares
from tests.data.formats.scans import COILS, KSPACE, Line, complex_noise, lines_of, write_twix

pytest.importorskip("twixtools")
MEASURED = Path(os.environ.get("DIRECT_HIFIMAMBA_MEASURED", "not set")) / "twix_skyra_phantom2.dat"
needs_measured = pytest.mark.skipif(
    not MEASURED.is_file(), reason="DIRECT_HIFIMAMBA_MEASURED names no folder of measured k-space"
)


@needs_measured
def test_a_measured_phantom_is_read_as_others_read_it() -> None:
    raw = read(MEASURED)
    expected = np.load(MEASURED.with_suffix(".npy")).swapaxes(-1, -2)  # its width is the readout
    assert raw.shape == expected.shape
    np.testing.assert_allclose(raw.read_slice(0), expected[0], rtol=0, atol=1e-6 * np.abs(expected).max())
    assert raw.source["model"] == "Skyra" and raw.source["field strength"] == "2.894 T"


@needs_measured
def test_air_in_the_measured_phantom_is_on_top() -> None:
    raw = read(MEASURED)
    assert raw.affine is not None
    image = root_sum_of_squares(raw.read_slice(0))
    # The phantom is a cylinder with a radius of 96 mm round this voxel, and some air where it is highest: the patient's
    # front, as it lies on its back.
    centre = raw.affine @ [0, 80, 85, 1]

    def brightness(forward: float) -> float:
        _, row, column, _ = np.linalg.solve(raw.affine, centre + forward * np.eye(4)[1]).round().astype(int)
        return image[row + 5 : row + 25, column].mean() / image.max()

    assert brightness(-88) > 0.3
    assert brightness(88) < 0.1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("ucTrajectory = 1", "ucTrajectory = 2", "its trajectory is radial; expected Cartesian"),
        ("ucDimension = 2", "ucDimension = 4", "it is three-dimensional, with 8 partitions"),
        ("{ 1 1 }", "{ 2 1 }", "its readouts were sampled on ramps"),
        ("sPat.", "sSliceAcceleration.lMultiBandFactor = 2\nsPat.", r"several at a time \(multiband\)"),
        ("sKSpace", "sOther", "its header cannot be understood: KeyError: 'sKSpace'"),
    ],
)
def test_other_scans_are_refused_by_name(tmp_path: Path, before: str, after: str, message: str) -> None:
    write_twix(tmp_path / "scan.dat", list(lines_of(KSPACE, [0])), lambda text: text.replace(before, after))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "scan.dat")


def test_of_several_measurements_the_last_is_read_with_the_noise_of_all(tmp_path: Path) -> None:
    noise = [Line(complex_noise(COILS, 512, seed=seed), kind="noise") for seed in range(8)]
    write_twix(tmp_path / "scan.dat", list(lines_of(KSPACE)), before=[*noise, *lines_of(2 * KSPACE)])
    write_twix(tmp_path / "alone.dat", list(lines_of(KSPACE)))
    raw, alone = read(tmp_path / "scan.dat"), read(tmp_path / "alone.dat")
    assert raw.shape == alone.shape and raw.noise_covariance is not None
    # Noise of variance 1, half of it without oversampling, and half of that at half of the bandwidth.
    np.testing.assert_allclose(raw.read_slice(1), 2 * alone.read_slice(1), rtol=0.1, atol=0.1 * np.abs(KSPACE).max())


@pytest.mark.parametrize("kept", [0.97, 0.6])
def test_files_that_are_cut_short_are_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "scan.dat"
    write_twix(path, list(lines_of(KSPACE)))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"cut short: it has {int(kept * len(content))} bytes; expected"):
        read(path)


def test_the_format_is_recognised_by_content_and_a_suffix_is_asked_for(tmp_path: Path) -> None:
    write_twix(tmp_path / "scan.dat", list(lines_of(KSPACE)))
    other = (tmp_path / "scan.dat").rename(tmp_path / "scan.raw")
    assert read(other).shape == read(other.rename(tmp_path / "scan.h5")).shape
    with pytest.raises(ValueError, match=r"rename it to scan\.dat"):
        read((tmp_path / "scan.h5").rename(tmp_path / "scan"))


def test_nothing_personal_is_read(tmp_path: Path) -> None:
    write_twix(tmp_path / "scan.dat", list(lines_of(KSPACE)))
    assert b"Doe^Jane" in (tmp_path / "scan.dat").read_bytes()
    assert "Doe" not in repr(read(tmp_path / "scan.dat"))
