"""Tests of direct_hifimamba.data.simulate."""

import gzip
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from direct.data.datasets import FastMRIDataset

from direct_hifimamba import cli
from direct_hifimamba.data import simulate as module
from direct_hifimamba.data.fourier import kspace_to_image, root_sum_of_squares
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.provenance import read_provenance
from direct_hifimamba.data.simulate import SimulationOptions, load_volume, simulate

SHAPE = (20, 24, 6)


def _write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def _brain(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Positive noise on an ellipsoid's worth of voxels, zero elsewhere; the outermost slices stay blank."""
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = sum(np.square(axis) for axis in grid) < 0.95
    return np.where(inside, np.random.default_rng(1).uniform(50, 100, shape), 0).astype(np.float32)


def _kspace(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["kspace"][()]


def _digests(paths: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("num_coils", [1, 2, 5])
def test_without_noise_the_root_sum_of_squares_is_the_magnitude(tmp_path, num_coils):
    brain = _brain()
    (path,) = simulate(
        str(_write_nifti(tmp_path / "a.nii", brain)), tmp_path / "out", SimulationOptions(num_coils=num_coils)
    )
    kspace = _kspace(path)
    assert kspace.dtype == np.complex64
    assert kspace.shape == (4, *((num_coils,) if num_coils > 1 else ()), 24, 20)
    expected = brain.transpose(2, 1, 0)[1:5, ::-1]
    np.testing.assert_allclose([root_sum_of_squares(entry) for entry in kspace], expected, atol=1e-3)
    image = kspace_to_image(kspace)
    assert np.abs(np.angle(image[np.abs(image) > 1])).max() > 0.1, "the phase is part of the simulation"


def test_sensitivities_are_smooth_complex_and_of_unit_norm():
    seed = np.random.SeedSequence(0)
    maps = np.stack([module.simulate_sensitivity_map(height, (40, 48), 6, seed) for height in np.linspace(-1, 1, 20)])
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(1), 1, rtol=1e-5)
    for axis in (0, 2, 3):
        assert np.abs(np.diff(maps, axis=axis)).max() < 0.2
    coils = maps.transpose(1, 0, 2, 3).reshape(6, -1)
    gram = np.abs(coils @ coils.conj().T) / np.linalg.norm(coils, axis=1) / np.linalg.norm(coils, axis=1)[:, None]
    assert gram[~np.eye(6, dtype=bool)].max() < 0.95, "two coils see the same"


def test_phase_is_bounded_and_smooth():
    seed = np.random.SeedSequence(0)
    phase = np.stack([module.simulate_phase(height, (40, 48), 0.7, seed) for height in np.linspace(-1, 1, 20)])
    np.testing.assert_allclose(np.abs(phase), 1, rtol=1e-6)
    assert 0.1 < np.abs(np.angle(phase)).max() <= 0.7
    for axis in range(3):
        assert np.abs(np.diff(np.angle(phase), axis=axis)).max() < 0.2
    np.testing.assert_array_equal(module.simulate_phase(0.3, (5, 5), 0.0, seed), np.ones((5, 5)))


@pytest.mark.parametrize("num_coils", [1, 4])
def test_noise_has_the_defined_snr(tmp_path, num_coils):
    brain = _brain((64, 64, 8))
    source = str(_write_nifti(tmp_path / "a.nii", brain))
    clean, noisy = (
        _kspace(simulate(source, tmp_path / str(snr), SimulationOptions(num_coils=num_coils, snr=snr))[0])
        for snr in (None, 20.0)
    )
    noise = noisy - clean
    expected = brain[brain > 0.1 * brain.max()].mean() / 20
    assert noise.real.std() == pytest.approx(expected, rel=0.02)
    assert noise.imag.std() == pytest.approx(expected, rel=0.02)
    assert abs(np.corrcoef(noise.real.ravel(), noise.imag.ravel())[0, 1]) < 0.02
    assert abs(noise.mean()) < 0.02 * expected
    assert not np.allclose(noise[0], noise[1])


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize(
    ("orientation", "shape", "first_corner", "last_corner"),
    [
        # Corners as (right, anterior, superior): of the first pixel of the first slice, and of the last of the last.
        ("axial", (7, 6, 5), (0, 1, 0), (1, 0, 1)),
        ("coronal", (6, 7, 5), (0, 0, 1), (1, 1, 0)),
        ("sagittal", (5, 7, 6), (0, 0, 1), (1, 1, 0)),
    ],
)
def test_orientation_is_anatomical(tmp_path, orientation, shape, first_corner, last_corner, order, flips, oblique):
    spacing = (2.0, 3.0, 4.0)
    ras = np.random.default_rng(0).uniform(1, 2, (5, 6, 7)).astype(np.float32)
    # Store the RAS volume with other axes; the affine says how they map to the patient.
    axes = nibabel.orientations.axcodes2ornt("RAS")
    target = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    affine = np.diag([*spacing, 1.0])
    if oblique:
        angle = 0.3
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] @ affine[:2, :2]
    stored = nibabel.Nifti1Image(ras, affine).as_reoriented(nibabel.orientations.ornt_transform(axes, target))
    nibabel.save(stored, tmp_path / "a.nii.gz")

    volume = load_volume(tmp_path / "a.nii.gz", SimulationOptions(orientation=orientation))
    assert volume.shape == shape
    for pixel, corner in (((0, 0, 0), first_corner), ((-1, -1, -1), last_corner)):
        assert volume[pixel] == ras[tuple(-1 if far else 0 for far in corner)]

    resampled = load_volume(tmp_path / "a.nii.gz", SimulationOptions(orientation=orientation, voxel_size=1.0))
    in_plane = {"axial": (18, 10), "coronal": (28, 10), "sagittal": (28, 18)}[orientation]
    assert resampled.shape == (shape[0], *in_plane)


@pytest.mark.parametrize("size", [(12, 30), (13, 11), (21, 25)])
def test_crop_and_pad_keep_the_centre(tmp_path, size):
    brain = _brain()
    source = _write_nifti(tmp_path / "a.nii", brain)
    whole = load_volume(source, SimulationOptions())
    resized = load_volume(source, SimulationOptions(size=size))
    assert resized.shape == (6, *size)
    for row in range(-13, 14):
        for column in range(-13, 14):
            old = (whole.shape[1] // 2 + row, whole.shape[2] // 2 + column)
            new = (size[0] // 2 + row, size[1] // 2 + column)
            if all(0 <= index < length for index, length in zip(new, size, strict=True)):
                is_inside = all(0 <= index < length for index, length in zip(old, whole.shape[1:], strict=True))
                expected = whole[:, old[0], old[1]] if is_inside else np.zeros(6)
                np.testing.assert_array_equal(resized[:, new[0], new[1]], expected)


def test_resampling_keeps_units_and_mean(tmp_path):
    brain = _brain((40, 48, 4))
    source = _write_nifti(tmp_path / "a.nii", brain)
    resampled = load_volume(source, SimulationOptions(voxel_size=2.0))
    assert resampled.shape == (4, 24, 20)
    assert resampled.mean() == pytest.approx(brain.mean(), rel=0.02)


def test_data_set_depends_on_names_and_seed_but_not_on_the_folder(tmp_path):
    options = SimulationOptions(num_coils=2, snr=10.0, slab=2, mask=MaskOptions("FastMRIRandom", 3, 0.2))
    sources = []
    for folder in ("here", "there/deeper"):
        (tmp_path / folder).mkdir(parents=True)
        sources.append(str(_write_nifti(tmp_path / folder / "a.nii", _brain())))
    first = simulate(sources[0], tmp_path / "first", options)
    assert [path.name for path in first] == ["a_001-002.h5", "a_003-004.h5"]
    assert _digests(first) == _digests(simulate(sources[1], tmp_path / "second", options))

    renamed = _write_nifti(tmp_path / "b.nii", _brain())
    other_name = simulate(str(renamed), tmp_path / "third", options)
    other_seed = simulate(sources[0], tmp_path / "fourth", SimulationOptions(**{**vars(options), "seed": 1}))
    for other in (other_name, other_seed):
        assert not np.allclose(_kspace(first[0]), _kspace(other[0]))
    assert not np.allclose(_kspace(first[0]), _kspace(first[1]))


def test_slabs_are_pieces_of_the_whole_volume(tmp_path):
    source = str(_write_nifti(tmp_path / "a.nii", _brain()))
    whole = _kspace(simulate(source, tmp_path / "whole", SimulationOptions(num_coils=3))[0])
    slabs = simulate(source, tmp_path / "slabs", SimulationOptions(num_coils=3, slab=3))
    np.testing.assert_array_equal(whole, np.concatenate([_kspace(path) for path in slabs]))
    (part,) = simulate(source, tmp_path / "part", SimulationOptions(num_coils=3, slices=(2, 4)))
    np.testing.assert_array_equal(whole[1:3], _kspace(part))


def test_blank_slices_are_dropped_and_the_kept_ones_recorded(tmp_path):
    brain = _brain()
    brain[:, :, 2] = 0
    brain[3, 3, 2] = 100  # one voxel is no slice
    (path,) = simulate(str(_write_nifti(tmp_path / "a.nii", brain)), tmp_path / "out", SimulationOptions())
    assert read_provenance(path)["slices"] == [1, 3, 4]
    assert len(_kspace(path)) == 3


def test_one_bright_voxel_changes_neither_slices_nor_noise(tmp_path):
    brain = _brain()
    (tmp_path / "spiked").mkdir()
    _write_nifti(tmp_path / "a.nii", brain)
    brain[10, 12, 3] = 1e5
    _write_nifti(tmp_path / "spiked" / "a.nii", brain)
    stored = []
    for folder in (tmp_path, tmp_path / "spiked"):
        (path,) = simulate(str(folder / "a.nii"), folder / "out", SimulationOptions(snr=20.0))
        stored.append(read_provenance(path))
    assert stored[0]["slices"] == stored[1]["slices"] == [1, 2, 3, 4]
    assert stored[1]["noise_std"] == pytest.approx(stored[0]["noise_std"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "subject"),
    [("patient001_frame01", "patient001"), ("sub-A2_ses-1_T1w", "sub-A2"), ("3T_brain_07", "3T_brain_07")],
)
def test_subject_stands_in_every_slab(tmp_path, name, subject):
    _write_nifti(tmp_path / f"{name}.nii", _brain())
    paths = simulate(str(tmp_path / f"{name}.nii"), tmp_path / "out", SimulationOptions(slab=2))
    assert len(paths) == 2
    assert {read_provenance(path)["subject"] for path in paths} == {subject}


def test_provenance_records_everything(tmp_path):
    source = _write_nifti(tmp_path / "a.nii", _brain())
    options = SimulationOptions(num_coils=2, snr=10.0, size=(24, 40), mask=MaskOptions("FastMRIEquispaced", 4, 0.1))
    (path,) = simulate(str(source), tmp_path / "out", options)
    provenance = read_provenance(path)
    assert provenance["origin"] == "simulated from magnitude"
    assert provenance["source"] == {"name": "a.nii", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert provenance["options"] == json.loads(json.dumps(asdict(options)))
    assert provenance["noise_std"] > 0
    with h5py.File(path) as file:
        lines = file["mask"][()]
    assert provenance["mask"] == {"acceleration": 40 / lines.sum(), "num_center_lines": 4}
    assert {"direct-recon", "direct-hifimamba", "numpy"} <= set(provenance["versions"])


def test_dataset_of_direct_reads_a_folder_of_volumes(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "b.nii.gz"):
        _write_nifti(tmp_path / "in" / name, _brain())
    options = SimulationOptions(num_coils=3, size=(24, 40), mask=MaskOptions("FastMRIEquispaced", 4, 0.1))
    paths = simulate(str(tmp_path / "in"), tmp_path / "out", options)
    assert [path.name for path in paths] == ["a.h5", "b.h5"]
    dataset = FastMRIDataset(tmp_path / "out", pass_mask=True)
    assert len(dataset) == 8
    sample = dataset[0]
    assert sample["kspace"].shape == (3, 24, 40)
    assert sample["sampling_mask"].shape == (1, 24, 40, 1)


def test_second_run_does_nothing_and_an_interrupted_one_is_completed(tmp_path, monkeypatch):
    source = str(_write_nifti(tmp_path / "a.nii", _brain()))
    options = SimulationOptions(snr=10.0, slab=2)
    paths = simulate(source, tmp_path / "out", options)
    digests = _digests(paths)
    paths[0].unlink()
    (tmp_path / "out" / f".{paths[0].name}.partial").write_text("left by a killed run")
    times = paths[1].stat().st_mtime_ns
    assert _digests(simulate(source, tmp_path / "out", options)) == digests
    assert paths[1].stat().st_mtime_ns == times
    assert sorted((tmp_path / "out").iterdir()) == paths

    def fail(*_):
        raise AssertionError("simulated again")

    monkeypatch.setattr(module, "image_to_kspace", fail)
    assert simulate(source, tmp_path / "out", options) == paths


@pytest.mark.parametrize("foreign", ["other options", "other source", "other file"])
def test_output_folder_with_other_content_is_refused(tmp_path, foreign):
    source = _write_nifti(tmp_path / "a.nii", _brain())
    output = tmp_path / "out"
    if foreign == "other file":
        output.mkdir()
        (output / "a.h5").write_text("something else")
    else:
        simulate(str(source), output, SimulationOptions())
    if foreign == "other source":
        _write_nifti(source, _brain()[::-1])
    before = _digests(list(output.iterdir()))
    with pytest.raises(FileExistsError, match=r"already holds a\.h5 of another simulation; choose a new"):
        simulate(str(source), output, SimulationOptions(seed=1 if foreign == "other options" else 0))
    assert _digests(list(output.iterdir())) == before


def test_output_that_is_a_file_is_refused(tmp_path):
    source = _write_nifti(tmp_path / "a.nii", _brain())
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"):
        simulate(str(source), source, SimulationOptions())


def _with_nan() -> np.ndarray:
    voxels = _brain()
    voxels[3, 4, 2] = np.nan
    return voxels


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.ones((5, 5, 5, 2), np.float32), r"shape \(5, 5, 5, 2\); expected one 3-D volume"),
        (np.ones((5, 5), np.float32), r"shape \(5, 5\); expected one 3-D volume"),
        (np.ones((5, 5, 0), np.float32), "no voxel"),
        (np.full((5, 5, 5), 3, np.float32), "constant: every voxel is 3"),
        (np.zeros((5, 5, 5), np.int16), "constant: every voxel is 0"),
        (_with_nan(), "1 voxels that are NaN or infinite"),
        (_brain() - 1, "values down to -1; expected magnitudes"),
        (_brain().astype(np.complex64), "type complex64; expected real magnitudes"),
    ],
)
def test_unusable_volume_is_refused(tmp_path, voxels, message):
    source = _write_nifti(tmp_path / "a.nii", voxels)
    with pytest.raises(ValueError, match=message):
        simulate(str(source), tmp_path / "out", SimulationOptions())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "text", "cut short", "cut short, compressed", "not compressed"])
def test_unreadable_file_is_refused(tmp_path, damage):
    whole = _write_nifti(tmp_path / "whole.nii", _brain()).read_bytes()
    name, content = {
        "empty": ("a.nii", b""),
        "text": ("a.nii", b"patient,age\n" * 100),
        "cut short": ("a.nii", whole[:2000]),
        "cut short, compressed": ("a.nii.gz", gzip.compress(whole)[:3000]),
        "not compressed": ("a.nii.gz", b"x" * 3000),
    }[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as NIfTI"):
        simulate(str(tmp_path / name), tmp_path / "out", SimulationOptions())


def test_missing_and_ambiguous_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected a NIfTI file, a folder .* icbm152"):
        simulate("nowhere", tmp_path / "out", SimulationOptions())
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.nii or \.nii\.gz file in the folder"):
        simulate(str(tmp_path / "in"), tmp_path / "out", SimulationOptions())
    for name in ("a.nii", "a.nii.gz"):
        _write_nifti(tmp_path / "in" / name, _brain())
    with pytest.raises(ValueError, match=r"both a\.nii and a\.nii\.gz"):
        simulate(str(tmp_path / "in"), tmp_path / "out", SimulationOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_coils": 0}, "num_coils is 0; expected at least 1"),
        ({"slab": 0}, "slab is 0; expected at least 1"),
        ({"size": (0, 4)}, "size is 0; expected at least 1"),
        ({"snr": 0.0}, "snr is 0.0; expected a finite number above 0"),
        ({"snr": float("nan")}, "snr is nan; expected"),
        ({"voxel_size": -1.0}, "voxel_size is -1.0; expected"),
        ({"phase": float("inf")}, "phase is inf; expected"),
        ({"orientation": "oblique"}, "orientation is 'oblique'; expected one of axial, coronal, sagittal"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimulationOptions(**options)


def test_range_without_foreground_is_refused(tmp_path):
    source = _write_nifti(tmp_path / "a.nii", _brain())
    for slices in ((0, 1), (4, 2), (6, 9)):
        with pytest.raises(ValueError, match=r"no slice with foreground in slices .* of its 6 axial slices"):
            simulate(str(source), tmp_path / "out", SimulationOptions(slices=slices))


def test_command_line_reaches_every_option(tmp_path, capsys):
    source = _write_nifti(tmp_path / "a.nii", _brain((20, 24, 30)))
    words = (
        f"simulate {source} {tmp_path / 'out'} --coils 2 --snr 30 --phase 0.5 --orientation coronal --slices 4 -4 "
        "--slab 5 --voxel-size 1.5 --size 24 40 --mask FastMRIEquispaced 4 0.1 --seed 7"
    )
    cli.main(words.split())
    assert "simulated from magnitude" in capsys.readouterr().out
    paths = sorted((tmp_path / "out").iterdir())
    assert len(paths) == 4
    assert read_provenance(paths[0])["options"] == {
        "num_coils": 2,
        "snr": 30.0,
        "phase": 0.5,
        "orientation": "coronal",
        "slices": [4, -4],
        "slab": 5,
        "voxel_size": 1.5,
        "size": [24, 40],
        "mask": {"name": "FastMRIEquispaced", "acceleration": 4.0, "center_fraction": 0.1},
        "seed": 7,
    }
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*words.split()[:3], "--mask", "FastMRIEquispaced", "four", "0.1"])
    assert exit_info.value.code == 2
    assert "The mask is 'FastMRIEquispaced four 0.1'; expected a name and two numbers" in capsys.readouterr().err


def test_template_ships_with_nilearn_and_fits():
    pytest.importorskip("nilearn")
    (source,) = module.find_sources("icbm152").values()
    volume = load_volume(source, SimulationOptions(voxel_size=1.5, size=(128, 128)))
    assert volume.shape == (189, 128, 128)
    foreground = volume > 0.1 * volume.max()
    assert not foreground[:, [0, -1]].any()
    assert not foreground[:, :, [0, -1]].any()
