"""Tests of direct_hifimamba.data.formats.readouts with files of both formats that consist of readouts."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_hifimamba.data.formats.registry import read
from tests.data.formats import scans
from tests.data.formats.scans import (
    COILS,
    HEIGHT,
    KSPACE,
    NORMAL,
    ORDER,
    PHASE,
    PIXEL,
    READ,
    SAMPLES,
    SLICES,
    THICKNESS,
    WIDTH,
    Line,
    complex_noise,
    lines_of,
    position,
    write_ismrmrd,
    write_twix,
)

#: What an object that fits into the field of view has without oversampling: every second sample.
EXPECTED = KSPACE[ORDER][:, :, ::2]
ALL = range(-WIDTH // 2, WIDTH // 2)
CENTRE = range(-3, 3)


@pytest.fixture(params=["ismrmrd", "twixtools"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Write a file and return its path."""
    pytest.importorskip(request.param)

    def call(*lines: Line, apart: bool = False) -> Path:
        path = tmp_path / "scan.dat"
        path.unlink(missing_ok=True)
        if request.param == "ismrmrd":

            def change(header) -> None:
                if apart:
                    parallel = header.encoding[0].parallelImaging
                    parallel.calibrationMode = type(parallel.calibrationMode)("separate")

            write_ismrmrd(path, lines, change)
        else:
            mode = f"ucRefScanMode = {4 if apart else 2}"
            write_twix(path, lines, lambda text: text.replace("ucRefScanMode = 2", mode))
        return path

    return call


def assert_agrees(actual: NDArray[np.complex64], expected: NDArray[np.complex64], relative: float = 1e-6) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_slices_come_back_without_oversampling_in_the_order_of_their_positions(write: Callable[..., Path]) -> None:
    raw = read(write(*lines_of(KSPACE), Line(complex_noise(COILS, SAMPLES), kind="navigator")))
    assert raw.shape == (SLICES, COILS, HEIGHT, WIDTH)
    assert raw.mask is not None and raw.mask.shape == (WIDTH,) and raw.mask.all()
    assert raw.image_size == (HEIGHT, WIDTH)
    assert raw.noise_covariance is None and raw.read_calibration is None
    assert "Readout oversampling was removed: 24 samples became 12." in raw.messages
    assert_agrees(np.stack(list(raw.slices())), EXPECTED)


def test_the_affine_places_voxels_in_the_patient(write: Callable[..., Path]) -> None:
    raw = read(write(*lines_of(KSPACE)))
    to_ras = np.array([-1, -1, 1])
    assert raw.affine is not None
    for index, slice_index in enumerate(ORDER):
        for row, column in ((HEIGHT // 2, WIDTH // 2), (0, 3)):
            there = position(slice_index)
            there = there + (row - HEIGHT // 2) * PIXEL[0] * READ + (column - WIDTH // 2) * PIXEL[1] * PHASE
            np.testing.assert_allclose(raw.affine @ [index, row, column, 1], [*(to_ras * there), 1], atol=1e-4)
    alone = read(write(*lines_of(KSPACE[:1])))
    assert alone.affine is not None
    np.testing.assert_allclose(alone.affine[:3, 0], to_ras * NORMAL * THICKNESS, atol=1e-5)


def test_volumes_share_their_position(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = read(write(*lines_of(KSPACE)))
    lines = [*lines_of(KSPACE), *lines_of(KSPACE, repetition=1)]
    raw = read(write(*lines))
    assert alone.affine is not None and raw.affine is not None
    np.testing.assert_array_equal(raw.affine, alone.affine)
    assert (alone.volumes, raw.volumes) == (1, 2)
    assert "2 volumes (by repetition) of 3 slices became 6 slices." in raw.messages
    assert_agrees(np.stack(list(raw.slices())), np.concatenate([EXPECTED, EXPECTED]))
    one_slice = read(write(*lines_of(KSPACE[:1]), *lines_of(KSPACE[:1], repetition=1)))
    assert one_slice.affine is not None and one_slice.volumes == 2

    written = itertools.count()
    monkeypatch.setattr(scans, "position", lambda index: position(index) + 9 * (next(written) >= len(lines) // 2))
    moved = read(write(*lines))
    assert moved.affine is None and moved.volumes == 2
    assert "Volumes differ in their position, so that they have no common one." in moved.messages


def test_slices_without_a_common_position_have_no_affine(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "position", lambda index: position(index) * (1 + index))
    raw = read(write(*lines_of(KSPACE)))
    assert raw.affine is None
    assert "Slices are not parallel or not equally spaced, so that they have no common position." in raw.messages


def test_readouts_of_the_same_line_are_averaged(write: Callable[..., Path]) -> None:
    raw = read(write(*lines_of(KSPACE), *lines_of(3 * KSPACE)))
    assert_agrees(np.stack(list(raw.slices())), 2 * EXPECTED)
    assert "Up to 2 readouts of the same line were averaged." in raw.messages


def test_partial_fourier_leaves_lines_out(write: Callable[..., Path]) -> None:
    raw = read(write(*lines_of(KSPACE, range(-2, WIDTH // 2))))
    np.testing.assert_array_equal(raw.mask, np.arange(WIDTH) >= 6)
    assert_agrees(np.stack(list(raw.slices())), EXPECTED * raw.mask)


def dft(length: int) -> NDArray[np.complex128]:
    """The centred Fourier transform from k-space to an image, as a matrix."""
    index = np.arange(length) - length // 2
    return np.exp(2j * np.pi * np.outer(index, index) / length) / length


@pytest.mark.parametrize("discard", [(0, 0), (2, 4)])
def test_an_asymmetric_echo_lies_at_its_place(write: Callable[..., Path], discard: tuple[int, int]) -> None:
    first = 8
    cut = KSPACE[:, :, first:]
    raw = read(write(*lines_of(cut, center=SAMPLES // 2 - first, discard=discard)))
    kept = slice(first + discard[0], SAMPLES - discard[1])
    filled = np.zeros_like(KSPACE)
    filled[:, :, kept] = KSPACE[:, :, kept]
    without = np.linalg.inv(dft(HEIGHT)) @ dft(SAMPLES)[SAMPLES // 4 : -SAMPLES // 4]
    rows = np.isin(2 * np.arange(HEIGHT), range(SAMPLES)[kept])
    np.testing.assert_array_equal(raw.mask, np.tile(rows[:, None], WIDTH))
    expected = (without @ filled.astype(complex))[ORDER] * rows[:, None]
    assert_agrees(np.stack(list(raw.slices())), expected)


def test_embedded_calibration_lines_are_part_of_kspace(write: Callable[..., Path]) -> None:
    lines = [*lines_of(KSPACE, [line for line in ALL if line % 4 == 0 and line not in CENTRE])]
    for line in CENTRE:
        lines += lines_of(KSPACE, [line], kind="both" if line % 4 == 0 else "calibration")
    raw = read(write(*lines))
    sampled = np.array([line % 4 == 0 or line in CENTRE for line in ALL])
    np.testing.assert_array_equal(raw.mask, sampled)
    assert raw.read_calibration is None
    assert_agrees(np.stack(list(raw.slices())), EXPECTED * sampled)


def test_calibration_lines_that_were_measured_apart_stay_apart(write: Callable[..., Path]) -> None:
    calibration = lines_of(2 * KSPACE, CENTRE, kind="calibration")
    raw = read(write(*calibration, *lines_of(KSPACE, ALL[::4]), apart=True))
    np.testing.assert_array_equal(raw.mask, [line in ALL[::4] for line in ALL])
    assert raw.read_calibration is not None
    for index in range(SLICES):
        assert_agrees(raw.read_slice(index), EXPECTED[index] * raw.mask)
        assert_agrees(raw.read_calibration(index), 2 * EXPECTED[index] * np.isin(ALL, CENTRE))


def test_interleaved_repetitions_have_masks_of_their_own(write: Callable[..., Path]) -> None:
    raw = read(write(*lines_of(KSPACE, ALL[::2]), *lines_of(KSPACE, ALL[1::2], repetition=1)))
    assert raw.mask is not None and raw.mask.shape == (2 * SLICES, HEIGHT, WIDTH)
    for index in range(2 * SLICES):
        np.testing.assert_array_equal(raw.mask[index, 0], np.arange(WIDTH) % 2 == index // SLICES)
        assert_agrees(raw.read_slice(index), EXPECTED[index % SLICES] * raw.mask[index])


def test_kspace_is_prewhitened(write: Callable[..., Path]) -> None:
    mixing = np.array([[2, 0], [1 + 1j, 0.5]])

    def noise(seed: int, *shape: int) -> NDArray[np.complex64]:
        return np.moveaxis(complex_noise(*shape, COILS, seed=seed) @ mixing.T, -1, 0).astype(np.complex64)

    images = np.stack([noise(seed, SAMPLES, WIDTH) for seed in range(SLICES)])
    scan = [*lines_of(images), *lines_of(images)]
    measured = [Line(noise(seed, 256), kind="noise") for seed in range(10, 30)]
    raw = read(write(*measured, *scan))
    assert raw.noise_covariance is not None
    np.testing.assert_allclose(raw.noise_covariance, np.eye(COILS) / 2)
    # Two readouts of the same noise have it unabated.
    values = np.stack(list(raw.slices())).swapaxes(0, 1).reshape(COILS, -1)
    np.testing.assert_allclose(values @ values.conj().T / values.shape[1], np.eye(COILS), atol=0.15)
    assert "K-space was prewhitened with the measured noise." in raw.messages


def test_noise_that_says_nothing_about_a_coil_changes_nothing(write: Callable[..., Path]) -> None:
    silent = complex_noise(COILS, 64) * np.array([[1], [0]], np.float32)
    raw = read(write(Line(silent, kind="noise"), *lines_of(KSPACE)))
    assert raw.noise_covariance is None
    assert_agrees(np.stack(list(raw.slices())), EXPECTED)


def cut_off(line: Line, samples: int) -> Line:
    return Line(line.data[:, :samples], line.line, line.slice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [Line(lines[0].data, kind="noise")], "none of its 1 readouts belongs to an image"),
        (lambda lines: [line for line in lines if line.slice or line.line], "slice 0 has 15 lines"),
        (lambda lines: [*lines, Line(lines[0].data, 0, 0, repetition=1)], "it has no slice 2 of contrast 0, phase 0"),
        (lambda lines: [*lines, *lines_of(KSPACE, [0, 1], repetition=1)], "was the scan aborted"),
        (lambda lines: [*lines[:-1], Line(lines[-1].data[:1], 7, 2)], "its readouts differ: 1 coils"),
        (lambda lines: [*lines[:-1], cut_off(lines[-1], 20)], "its readouts differ"),
        (lambda lines: [Line(line.data, line.line, line.slice, center=13) for line in lines], "expected some that fit"),
        (lambda lines: [*lines, Line(lines[0].data, 8)], "it has a line +8 from the centre"),
        (lambda lines: [Line(lines[0].data, kind="reversed"), *lines], "it has reversed readouts"),
        (lambda lines: [Line(complex_noise(3, 64), kind="noise"), *lines], "noise was measured with 3 coils"),
    ],
)
def test_incomplete_and_contradictory_scans_are_refused(write: Callable[..., Path], change, message: str) -> None:
    path = write(*change(list(lines_of(KSPACE))))
    with pytest.raises(ValueError, match="cannot be read as") as error:
        read(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_calibration_lines_of_some_slices_are_refused(write: Callable[..., Path]) -> None:
    path = write(*lines_of(KSPACE[:1], CENTRE, kind="calibration"), *lines_of(KSPACE), apart=True)
    with pytest.raises(ValueError, match="none of slice"):
        read(path)
