"""Tests of projects/hifimamba_benchmark, projects/hifimamba/ablations and the knee benchmark, without their data."""

import re
import shlex
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from direct_hifimamba.benchmark.plan.configurations import compose_models
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import Specification

PROJECTS = Path(__file__).parents[2] / "projects"
ABLATIONS = PROJECTS / "hifimamba" / "ablations" / "ablations.yaml"
MULTICOIL = PROJECTS / "hifimamba_benchmark" / "multicoil.yaml"
SPECIFICATIONS = [MULTICOIL, ABLATIONS]


def read(path: Path) -> dict:
    """The keys of a specification, with those of the one that it extends."""
    values = yaml.safe_load(path.read_text())
    if "extends" in values:
        values = yaml.safe_load((path.parent / values.pop("extends")).read_text()) | values
    return values


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


def simulations() -> dict[str, dict[str, list[str]]]:
    """Options of the commands in the README that simulate the folders, by the name of the folder."""
    found = {}
    for line in MULTICOIL.with_name("README.md").read_text().splitlines():
        if line.startswith("direct-hifimamba simulate random "):
            folder, *words = shlex.split(line)[3:]
            options = re.findall(r"--(\S+) (.+?)(?= --|$)", " ".join(words))
            found[folder] = {name: value.split() for name, value in options}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.stem)
def test_every_model_composes(path, load):
    specification, composed = load(path)
    assert (path.parent / read(path)["data"]).resolve() == MULTICOIL.with_name("data")
    assert composed.keys() == specification.models.keys()
    for configs in composed.values():
        for name, config in configs.items():
            (entry,) = config.training.datasets
            assert entry.name == config.inference.dataset.name == "FastMRIWithMaps"
            assert entry.sensitivity_maps == config.inference.dataset.sensitivity_maps == "nlinv"
            assert config.additional_models.sensitivity_model
            masking = entry.transforms.masking
            words = [masking.name, *map(str, masking.accelerations), *map(str, masking.center_fractions)]
            for split in ("val", "test"):
                assert simulations()[f"data/{split}_{name}"]["mask"] == words


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
@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.stem)
def test_names_of_scaled_parameters_exist(path, load, tmp_path):
    specification, composed = load(path)
    for label, configs in composed.items():
        scales = specification.models[label].scaled_parameters
        if scales:
            Initialisation(scales).write(tmp_path / "weights.pt", configs["equispaced_4x"], 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.stem)
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


def test_splits_have_other_slices_of_other_heads():
    commands = simulations()
    assert commands.keys() == {
        "data/train",
        *(f"data/{split}_equispaced_{rate}x" for split in ("val", "test") for rate in (4, 8)),
    }
    for split in ("val", "test"):  # both accelerations of the same k-space
        without_masks = [
            {key: value for key, value in options.items() if key != "mask"}
            for folder, options in commands.items()
            if f"/{split}_" in folder
        ]
        assert without_masks[0] == without_masks[1]
    for key in ("heads", "seed"):
        assert len({tuple(options[key]) for options in commands.values()}) == 3
    assert len({tuple(options["size"] + options["coils"]) for options in commands.values()}) == 1
