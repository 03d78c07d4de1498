"""ESPIRiT against BART, against the decomposition of every pixel, and against the sensitivities that were simulated."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from direct_hifimamba.data import espirit as module
from direct_hifimamba.data.espirit import espirit
from direct_hifimamba.data.formats.bart import from_slices, read_cfl, to_slices, write_cfl
from direct_hifimamba.data.fourier import image_to_kspace, root_sum_of_squares
from direct_hifimamba.data.simulate import (
    SimulationOptions,
    find_sources,
    load_volume,
    simulate_phase,
    simulate_sensitivity_map,
)

MEASURED = Path(os.environ.get("DIRECT_HIFIMAMBA_MEASURED", "not set"))
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="there is no program bart on the PATH")
needs_measured = pytest.mark.skipif(
    not MEASURED.is_dir(), reason="DIRECT_HIFIMAMBA_MEASURED names no folder of measured k-space"
)


class Head(NamedTuple):
    kspace: NDArray[np.complex64]
    inside: NDArray[np.bool_]
    maps: NDArray[np.complex64]


@cache
def head(coils: int, height: int = 64, width: int = 64, snr: float = 50) -> Head:
    """A slice of the brain template, all of it inside the field of view, with smooth coils and noise."""
    pytest.importorskip("nilearn")
    options = SimulationOptions(size=(height, width), voxel_size=240 / min(height, width))
    image = load_volume(find_sources("icbm152")["icbm152"], options)[24]
    maps = simulate_sensitivity_map(0.1, (height, width), coils, np.random.SeedSequence(coils))
    phase = simulate_phase(0.1, (height, width), 1.0, np.random.SeedSequence(1))
    kspace = image_to_kspace(image * phase * maps)
    noise = np.random.default_rng(0).standard_normal((2, *kspace.shape)) * image[image > 0.2 * image.max()].mean() / snr
    return Head((kspace + noise[0] + 1j * noise[1]).astype(np.complex64), image > 0.1 * image.max(), maps)


def center_columns(width: int, columns: int) -> NDArray[np.bool_]:
    mask = np.zeros(width, bool)
    mask[width // 2 - columns // 2 :][:columns] = True
    return mask


def angle(maps: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Angle in radians between the sensitivities of every pixel, whatever their phase."""
    cosine = np.abs((maps.conj() * other).sum(0, dtype=np.complex128))
    return np.arccos(np.minimum(1, cosine / np.linalg.norm(maps, axis=0) / np.linalg.norm(other, axis=0)))


def ecalib(kspace: NDArray[np.complex64], kernel: int, folder: Path) -> NDArray[np.complex64]:
    write_cfl(folder / "kspace", from_slices(kspace[None]))
    command = ["bart", "ecalib", "-m1", "-c0", f"-k{kernel}", "kspace", "maps"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return to_slices(read_cfl(folder / "maps"))[0]


@needs_bart
@pytest.mark.parametrize(
    ("coils", "height", "width", "columns", "kernel"),
    [(4, 64, 64, 24, 6), (8, 64, 64, 10, 6), (8, 80, 64, 4, 4), (16, 64, 96, 8, 6), (16, 65, 61, 6, 4)],
)
def test_agrees_with_bart(coils: int, height: int, width: int, columns: int, kernel: int, tmp_path: Path) -> None:
    kspace, inside, _ = head(coils, height, width)
    mask = center_columns(width, columns)
    maps = espirit(kspace, mask, kernel)
    theirs = ecalib(kspace * mask, kernel, tmp_path)
    assert angle(maps, theirs)[inside].max() < 0.03
    # The same phase, but for one factor of the whole slice.
    ratio = (maps.conj() * theirs).sum(0)[inside]
    assert np.abs(np.angle(ratio * ratio.mean().conj())).max() < 0.03


@needs_bart
@needs_measured
@pytest.mark.parametrize("name", ["pulseq_cimax_brain16", "pulseq_trio_phantom4"])
def test_agrees_with_bart_on_measured_kspace(name: str, tmp_path: Path) -> None:
    kspace = np.load(MEASURED / f"{name}.npy")[0]
    magnitude = root_sum_of_squares(kspace)
    mask = center_columns(kspace.shape[-1], 10)
    deviation = angle(espirit(kspace, mask, 6), ecalib(kspace * mask, 6, tmp_path))
    assert deviation[magnitude > 0.1 * magnitude.max()].max() < 0.05


@pytest.mark.parametrize("columns", [4, 10, 24])
def test_agrees_with_the_decomposition_of_every_pixel(columns: int) -> None:
    kspace, inside, _ = head(8, 60, 81)
    mask = center_columns(81, columns)
    _, operator = module._calibrate(kspace, mask, None)
    parts = [torch.linalg.eigh(matrices) for _, matrices in module._evaluate(operator, 60, 81)]
    eigenvalues, vectors = (torch.cat([part[index] for part in parts]) for index in (0, 1))
    assert angle(espirit(kspace, mask), vectors[..., -1].permute(2, 0, 1).numpy())[inside].max() < 0.005
    assert eigenvalues.max() < 1.001


def test_finds_the_simulated_sensitivities() -> None:
    kspace, inside, truth = head(8)
    for columns, bound in ((4, 0.06), (6, 0.05), (10, 0.03), (24, 0.02)):
        assert angle(espirit(kspace, center_columns(64, columns)), truth)[inside].mean() < bound


def test_maps_have_unit_norm_and_smooth_phase() -> None:
    kspace, inside, _ = head(8)
    maps = espirit(kspace, center_columns(64, 10))
    assert maps.dtype == np.complex64 and maps.shape == kspace.shape
    np.testing.assert_allclose(np.linalg.norm(maps, axis=0), 1, atol=1e-5)
    step = np.linalg.norm(np.diff(maps, axis=-1), axis=0)
    assert step[inside[:, 1:] & inside[:, :-1]].max() < 0.3


def test_crop_leaves_the_object() -> None:
    kspace, inside, _ = head(8)
    maps = espirit(kspace, center_columns(64, 24), crop=0.9)
    kept = np.linalg.norm(maps, axis=0) > 0
    assert kept[inside].mean() > 0.95 and kept[~inside].mean() < 0.5


def test_only_the_calibration_region_counts() -> None:
    kspace, _, _ = head(4)
    mask = center_columns(64, 9)
    block = np.zeros((64, 64), bool)
    block[20:44] = mask
    maps = espirit(kspace, mask)
    np.testing.assert_array_equal(maps, espirit(kspace * mask, mask))
    np.testing.assert_array_equal(maps, espirit(kspace * block, block))
    # Samples on both sides of the region, and units, make no difference.
    np.testing.assert_array_equal(maps, espirit(kspace, mask | (np.arange(64) % 4 == 1) & (np.arange(64) != 37)))
    np.testing.assert_allclose(maps, espirit(2**40 * kspace, mask), atol=1e-5)


def test_a_coil_that_is_zero_gets_no_sensitivity() -> None:
    kspace, _, _ = head(4)
    maps = espirit(np.insert(kspace, 2, 0, axis=0), center_columns(64, 10))
    assert np.abs(maps[2]).max() < 1e-4
    assert angle(np.delete(maps, 2, axis=0), espirit(kspace, center_columns(64, 10))).max() < 0.01


def test_one_coil_has_the_sensitivity_one() -> None:
    kspace, _, _ = head(1)
    np.testing.assert_allclose(espirit(kspace, center_columns(64, 10)), 1, atol=1e-5)


@pytest.mark.parametrize("columns", [2, 3])
def test_narrow_calibration_gives_finite_maps(columns: int) -> None:
    maps = espirit(head(8).kspace, center_columns(64, columns))
    np.testing.assert_allclose(np.linalg.norm(maps, axis=0), 1, atol=1e-5)


def test_wrong_input_is_refused() -> None:
    kspace, mask = head(4).kspace, center_columns(64, 24)
    for arguments, message in (
        ((kspace, center_columns(64, 4), 6), "kernel has the size 6 x 6; expected from 1 to 24 x 4"),
        ((kspace, np.ones(63, bool)), r"mask has the shape \(63,\)"),
        ((kspace, np.arange(64) % 4 == 1), "samples no centre"),
        ((0 * kspace, mask), "all zero"),
        ((kspace * np.nan, mask), "finite"),
        ((kspace[0], mask), "expected complex numbers of shape"),
        ((kspace.real, mask), "expected complex numbers of shape"),
        ((kspace[:0], mask), "at least one coil"),
        ((kspace, mask, 6, 90), "crop is 90"),
    ):
        with pytest.raises(ValueError, match=message):
            espirit(*arguments)
