"""Tests of direct_hifimamba.data.verify."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from direct_hifimamba import cli
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings
from direct_hifimamba.data.verify import verify
from tests.data import lookalikes

OPTIONS = {"acdc": {"size": (24, 24)}, "calgary-campinas": {}, "m4raw": {"copy": True}, "fastmri": {}}
BUILD: dict[str, Callable[[Path], object]] = {
    "acdc": lookalikes.acdc,
    "calgary-campinas": lookalikes.calgary_campinas,
    "m4raw": lookalikes.m4raw,
    "fastmri": lookalikes.fastmri,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data sets; not to be changed."""
    folder = tmp_path_factory.mktemp("verify")
    for name, build in BUILD.items():
        build(folder / name / "raw")
        prepare(folder / name / "raw", folder / name / "out", Settings.of(name, **OPTIONS[name]))
    return folder


@pytest.fixture
def copy_of(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the download and what was made of it; returns the folder with `raw` and `out`."""

    def copy(name: str) -> Path:
        shutil.copytree(originals / name, tmp_path / name)
        return tmp_path / name

    return copy


def _flip(path: Path, name: str = "kspace") -> None:
    """Change the lowest bit of one byte in the middle of a dataset, behind the back of HDF5."""
    with h5py.File(path) as file:
        dataset = file[name]
        if dataset.chunks:
            chunk = dataset.id.get_chunk_info(dataset.id.get_num_chunks() // 2)
            place = chunk.byte_offset + chunk.size // 2
        else:
            place = dataset.id.get_offset() + dataset.nbytes // 2
    with path.open("r+b") as raw:
        raw.seek(place)
        byte = raw.read(1)[0]
        raw.seek(place)
        raw.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", BUILD)
def test_untouched_data_are_in_order_wherever_they_lie(copy_of, name, capsys):
    folder = copy_of(name)
    assert verify(folder / "out") == []
    cli.main(["verify", str(folder / "out")])
    assert "is what its protocol.json says" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("acdc", "out/train/patient001_frame12.h5"),
        ("m4raw", "out/test/2022101401_T102.h5"),
        ("fastmri", "raw/singlecoil_val/file1000000.h5"),
        ("calgary-campinas", "raw/Train/e14089s3_P53248.7.h5"),
    ],
)
def test_a_flipped_bit_in_kspace_is_found(copy_of, name, file, capsys):
    folder = copy_of(name)
    _flip(folder / file)
    (problem,) = verify(folder / "out")
    assert Path(file).name in problem
    assert "has other k-space, or another header, than was prepared" in problem
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["verify", str(folder / "out")])
    assert exit_info.value.code == 1
    captured = capsys.readouterr()
    assert problem in captured.out
    assert "1 problems" in captured.err


def test_a_flipped_bit_in_a_copy_with_a_mask_is_found(copy_of):
    out = copy_of("acdc") / "out"
    _flip(out / "test_radial_16x" / "patient101_frame01.mat")
    assert verify(out) == [
        "test_radial_16x/patient101_frame01.mat does not have the k-space of test/patient101_frame01.h5"
    ]


def test_a_changed_header_is_found(copy_of):
    out = copy_of("fastmri") / "out"
    path = out / "val" / "file1000000.h5"
    with h5py.File(path, "r+") as file:
        header = file["ismrmrd_header"][()]
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = header.replace(b"34", b"33")
    assert verify(out) == ["val/file1000000.h5 has other k-space, or another header, than was prepared"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("acdc", "test_radial_32x/patient101_frame14.mat"), ("fastmri", "val_equispaced_8x/file1000017.h5")],
)
def test_a_changed_mask_is_found(copy_of, name, file):
    out = copy_of(name) / "out"
    with h5py.File(out / file, "r+") as handle:
        mask = handle["mask"][()]
        mask.flat[0] = ~mask.flat[0]
        handle["mask"][...] = mask
    (problem,) = verify(out)
    assert problem.startswith(f"{file} has another mask than MaskOptions(")


def test_a_view_of_another_file_is_found(copy_of):
    out = copy_of("fastmri") / "out"
    with h5py.File(out / "val_random_4x" / "file1000000.h5", "r+") as file:
        del file["kspace"]
        file["kspace"] = h5py.ExternalLink("../val/file1000017.h5", "kspace")
    assert verify(out) == ["val_random_4x/file1000000.h5 does not have the k-space of val/file1000000.h5"]


@pytest.mark.parametrize("key", ["max", "norm", "sha256", "provenance"])
def test_changed_attributes_are_found(copy_of, key):
    out = copy_of("acdc") / "out"
    with h5py.File(out / "train" / "patient002_frame01.h5", "r+") as file:
        value = file.attrs[key]
        file.attrs[key] = value.replace("0", "1") if isinstance(value, str) else 1.01 * value
    assert verify(out) == ["train/patient002_frame01.h5 has attributes that differ from protocol.json"]


@pytest.mark.parametrize("file", ["test/patient101_frame01.h5", "test_radial_16x/patient101_frame01.mat"])
def test_a_missing_file_is_found(copy_of, file):
    out = copy_of("acdc") / "out"
    (out / file).unlink()
    assert f"{file} is missing" in verify(out)


def test_a_truncated_file_is_found(copy_of):
    out = copy_of("acdc") / "out"
    path = out / "test" / "patient101_frame01.h5"
    path.write_bytes(path.read_bytes()[:3000])
    assert any(problem.startswith("test/patient101_frame01.h5 cannot be read: ") for problem in verify(out))


def test_a_missing_download_is_found(copy_of):
    folder = copy_of("fastmri")
    (folder / "raw").rename(folder / "gone")
    problems = verify(folder / "out")
    assert len(problems) == 3
    assert all("which is not there; put it back, or prepare with --copy" in problem for problem in problems)


def test_foreign_files_and_changed_lists_are_found(copy_of):
    out = copy_of("acdc") / "out"
    (out / "train" / "more.h5").write_text("")
    (out / "notes.txt").write_text("")
    (out / "test.lst").write_text("patient101_frame01.h5\n")
    (out / "train.lst").unlink()
    assert sorted(verify(out)) == [
        "notes.txt is not in protocol.json",
        "test.lst is not the list of the files of test",
        "train.lst is not the list of the files of train",
        "train/more.h5 is not in protocol.json",
    ]


def test_a_changed_protocol_is_found(copy_of):
    out = copy_of("fastmri") / "out"
    protocol = json.loads((out / "protocol.json").read_text())
    protocol["settings"]["seed"] = 1
    (out / "protocol.json").write_text(json.dumps(protocol))
    problems = verify(out)
    assert any("val_random_4x/file1000000.h5 has another mask" in problem for problem in problems)
    assert any("has other figures of its mask than protocol.json" in problem for problem in problems)


def test_files_that_could_not_be_prepared_are_reported(tmp_path):
    lookalikes.acdc(tmp_path / "raw")
    bad = tmp_path / "raw" / "database" / "testing" / "patient101" / "patient101_frame01.nii.gz"
    bad.write_text("damaged")
    prepare(tmp_path / "raw", tmp_path / "out", Settings.of("acdc", size=(24, 24)))
    (problem,) = verify(tmp_path / "out")
    assert problem.startswith("patient101/patient101_frame01.nii.gz could not be prepared: cannot be read as NIfTI")


def test_folders_that_are_no_prepared_data_set_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no protocol\.json; expected a folder that direct-hifimamba prepare"):
        verify(tmp_path)
    (tmp_path / "protocol.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"protocol\.json is damaged: .* Remove"):
        verify(tmp_path)


def test_an_interrupted_preparation_is_not_in_order(tmp_path, monkeypatch):
    lookalikes.acdc(tmp_path / "raw")
    monkeypatch.setattr(
        "direct_hifimamba.data.formats.hdf5.write_cmrxrecon", lambda *_: (_ for _ in ()).throw(KeyError)
    )
    with pytest.raises(KeyError):
        prepare(tmp_path / "raw", tmp_path / "out", Settings.of("acdc", size=(24, 24)))
    problems = verify(tmp_path / "out")
    assert "nothing is prepared yet; run direct-hifimamba prepare again" in problems
    assert "train/patient001_frame01.h5 is not in protocol.json" in problems


def test_verification_changes_nothing(copy_of):
    folder = copy_of("fastmri")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    verify(folder / "out")
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert np.all([len(content) for content, _ in before.values()])
