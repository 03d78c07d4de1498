"""Tests of direct_hifimamba.reconstruction.volume: interruption, resumption, several processes, memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from direct_hifimamba import cli
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.reconstruction import volume
from direct_hifimamba.reconstruction.outputs import output_paths
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from tests.reconstruction.reconstructor_test import OURS, line_mask, save_experiment, simulate

SLICES = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("direct.environment.setup_logging", lambda *args: None)
        return save_experiment(tmp_path_factory.mktemp("experiments") / "0", OURS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "volume.h5"
    write_volume(path, [kspace * (1 + index) for index in range(SLICES // 3) for kspace in simulate()], {}, line_mask())
    return path


def reconstruct(*arguments: Any) -> None:
    cli.main(["reconstruct", *map(str, arguments)])


def read_images(path: Path) -> NDArray[Any]:
    with h5py.File(path) as file:
        return file["reconstruction"][()]


def interrupt(index_of_last: int, action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `action` happen before the slice after `index_of_last` is reconstructed."""
    original = Reconstructor._transform_slice

    def transform_slice(self: Reconstructor, kspace: Any, sampled: Any, maps: Any, index: int, *args: Any) -> Any:
        if index > index_of_last:
            action()
        return original(self, kspace, sampled, maps, index, *args)

    monkeypatch.setattr(Reconstructor, "_transform_slice", transform_slice)


def press_control_c(*_: Any) -> None:
    raise KeyboardInterrupt


def reconstruct_and_be_killed(*arguments: Any) -> None:
    interrupt(1, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
    reconstruct(*arguments)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_result(
    checkpoint: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ("--flips", "--uncertainty")
    arguments = (checkpoint, source, tmp_path / "scan", *options)
    process = multiprocessing.get_context("spawn").Process(target=reconstruct_and_be_killed, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {".scan.partial"}
    reconstruct(*arguments, "--jobs", 2)
    assert f"Resuming: 2 of {SLICES} slices are finished." in capfd.readouterr().out
    suffixes = (".h5", ".nii.gz", ".png", "_spread.h5", "_spread.nii.gz", "_residual.h5")
    assert {path.name for path in tmp_path.iterdir()} == {f"scan{suffix}" for suffix in suffixes}

    reconstruct(checkpoint, source, tmp_path / "uninterrupted", *options)
    for suffix in suffixes:
        names = (tmp_path / f"{stem}{suffix}" for stem in ("scan", "uninterrupted"))
        one, other = (path.read_bytes() if path.suffix != ".h5" else read_images(path).tobytes() for path in names)
        assert one == other


def test_finished_slices_are_not_computed_again(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (checkpoint, source, tmp_path / "scan")
    partial = tmp_path / ".scan.partial"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(2, press_control_c, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(*arguments)
    mark = np.full((24, 32), 7, np.float32)
    with (partial / "00001.npz").open("wb") as file:
        np.savez(file, reconstruction=mark)
    # As after a power failure.
    (partial / "00002.npz").write_bytes((partial / "00000.npz").read_bytes()[:100])
    (partial / "00003.npz").write_bytes(b"")
    with pytest.MonkeyPatch.context() as monkeypatch:  # interrupted once more, when files are written
        monkeypatch.setattr("direct_hifimamba.data.formats.png.write_images", press_control_c)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(*arguments)
    assert (tmp_path / "scan.h5").exists() and partial.exists()
    older = tmp_path / "scan.cfl"
    older.touch()
    os.utime(older, (0, 0))
    with pytest.raises(SystemExit, match="2"):
        reconstruct(*arguments, "--format", "cfl")
    assert f"{older} exists already" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(-1, lambda: pytest.fail("All slices were finished."), monkeypatch)
        reconstruct(*arguments)
    images = read_images(tmp_path / "scan.h5")
    np.testing.assert_array_equal(images[1], mark)
    assert (images[2] != 0).any() and not partial.exists()


def test_files_that_appear_in_the_meantime_are_kept(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scan.h5"
    original = volume._find_covariance

    def find_covariance(*arguments: Any) -> Any:
        output.write_text("of another process")
        return original(*arguments)

    monkeypatch.setattr(volume, "_find_covariance", find_covariance)
    with pytest.raises(SystemExit, match="2"):
        reconstruct(checkpoint, source, output, "--uncertainty")
    assert f"{output} exists already" in capsys.readouterr().err
    assert output.read_text() == "of another process" and list(tmp_path.iterdir()) == [output]


def test_a_damaged_note_of_the_run_is_named(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".scan.partial").mkdir()
    (tmp_path / ".scan.partial" / "run.json").touch()
    with pytest.raises(SystemExit, match="2"):
        reconstruct(checkpoint, source, tmp_path / "scan")
    assert "run.json is damaged; remove the folder" in capsys.readouterr().err


def test_slices_of_another_run_are_not_used(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scan"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(0, press_control_c, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(checkpoint, source, output)
    before = sorted((tmp_path / ".scan.partial").iterdir())
    other = tmp_path / "other.h5"
    write_volume(other, simulate(), {}, line_mask())
    np.save(tmp_path / "mask.npy", line_mask(center=7))
    for arguments, message in (
        ((checkpoint, source, output, "--complex"), "with different options"),
        ((checkpoint, other, output), "with different input"),
        ((checkpoint, source, output, "--mask", tmp_path / "mask.npy"), "with different input"),
        ((checkpoint, source, output, "--uncertainty"), "with different options"),
        ((checkpoint, source, output, "--jobs", 0), "expected an integer, 1 or more"),
    ):
        with pytest.raises(SystemExit, match="2"):
            reconstruct(*arguments)
        assert message in capsys.readouterr().err
    torch.set_num_threads(2)
    with pytest.raises(SystemExit, match="2"):
        reconstruct(checkpoint, source, output)
    assert "with different number of threads" in capsys.readouterr().err
    assert sorted((tmp_path / ".scan.partial").iterdir()) == before


def test_memory_is_that_of_a_slice(checkpoint: Path, tmp_path: Path) -> None:
    kspace = np.repeat(np.repeat(simulate(64, 64)[:1], 4, axis=1), 32, axis=0)
    write_volume(tmp_path / "volume.h5", kspace, {}, line_mask(64, center=9))
    size = kspace.nbytes
    del kspace
    request = volume.Request((checkpoint,), tmp_path / "volume.h5")
    tracemalloc.start()
    try:
        with volume.reconstruct_volume(request, tmp_path / "partial") as slices:
            assert sum(1 for _ in slices.read("reconstruction")) == 32
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 3


@pytest.mark.parametrize("name", ["results.mat", "MY_DICOM", "results"])
def test_any_existing_folder_takes_files_of_the_name_of_the_input(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    paths = output_paths(tmp_path / name, tmp_path / "scan.h5", ["hdf5"])
    assert paths["hdf5"] == tmp_path / name / "scan.h5"


def test_the_folder_of_an_earlier_run_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "scan_dicom").mkdir()
    with pytest.raises(FileExistsError, match="scan_dicom"):
        output_paths(tmp_path / "scan_dicom", tmp_path / "scan.h5")
