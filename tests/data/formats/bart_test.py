"""BART's files against the program bart itself."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_hifimamba.data.formats.bart import from_slices, read_cfl, to_slices, write_cfl
from direct_hifimamba.data.fourier import kspace_to_image

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="there is no program bart on the PATH")


def bart(folder: Path, command: str) -> str:
    return subprocess.run(["bart", *command.split()], cwd=folder, check=True, capture_output=True, text=True).stdout


def random_kspace(*shape: int) -> NDArray[np.complex64]:
    return np.random.default_rng(0).standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (3, 6, 5), (1, 1, 2, 2)])
def test_slices_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    kspace = random_kspace(*shape)
    write_cfl(tmp_path / "scan.cfl", from_slices(kspace))
    for name in ("scan", "scan.cfl", "scan.hdr"):
        np.testing.assert_array_equal(to_slices(read_cfl(tmp_path / name)).reshape(shape), kspace)
    assert {path.name for path in tmp_path.iterdir()} == {"scan.cfl", "scan.hdr"}


@needs_bart
def test_axes_are_those_of_bart(tmp_path: Path) -> None:
    """Axes of different lengths, transformed and reduced by bart along the dimensions that it counts."""
    kspace = random_kspace(3, 4, 6, 5)
    write_cfl(tmp_path / "kspace", from_slices(kspace))
    assert [bart(tmp_path, f"show -d {dim} kspace").strip() for dim in (0, 1, 2, 3, 4, 13)] == list("651413")
    bart(tmp_path, "fft -iu 3 kspace coils")
    images = kspace_to_image(kspace)
    np.testing.assert_allclose(to_slices(read_cfl(tmp_path / "coils")), images, rtol=0, atol=1e-6)
    bart(tmp_path, "rss 8 coils image")
    np.testing.assert_allclose(to_slices(read_cfl(tmp_path / "image"))[:, 0], np.linalg.norm(images, axis=1), rtol=1e-6)


@needs_bart
def test_what_bart_writes_is_read(tmp_path: Path) -> None:
    bart(tmp_path, "phantom -k -s3 -x16 kspace")
    bart(tmp_path, "ecalib -m2 -k3 -r8 kspace maps")
    bart(tmp_path, "ones 2 4 3 two_dimensions")
    assert read_cfl(tmp_path / "maps").shape == (16, 16, 1, 3, 2, *[1] * 11)
    assert to_slices(read_cfl(tmp_path / "kspace")).shape == (1, 3, 16, 16)
    assert to_slices(read_cfl(tmp_path / "two_dimensions")).shape == (1, 1, 4, 3)
    with pytest.raises(ValueError, match="2 sets of sensitivities"):
        to_slices(read_cfl(tmp_path / "maps"))
    bart(tmp_path, "slice 4 0 maps first")
    assert to_slices(read_cfl(tmp_path / "first")).shape == (1, 3, 16, 16)


@needs_bart
def test_three_dimensional_kspace_is_refused_with_commands_that_help(tmp_path: Path) -> None:
    bart(tmp_path, "phantom -3 -k -s2 -x8 IN")
    with pytest.raises(ValueError, match=r"bart fft -iu 4 IN OUT; bart transpose 2 13 OUT IN") as error:
        to_slices(read_cfl(tmp_path / "IN"))
    for command in str(error.value).split("bart ")[1:]:
        bart(tmp_path, command.strip("; "))
    assert to_slices(read_cfl(tmp_path / "IN")).shape == (8, 2, 8, 8)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("# Dimensions\n4 3\n", "expected 96 for the dimensions 4 3"),
        ("# Dimensions\n4 2 2 1\n", "expected 128"),
        ("# Dimensions\n", "the dimensions ''"),
        ("4 3\n", "the dimensions ''"),
        ("# Dimensions\n4 three\n", "'4 three'"),
        ("# Dimensions\n4 0\n", "'4 0'"),
        ("# Dimensions\n-4 -3\n", "'-4 -3'"),
        (f"# Dimensions\n{'1 ' * 17}\n", "expected 1 to 16 numbers"),
        ("\x89HDF\x00", "the dimensions ''"),
        (f"# Dimensions\n{10**9} {10**9} {10**9}\n", f"expected {8 * 10**27}"),
    ],
)
def test_damaged_files_are_refused(header: str, message: str, tmp_path: Path) -> None:
    write_cfl(tmp_path / "scan", random_kspace(4, 3))
    (tmp_path / "scan.cfl").write_bytes((tmp_path / "scan.cfl").read_bytes()[:-3])
    (tmp_path / "scan.hdr").write_text(header)
    with pytest.raises(ValueError, match=message):
        read_cfl(tmp_path / "scan")


@pytest.mark.parametrize("missing", ["scan.hdr", "scan.cfl"])
def test_both_files_are_needed(missing: str, tmp_path: Path) -> None:
    write_cfl(tmp_path / "scan", random_kspace(4, 3))
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        read_cfl(tmp_path / "scan")
