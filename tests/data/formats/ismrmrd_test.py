"""Tests of direct_hifimamba.data.formats.ismrmrd. Those of the readouts are in readouts_test.py."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from direct_hifimamba.data.formats.registry import read
from direct_hifimamba.data.fourier import kspace_to_image
from tests.data.formats.scans import KSPACE, lines_of, write_ismrmrd

pytest.importorskip("ismrmrd")
GENERATOR = "ismrmrd_generate_cartesian_shepp_logan"
needs_generator = pytest.mark.skipif(
    shutil.which(GENERATOR) is None, reason=f"{GENERATOR} is missing; install ismrmrd-tools"
)


def generate(path: Path, *options: str) -> None:
    subprocess.run([GENERATOR, "--output", path, "--matrix", "48", "--coils", "4", *options], check=True)


def coil_images(path: Path) -> np.ndarray:
    """What the generator says the images of the coils are, of shape (coils, readout, lines)."""
    with h5py.File(path) as file:
        stored = file["dataset/coil_images"][0]
    images = stored["real"] + 1j * stored["imag"]
    return images[:, :, images.shape[2] // 4 : -images.shape[2] // 4].swapaxes(1, 2)


@needs_generator
def test_the_phantom_of_the_generator_comes_back(tmp_path: Path) -> None:
    generate(tmp_path / "scan.h5", "--noise-level", "0", "--repetitions", "2")
    raw, expected = read(tmp_path / "scan.h5"), coil_images(tmp_path / "scan.h5")
    assert raw.shape == (2, 4, 48, 48)
    assert raw.mask is not None and raw.mask.all()
    for kspace in raw.slices():
        image = kspace_to_image(kspace)
        scale = np.vdot(expected, image) / np.vdot(expected, expected)
        np.testing.assert_allclose(image, scale * expected, rtol=0, atol=1e-6 * np.abs(image).max())


@needs_generator
def test_accelerated_scans_of_the_generator_are_interleaved_and_whitened(tmp_path: Path) -> None:
    options = "--acceleration 2 --calibration-width 12 --noise-calibration --noise-level 100"  # little but noise
    generate(tmp_path / "scan.h5", *options.split())
    raw = read(tmp_path / "scan.h5")
    assert raw.mask is not None and raw.mask.shape == (2, 48, 48)
    centre = slice(24 - 6, 24 + 6)
    for index in range(2):
        lines = raw.mask[index, 0].copy()
        assert lines[centre].all()
        lines[centre] = np.arange(48)[centre] % 2 == index
        np.testing.assert_array_equal(lines, np.arange(48) % 2 == index)
    assert raw.noise_covariance is not None
    np.testing.assert_array_equal(raw.noise_covariance, np.eye(4))
    # The noise measurement of the generator has 96 samples only, half of which are left without oversampling.
    noise = raw.read_slice(0)[:, :, raw.mask[0, 0]]
    np.testing.assert_allclose(np.var(noise, axis=(1, 2)), 1, atol=0.8)


def test_a_view_without_oversampling_for_both_matrices_is_understood(tmp_path: Path) -> None:
    def same_view(header: Any) -> None:
        header.encoding[0].encodedSpace.fieldOfView_mm.x = header.encoding[0].reconSpace.fieldOfView_mm.x

    write_ismrmrd(tmp_path / "usual.h5", list(lines_of(KSPACE)))
    write_ismrmrd(tmp_path / "same.h5", list(lines_of(KSPACE)), same_view)
    usual, same = read(tmp_path / "usual.h5"), read(tmp_path / "same.h5")
    assert usual.affine is not None and same.affine is not None
    np.testing.assert_allclose(same.affine, usual.affine)
    np.testing.assert_array_equal(same.read_slice(0), usual.read_slice(0))


@pytest.mark.parametrize("slices", [1, 3])
def test_scans_of_pulseq_are_read(tmp_path: Path, slices: int) -> None:
    """A file of raw2ismrmrd, which gives one view for both matrices, and no position."""
    pypulseq = pytest.importorskip("pypulseq")
    converter = pytest.importorskip("raw2ismrmrd.ismrmrd_from_sequence")
    sequence = pypulseq.Sequence()
    readout = pypulseq.make_adc(num_samples=KSPACE.shape[2], dwell=1e-5, delay=1e-4)
    for line in range(KSPACE.shape[3]):
        for index in range(slices):
            labels = [pypulseq.make_label(name, "SET", value) for name, value in (("LIN", line), ("SLC", index))]
            sequence.add_block(readout, *labels)
    sequence.set_definition("FOV", [0.024, 0.024, 0.004 * slices])
    sequence.set_definition("ReadoutOversamplingFactor", 2)
    sequence.write(str(tmp_path / "scan.seq"))
    lines = [each.data for each in lines_of(KSPACE[:slices])]
    converter.ismrmrd_from_sequence(lines, tmp_path / "scan.seq", tmp_path / "scan.h5")
    raw = read(tmp_path / "scan.h5")
    expected = KSPACE[:slices, :, ::2]
    np.testing.assert_allclose(np.stack(list(raw.slices())), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    if slices == 1:
        assert raw.affine is not None
        np.testing.assert_allclose(np.linalg.norm(raw.affine[:3, :3], axis=0), [4, 2, 1.5])
    else:
        assert raw.affine is None and "The header says nothing about the position of the slices." in raw.messages


def _twice(header: Any) -> None:
    header.encoding.append(header.encoding[0])


def _radial(header: Any) -> None:
    header.encoding[0].trajectory = type(header.encoding[0].trajectory)("radial")


def _three_dimensional(header: Any) -> None:
    header.encoding[0].encodedSpace.matrixSize.z = 20


def _without_matrix(header: Any) -> None:
    header.encoding[0].encodedSpace.matrixSize.y = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, "it has 2 encodings; expected one"),
        (_radial, "its trajectory is radial; expected cartesian"),
        (_three_dimensional, "it is three-dimensional, with 20 partitions"),
        (_without_matrix, "expected sizes above 0"),
    ],
)
def test_other_scans_are_refused_by_name(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    write_ismrmrd(tmp_path / "scan.h5", list(lines_of(KSPACE, [0])), change)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "scan.h5")


def test_partitions_that_the_header_does_not_have_are_refused(tmp_path: Path) -> None:
    write_ismrmrd(tmp_path / "scan.h5", list(lines_of(KSPACE, [0])))
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        readouts = file["dataset/data"][()]
        readouts["head"]["idx"]["kspace_encode_step_2"][::2] = 1
        file["dataset/data"][...] = readouts
    with pytest.raises(ValueError, match="belong to several partitions"):
        read(tmp_path / "scan.h5")


def damage(path: Path, kind: str) -> None:
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
        return
    with h5py.File(path, "r+") as file:
        group = file["dataset"]
        if kind == "other document":
            group["xml"][0] = b"<html></html>"
        elif kind == "no document":
            group["xml"][0] = b"no document"
        elif kind == "no readouts":
            del group["data"]
        elif kind == "two scans":
            file.copy("dataset", "other")
        elif kind == "short readout":
            head = group["data"][0]
            head["head"]["number_of_samples"] = 24
            head["data"] = head["data"][:-2]
            group["data"][0] = head


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut short", "cannot be read"),
        ("other document", "its header is no valid ISMRMRD document"),
        ("no document", "its header is no valid ISMRMRD document"),
        ("no readouts", "expected readouts, not images"),
        ("two scans", "it has the scans dataset, other; expected one"),
        ("short readout", "readout 0 has 94 numbers; expected 2 coils x 24 complex samples"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "scan.h5"
    write_ismrmrd(path, list(lines_of(KSPACE, [0])))
    damage(path, kind)
    with pytest.raises(ValueError, match=message) as error:
        read(path).read_slice(0)
    assert str(path) in str(error.value)


def test_the_header_says_which_scanner_it_was_and_not_who_was_in_it(tmp_path: Path) -> None:
    def name(header: Any) -> None:
        from ismrmrd import xsd

        header.subjectInformation = xsd.subjectInformationType(patientName="Doe^Jane", patientID="4711")
        header.acquisitionSystemInformation.institutionName = "Doe's clinic"

    write_ismrmrd(tmp_path / "scan.h5", list(lines_of(KSPACE, [0])), name)
    raw = read(tmp_path / "scan.h5")
    assert raw.source == {"format": "ISMRMRD", "vendor": "Vendor", "model": "Model", "field strength": "1.5 T"}
    assert "Doe" not in repr(raw) and "4711" not in repr(raw)


def test_images_of_siemens_are_turned_by_180_degrees(tmp_path: Path) -> None:
    def siemens(header: Any) -> None:
        header.acquisitionSystemInformation.systemVendor = "SIEMENS"

    lines = list(lines_of(KSPACE, [0]))
    write_ismrmrd(tmp_path / "other.h5", lines)
    write_ismrmrd(tmp_path / "siemens.h5", lines, siemens)
    other, turned = (read(tmp_path / name).affine for name in ("other.h5", "siemens.h5"))
    assert other is not None and turned is not None
    np.testing.assert_allclose(turned[:3, 1:3], -other[:3, 1:3])
    centre = [0, KSPACE.shape[2] // 4, KSPACE.shape[3] // 2, 1]
    np.testing.assert_allclose(turned @ centre, other @ centre)


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ismrmrd(tmp_path / "scan.h5", list(lines_of(KSPACE, [0])))
    monkeypatch.setitem(sys.modules, "ismrmrd", None)
    with pytest.raises(ValueError, match=r"direct-hifimamba\[formats\]"):
        read(tmp_path / "scan.h5")
