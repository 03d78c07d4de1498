"""Tests of direct_hifimamba.data.prepare, on look-alikes of the data sets."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from direct.data.datasets import FastMRIDataset, build_dataset
from direct.data.mri_transforms import build_mri_transforms
from direct.data.transforms import fft2, ifft2

from direct_hifimamba import cli
from direct_hifimamba.data.acquisition import find_mask, open_acquisition
from direct_hifimamba.data.checks import check_acquisition
from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.data.formats import hdf5
from direct_hifimamba.data.formats.hdf5 import read_mask, read_slices
from direct_hifimamba.data.fourier import kspace_to_image, root_sum_of_squares
from direct_hifimamba.data.masks import MaskOptions, draw_mask
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings, read_protocol, write_protocol
from direct_hifimamba.data.provenance import read_provenance
from direct_hifimamba.data.references import SourceError, check_center, check_fully_sampled
from direct_hifimamba.data.splits import find_leaks
from direct_hifimamba.data.verify import verify
from tests.data import lookalikes
from tests.data.lookalikes import centred_fft

SIZE = (24, 24)


class Case(NamedTuple):
    """A look-alike, how it is prepared, and what its slices then look like."""

    build: Callable[..., dict[str, np.ndarray]]
    options: dict[str, Any]
    expect: Callable[[np.ndarray], np.ndarray]


CASES = {
    "fastmri": Case(lookalikes.fastmri, {"slices": "central:5"}, lambda images: images[1:6]),
    "calgary-campinas": Case(lookalikes.calgary_campinas, {}, lambda images: images[30:-30]),
    "acdc": Case(lookalikes.acdc, {"size": SIZE}, lambda images: np.pad(images[:, 3:27], [(0, 0), (0, 0), (2, 2)])),
    "prostate158": Case(lookalikes.prostate158, {"size": SIZE}, lambda images: images[1:, 1:25, 1:25]),
    "m4raw": Case(lookalikes.m4raw, {}, lambda images: images),
    "raw": Case(lookalikes.raw, {}, lambda images: images),
}
FILES = {
    "fastmri": {"train": ["file1000001.h5"], "val": ["file1000000.h5", "file1000017.h5"]},
    "calgary-campinas": {"train": ["e14089s3_P53248.7.h5", "e14134s3_P06656.7.h5"], "val": ["e13992s3_P09216.7.h5"]},
    "acdc": {
        "train": [f"patient{name}.h5" for name in ("001_frame01", "001_frame12", "002_frame01", "002_frame10")],
        "test": ["patient101_frame01.h5", "patient101_frame14.h5"],
    },
    "prostate158": {"train": ["020_t2.h5"], "val": ["021_t2.h5"], "test": ["001_t2.h5"]},
    "m4raw": {
        "train": ["2022061003_T101.h5", "2022061003_T102.h5"],
        "val": ["2022061401_T101.h5", "2022061401_T102.h5"],
        "test": ["2022101401_T101.h5", "2022101401_T102.h5"],
    },
    "raw": {"train": ["brain.npy.h5"], "val": ["brain.npz.h5"], "test": ["brain.raw.h5"]},
}


class Prepared(NamedTuple):
    raw: Path
    dest: Path
    content: dict[str, np.ndarray]
    protocol: dict[str, Any]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepared]:
    """Every look-alike, prepared once; not to be changed."""
    cache: dict[str, Prepared] = {}

    def get(name: str) -> Prepared:
        if name not in cache:
            folder = tmp_path_factory.mktemp(name)
            content = CASES[name].build(folder / "raw")
            settings = Settings.of(name, **CASES[name].options)
            protocol = prepare(folder / "raw", folder / "out", settings)
            cache[name] = Prepared(folder / "raw", folder / "out", content, protocol)
        return cache[name]

    return get


def _read(dest: Path, folder: str, transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Any:
    """A folder through the data set of DIRECT that the protocol names, configured as the protocol says."""
    configuration = dict(read_protocol(dest)["configurations"][folder]["dataset"])
    return build_dataset(transforms=transform, data_root=dest / folder, **configuration)


def _hashes(dest: Path) -> dict[str, str]:
    """Of everything that is in the files, but not of where they link to."""
    hashes = {}
    for path in sorted((*dest.rglob("*.h5"), *dest.rglob("*.mat"))):
        digest = hashlib.sha256()
        with h5py.File(path) as file:
            for name, dataset in sorted(file.items()):
                digest.update(f"{name}{dataset.dtype}{dataset.shape}".encode() + np.asarray(dataset[()]).tobytes())
            digest.update(repr(sorted((name, str(value)) for name, value in file.attrs.items())).encode())
        hashes[path.relative_to(dest).as_posix()] = digest.hexdigest()
    return hashes


def _skipped(protocol: dict[str, Any]) -> dict[str, str]:
    return {name: reason for split in protocol["splits"].values() for name, reason in split["skipped"].items()}


@pytest.mark.parametrize("name", CASES)
def test_direct_reads_the_slices_of_the_protocol(prepared, name):
    _, dest, content, protocol = prepared(name)
    assert {split: sorted(part["files"]) for split, part in protocol["splits"].items()} == FILES[name]
    for split, names in FILES[name].items():
        assert (dest / f"{split}.lst").read_text().split() == names
        volumes: dict[str, list[np.ndarray]] = {file_name: [] for file_name in names}
        centered = "centered=False" not in protocol["configurations"][split]["physics"]["backward_operator"]
        dataset = _read(dest, split)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample["kspace"].dtype == np.complex64
            image = root_sum_of_squares(sample["kspace"], centered=centered)
            if name == "fastmri":
                image = image[12:-12, 5:-5]
            volumes[Path(sample["filename"]).name].append(image)
        for file_name, images in volumes.items():
            expected = CASES[name].expect(content[file_name])
            np.testing.assert_allclose(images, expected, atol=2e-4 * expected.max())
            record = protocol["splits"][split]["files"][file_name]
            assert len(record["slices"]) == len(images) == record["shape"][0]
            np.testing.assert_allclose(content[file_name][record["slices"]].max(), expected.max(), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_direct_reads_the_masks(prepared, name):
    _, dest, _, protocol = prepared(name)
    evaluation = [split for split in FILES[name] if split != "train"]
    folders = {folder: split for split in evaluation for folder in protocol["configurations"] if f"{split}_" in folder}
    assert len(folders) == len(protocol["settings"]["masks"]) * len(evaluation)
    assert not any(folder.startswith("train_") for folder in protocol["configurations"])
    for folder, split in folders.items():
        dataset, plain = (
            _read(dest, folder),
            FastMRIDataset(dest / split, filenames_lists=[f"{split}.lst"], filenames_lists_root=dest),
        )
        assert len(dataset) == len(plain) > 0
        order = sorted(range(len(dataset)), key=lambda index: dataset.data[index])
        plain_order = sorted(range(len(plain)), key=lambda index: plain.data[index])
        masks: dict[str, np.ndarray] = {}
        for index, plain_index in zip(order, plain_order, strict=True):
            sample, reference = dataset[index], plain[plain_index]
            np.testing.assert_array_equal(sample["kspace"], reference["kspace"])
            mask = sample["sampling_mask"][0, ..., 0]
            assert mask.shape == sample["kspace"].shape[-2:]
            file_name = Path(sample["filename"]).with_suffix(".h5").name
            np.testing.assert_array_equal(mask, masks.setdefault(file_name, mask))
            with h5py.File(dest / folder / Path(sample["filename"]).name) as file:
                stored = file["mask"][()].T if Path(sample["filename"]).suffix == ".mat" else file["mask"][()]
            np.testing.assert_array_equal(mask, np.broadcast_to(stored, mask.shape), "DIRECT cleared its padding")
            figures = protocol["splits"][split]["files"][file_name]["masks"][folder]
            padding = 2 * lookalikes.NUM_PADDED if name == "fastmri" else 0
            acquired = mask.shape[0] * (mask.shape[1] - padding)
            assert acquired / mask.sum() == pytest.approx(figures["acceleration"])
        if "equispaced" not in folder:  # of which there are few
            assert len({mask.tobytes() for mask in masks.values()}) == len(masks), "every file has its own mask"


@pytest.mark.parametrize("name", CASES)
def test_reconstruct_reads_what_direct_reads(prepared, name):
    _, dest, _, protocol = prepared(name)
    for folder in protocol["configurations"]:
        sample = _read(dest, folder)[0]
        raw, mask = open_acquisition(dest / folder / Path(sample["filename"]).name)
        kspace = np.stack(list(raw.slices()))
        mask = find_mask((kspace != 0).any(axis=1)) if mask is None else mask
        np.testing.assert_array_equal(kspace[0], sample["kspace"])
        sampled = check_acquisition(kspace, mask)
        if "sampling_mask" in sample:
            np.testing.assert_array_equal(sampled, np.broadcast_to(sample["sampling_mask"][0, ..., 0], sampled.shape))


@pytest.mark.parametrize(("name", "folder"), [("acdc", "test_radial_16x"), ("m4raw", "test_random_4x")])
def test_stored_masks_pass_through_the_transforms_of_direct(prepared, name, folder):
    transform = build_mri_transforms(
        partial(fft2, dim=(1, 2)),
        partial(ifft2, dim=(1, 2)),
        mask_func=None,
        sensitivity_maps_type="unit" if name == "acdc" else "rss_estimate",
        padding_eps=0.0,
        delete_kspace=False,
    )
    batch = next(iter(torch.utils.data.DataLoader(_read(prepared(name).dest, folder, transform), batch_size=2)))
    mask = batch["sampling_mask"].expand(batch["kspace"].shape)
    assert not mask.all()
    assert torch.isfinite(batch["masked_kspace"]).all()
    torch.testing.assert_close(batch["masked_kspace"], torch.where(mask, batch["kspace"], torch.zeros(())))


def test_what_the_archives_hold_besides_is_skipped(prepared):
    skipped = _skipped(prepared("acdc").protocol)
    assert {name for name in skipped if "patient101" in name} == {
        f"patient101/{name}"
        for name in ("Info.cfg", "patient101_4d.nii.gz", "patient101_frame01_gt.nii.gz", "patient101_frame14_gt.nii.gz")
    }
    skipped = _skipped(prepared("prostate158").protocol)
    assert {name for name in skipped if name.startswith("001/")} == {
        f"001/{name}.nii.gz"
        for name in ("adc", "dwi", "t2_anatomy_reader1", "t2_tumor_reader1", "adc_tumor_reader1", "empty")
    }
    assert _skipped(prepared("fastmri").protocol) == dict.fromkeys(
        ("file1000002.h5", "file1000007.h5"), "its acquisition is CORPD_FBK"
    )
    assert set(_skipped(prepared("m4raw").protocol).values()) == {"its acquisition is T2", "its acquisition is FLAIR"}


def test_dropped_slices_are_recorded_with_the_reason(prepared):
    def dropped(name: str) -> dict[str, list[int]]:
        return prepared(name).protocol["splits"]["train"]["files"][FILES[name]["train"][0]]["dropped"]

    assert dropped("fastmri") == {"not central:5": [0, 6, 7], "blank": []}
    assert dropped("calgary-campinas") == {"not inner:30": [*range(30), *range(36, 66)], "blank": []}
    assert dropped("prostate158") == {"not all": [], "blank": [0]}


@pytest.mark.parametrize("name", CASES)
def test_protocol_says_how_the_data_were_made(prepared, name):
    raw, dest, _, protocol = prepared(name)
    stored = json.loads((dest / "protocol.json").read_text())
    assert stored == json.loads(json.dumps(protocol))
    measured = name in ("fastmri", "calgary-campinas", "m4raw", "raw")
    assert stored["settings"]["kspace"] == ("measured" if measured else "simulated from magnitude")
    assert any("nothing about measured k-space" in remark for remark in stored["remarks"]) != measured
    unlike = {"fastmri": "kspace", "calgary-campinas": "kspace", "acdc": "size", "prostate158": "size"}.get(name)
    assert any(f"Unlike in the paper, {unlike} is" in remark for remark in stored["remarks"]) == (unlike is not None)
    for part in stored["splits"].values():
        for record in part["files"].values():
            (source,) = raw.rglob(f"{part['folder']}/{record['source']['name']}")
            assert record["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
            assert {"direct-recon", "direct-hifimamba", "torch"} <= set(record["versions"])


def test_only_valid_headers_are_kept(prepared):
    def header(name: str) -> bytes | None:
        with h5py.File(prepared(name).dest / "train" / FILES[name]["train"][0]) as file:
            return file["ismrmrd_header"][()] if "ismrmrd_header" in file else None

    assert header("m4raw") is None
    with h5py.File(prepared("fastmri").raw / "singlecoil_train" / "file1000001.h5") as file:
        expected = file["ismrmrd_header"][()]
    for personal in (
        b"<studyInformation><studyTime>00:00:00</studyTime></studyInformation>",
        b"<measurementID>0</measurementID>",
    ):
        assert personal in expected
        expected = expected.replace(personal, b"")
    assert header("fastmri") == expected
    sample = FastMRIDataset(prepared("fastmri").dest / "train")[0]
    assert sample["padding_left"] == lookalikes.NUM_PADDED
    assert sample["reconstruction_size"] == (24, 24, 1)


@pytest.mark.parametrize(
    ("coils", "reconstruction", "scale"), [("single", None, 1), ("single", "rss", 1.5), ("multi", None, 1)]
)
def test_fastmri_from_magnitude_is_the_transform_of_the_reconstruction(tmp_path, coils, reconstruction, scale):
    content = lookalikes.fastmri(tmp_path / "raw", coils)
    settings = Settings.of("fastmri", kspace=SIMULATED, coils=coils, size=(20, 30), reconstruction=reconstruction)
    assert any("in the paper, reconstruction is" in remark for remark in settings.remarks()) == (reconstruction is None)
    prepare(tmp_path / "raw", tmp_path / "out", settings)
    sample = FastMRIDataset(tmp_path / "out" / "train")[2]
    image = kspace_to_image(sample["kspace"][0])
    np.testing.assert_allclose(image.imag, 0, atol=1e-4)
    expected = np.pad(content["file1000001.h5"][2, 2:22], [(0, 0), (3, 3)])
    np.testing.assert_allclose(image.real, scale * expected, atol=1e-3)
    assert "padding_left" not in sample, "the header is that of the measurement"


def test_multi_coil_fastmri_keeps_its_coils(tmp_path):
    content = lookalikes.fastmri(tmp_path / "raw", "multi", num_slices=3)
    prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri", coils="multi"))
    sample = FastMRIDataset(tmp_path / "out" / "train")[1]
    assert sample["kspace"].shape == (3, 48, 34)
    image = root_sum_of_squares(sample["kspace"])[12:-12, 5:-5]
    np.testing.assert_allclose(image, content["file1000001.h5"][1], atol=1e-3)


def test_calgary_campinas_from_magnitude_is_centred_and_of_one_coil(tmp_path):
    content = lookalikes.calgary_campinas(tmp_path / "raw")
    settings = Settings.of("calgary-campinas", kspace=SIMULATED, size=(24, 24), slices="inner:32")
    protocol = prepare(tmp_path / "raw", tmp_path / "out", settings)
    assert protocol["configurations"]["val"]["physics"]["forward_operator"] == "fft2"
    sample = FastMRIDataset(tmp_path / "out" / "val")[0]
    expected = np.pad(content["e13992s3_P09216.7.h5"][32], [(1, 1), (2, 2)])
    np.testing.assert_allclose(root_sum_of_squares(sample["kspace"]), expected, atol=1e-2)


def test_normalised_slices_reach_from_0_to_1(tmp_path):
    lookalikes.prostate158(tmp_path / "raw")
    # Of this size, the slices have no background, and so no zeros before.
    settings = Settings.of("prostate158", size=(8, 8), masks=(), normalise_slices=True)
    protocol = prepare(tmp_path / "raw", tmp_path / "out", settings)
    assert any("the input knows the scale of the target" in remark for remark in protocol["remarks"])
    for sample in FastMRIDataset(tmp_path / "out" / "train"):
        image = root_sum_of_squares(sample["kspace"])
        assert image.max() == pytest.approx(1, abs=1e-5)
        assert image.min() == pytest.approx(0, abs=1e-5)
    assert not any("scale of the target" in remark for remark in Settings.of("prostate158").remarks())


def test_measured_slices_are_divided_by_their_maximum(tmp_path):
    content = lookalikes.m4raw(tmp_path / "raw")
    settings = Settings.of("m4raw", masks=(), normalise_slices=True)
    assert any("the input knows the scale of the target" in remark for remark in settings.remarks())
    prepare(tmp_path / "raw", tmp_path / "out", settings, ["train"])
    shutil.rmtree(tmp_path / "raw")  # nothing is linked
    dataset = FastMRIDataset(tmp_path / "out" / "train")
    images = np.stack([root_sum_of_squares(dataset[index]["kspace"]) for index in range(18)])
    expected = content["2022061003_T101.h5"]
    np.testing.assert_allclose(images, expected / expected.max(axis=(1, 2), keepdims=True), atol=1e-5)


def test_resampled_slices_keep_what_they_show(tmp_path):
    content = lookalikes.acdc(tmp_path / "raw", size=(30, 40))
    for fit in ("crop", "resample"):
        prepare(tmp_path / "raw", tmp_path / fit, Settings.of("acdc", size=(15, 20), fit=fit))
    sample = FastMRIDataset(tmp_path / "resample" / "test")[0]
    expected = content["patient101_frame01.h5"][0].reshape(15, 2, 20, 2).mean((1, 3))
    image = root_sum_of_squares(sample["kspace"])
    assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.9
    cropped = root_sum_of_squares(FastMRIDataset(tmp_path / "crop" / "test")[0]["kspace"])
    np.testing.assert_allclose(cropped, content["patient101_frame01.h5"][0, 8:23, 10:30], atol=1e-3)


def test_training_masks_only_where_asked_for(tmp_path):
    lookalikes.prostate158(tmp_path / "raw")
    masks = (MaskOptions("FastMRIRandom", 4, 0.08),)
    settings = Settings.of("prostate158", size=SIZE, masks=masks, mask_training=True)
    prepare(tmp_path / "raw", tmp_path / "out", settings)
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {f"{split}{mask}" for split in ("train", "val", "test") for mask in ("", "_random_4x")}
    assert FastMRIDataset(tmp_path / "out" / "train_random_4x", pass_mask=True)[0]["sampling_mask"].any()


@pytest.mark.parametrize(("name", "jobs"), [("m4raw", 1), pytest.param("acdc", 2, marks=pytest.mark.slow)])
def test_result_depends_neither_on_the_folder_nor_on_the_number_of_jobs(prepared, tmp_path, name, jobs):
    raw = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(prepared(name).raw, raw)
    prepare(raw, tmp_path / "a" / "b", Settings.of(name, **CASES[name].options), jobs=jobs)
    assert _hashes(tmp_path / "a" / "b") == _hashes(prepared(name).dest)
    for other in ("protocol.json", "train.lst", "test.lst"):
        assert (tmp_path / "a" / "b" / other).read_bytes() == (prepared(name).dest / other).read_bytes()


def test_masks_depend_on_the_seed_and_on_the_name_of_the_file(prepared, tmp_path):
    dest = prepared("acdc").dest
    prepare(prepared("acdc").raw, tmp_path / "out", Settings.of("acdc", size=SIZE, seed=1), ["test"])

    def mask(folder: Path, name: str) -> np.ndarray:
        with h5py.File((folder / "test_radial_16x" / name).with_suffix(".mat")) as file:
            return file["mask"][()]

    first, second = FILES["acdc"]["test"]
    assert not np.array_equal(mask(dest, first), mask(dest, second))
    assert not np.array_equal(mask(dest, first), mask(tmp_path / "out", first))
    kspace = [FastMRIDataset(folder / "test")[0]["kspace"] for folder in (dest, tmp_path / "out")]
    np.testing.assert_array_equal(*kspace)


@pytest.mark.parametrize("name", ["acdc", "fastmri"])
def test_interrupted_preparation_is_completed(prepared, tmp_path, monkeypatch, name):
    raw, whole, _, _ = prepared(name)
    settings = Settings.of(name, **CASES[name].options)
    write, calls = hdf5.write_view if name == "fastmri" else hdf5.write_cmrxrecon, []

    def fail(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.with_name(f".{path.name}.partial").write_text("what a killed process leaves")
            raise KeyboardInterrupt
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(hdf5, write.__name__, fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, tmp_path, settings)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    assert finished
    prepare(raw, tmp_path, settings)
    assert _hashes(tmp_path) == _hashes(whole)
    assert (tmp_path / "protocol.json").read_bytes() == (whole / "protocol.json").read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert not list(tmp_path.rglob(".*"))


def _as_before_padding_was_cleared(dest: Path) -> None:
    """Turn a preparation into that of an earlier version: nobody's, its masks without origin and over the padding."""
    protocol = read_protocol(dest)
    for split, part in protocol["splits"].items():
        for name, record in part["files"].items():
            for folder, options in Settings.from_json(protocol["settings"]).mask_folders(split).items():
                whole = draw_mask(options, record["shape"][-2:], name, 0)
                with h5py.File(dest / folder / name, "r+") as file:
                    file["mask"][...] = whole.samples
                    provenance = {"options": asdict(options), **whole.provenance()}
                    stored = {"mask": provenance, "seed": 0, "volume_sha256": record["sha256"]}
                    file.attrs["provenance"] = json.dumps(stored)
                record["masks"][folder] |= whole.provenance()
            for key in ("subject", "acquisition"):
                del record[key]
            with h5py.File(dest / split / name, "r+") as file:
                provenance = json.loads(file.attrs["provenance"])
                del provenance["subject"], provenance["acquisition"]
                file.attrs["provenance"] = json.dumps(provenance)
    write_protocol(dest, protocol)


def test_masks_of_earlier_versions_are_accepted_and_completed(prepared, tmp_path):
    raw, whole, _, _ = prepared("fastmri")
    shutil.copytree(raw, tmp_path / "raw")
    shutil.copytree(whole, tmp_path / "out")
    _as_before_padding_was_cleared(tmp_path / "out")
    num_cleared = 0
    for path in whole.glob("val_*/*.h5"):
        with h5py.File(path) as now, h5py.File(tmp_path / "out" / path.relative_to(whole)) as before:
            num_cleared += before["mask"][()].sum() - now["mask"][()].sum()
            np.testing.assert_array_equal(read_mask(before), read_mask(now))
    assert num_cleared > 0
    assert verify(tmp_path / "out") == []
    prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri", **CASES["fastmri"].options))
    assert _hashes(tmp_path / "out") == _hashes(whole)
    assert verify(tmp_path / "out") == []


def test_radial_masks_are_cleared_in_the_padding(tmp_path):
    lookalikes.fastmri(tmp_path / "raw", num_slices=3)
    settings = Settings.of("fastmri", slices="all", masks=(MaskOptions("Radial", 4),))
    prepare(tmp_path / "raw", tmp_path / "out", settings, ["val"])
    with h5py.File(tmp_path / "out" / "val_radial_4x" / "file1000000.mat") as file:
        mask = read_mask(file)
    assert mask.any()
    assert not mask[:, : lookalikes.NUM_PADDED].any()
    assert not mask[:, -lookalikes.NUM_PADDED :].any()
    assert verify(tmp_path / "out") == []


SUBJECTS = {
    "fastmri": {f"file{number}.h5": f"{number:064x}" for number in (1000000, 1000001, 1000017)},
    "calgary-campinas": {
        "e14089s3_P53248.7.h5": "e14089",
        "e14134s3_P06656.7.h5": "e14134",
        "e13992s3_P09216.7.h5": "e13992",
    },
    "acdc": {name: name[:10] for names in FILES["acdc"].values() for name in names},
    "prostate158": {"020_t2.h5": "020", "021_t2.h5": "021", "001_t2.h5": "001"},
    "m4raw": {name: name[:10] for names in FILES["m4raw"].values() for name in names},
    "raw": {name: name.removesuffix(".h5") for names in FILES["raw"].values() for name in names},
}


@pytest.mark.parametrize("name", CASES)
def test_origin_source_and_subject_stand_in_every_file(prepared, name):
    _, dest, _, protocol = prepared(name)
    paths = [path for path in dest.rglob("*") if path.suffix in (".h5", ".mat")]
    assert len(paths) > len(SUBJECTS[name]), "views are among them"
    for path in paths:
        provenance = read_provenance(path)
        volume = path.with_suffix(".h5").name
        (record,) = (part["files"][volume] for part in protocol["splits"].values() if volume in part["files"])
        assert provenance["origin"] == protocol["settings"]["kspace"]
        assert provenance["source"] == record["source"]
        assert provenance["subject"] == record["subject"] == SUBJECTS[name][volume]
        assert provenance.get("acquisition") == record.get("acquisition") == protocol["settings"]["acquisition"]


def _change_attributes(root: Path, **attributes: Any) -> None:
    for path in root.rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs.update({name: value(file.attrs) for name, value in attributes.items()})


@pytest.mark.parametrize("form", [str.encode, np.bytes_, lambda text: np.array([text.encode()])])
def test_attributes_stored_as_bytes_count(prepared, tmp_path, form):
    shutil.copytree(prepared("fastmri").raw, tmp_path / "raw")
    _change_attributes(
        tmp_path / "raw",
        acquisition=lambda attributes: form(attributes["acquisition"]),
        patient_id=lambda attributes: form(attributes["patient_id"]),
    )
    protocol = prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri"), ["val"])
    files = protocol["splits"]["val"]["files"]
    assert {name: record["subject"] for name, record in files.items()} == {
        name: SUBJECTS["fastmri"][name] for name in FILES["fastmri"]["val"]
    }


@pytest.mark.parametrize("erased", ["0" * 16, h5py.Empty("S1"), b"anonymous", "  "])
def test_an_erased_patient_is_no_subject(prepared, tmp_path, erased):
    shutil.copytree(prepared("fastmri").raw, tmp_path / "raw")
    _change_attributes(tmp_path / "raw", patient_id=lambda _: erased)
    protocol = prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri"), ["val"])
    subjects = {record["subject"] for record in protocol["splits"]["val"]["files"].values()}
    assert subjects == {"file1000000", "file1000017"}


def test_several_acquisitions_share_a_folder(prepared, tmp_path, capsys):
    words = ["prepare", "fastmri", str(prepared("fastmri").raw), str(tmp_path / "out"), "--split", "val"]
    cli.main([*words, "--acquisition", "CORPDFS_FBK", "CORPD_FBK"])
    protocol = read_protocol(tmp_path / "out")
    assert {name: record["acquisition"] for name, record in protocol["splits"]["val"]["files"].items()} == {
        "file1000000.h5": "CORPDFS_FBK",
        "file1000007.h5": "CORPD_FBK",
        "file1000017.h5": "CORPDFS_FBK",
    }
    assert len(list((tmp_path / "out" / "val_equispaced_4x").iterdir())) == 3
    assert verify(tmp_path / "out") == []
    cli.main([*words, "--acquisition", "CORPD_FBK", "CORPDFS_FBK"])  # the order means nothing
    settings = Settings.of("fastmri", acquisition=("CORPD_FBK", "CORPDF"))
    with pytest.raises(ValueError, match="No file has the acquisition CORPDF; there are CORPDFS_FBK, CORPD_FBK"):
        prepare(prepared("fastmri").raw, tmp_path / "other", settings)
    assert not (tmp_path / "other").exists()


def test_subjects_and_sources_of_two_splits_are_said(prepared, tmp_path, capsys):
    for name in CASES:
        assert find_leaks(read_protocol(prepared(name).dest)["splits"]) == []
    shutil.copytree(prepared("raw").raw, tmp_path / "raw")
    shutil.copy(tmp_path / "raw/train/brain.npy", tmp_path / "raw/test/other.npy")
    words = ["prepare", "raw", str(tmp_path / "raw"), str(tmp_path / "out"), "--mask", "FastMRIEquispaced", "4", "0.08"]
    cli.main(words)
    assert "test/other.npy.h5 has the same source as train/brain.npy.h5, " in capsys.readouterr().err
    record = {"subject": "a", "source": {"sha256": "b"}}
    other = {"subject": "a", "source": {"sha256": "c"}}
    assert find_leaks({"train": {"files": {"1": record}}, "val": {"files": {"2": other}}}) == [
        "val/2 has the same subject as train/1, a"
    ]


def test_prostate158_has_its_own_validation_list(prepared, tmp_path):
    raw, _, _, protocol = prepared("prostate158")
    assert protocol["splits"]["train"]["skipped"]["021/t2.nii.gz"] == "its subject belongs to val"
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "prostate158_train" / "valid.csv").unlink()
    settings = Settings.of("prostate158", size=SIZE)
    with pytest.raises(
        FileNotFoundError, match=r"prostate158_train has no valid\.csv, which lists the subjects of val"
    ):
        prepare(tmp_path / "raw", tmp_path / "out", settings, ["val"])
    splits = prepare(tmp_path / "raw", tmp_path / "out", settings)["splits"]
    assert {split: list(part["files"]) for split, part in splits.items()} == {
        "train": ["020_t2.h5", "021_t2.h5"],
        "test": ["001_t2.h5"],
    }
    with pytest.raises(FileExistsError, match=r"train/021_t2\.h5 was prepared before, but belongs to val"):
        prepare(raw, tmp_path / "out", settings)


def test_subjects_are_divided_between_splits(tmp_path):
    affine = np.diag([1.5, 1.5, 8, 1])
    for patient in range(1, 6):
        for frame in (1, 9):
            name = f"patient{patient:03d}"
            path = tmp_path / "raw" / "training" / name / f"{name}_frame{frame:02d}.nii.gz"
            lookalikes.save_nifti(path, lookalikes.magnitude(10 * patient + frame, 2, *SIZE), affine)

    def divide(folder: str, seed: int = 0) -> dict[str, set[str]]:
        settings = Settings.of("acdc", size=SIZE, masks=(), divide=("train", "val", 0.4), seed=seed)
        protocol = prepare(tmp_path / "raw", tmp_path / folder, settings)
        assert verify(tmp_path / folder) == []
        assert sum(len(part["files"]) for part in protocol["splits"].values()) == 10
        return {
            split: {record["subject"] for record in part["files"].values()}
            for split, part in protocol["splits"].items()
        }

    splits = divide("out")
    assert len(splits["val"]) == 2
    assert not splits["train"] & splits["val"]
    assert divide("again") == splits
    assert any(divide(f"seed{seed}", seed) != splits for seed in (1, 2, 3))
    with pytest.raises(ValueError, match="val would get 0 of the 5 subjects of train"):
        prepare(tmp_path / "raw", tmp_path / "few", Settings.of("acdc", size=SIZE, divide=("train", "val", 0.05)))
    with pytest.raises(FileExistsError, match=r"divide was .* and is now None"):
        prepare(tmp_path / "raw", tmp_path / "out", Settings.of("acdc", size=SIZE, masks=()))


def _undersample(path: Path, pattern: str) -> None:
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"]
        for index in range(len(kspace)):
            kspace_slice = kspace[index]
            if pattern == "columns":
                kspace_slice[..., 1::4] = 0
            elif pattern == "one column":
                kspace_slice[..., 11] = 0
            elif pattern == "rows":
                kspace_slice[..., ::3, :] = 0
            else:
                kspace_slice *= np.random.default_rng(index).random(kspace_slice.shape[-2:]) < 0.3
            kspace[index] = kspace_slice


@pytest.mark.parametrize("pattern", ["columns", "one column", "rows", "points"])
def test_undersampled_files_are_no_references(prepared, tmp_path, pattern):
    shutil.copytree(prepared("fastmri").raw, tmp_path / "raw")
    _undersample(tmp_path / "raw" / "singlecoil_val" / "file1000000.h5", pattern)
    part = prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri"), ["val"])["splits"]["val"]
    assert list(part["files"]) == ["file1000017.h5"]
    assert part["failed"]["file1000000.h5"].startswith("its k-space is undersampled: ")


def test_calgary_campinas_for_its_challenge_is_no_reference(tmp_path):
    lookalikes.calgary_campinas(tmp_path / "raw")
    path = tmp_path / "raw" / "Val" / "e13992s3_P09216.7.h5"
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][()]
        file["kspace"][...] = kspace * (np.random.default_rng(0).random((1, *kspace.shape[1:3], 1)) < 0.2)
    for kspace in ("measured", SIMULATED):
        settings = Settings.of("calgary-campinas", kspace=kspace)
        failed = prepare(tmp_path / "raw", tmp_path / kspace, settings, ["val"])["splits"]["val"]["failed"]
        assert "undersampled" in failed[path.name]


def test_edges_that_were_not_acquired_are_no_gaps():
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, length) for length in (30, 40)), indexing="ij")
    kspace = np.ones((3, 30, 40), np.complex64)
    for acquired in (np.hypot(rows, columns) < 1, columns > -0.4, (rows < 0.7) & (abs(columns) < 0.8)):
        check_fully_sampled(kspace * acquired)
        with pytest.raises(SourceError, match="undersampled"):
            check_fully_sampled(kspace * acquired * (np.arange(40) % 2))


def test_one_slice_across_the_edges_does_not_make_a_volume_wrong():
    image = np.zeros((32, 32), np.complex64)
    image[8:24, 8:24] = 1
    inside = centred_fft(image)
    across = inside * (-1) ** np.arange(32)
    check_center([across, inside], centered=True)
    check_center([across, across * (-1) ** np.arange(32)[:, None]], centered=False)
    with pytest.raises(SourceError, match="across the edges of the image, along its width"):
        check_center([across, across], centered=True)


def test_links_that_lead_nowhere_are_an_error(tmp_path, capsys):
    lookalikes.m4raw(tmp_path / "raw")
    words = ["prepare", "m4raw", str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "test"]
    cli.main(words)
    (tmp_path / "raw").rename(tmp_path / "moved")
    before = (tmp_path / "out" / "protocol.json").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"multicoil_test/2022101401_T101\.h5, which is not there"):
        prepare(tmp_path / "moved", tmp_path / "out", Settings.of("m4raw"), ["test"])
    assert (tmp_path / "out" / "protocol.json").read_bytes() == before
    for folder in ("test", "test_equispaced_4x"):
        path = tmp_path / "out" / folder / "2022101401_T101.h5"
        with h5py.File(path) as file, pytest.raises(FileNotFoundError, match=r"links to .*2022101401_T101"):
            next(read_slices(file))


def _prepare_with_header(prepared, tmp_path, change: Callable[[bytes], Any]) -> dict[str, Any]:
    """The validation split after the header of a file was changed."""
    shutil.copytree(prepared("fastmri").raw, tmp_path / "raw")
    with h5py.File(tmp_path / "raw" / "singlecoil_val" / "file1000000.h5", "r+") as file:
        header = file["ismrmrd_header"][()]
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = change(header)
    return prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri"), ["val"])["splits"]["val"]


def test_a_header_that_leaves_out_the_middle_is_reported(prepared, tmp_path):
    change = lambda header: header.replace(b"<center>14</center>", b"<center>20</center>")  # noqa: E731
    part = _prepare_with_header(prepared, tmp_path, change)
    assert part["failed"]["file1000000.h5"].startswith("its header says that the columns -3 to 24 were acquired")
    assert list(part["files"]) == ["file1000017.h5"]


def test_a_header_of_wider_kspace_is_reported(prepared, tmp_path):
    change = lambda header: header.replace(b"<y>34</y>", b"<y>40</y>")  # noqa: E731
    part = _prepare_with_header(prepared, tmp_path, change)
    assert part["failed"]["file1000000.h5"].startswith("its header says which of 40 columns were acquired, and k-space")
    with pytest.raises(ValueError, match="its header says which of 40 columns were acquired, and k-space"):
        open_acquisition(tmp_path / "raw" / "singlecoil_val" / "file1000000.h5")


def test_folders_that_are_links_are_prepared(prepared, tmp_path):
    shutil.copytree(prepared("fastmri").raw, tmp_path / "raw")
    folder = tmp_path / "raw" / "singlecoil_val"
    (tmp_path / "site").mkdir()
    shutil.move(folder / "file1000000.h5", tmp_path / "site")
    (folder / "site").symlink_to(tmp_path / "site")
    (folder / "latest").symlink_to(tmp_path / "site")
    (folder / "loop").symlink_to(folder)
    part = prepare(tmp_path / "raw", tmp_path / "out", Settings.of("fastmri"), ["val"])["splits"]["val"]
    assert list(part["files"]) == ["file1000000.h5", "file1000017.h5"]


def test_a_protocol_of_something_else_is_kept(prepared, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "protocol.json").write_text("{}")
    with pytest.raises(FileExistsError, match="neither empty nor a prepared data set"):
        prepare(prepared("fastmri").raw, tmp_path / "out", Settings.of("fastmri"), ["val"])


def test_kspace_that_parallel_imaging_filled_is_no_reference(prepared, tmp_path):
    factor = (
        b"<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1></accelerationFactor>"
    )
    change = lambda header: header.replace(b"</encoding>", factor + b"</parallelImaging></encoding>")  # noqa: E731
    part = _prepare_with_header(prepared, tmp_path, change)
    assert part["failed"]["file1000000.h5"].startswith(
        "its header says that k-space was measured with an acceleration of 2"
    )


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        (lambda header: header.decode(), True),
        (lambda header: [header], True),
        (lambda header: np.void(header), True),
        (lambda header: b"no document", False),
        (lambda header: header.replace(b"<center>14</center>", b""), False),
        (lambda header: 3, False),
    ],
)
def test_headers_are_kept_in_the_form_that_direct_reads_or_left_out(prepared, tmp_path, change, is_valid):
    _prepare_with_header(prepared, tmp_path, change)
    assert verify(tmp_path / "out") == []
    path = tmp_path / "out" / "val" / "file1000000.h5"
    sample = FastMRIDataset(path.parent, filenames_filter=[path])[0]
    assert sample.get("padding_left") == (lookalikes.NUM_PADDED if is_valid else None)


def test_headers_lose_what_identifies_a_person(prepared, tmp_path):
    person = b"<subjectInformation><patientName>Doe^Jane</patientName></subjectInformation>"
    study = b"<studyInformation><studyDate>1970-01-31</studyDate>"
    study += b"<accessionNumber>1970</accessionNumber><referringPhysicianName>Doe^John</referringPhysicianName>"
    measurement = (
        b"<measurementInformation><measurementID>1970</measurementID><patientPosition>HFS</patientPosition>"
        b"<frameOfReferenceUID>1.2.1970</frameOfReferenceUID>"
        b"</measurementInformation>"
    )

    def change(header: bytes) -> bytes:
        changed = header.replace(b"<studyInformation>", person + measurement + study)
        assert changed.count(b"Doe") and changed.count(b"1970")
        return changed

    _prepare_with_header(prepared, tmp_path, change)
    written = tmp_path / "out" / "val" / "file1000000.h5"
    assert FastMRIDataset(written.parent, filenames_filter=[written])[0]["padding_left"] == lookalikes.NUM_PADDED
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or not {b"Doe", b"1970"} & set(re.findall(b"Doe|1970", path.read_bytes()))


@pytest.mark.parametrize("name", ["acdc", "m4raw", "fastmri"])
def test_a_dead_link_in_the_download_is_reported(prepared, tmp_path, name):
    shutil.copytree(prepared(name).raw, tmp_path / "raw")
    (path,) = (tmp_path / "raw").rglob(f"{Path(FILES[name]['train'][0]).stem}.*")
    path.unlink()
    path.symlink_to(tmp_path / "gone.h5")
    part = prepare(tmp_path / "raw", tmp_path / "out", Settings.of(name, **CASES[name].options), ["train"])
    (reason,) = part["splits"]["train"]["failed"].values()
    assert reason == f"it is a link to {tmp_path / 'gone.h5'}, which is not there"


def test_names_with_spaces_and_percent_signs(tmp_path):
    lookalikes.fastmri(tmp_path / "100%b raw data")
    folder = tmp_path / "100%b raw data" / "singlecoil_val"
    (folder / "file1000000.h5").rename(folder / "file [1  2] 50%b.h5")
    protocol = prepare(tmp_path / "100%b raw data", tmp_path / "out", Settings.of("fastmri"), ["val"])
    assert list(protocol["splits"]["val"]["files"]) == ["file [1  2] 50%b.h5", "file1000017.h5"]
    assert verify(tmp_path / "out") == []
    dest = tmp_path / "out"
    dataset = FastMRIDataset(
        dest / "val_equispaced_4x", pass_mask=True, filenames_lists=["val.lst"], filenames_lists_root=dest
    )
    assert len(dataset) == 16
    assert all(dataset[index]["kspace"].any() for index in range(16))


def test_one_bright_spot_does_not_make_a_slice_blank(tmp_path):
    lookalikes.m4raw(tmp_path / "raw", num_slices=3)
    path = tmp_path / "raw" / "multicoil_test" / "2022101401_T101.h5"
    with h5py.File(path, "r+") as file:
        images = lookalikes.centred_fft(file["kspace"][()], inverse=True)
        images[1, :, 5, 7] += 100 * abs(images).max()
        file["kspace"][...] = lookalikes.centred_fft(images)
    record = prepare(tmp_path / "raw", tmp_path / "out", Settings.of("m4raw"), ["test"])["splits"]["test"]["files"]
    assert record[path.name]["slices"] == [0, 1, 2]


def test_two_at_once_both_succeed(tmp_path):
    lookalikes.m4raw(tmp_path / "raw", num_slices=6)
    settings = Settings.of("m4raw")
    with ThreadPoolExecutor(3) as executor:
        splits = (["train"], ["test"], None)
        done = [executor.submit(prepare, tmp_path / "raw", tmp_path / "out", settings, split) for split in splits]
        assert all(future.result() for future in done)
    assert verify(tmp_path / "out") == []
    prepare(tmp_path / "raw", tmp_path / "alone", settings)
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "alone")
    assert read_protocol(tmp_path / "out") == read_protocol(tmp_path / "alone")


def test_second_run_does_nothing_and_splits_can_be_prepared_one_by_one(prepared, tmp_path, monkeypatch):
    raw, whole, _, _ = prepared("prostate158")
    settings = Settings.of("prostate158", size=SIZE)
    for split in ("test", "train", "val"):
        prepare(raw, tmp_path, settings, [split])
    assert (tmp_path / "protocol.json").read_bytes() == (whole / "protocol.json").read_bytes()
    for name in ("write_volume", "write_view"):
        monkeypatch.setattr(hdf5, name, None)
    prepare(raw, tmp_path, settings)
    assert _hashes(tmp_path) == _hashes(whole)


def test_linked_data_are_small_follow_a_move_and_can_be_copied(tmp_path):
    lookalikes.m4raw(tmp_path / "raw")
    settings = {copy: Settings.of("m4raw", copy=copy) for copy in (False, True)}
    prepare(tmp_path / "raw", tmp_path / "links", settings[False], ["test"])
    prepare(tmp_path / "raw", tmp_path / "copy", settings[True], ["test"])
    before = FastMRIDataset(tmp_path / "copy" / "test_random_4x", pass_mask=True)[3]
    raw_size = (tmp_path / "raw" / "multicoil_test" / "2022101401_T101.h5").stat().st_size
    assert all(path.stat().st_size < raw_size / 10 for path in (tmp_path / "links").rglob("*.h5"))

    (tmp_path / "moved").mkdir()
    for name in ("raw", "links"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    after = FastMRIDataset(tmp_path / "moved" / "links" / "test_random_4x", pass_mask=True)[3]
    for key in ("kspace", "sampling_mask"):
        np.testing.assert_array_equal(before[key], after[key])
    shutil.rmtree(tmp_path / "moved")
    assert FastMRIDataset(tmp_path / "copy" / "test")[3]["kspace"].any()


@pytest.mark.parametrize("name", ["fastmri", "calgary-campinas", "m4raw"])
def test_copies_and_links_have_the_same_content(prepared, tmp_path, name):
    settings = Settings.of(name, **CASES[name].options, copy=True)
    copied = prepare(prepared(name).raw, tmp_path, settings)["splits"]
    linked = prepared(name).protocol["splits"]
    assert copied == linked  # checksums of k-space and header among the rest


@pytest.mark.parametrize(("name", "copy"), [("fastmri", False), ("fastmri", True), ("calgary-campinas", False)])
def test_blank_slices_in_between_are_left_out(tmp_path, name, copy):
    CASES[name].build(tmp_path / "raw", num_slices=9)
    for path in (tmp_path / "raw").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            for index in (2, 5, 6):
                file["kspace"][index] = 0
            kspace = file["kspace"][()]
            if path.name == FILES[name]["train"][0]:
                expected = kspace[[0, 1, 3, 4, 7, 8]]
    protocol = prepare(tmp_path / "raw", tmp_path / "out", Settings.of(name, slices="all", copy=copy))
    record = protocol["splits"]["train"]["files"][FILES[name]["train"][0]]
    assert record["slices"] == [0, 1, 3, 4, 7, 8]
    assert record["dropped"] == {"not all": [], "blank": [2, 5, 6]}
    dataset = FastMRIDataset(
        tmp_path / "out" / "train", filenames_filter=[tmp_path / "out/train" / FILES[name]["train"][0]]
    )
    for index, kspace in enumerate(expected):
        measured = dataset[index]["kspace"]
        if name == "calgary-campinas":
            measured = np.moveaxis(measured, 0, -1)
            kspace = kspace[:, :17].view(np.complex64)
            assert not measured[:, 17:].any()
            measured = measured[:, :17]
        np.testing.assert_array_equal(measured.squeeze(), kspace.squeeze())


def _damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("<html>404</html>" * 100)
    else:
        with h5py.File(path, "r+") as file:
            if damage == "NaN":
                file["kspace"][2, ..., 0] = np.nan
            elif damage == "no k-space":
                del file["kspace"]
            elif damage == "other type":
                del file["kspace"]
                file["kspace"] = np.zeros((4, 5, 6), np.float32)
            elif damage == "group":
                file.move("kspace", "moved")
                file.create_group("kspace")
            else:
                kspace = file["kspace"][...]
                file["kspace"][...] = {
                    "blank": lambda: 0,
                    "too large": lambda: kspace * np.float32(1e17),  # the squares in float32 are infinite
                    "too small": lambda: kspace * np.float32(1e-30),
                    "zero frequency": lambda: np.fft.ifftshift(kspace, axes=(-2, -1)),
                    "image origin": lambda: kspace * (-1) ** np.arange(kspace.shape[-2])[:, None],
                }[damage]()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("fastmri", "cut short", "truncated file"),
        ("fastmri", "empty", "unable to|file signature not found"),
        ("fastmri", "NaN", "it has values that are NaN or infinite"),
        ("fastmri", "no k-space", "it has no array 'kspace', but ismrmrd_header, recon"),
        ("fastmri", "group", "it has no array 'kspace', but "),
        ("fastmri", "too large", r"The largest magnitude of k-space is .*; expected 1e-12 to 1e\+15"),
        ("fastmri", "too small", r"The largest magnitude of k-space is .*; expected 1e-12 to 1e\+15"),
        (
            "m4raw",
            "zero frequency",
            r"at index \(0, 0\) .*, np.roll\(kspace, \(16, 16\), axis=\(-2, -1\)\)",
        ),
        ("m4raw", "image origin", "across the edges of the image, along its height: "),
        ("fastmri", "other type", r"shape \(4, 5, 6\) and the type float32; expected \(slices"),
        ("fastmri", "blank", "of its 8 slices, none of those asked for has anything in it"),
        ("calgary-campinas", "other type", r"shape \(4, 5, 6\) and the type float32; expected .* 2 \* coil"),
        ("acdc", "cut short", "cannot be read as NIfTI"),
        ("acdc", "text", "cannot be read as NIfTI"),
        ("m4raw", "text", "file signature not found"),
    ],
)
def test_a_damaged_file_is_reported_and_stops_no_other(prepared, tmp_path, capsys, name, damage, message):
    shutil.copytree(prepared(name).raw, tmp_path / "raw")
    split = "val" if "val" in FILES[name] else "test"
    bad = FILES[name][split][0]
    (path,) = (path for path in (tmp_path / "raw").rglob(f"{Path(bad).stem}.*") if "_4d" not in path.name)
    intact = path.read_bytes()
    _damage(path, damage)
    words = ["prepare", name, str(tmp_path / "raw"), str(tmp_path / "out")]
    if "size" in CASES[name].options:
        words += ["--size", *map(str, SIZE)]
    if "slices" in CASES[name].options:
        words += ["--slices", CASES[name].options["slices"]]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(words)
    assert exit_info.value.code == 1
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if line.startswith("Not usable: ") and path.name in line]
    parts = read_protocol(tmp_path / "out")["splits"]
    assert re.search(message, next(iter(parts[split]["failed"].values())))
    assert {key: sorted(part["files"]) for key, part in parts.items()} == {
        key: [entry for entry in names if entry != bad] for key, names in FILES[name].items()
    }
    assert not list((tmp_path / "out").rglob(".*"))
    assert not list((tmp_path / "out").rglob(bad))

    path.write_bytes(intact)
    cli.main(words)
    assert _hashes(tmp_path / "out") == _hashes(prepared(name).dest)


@pytest.mark.parametrize("foreign", ["file", "settings", "data set", "source"])
def test_other_content_is_refused(prepared, tmp_path, foreign):
    raw, whole, _, _ = prepared("acdc")
    dest = tmp_path / "out"
    settings = Settings.of("acdc", size=SIZE)
    if foreign == "file":
        dest.mkdir()
        (dest / "thesis.tex").write_text("precious")
        message = "is neither empty nor a prepared data set"
    else:
        shutil.copytree(whole, dest)
        message = "was prepared with other settings: "
    if foreign == "settings":
        settings = Settings.of("acdc", size=SIZE, seed=3)
        message += "seed was 0 and is now 3. Choose a new folder"
    elif foreign == "data set":
        raw, settings = prepared("prostate158").raw, Settings.of("prostate158", size=SIZE)
        message += "data_set was acdc and is now prostate158"
    elif foreign == "source":
        raw = tmp_path / "raw"
        lookalikes.acdc(raw, num_slices=2)
        message = "was not prepared from .* with these settings"
    before = {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=message):
        prepare(raw, dest, settings)
    assert {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()} == before


def test_a_foreign_file_in_the_way_is_not_overwritten(prepared, tmp_path):
    raw, whole, _, _ = prepared("acdc")
    for name in ("test/patient101_frame01.h5", "test_radial_16x/patient101_frame01.mat"):
        dest = tmp_path / Path(name).stem
        shutil.copytree(whole, dest, dirs_exist_ok=True)
        path = dest / name
        path.write_text("precious")
        with pytest.raises(FileExistsError, match=f"{path} (was not prepared from|belongs to another preparation)"):
            prepare(raw, dest, Settings.of("acdc", size=SIZE))
        assert path.read_text() == "precious"


def test_a_file_of_another_preparation_in_the_way_is_not_taken_over(prepared, tmp_path):
    raw, whole, _, _ = prepared("acdc")
    shutil.copytree(whole, tmp_path / "out")
    prepare(raw, tmp_path / "other", Settings.of("acdc", size=SIZE, normalise_slices=True))
    for name in ("test/patient101_frame01.h5", "test_radial_16x/patient101_frame01.mat"):
        path = tmp_path / "out" / name
        original = path.read_bytes()
        shutil.copy(tmp_path / "other" / name, path)
        with pytest.raises(FileExistsError, match=f"{path} (was not prepared from|belongs to another preparation)"):
            prepare(raw, tmp_path / "out", Settings.of("acdc", size=SIZE))
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("acdc", {"kspace": "measured"}, "acdc consists of magnitude images; its k-space cannot be measured"),
        ("acdc", {"coils": "multi"}, "--coils does not apply to acdc"),
        ("acdc", {"copy": True}, "--copy does not apply to acdc with simulated from magnitude k-space"),
        ("prostate158", {"acquisition": "T1"}, "--acquisition does not apply to prostate158"),
        ("fastmri", {"size": (8, 8)}, "--size does not apply to fastmri with measured k-space"),
        ("fastmri", {"fit": "crop"}, "--fit does not apply to fastmri"),
        ("m4raw", {"reconstruction": "rss"}, "--reconstruction does not apply to m4raw with measured"),
        ("fastmri", {"reconstruction": "rss"}, "--reconstruction does not apply to fastmri with measured"),
        ("m4raw", {"axes": ("height", "width")}, "--axes does not apply to m4raw"),
        ("fastmri", {"variable": "data"}, "--variable does not apply to fastmri"),
        ("acdc", {"size": (0, 8)}, r"The size is \(0, 8\); expected at least 1"),
        ("acdc", {"slices": "most"}, "rule for slices is 'most'; expected all, central:N or inner:N"),
        ("acdc", {"seed": -1}, "seed is -1; expected"),
        (
            "acdc",
            {"divide": ("val", "test", 0.5)},
            r"The division is val test 0\.5; expected one of the splits train, test",
        ),
        ("fastmri", {"divide": ("train", "val", 0.5)}, "the name of a new one"),
        ("fastmri", {"divide": ("val", "test", 1.0)}, "a fraction between 0 and 1"),
        (
            "m4raw",
            {"masks": (MaskOptions("FastMRIRandom", 4, 0.08), MaskOptions("FastMRIRandom", 4, 0.04))},
            "2 masks would go to the same folder train_random_4x",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(name, **options)


def test_downloads_that_are_not_are_refused(prepared, tmp_path):
    settings = Settings.of("acdc", size=SIZE)
    with pytest.raises(FileNotFoundError, match="has no folder training or testing; expected the unpacked download"):
        prepare(tmp_path / "nowhere", tmp_path / "out", settings)
    raw = prepared("acdc").raw
    with pytest.raises(ValueError, match="acdc has no split val; expected some of train, test"):
        prepare(raw, tmp_path / "out", settings, ["val"])
    with pytest.raises(ValueError, match="lies in the download"):
        prepare(raw, raw / "out", settings)
    (tmp_path / "raw" / "a" / "testing").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no folder training;"):
        prepare(tmp_path / "raw", tmp_path / "out", settings, ["train", "test"])
    (tmp_path / "raw" / "b" / "testing").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds several folders testing"):
        prepare(tmp_path / "raw", tmp_path / "out", settings)
    (tmp_path / "raw" / "b" / "testing").rmdir()
    with pytest.raises(FileNotFoundError, match=r"testing has nothing to prepare\. Left out: nothing"):
        prepare(tmp_path / "raw", tmp_path / "empty", settings)
    for name in ("one", "two"):
        shutil.copytree(raw / "database" / "testing", tmp_path / "raw" / "a" / "testing" / name)
    with pytest.raises(ValueError, match=r"would both become patient101_frame01\.h5; remove one of them"):
        prepare(tmp_path / "raw", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_only_nifti_data_need_nibabel(prepared, tmp_path, monkeypatch, capsys):
    raw = {name: str(prepared(name).raw) for name in ("fastmri", "acdc")}
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.delitem(sys.modules, "direct_hifimamba.data.formats.nifti", raising=False)
    cli.main(["prepare", "fastmri", raw["fastmri"], str(tmp_path / "fastmri"), "--split", "val"])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["prepare", "acdc", raw["acdc"], str(tmp_path / "acdc")])
    assert "pip install 'direct-hifimamba[data]'" in capsys.readouterr().err


def test_masks_that_direct_cannot_use_are_refused(prepared, tmp_path):
    for mask, message in (
        (MaskOptions("FastMRIEquispaced", 4, 0.001), "needs the centre column"),
        (MaskOptions("FastMRIRandom", 4), "need a center fraction"),
        (MaskOptions("Cartoon", 4), "no mask function 'Cartoon'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(prepared("m4raw").raw, tmp_path / mask.name, Settings.of("m4raw", masks=(mask,)), ["test"])


def test_axes_and_name_of_raw_arrays_can_be_given(tmp_path, capsys):
    lookalikes.raw(tmp_path / "usual")
    kspace = np.load(tmp_path / "usual" / "train" / "brain.npy")
    (tmp_path / "raw" / "train").mkdir(parents=True)
    np.savez(tmp_path / "raw" / "train" / "brain.npz", data=kspace.transpose(2, 3, 1, 0))
    words = ["prepare", "raw", str(tmp_path / "raw")]
    for options, advice in ((["--variable", "data"], "--axes height,width,coil,slice"), ([], "no 'kspace'")):
        with pytest.raises(SystemExit):
            cli.main([*words, str(tmp_path / f"out{len(options)}"), *options])
        assert advice in capsys.readouterr().err
    for _ in range(2):  # the second time, everything is there
        cli.main([*words, str(tmp_path / "out"), "--axes", "height,width,coil,slice", "--variable", "data"])
    with h5py.File(tmp_path / "out" / "train" / "brain.npz.h5") as file:
        np.testing.assert_array_equal(file["kspace"][()], kspace)
    settings = read_protocol(tmp_path / "out")["settings"]
    assert (settings["axes"], settings["variable"]) == (["height", "width", "coil", "slice"], "data")
    assert verify(tmp_path / "out") == []


def test_command_line_reaches_every_option(tmp_path, capsys):
    lookalikes.fastmri(tmp_path / "raw", "multi", num_slices=6)
    words = (
        f"prepare fastmri {tmp_path / 'raw'} {tmp_path / 'out'} --split val --jobs 1 --kspace magnitude --coils multi "
        "--acquisition CORPD_FBK --slices inner:1 --size 20 22 --fit resample --normalise-slices "
        "--reconstruction rss "
        "--mask FastMRIRandom 3 0.2 --mask Radial 4 --mask-training --seed 7"
    )
    cli.main(words.split())
    output = capsys.readouterr().out
    assert "val: 1 files with 4 slices, k-space simulated from magnitude" in output
    assert "left out: 2 because its acquisition is CORPDFS_FBK" in output
    assert "Unlike in the paper" in output
    protocol = read_protocol(tmp_path / "out")
    assert protocol["settings"] == {
        "data_set": "fastmri",
        "kspace": "simulated from magnitude",
        "coils": "multi",
        "acquisition": "CORPD_FBK",
        "slices": "inner:1",
        "size": [20, 22],
        "fit": "resample",
        "reconstruction": "rss",
        "normalise_slices": True,
        "masks": [
            {"name": "FastMRIRandom", "acceleration": 3.0, "center_fraction": 0.2},
            {"name": "Radial", "acceleration": 4.0, "center_fraction": None},
        ],
        "mask_training": True,
        "copy": False,
        "seed": 7,
    }
    assert set(protocol["configurations"]) == {"val", "val_random_3x", "val_radial_4x"}
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words.split()[:4], "--jobs", "0"])
    assert "'0' is not a number of processes; expected an integer, 1 or more" in capsys.readouterr().err
