"""Tests of projects/hifimamba_benchmark, projects/hifimamba/ablations and quality, without the images."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from direct_hifimamba import cli
from direct_hifimamba.benchmark.plan.configurations import compose_models
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.data.fourier import root_sum_of_squares

PROJECTS = Path(__file__).parents[2] / "projects"
ABLATIONS = PROJECTS / "hifimamba" / "ablations" / "ablations.yaml"
STUDIES = (
    "choices",
    "constant",
    "details",
    "no_warm_up",
    "noise",
    "paired",
    "state_space",
    "state_space_singlecoil",
    "steps",
)
QUALITY = [PROJECTS / "hifimamba" / "quality" / f"{name}.yaml" for name in STUDIES]
SPECIFICATIONS = [*sorted((PROJECTS / "hifimamba_benchmark").glob("*coil*.yaml")), *QUALITY, ABLATIONS]
SPECIFICATIONS = [path for path in SPECIFICATIONS if path.name != "single_coil.yaml"]


def read(path: Path) -> dict:
    """The keys of a specification, with those of the one that it extends."""
    values = yaml.safe_load(path.read_text())
    if "extends" in values:
        values = yaml.safe_load((path.parent / values.pop("extends")).read_text()) | values
    return values


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(PROJECTS / "hifimamba_benchmark")
    return import_module("data")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A specification whose data are not there yet, and its composed configurations."""
    folder = tmp_path_factory.mktemp("data")

    @cache
    def load(path: Path):
        def resolve(names: list[str]) -> list[str]:
            return [str((path.parent / name).resolve()) for name in names]

        values = read(path)
        values["data"] = str(folder)
        values["configs"] = resolve(values["configs"])
        values["accelerations"] = {name: resolve(paths) for name, paths in values["accelerations"].items()}
        for model in values["models"].values():
            model["configs"] = resolve(model["configs"])
        copy = folder / path.name
        copy.write_text(yaml.safe_dump(values, sort_keys=False))
        specification = Specification.load(copy)
        return specification, compose_models(specification)

    return load


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.stem)
def test_every_model_composes(path, load, data):
    specification, composed = load(path)
    assert composed.keys() == specification.models.keys()
    assert specification.accelerations.keys() == data.MASKS.keys()
    for configs in composed.values():
        for name, config in configs.items():
            (entry,) = config.training.datasets
            is_single = path.stem.endswith("singlecoil")
            estimation = entry.transforms.sensitivity_map_estimation
            assert estimation.sensitivity_maps_type == ("unit" if is_single else "rss_estimate")
            masking = entry.transforms.masking
            words = [masking.name, *map(str, masking.accelerations), *map(str, masking.center_fractions)]
            assert " ".join(words) == data.MASKS[name]


def test_models_of_the_knees_train_alike(load):
    path = PROJECTS / "hifimamba" / "fastmri_knee_multicoil" / "benchmark.yaml"
    specification, composed = load(path)
    assert len(composed) == 12 and len(specification.seeds) == 3 and specification.device == "cuda"
    readme = (path.parent / "README.md").read_text()
    assert read(path)["data"] == "../../../data/fastmri_knees" and "fastmri download data/fastmri_knees" in readme
    for configs in composed.values():
        assert configs.keys() == {f"{name}_{factor}x" for name in ("equispaced", "random") for factor in (4, 8)}
        for config in configs.values():
            assert config.additional_models.sensitivity_model.num_filters == 8
            assert [loss.function for loss in config.training.loss.losses] == ["l1_loss", "ssim_loss"]
            assert config.training.loss.crop == config.inference.crop == "header"


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECIFICATIONS[:-1], ids=lambda path: path.stem)
def test_names_of_scaled_parameters_exist(path, load, tmp_path):
    specification, composed = load(path)
    for label, configs in composed.items():
        scales = specification.models[label].scaled_parameters
        if scales:
            Initialisation(scales).write(tmp_path / "weights.pt", configs["equispaced_4x"], 0)


@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.stem)
def test_data_are_where_the_script_writes_them(path, data):
    folder = path.parent / read(path)["data"]
    assert folder.resolve().parent == (data.FOLDER / "data").resolve()
    assert folder.name in data.SIMULATIONS


@pytest.mark.slow
@pytest.mark.parametrize("path", [ABLATIONS, *QUALITY], ids=lambda path: path.stem)
def test_variants_differ_from_the_full_network_and_from_each_other(path, load):
    specification, models = load(path)
    variants = [
        (config["equispaced_4x"].model, config["equispaced_4x"].training, specification.models[label].scaled_parameters)
        for label, config in models.items()
    ]
    assert all(one != other for one, other in combinations(variants, 2))


def test_every_variant_is_explained():
    readme = ABLATIONS.with_name("README.md").read_text()
    for label in read(ABLATIONS)["models"]:
        assert label == "full" or label in readme


def test_no_brain_serves_two_purposes(data):
    splits = (*data.TRAINING_SPLITS, *data.EVALUATION_SPLITS)
    brains = {split: {part.image for part in data.PARTS if part.split == split} for split in splits}
    assert not brains["colin27"] & brains["icbm152"]
    for one, other in combinations(("train", "val", "test"), 2):
        assert not brains[one] & brains[other]


def test_every_mask_is_for_the_same_volumes(data, tmp_path):
    commands = data.simulations(tmp_path)
    assert (
        len(set(commands))
        == len(commands)
        == len(data.SIMULATIONS) * (len(data.TRAINING_SPLITS) + len(data.EVALUATION_SPLITS) * len(data.MASKS))
    )
    for folder in data.SIMULATIONS:
        for split in data.EVALUATION_SPLITS:
            chosen = [words for words in map(str.split, commands) if f"{folder}/{split}_" in words[3]]
            assert {Path(words[3]).name for words in chosen} == {f"{split}_{name}" for name in data.MASKS}
            assert len({(words[2], *words[4 : words.index("--mask")]) for words in chosen}) == 1


def write_packages(folder: Path, data, monkeypatch) -> None:
    """Packages with small images in place of those that the parts are taken from."""
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    contents = {}
    for part in data.PARTS:
        if part.image.member.endswith(".npy"):
            buffer = io.BytesIO()
            np.save(buffer, rng.uniform(1, 2, (24, 24)))
            contents[part.image] = buffer.getvalue()
        elif part.image.member.endswith(".nii.gz"):
            volume = nibabel.Nifti1Image(rng.uniform(1, 2, (20, 24, 12)).astype(np.float32), np.eye(4))
            contents[part.image] = data.gzip.compress(volume.to_bytes())
        else:
            contents[part.image] = data.gzip.compress(rng.integers(1, 99, 256 * 256, np.uint16).tobytes())
    folder.mkdir(parents=True)
    for package in {image.package for image in contents}:
        members = {f"{package}-1/{image.member}": content for image, content in contents.items()
                   if image.package == package}  # fmt: skip
        if package == "pycortex":
            with tarfile.open(folder / f"{package}-1.tar.gz", "w:gz") as archive:
                for name, content in members.items():
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        else:
            with zipfile.ZipFile(folder / f"{package}-1-py3-none-any.whl", "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
    parts = [
        replace(
            part,
            image=replace(part.image, sha256=hashlib.sha256(contents[part.image]).hexdigest()),
            slices=range(min(2, len(part.slices))),
        )
        for part in data.PARTS
    ]
    monkeypatch.setattr(data, "PARTS", parts)


def test_script_makes_the_folders_from_the_packages(data, tmp_path, monkeypatch):
    write_packages(tmp_path / "packages", data, monkeypatch)
    monkeypatch.setattr(data, "SIZE", "--size 32 32")
    monkeypatch.setattr(data, "run", lambda command: cli.main(command.split()[1:]))
    monkeypatch.setattr("sys.argv", ["data.py", "--output", str(tmp_path)])
    for _ in range(2):
        data.main()
    for name, options in data.SIMULATIONS.items():
        folder = tmp_path / name
        assert {path.name for path in folder.iterdir()} == {
            *data.TRAINING_SPLITS,
            *(f"{split}_{mask}" for split in data.EVALUATION_SPLITS for mask in data.MASKS),
        }
        for path in (folder / "test_equispaced_4x").iterdir():
            with h5py.File(path) as file, h5py.File(folder / "test_equispaced_8x" / path.name) as other:
                assert file["kspace"].shape[1:] == ((4, 32, 32) if "--coils 4" in options else (32, 32))
                np.testing.assert_array_equal(file["kspace"], other["kspace"])
                assert file["mask"][()].sum() > other["mask"][()].sum()
                assert root_sum_of_squares(file["kspace"][0]).max() > 0


def test_another_image_than_the_expected_one_is_refused(data, tmp_path, monkeypatch):
    write_packages(tmp_path / "packages", data, monkeypatch)
    image = replace(data.PARTS[0].image, sha256="0")
    with pytest.raises(SystemExit, match=r"is not the file of requirements\.txt; remove"):
        data.read_member(image, tmp_path / "packages")
