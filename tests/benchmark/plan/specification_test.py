from pathlib import Path
from typing import Any

import pytest

from direct_hifimamba.benchmark.plan.specification import Budget, Search, Specification
from tests.benchmark.small_benchmark import SPECIFICATION, write_specification


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def test_defaults_and_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_specification(folder, baseline=None, seeds=None)
    monkeypatch.chdir(folder.parent)
    specification = Specification.load(path.relative_to(folder.parent))
    assert specification.data == folder / "data"
    assert specification.configs == [folder / "common.yaml"]
    assert specification.baseline == "HiFi-MambaV2"
    assert specification.budget == Budget(iterations=8)
    assert (specification.warm_up, specification.schedule, specification.seeds) == (0.05, "cosine", [0])
    assert specification.folder("test", "equispaced_4x") == folder / "data" / "test_equispaced_4x"


def test_large_seeds_are_not_taken_for_the_same(folder: Path) -> None:
    assert Specification.load(write_specification(folder, seeds=[1000000, 1000001])).seeds == [1000000, 1000001]


SEARCH = {"learning_rates": [1e-3, 0.01], "budget": {"minutes": 2}, "metric": "fastmri_ssim"}


def test_what_is_written_says_the_same_in_another_folder(folder: Path) -> None:
    unet = {"configs": ["unet.yaml"], "overrides": ["training.lr=1e-3"], "scaled_parameters": {"*.weight": 0.02}}
    unet["initial_weights"] = "HiFi-MambaV2"
    models = SPECIFICATION["models"] | {"U-Net": unet}
    specification = Specification.load(write_specification(folder, search=SEARCH, models=models, schedule="steps"))
    assert specification.search == Search(
        learning_rates=[1e-3, 0.01], budget=Budget(minutes=2.0), metric="fastmri_ssim"
    )
    other = folder / "deeper" / "out"
    other.mkdir(parents=True)
    (other / "specification.yaml").write_text(specification.to_yaml(other))
    assert Specification.load(other / "specification.yaml") == specification


def test_numbers_may_be_written_with_exponents(folder: Path) -> None:
    path = write_specification(folder)
    path.write_text(path.read_text() + "search: {learning_rates: [1e-3], budget: {iterations: 6}}")
    specification = Specification.load(path)
    assert specification.search is not None
    assert specification.search.learning_rates == [1e-3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sceds": [0]}, "the key 'sceds' is unknown; expected name, description, data"),
        ({"name": None}, "name is missing"),
        ({"budget": None}, "budget is missing"),
        ({"budget": {}}, "expected one of iterations and minutes"),
        ({"budget": {"iterations": 8, "minutes": 1}}, "expected one of iterations and minutes"),
        ({"budget": {"iterations": 5}}, "budget.iterations is 5; expected a number greater than or equal to 6"),
        ({"budget": {"hours": 5}}, "budget: the key 'hours' is unknown; expected iterations, minutes."),
        ({"budget": {"minutes": -1}}, "budget.minutes is -1; expected a number greater than 0"),
        ({"baseline": "VarNet"}, "baseline is 'VarNet'; expected one of the models HiFi-MambaV2, U-Net"),
        ({"models": {}}, "models is {}; expected at least 1 item"),
        (
            {"models": {"a b": {"configs": ["unet.yaml"]}, "A-B": {"configs": ["unet.yaml"]}}, "baseline": "a b"},
            "models have the labels 'a b' and 'A-B'",
        ),
        (
            {"models": {"Zero-filled": {"configs": ["unet.yaml"]}}, "baseline": "Zero-filled"},
            "which is that of a classical reconstruction",
        ),
        ({"models": {"U-Net": {"configs": "unet.yaml"}}}, "models.U-Net.configs is 'unet.yaml'; expected a valid list"),
        ({"models": {"U-Net": {"config": []}}}, "models.U-Net: the key 'config' is unknown; expected configs"),
        (
            {"models": {"U-Net": {"configs": [], "scaled_parameters": {"*": "half"}}}},
            "scaled_parameters.* is 'half'; expected a valid number",
        ),
        (
            {"models": {"U-Net": {"configs": [], "initial_weights": "UNet"}}},
            "models.U-Net.initial_weights is 'UNet'; expected one of the models U-Net",
        ),
        ({"warm_up": 5}, "warm_up is 5; expected a number less than or equal to 1"),
        ({"warm_up": True}, "warm_up is True"),
        ({"schedule": "linear"}, "schedule is 'linear'; expected 'cosine' or 'steps'"),
        ({"seeds": [0, 0]}, "seeds: expected values that differ"),
        ({"search": {"learning_rates": [0.001, 0.00100000001]}}, "learning_rates: expected values that differ"),
        ({"seeds": [-1]}, "seeds.0 is -1"),
        ({"seeds": []}, "seeds is []"),
        ({"device": "tpu"}, "device is 'tpu'; expected 'cpu' or 'cuda'"),
        ({"search": {"learning_rates": [], "budget": {"iterations": 6}}}, "search.learning_rates is []"),
        (
            {"search": {"learning_rates": [1, 1], "budget": {"iterations": 6}}},
            "learning_rates: expected values that",
        ),
        ({"search": {"learning_rates": [0], "budget": {"iterations": 6}}}, "search.learning_rates.0 is 0"),
        (
            {"search": {"learning_rates": [1], "metric": "psnr"}},
            "search.metric: there is no metric 'psnr'; expected one",
        ),
        ({"metrics": ["ssim"]}, "metrics.0: there is no metric 'ssim'; expected one of fastmri_nmse"),
        ({"validations": -1}, "validations is -1"),
        ({"splits": {"tset": "test"}}, "splits: the key 'tset' is unknown; expected training"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = write_specification(folder, **changes)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        Specification.load(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"data": "nowhere"}, {"configs": ["no.yaml"]}, {"accelerations": {"4x": ["no.yaml"]}}]
)
def test_missing_files_are_named_with_their_key(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}.* is '.*/no.*'; expected a (file|directory)\."):
        Specification.load(write_specification(folder, **changes))


def test_broken_yaml_is_named(folder: Path) -> None:
    path = write_specification(folder)
    path.write_text("name: [")
    with pytest.raises(ValueError, match="no valid YAML"):
        Specification.load(path)


def test_a_specification_extends_another_by_whole_keys(folder: Path) -> None:
    base = write_specification(folder, search=SEARCH)
    path = folder / "longer.yaml"
    path.write_text(f"extends: {base.name}\nname: longer\nbudget: {{minutes: 3}}\nsearch: null\n")
    expected = Specification.load(write_specification(folder, name="longer", budget={"minutes": 3}))
    write_specification(folder, search=SEARCH)
    assert Specification.load(path) == expected


def test_extensions_are_of_one_folder_and_one_step(folder: Path) -> None:
    base = write_specification(folder)
    first, second = folder / "first.yaml", folder / "second.yaml"
    first.write_text(f"extends: {base.name}")
    second.write_text("extends: first.yaml")
    with pytest.raises(ValueError, match="that extends no other"):
        Specification.load(second)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "third.yaml").write_text(f"extends: ../{base.name}")
    with pytest.raises(ValueError, match="expected a specification in the same folder"):
        Specification.load(folder / "deeper" / "third.yaml")
    (folder / "fourth.yaml").write_text("extends: none.yaml")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        Specification.load(folder / "fourth.yaml")
