import json
import os
import platform
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan import hashes
from direct_hifimamba.benchmark.plan.configurations import compose_models
from direct_hifimamba.benchmark.plan.hashes import KSpaceMemory, list_files
from direct_hifimamba.benchmark.plan.inputs import describe_data, describe_inputs
from direct_hifimamba.benchmark.plan.record import check_unchanged, record
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.run.predictions import check_predictions
from tests.benchmark.small_benchmark import MASKS, PROVENANCE, SHAPE, SLICES, VOLUMES, write_specification


def describe(path: Path) -> tuple[Specification, dict[str, Any]]:
    specification = Specification.load(path)
    return specification, describe_inputs(specification, compose_models(specification), describe_all(specification))


def describe_all(specification: Specification, verify: bool = False) -> dict[str, Any]:
    memory = KSpaceMemory(specification.data.parent / "hashes.json", specification.data)
    return describe_data(specification, memory, verify=verify)


def test_all_folders_are_described(small_specification: Path) -> None:
    data = describe_all(Specification.load(small_specification))
    assert set(data) == {"train", *(f"{split}_{name}" for split in ("val", "test") for name in MASKS)}
    assert set(data["test_equispaced_8x"]) == {f"{name}.h5" for name in VOLUMES["test"]}
    four, eight = (data[f"test_{name}"]["d.h5"] for name in MASKS)
    assert four["sha256"] == eight["sha256"] != data["test_equispaced_4x"]["e.h5"]["sha256"]
    assert four["mask"] != eight["mask"]
    assert four["slices"] == SLICES
    assert data["train"]["a.h5"]["mask"] is None


def change_kspace(data: Path) -> None:
    for path in (data / "test" / "d.h5",):
        with h5py.File(path, "r+") as file:
            file["kspace"][0, 0, 0, 0] += 1


def change_mask(data: Path) -> None:
    with h5py.File(data / "test_equispaced_4x" / "d.h5", "r+") as file:
        file["mask"][0] = not file["mask"][0]


def remove_volume(data: Path) -> None:
    (data / "train" / "a.h5").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_kspace, "data.test_equispaced_4x.d.h5.sha256"),
        (change_mask, "data.test_equispaced_4x.d.h5.mask"),
        (remove_volume, "data.train.a.h5"),
    ],
)
def test_a_second_run_refuses_other_data(small_specification: Path, tmp_path: Path, change: Any, named: str) -> None:
    folder = BenchmarkFolder(tmp_path / "out")
    record(folder, *describe(small_specification), [])
    record(folder, *describe(small_specification), [])
    change(tmp_path / "data")
    with pytest.raises(ValueError, match=rf"begun with other settings: {named} was"):
        record(folder, *describe(small_specification), [])


def test_files_are_read_once_unless_they_change_or_are_verified(
    small_specification: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = Specification.load(small_specification)
    path = tmp_path / "data" / "test" / "d.h5"
    before, stat = describe_all(specification), path.stat()
    read: list[Path] = []
    hash_kspace = hashes._hash_kspace
    monkeypatch.setattr(hashes, "_hash_kspace", lambda path: (read.append(path), hash_kspace(path))[1])
    assert describe_all(specification) == before and read == []
    os.utime(path)
    assert describe_all(specification) == before
    # The volume is linked by one file for each mask, and read once.
    assert [(one.parent.parent, one.name) for one in read] == [(tmp_path / "data", "d.h5")]
    with h5py.File(path, "r+") as file:
        file["kspace"][0, 0, 0, 0] += 1
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert describe_all(specification) == before
    assert describe_all(specification, verify=True) != before


def test_a_run_needs_the_data_of_its_plan(small_specification: Path, tmp_path: Path) -> None:
    folder, data = BenchmarkFolder(tmp_path / "out"), tmp_path / "data"
    record(folder, *describe(small_specification), [])
    names = ["train", "test_equispaced_4x"]
    check_unchanged(folder, data, names)
    change_mask(data)
    check_unchanged(folder, data, ["train"])
    with pytest.raises(ValueError, match=r"has changed since .*: test_equispaced_4x\.d\.h5\.mask was"):
        check_unchanged(folder, data, names)
    (data / "train").rename(data / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"train is missing on {platform.node()}"):
        check_unchanged(folder, data, names)


def test_a_second_run_refuses_another_specification_or_configuration(small_specification: Path, tmp_path: Path) -> None:
    folder = BenchmarkFolder(tmp_path / "out")
    specification, inputs = describe(small_specification)
    record(folder, specification, inputs, [])
    assert json.loads(folder.plan.read_text())["origin"] == PROVENANCE["origin"]
    for change, named in (
        ({"seeds": [1, 0]}, r"seeds\.0 was 0 and is 1"),
        ({"warm_up": 0.5}, r"warm_up was 0\.05 and is"),
    ):
        with pytest.raises(ValueError, match=rf"begun with other settings: specification\.{named}"):
            record(folder, Specification.load(write_specification(tmp_path, **change)), inputs, [])
    write_specification(tmp_path)
    unet = tmp_path / "unet.yaml"
    unet.write_text(unet.read_text().replace("num_filters: 4", "num_filters: 8"))
    with pytest.raises(ValueError, match=r"models.U-Net.equispaced_4x.model.num_filters was 4 and is 8"):
        record(folder, *describe(small_specification), [])


def test_a_folder_with_anything_else_is_refused(small_specification: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else"):
        record(BenchmarkFolder(tmp_path / "out"), *describe(small_specification), [])


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("versions", "torch"),
        ("network", "nn/hifimamba/hifimamba.py"),
        ("network", "nn/hifimamba/block.py"),
        ("network", "nn/sensitivity/sensitivity.py"),
        ("training", "training/learning_rate.py"),
        ("training", "training/seeded_data.py"),
        ("training", "data/nlinv.py"),
    ],
)
def test_a_second_run_refuses_other_code(small_specification: Path, tmp_path: Path, group: str, name: str) -> None:
    folder = BenchmarkFolder(tmp_path / "out")
    specification, inputs = describe(small_specification)
    record(folder, specification, inputs, [])
    assert name in inputs["code"][group]
    inputs["code"][group][name] = "0"
    with pytest.raises(ValueError, match=rf"code\.{group}\.{name} was .* and is \"0\".*Finish with the version"):
        record(folder, specification, inputs, [])


def write_part(folder: Path, **changes: Any) -> Path:
    """A specification with the U-Net alone."""
    return write_specification(folder, models={"U-Net": {"configs": ["unet.yaml"]}}, **changes)


def test_models_seeds_and_metrics_can_be_added(small_specification: Path, tmp_path: Path) -> None:
    folder = BenchmarkFolder(tmp_path / "out")
    specification, inputs = describe(write_part(tmp_path, seeds=[0], description="Begun."))
    # No U-Net depends on it.
    inputs["code"]["network"]["nn/hifimamba/hifimamba.py"] = "0"
    record(folder, specification, inputs, [])
    more = {"metrics": ["hfen"], "classical": ["BART pics"], "validations": 2}
    record(folder, *describe(write_specification(tmp_path, **more)), [])
    assert set(json.loads(folder.plan.read_text())["models"]) == {"HiFi-MambaV2", "U-Net"}
    assert Specification.load(folder.specification) == Specification.load(small_specification)
    with pytest.raises(ValueError, match=r"specification\.models\.HiFi-MambaV2 was .* and is null"):
        record(folder, *describe(write_part(tmp_path)), [])


def test_no_model_is_added_to_a_budget_of_minutes(tmp_path: Path, small_specification: Path) -> None:
    folder, budget = BenchmarkFolder(tmp_path / "out"), {"minutes": 1}
    record(folder, *describe(write_part(tmp_path, budget=budget)), [])
    with pytest.raises(ValueError, match="begun without the model HiFi-MambaV2"):
        record(folder, *describe(write_specification(tmp_path, budget=budget)), [])


def test_volumes_of_the_training_are_no_test(small_specification: Path, tmp_path: Path) -> None:
    specification = Specification.load(small_specification)
    data = tmp_path / "data"
    for suffix in MASKS:
        with h5py.File(data / f"test_{suffix}" / "z.h5", "w") as file, h5py.File(data / "train" / "a.h5") as original:
            file["kspace"] = original["kspace"][()]
            file["mask"] = np.ones(SHAPE[1], bool)
    with pytest.raises(ValueError, match=r"test_equispaced_4x/z\.h5 and train/a\.h5 have the same k-space of a slice"):
        describe_all(specification)


@pytest.mark.parametrize(("split", "other"), [("val", "train"), ("test", "train"), ("test", "val")])
def test_no_slice_is_in_two_splits(small_specification: Path, tmp_path: Path, split: str, other: str) -> None:
    source, copy = (tmp_path / "data" / name / f"{VOLUMES[name][0]}.h5" for name in (other, split))
    with h5py.File(source) as original, h5py.File(copy, "r+") as file:
        file["kspace"][SLICES - 1] = original["kspace"][0]
    names = rf"{split}(_equispaced_4x)?/{copy.name} and {other}(_equispaced_4x)?/{source.name}"
    message = rf"{names} have the same k-space of a slice, [0-9a-f]+; training, validation and test"
    with pytest.raises(ValueError, match=message):
        describe_all(Specification.load(small_specification))


def test_empty_slices_and_a_single_evaluation_split_are_no_overlap(small_specification: Path, tmp_path: Path) -> None:
    for split, names in VOLUMES.items():
        with h5py.File(tmp_path / "data" / split / f"{names[0]}.h5", "r+") as file:
            file["kspace"][0] = 0
    describe_all(Specification.load(small_specification))
    splits = {"training": "train", "validation": "test", "test": "test"}
    describe_all(Specification.load(write_specification(tmp_path, splits=splits)))


def test_accelerations_need_the_same_volumes(small_specification: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "test_equispaced_8x" / "d.h5").unlink()
    with pytest.raises(
        ValueError, match=r"d\.h5 does not have the same k-space in test_equispaced_4x and test_equispaced_8x"
    ):
        describe_all(Specification.load(small_specification))


def test_missing_masks_folders_and_files_are_named(small_specification: Path, tmp_path: Path) -> None:
    specification = Specification.load(small_specification)
    folder = tmp_path / "data" / "val_equispaced_4x"
    with h5py.File(folder / "c.h5", "r+") as file:
        del file["mask"]
    with pytest.raises(ValueError, match=r"val_equispaced_4x/c\.h5 has no sampling mask"):
        describe_all(specification)
    (folder / "c.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"c\.h5 is damaged"):
        describe_all(specification)
    (folder / "c.h5").unlink()
    with pytest.raises(ValueError, match=r"val_equispaced_4x holds no \.h5 file"):
        describe_all(specification)
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match="val_equispaced_4x is missing"):
        describe_all(specification)


@pytest.fixture
def predictions(small_specification: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Predictions as DIRECT writes them, and the folder of their data."""
    data, folder = tmp_path / "data" / "test_equispaced_4x", tmp_path / "predictions"
    folder.mkdir()
    for path in list_files(data):
        with h5py.File(path) as measured, h5py.File(folder / path.name, "w") as file:
            file["reconstruction"] = np.ones((SLICES, *SHAPE), np.float32)
            mask = measured["mask"][()].astype(np.float32)
            file["sampling_mask"] = np.tile(mask[:, None], (SLICES, 1, 1, 1))
    return folder, data


def test_predictions_with_the_stored_masks_pass(predictions: tuple[Path, Path]) -> None:
    check_predictions(*predictions)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("reconstruction", np.nan, r"The reconstruction of d\.h5 is not finite: 1 of 12288"),
        ("reconstruction", -np.inf, "is not finite"),
        ("sampling_mask", 2.0, r"d\.h5 was reconstructed from another mask"),
    ],
)
def test_other_predictions_are_refused(predictions: tuple[Path, Path], name: str, value: float, message: str) -> None:
    with h5py.File(predictions[0] / "d.h5", "r+") as file:
        index = (0,) * file[name].ndim
        with h5py.File(predictions[1] / "d.h5") as data:
            assert not data["mask"][0]
        file[name][index] = value
    with pytest.raises(ValueError, match=message):
        check_predictions(*predictions)


def test_predictions_need_not_have_a_mask(predictions: tuple[Path, Path]) -> None:
    with h5py.File(predictions[0] / "d.h5", "r+") as file:
        del file["sampling_mask"]
    check_predictions(*predictions)


def test_a_missing_prediction_is_noticed(predictions: tuple[Path, Path]) -> None:
    (predictions[0] / "e.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"e\.h5"):
        check_predictions(*predictions)


def write_origins(data: Path, **origins: dict[str, Any]) -> None:
    """Give volumes, by name, another provenance, and their views none of these."""
    for split in ("train", "val", "test"):
        for path in data.glob(f"{split}*/*.h5"):
            own = PROVENANCE | origins.get(path.stem, {}) if path.parent.name == split else {"mask": {}}
            with h5py.File(path, "r+") as file:
                file.attrs["provenance"] = json.dumps(own)


@pytest.mark.parametrize(
    ("shared", "named"),
    [
        ({"subject": "p7"}, "subject, p7"),
        ({"subject": "", "source": {"name": "x.nii", "sha256": "ab12"}}, r"source \(SHA-256\), ab12"),
    ],
)
@pytest.mark.parametrize("splits", [("train", "val"), ("train", "test"), ("val", "test")])
def test_splits_share_no_subject_and_no_source(
    small_specification: Path, tmp_path: Path, shared: Any, named: str, splits: tuple[str, str]
) -> None:
    specification = Specification.load(small_specification)
    write_origins(tmp_path / "data", a={"subject": "1"}, c={"subject": "2"}, d={"subject": "3"}, e={"subject": "3"})
    describe_all(specification)
    one, other = (VOLUMES[split][0] for split in splits)
    write_origins(tmp_path / "data", **{one: shared, other: shared})
    with pytest.raises(ValueError, match=rf"{other}\.h5 and .*{one}\.h5 have the same {named}; training, validation"):
        describe_all(specification)


def test_origin_source_and_subject_reach_the_inputs(small_specification: Path, tmp_path: Path) -> None:
    source = {"name": "x.nii", "sha256": "ab12"}
    write_origins(tmp_path / "data", d={"subject": "p1", "source": source}, e={"source": {"name": "y", "sha256": "c"}})
    _, inputs = describe(small_specification)
    assert inputs["origin"] == PROVENANCE["origin"]
    assert inputs["groups"] == {"d.h5": "p1", "e.h5": "y"}
    assert inputs["sources"] == {"d.h5": "ab12", "e.h5": "c"}


def test_no_search_on_the_test_split(small_specification: Path, tmp_path: Path) -> None:
    splits = {"training": "train", "validation": "test", "test": "test"}
    search = {"learning_rates": [0.001, 0.01], "budget": {"iterations": 6}}
    path = write_specification(tmp_path, splits=splits, search=search)
    with pytest.raises(ValueError, match="validation and test are both 'test', and the search would choose"):
        describe_all(Specification.load(path))


def test_no_training_on_an_evaluation_split(small_specification: Path, tmp_path: Path) -> None:
    splits = {"training": "test_equispaced_4x", "validation": "val", "test": "test"}
    with pytest.raises(ValueError, match="would be trained on test_equispaced_4x, a folder of the split test"):
        describe_all(Specification.load(write_specification(tmp_path, splits=splits)))


def test_undersampled_volumes_are_no_references(small_specification: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data" / "train" / "b.h5", "r+") as file:
        file["kspace"][1, :, :, ::4] = 0
    with pytest.raises(ValueError, match=r"b\.h5 is no reference: its k-space is undersampled"):
        describe_all(Specification.load(small_specification))
